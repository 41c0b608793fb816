"""The node and all who fork for it keep to the processors of starts while calls need the others. core/decide/apart.py says when and why.

What they fork begins there too, and is let go before it runs anybody's code: user code that counts its processors finds all of them.
Called by node/server.py, on one thread.
"""

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from dayfly.core.decide.apart import HOLD_SECONDS, halves


class Apart:
    """Where starts are made. `parents`: the pids of all who fork instances, this process left out."""

    def __init__(self, processors: frozenset[int], parents: Callable[[], Iterable[int]]) -> None:
        self._all = processors
        self._for_starts = halves(processors)[1]
        self._parents = parents
        self._until = 0.0  # 0: not apart

    def __repr__(self) -> str:
        return f"<Apart {sorted(self._for_starts)} {'until' if self._until else 'not'} {self._until:.3f}>"

    def keep_off(self, now: float) -> None:
        """A start comes that is to keep off the others' processors."""
        if not self._until:
            self._move(self._for_starts)
        self._until = now + HOLD_SECONDS

    def patience_seconds(self, now: float) -> float:
        """How long until `check` has something to do."""
        return max(0.0, self._until - now) if self._until else float("inf")

    def check(self, now: float) -> None:
        """Come back when none has come for a while."""
        if self._until and now >= self._until:
            self._until = 0.0
            self._move(self._all)

    def _move(self, processors: Collection[int]) -> None:
        for pid in (0, *self._parents()):
            with suppress(OSError):  # it has just ended, or somebody has given it others
                os.sched_setaffinity(pid, processors)
