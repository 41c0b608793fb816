"""Whose start goes next, when more are asked for than may be under way at once?

A burst of one function must not keep another's first caller waiting. So a version that has no instance at all goes before versions that
want more of them, and may use a reserve of the slots that those may not; they take turns in what is left, by what their starts take of
the machine (core/decide/fair.py): imports of half a second do not keep forks of five milliseconds waiting.

A fresh start computes: walls, a first import. More of them at once than a few for each processor end no sooner, and keep warm calls
waiting. One that is older than FRESH_SECONDS and not ready waits for something, or imports for long: it holds only a slot.
Silent. Called by gateway/fleet.py, which begins what `next` names and says when it is over.
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from dayfly.core.decide.fair import Turns

FRESH_SECONDS = 0.02
RESERVE_PART = 4  # one slot in so many is for first starts

Version = TypeVar("Version", bound=Hashable)


class Starts(Generic[Version]):
    """Starts asked for and not begun, and how many are under way. `slots`: as many at once on the whole machine; `fresh`: of these, as many
    that have just begun (0: all). `cost`: seconds that a start of a version takes, divided by the version's weight."""

    def __init__(self, slots: int, fresh: int = 0, cost: Callable[[Version], float] | None = None) -> None:
        self.slots = slots
        self.fresh = fresh or slots
        self.under_way = 0
        self._begun: deque[float] = deque()  # when, within the last FRESH_SECONDS
        self._first: deque[Version] = deque()  # each once
        self._more: dict[Version, int] = {}  # how many each wants; among equals the first has its turn
        self._turns = Turns(cost)

    def __repr__(self) -> str:
        return f"<Starts under_way={self.under_way}/{self.slots} first={len(self._first)} more={sum(self._more.values())}>"

    def may_begin(self, now: float) -> bool:
        """Whether `next` would name a version."""
        return bool(self._first and self._has_room(now)) or bool(self._more and self._has_room(now, reserve=True))

    def _has_room(self, now: float, *, reserve: bool = False) -> bool:
        """For one more; with `reserve`, beside what is kept for first starts."""
        while self._begun and now - self._begun[0] >= FRESH_SECONDS:
            self._begun.popleft()
        young = min(self.under_way, len(self._begun))
        return self.under_way < _part(self.slots, reserve) and young < _part(self.fresh, reserve)

    @property
    def quiet(self) -> bool:
        """Whether none is under way and none waits."""
        return not (self.under_way or self._first or self._more)

    def ask(self, version: Version, count: int, *, is_first: bool) -> None:
        """`is_first`: the version has no instance, and none is starting."""
        if is_first and count > 0 and version not in self._first:
            self._first.append(version)
            count -= 1
        if count > 0:
            self._more[version] = self._more.get(version, 0) + count

    def next(self, now: float) -> Version | None:
        """Whose start to begin now; None when nobody's may. It is taken out, and under way only once `begun` is said."""
        if self._first and self._has_room(now):
            return self._first.popleft()
        if not self._more or not self._has_room(now, reserve=True):
            return None
        version = self._turns.next(self._more)
        count = self._more.pop(version)
        if count > 1:
            self._more[version] = count - 1  # to the end: the others come first
        return version

    def begun(self, now: float) -> None:
        self.under_way += 1
        self._begun.append(now)

    def ended(self) -> None:
        """A start under way came to its end, a good or a bad one."""
        self.under_way -= 1

    def drop_all(self) -> list[Version]:
        """Everything that was asked for and not begun: no longer. As often as it was asked for."""
        dropped = [*self._first, *(version for version, count in self._more.items() for _ in range(count))]
        self._first.clear()
        self._more.clear()
        return dropped


def _part(places: int, reserve: bool) -> int:
    """All of them, or those that are not kept for first starts."""
    return places - (max(1, places // RESERVE_PART) if reserve and places > 1 else 0)
