"""Whose start goes next, when more are asked for than may be under way at once?

A burst of one function must not keep another's first caller waiting. So a version that has no instance at all goes before versions that
want more of them, and may use a reserve of the slots that those may not; they take turns in what is left, one start each.
Silent. Called by gateway/fleet.py, which begins what `next` names and says when it is over.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

RESERVE_PART = 4  # one slot in so many is for first starts

Version = TypeVar("Version", bound=Hashable)


class Starts(Generic[Version]):
    """Starts asked for and not begun, and how many are under way. `slots`: as many at once on the whole machine."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.shared = slots - (max(1, slots // RESERVE_PART) if slots > 1 else 0)  # slots that are not kept for first starts
        self.under_way = 0
        self._first: deque[Version] = deque()  # each once
        self._more: dict[Version, int] = {}  # whose turn it is, first; how many each wants

    def __repr__(self) -> str:
        return f"<Starts under_way={self.under_way}/{self.slots} first={len(self._first)} more={sum(self._more.values())}>"

    @property
    def may_begin(self) -> bool:
        """Whether `next` would name a version."""
        return bool(self._first and self.under_way < self.slots) or bool(self._more and self.under_way < self.shared)

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

    def next(self) -> Version | None:
        """Whose start to begin now; None when nobody's may. It is taken out, and under way only once `begun` is said."""
        if self._first and self.under_way < self.slots:
            return self._first.popleft()
        if not self._more or self.under_way >= self.shared:
            return None
        version = next(iter(self._more))
        count = self._more.pop(version)
        if count > 1:
            self._more[version] = count - 1  # to the end: the others come first
        return version

    def begun(self) -> None:
        self.under_way += 1

    def ended(self) -> None:
        """A start under way came to its end, a good or a bad one."""
        self.under_way -= 1

    def drop_all(self) -> list[Version]:
        """Everything that was asked for and not begun: no longer. As often as it was asked for."""
        dropped = [*self._first, *(version for version, count in self._more.items() for _ in range(count))]
        self._first.clear()
        self._more.clear()
        return dropped
