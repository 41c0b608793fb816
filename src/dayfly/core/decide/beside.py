"""May an asynchronous call begin now? At once when nobody else is there; beside synchronous calls so many a second, evenly.

A backlog of short calls would take whatever the processors have: synchronous calls are never behind them in a queue, and yet wait at each
wake-up for gateway, control, or an instance that works for the backlog. What is left to others must therefore be time, not places. While
synchronous calls come (one in the last second), asynchronous ones begin in small turns, at a rate that leaves most of the time free; a
backlog whose calls are long never meets it. Silent. Used by gateway/leased.py.
"""

SEEN_SECONDS = 1.0
TURN_SECONDS = 0.002


class Beside:
    """One gateway's. `per_second`: how many may begin beside synchronous calls."""

    __slots__ = ("_full_at", "_interval", "_seen_at", "_slack", "_synchronous")

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._slack = max(0.0, TURN_SECONDS - self._interval)  # a turn's worth at once
        self._full_at = self._seen_at = float("-inf")
        self._synchronous = 0

    def __repr__(self) -> str:
        return f"<Beside {1 / self._interval:.0f}/s, {self._synchronous} synchronous calls>"

    def saw(self, synchronous: int, now: float) -> None:
        """So many synchronous calls have come, in all."""
        if synchronous != self._synchronous:
            self._synchronous, self._seen_at = synchronous, now

    def yields(self, now: float) -> bool:
        """Whether synchronous calls come."""
        return now - self._seen_at < SEEN_SECONDS

    def may_begin(self, now: float) -> bool:
        """Whether one more may; it is taken to begin then."""
        if not self.yields(now):
            return True
        if self._full_at - self._slack > now:
            return False
        self._full_at = max(self._full_at, now) + self._interval
        return True
