"""Fairness between functions: whose turn it is where turns are given, and what an instance weighs where the kernel gives them.

**Turns** (`Turns`): deficit round robin by a clock. Each function has used so many seconds ÷ its weight; who has used least goes next, and
who joins begins where the others are, so that nobody saves up turns by staying away. One that takes half a second each time
therefore gets one turn for fifty of those that take ten milliseconds. core/decide/starts.py gives starts by it.

**Weights** (`permille`): the processors are divided by the kernel, among the control groups of instances. If every instance weighed the
same, a function with forty of them would get forty parts beside one with a single one. So all of a function's instances share its weight:
each has 1/n of it, where n are busy, and the kernel's scheduler is a deficit round robin over processor time itself.
docs/decisions/0019-targets-pressure-fairness.md has the reasons.
Silent.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

REMEMBERED_MAX = 256  # of those that do not want a turn now
PERMILLE_MIN, PERMILLE_MAX = 10, 100_000
TOLD_AGAIN = 1.4  # a weight that changes by less is not worth a message


class Turns(Generic[K]):
    """Who goes next of those that want to. `cost`: seconds of a turn, divided by the weight of whose it is; 0: they simply take turns."""

    __slots__ = ("_cost", "_now", "_used")

    def __init__(self, cost: Callable[[K], float] | None = None) -> None:
        self._cost = cost
        self._now = 0.0  # what those have used that go next
        self._used: dict[K, float] = {}

    def next(self, wanting: Iterable[K]) -> K:
        """Whoever has used least; among equals the first. There must be one. Its turn counts as used."""
        used, now = self._used, self._now
        chosen = min(wanting, key=lambda key: max(used.get(key, now), now))
        if self._cost is not None:
            self._now = max(used.get(chosen, now), now)
            used[chosen] = self._now + self._cost(chosen)
            if len(used) > REMEMBERED_MAX:
                self._used = {key: at for key, at in used.items() if at > self._now}
        return chosen


def permille(weight: float, busy: float) -> int:
    """What one of so many busy instances weighs, of what follows from its memory alone: thousandths."""
    return max(PERMILLE_MIN, min(PERMILLE_MAX, round(1000 * weight / max(1.0, busy))))


def differs(told: int, wanted: int) -> bool:
    """Whether another weight is worth telling."""
    return max(told, wanted) >= TOLD_AGAIN * min(told, wanted)
