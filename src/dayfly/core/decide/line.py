"""The calls that wait, oldest first, and who of them ran out of time: a deque that also knows whose caller is in a hurry. Silent.

Deadlines made from the version's timeout come in the order of arrival, so the front is the first to be late. A caller may want its call
begun sooner (`hurry`); these stand in a heap as well. An entry there outlives a call that was offered or left; such are dropped when they
come up, or all at once when they outnumber the line. Used by core/decide/pool.py.
"""

from collections import deque
from heapq import heapify, heappop, heappush

from dayfly.core.model.call import WAITING, Call

STALE_MAX = 64  # entries of the heap that may be of calls no longer here, beside as many as wait


class Line(deque[Call]):
    """The calls that wait."""

    __slots__ = ("_hurried",)

    def __init__(self) -> None:
        super().__init__()
        self._hurried: list[tuple[float, int, Call]] = []

    def hurry(self, call: Call, by: float) -> None:
        """This call, which waits here, is late from `by` on."""
        if len(self._hurried) >= 2 * len(self) + STALE_MAX:
            self._hurried = [entry for entry in self._hurried if entry[2].state == WAITING]
            heapify(self._hurried)
        heappush(self._hurried, (by, call.seq, call))

    def has_late(self, now: float) -> bool:
        """Whether `pop_late` may find one."""
        return bool(self) and (self[0].deadline <= now or (bool(self._hurried) and self._hurried[0][0] <= now))

    def pop_late(self, now: float) -> Call | None:
        """One call whose time has passed, taken out; None when there is none."""
        if self and self[0].deadline <= now:
            return self.popleft()
        while self._hurried and self._hurried[0][0] <= now:
            call = heappop(self._hurried)[2]
            if call.state == WAITING:
                self.remove(call)
                return call
        return None
