"""What leaves when there is no room: greedy-dual by size and frequency, as FaasCache has it (Fuerst & Sharma, ASPLOS 2021).

Everything that could be kept has a priority: clock + uses × cost ÷ size. What is used often, is dear to make again and takes little room
stays; the lowest leaves, and the clock becomes its priority. So whatever was not used since falls behind by and by, however often it was
used before. Between two evictions the clock stands still, so it is enough to look at evictions who was used since the last one: the path of
a call pays nothing.

Generic: idle instances (cost = start with init, size = memory), templates, layers. Used by gateway/fleet.py and core/decide/simulate.py.
"""

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Item(NamedTuple, Generic[K]):
    """One thing that takes room. `uses` counts since it is there and never falls; `evictable` is whether it may leave right now."""

    key: K
    uses: int
    cost_seconds: float
    size_bytes: int
    evictable: bool = True


class GreedyDual(Generic[K]):
    """Remembers the clock, and for each item that was there last time its uses and the clock of the last one."""

    def __init__(self) -> None:
        self.clock = 0.0
        self._last: dict[K, tuple[int, float]] = {}

    def choose(self, items: Iterable[Item[K]]) -> K | None:
        """Whose turn it is to leave, or None when nothing may. `items` is all that is there now; what is not in it is forgotten."""
        present: dict[K, tuple[int, float]] = {}
        lowest: tuple[float, K] | None = None
        for item in items:
            uses, at = self._last.get(item.key, (-1, 0.0))
            present[item.key] = item.uses, (at if uses == item.uses else self.clock)
            if item.evictable:
                priority = present[item.key][1] + item.uses * item.cost_seconds / max(item.size_bytes, 1)
                if lowest is None or priority < lowest[0]:
                    lowest = priority, item.key
        self._last = present
        if lowest is None:
            return None
        self.clock = max(self.clock, lowest[0])
        return lowest[1]

    def left(self, key: K) -> None:
        """All of this item is gone. If it comes back it begins anew, also when its uses are counted from the start again."""
        self._last.pop(key, None)

    def __repr__(self) -> str:
        return f"<GreedyDual clock {self.clock:.3g}, {len(self._last)} items>"
