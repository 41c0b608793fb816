"""How many instances were needed lately: the highest need within a sliding window, in eight slots of a ring.

A fixed window today; a later issue puts a histogram of idle times in its place. Used by core/decide/pool.py.
"""

SLOTS = 8
SLOT_SECONDS_MIN = 0.01


class Peaks:
    """The highest number noted within the last `window_seconds` (up to one slot longer)."""

    def __init__(self, window_seconds: float) -> None:
        self._slot_seconds = max(window_seconds / SLOTS, SLOT_SECONDS_MIN)
        self._highest = [0] * SLOTS
        self._slot = -1

    def note(self, needed: int, now: float) -> None:
        """So many are needed at `now`; times never go back."""
        slot = int(now / self._slot_seconds)
        for passed in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
            self._highest[passed % SLOTS] = 0
        self._slot = slot
        self._highest[slot % SLOTS] = max(self._highest[slot % SLOTS], needed)

    def highest(self) -> int:
        """The most that was noted within the window, as of the last `note`."""
        return max(self._highest)
