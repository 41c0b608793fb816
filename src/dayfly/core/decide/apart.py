"""When do starts keep off the processors that calls need, and which are those?

A start is made of long pieces inside the kernel (fork, mounts, namespaces: a millisecond and more each) which nothing interrupts where
the kernel is not preemptible. While two of them are under way on two processors, a warm call of somebody else waits for one at each of
its wake-ups. So while a version's calls are answered, several starts of others at once share one half of the processors; alone they may
have all, because nobody waits for them but their own callers. Silent. Carried out by gateway/apart.py and node/apart.py.
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Generic, TypeVar

CALLS_MIN = 2  # answers between two looks: one may have been the first call of a start
LOOK_SECONDS = 0.2
HOLD_SECONDS = 0.05  # after the last start that was to keep off, everything is as before

Version = TypeVar("Version", bound=Hashable)


def halves(processors: Collection[int]) -> tuple[frozenset[int], frozenset[int]]:
    """(For calls, for starts): the first half, the larger one, and the others. Both are all of them where there is only one."""
    inside = sorted(processors)
    middle = (len(inside) + 1) // 2
    return frozenset(inside[:middle]), frozenset(inside[middle:] or inside)


class Served(Generic[Version]):
    """Whose calls are being answered, as seen from one look to the next."""

    def __init__(self) -> None:
        self._answered: dict[Version, int] = {}
        self._served: list[Version] = []  # two are enough to know whether there is another one
        self._looked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Served {self._served}>"

    def is_due(self, now: float) -> bool:
        """Whether to `look` again."""
        return now - self._looked_at >= LOOK_SECONDS

    def look(self, answered: Mapping[Version, int], now: float) -> None:
        """`answered`: how many calls each version with instances has answered so far."""
        before, self._answered, self._looked_at = self._answered, dict(answered), now
        busy = (version for version, count in answered.items() if count - before.get(version, count) >= CALLS_MIN)
        self._served = [version for version, _ in zip(busy, range(2), strict=False)]

    def beside(self, version: Version) -> bool:
        """Whether calls of another version are being answered."""
        return any(other is not version for other in self._served)
