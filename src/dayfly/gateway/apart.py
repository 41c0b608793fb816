"""This gateway keeps itself to the processors of calls while starts are asked to keep to the others. core/decide/apart.py says when.

Where several gateways share the machine each knows of its own calls only. Called by gateway/fleet.py.
"""

import os
from collections.abc import Collection
from contextlib import suppress

from dayfly.core.decide.apart import HOLD_SECONDS, Served, halves
from dayfly.gateway.entry import Entry


class Apart:
    """Whether starts are kept apart, and where this process may run meanwhile."""

    def __init__(self) -> None:
        self._all = frozenset(os.sched_getaffinity(0))
        self._for_calls = halves(self._all)[0]
        self._served = Served[Entry]()
        self._until = 0.0  # 0: not apart

    def __repr__(self) -> str:
        return f"<Apart {self._served} {'until' if self._until else 'not'} {self._until:.3f}>"

    def asked(self, entry: Entry, others: int, now: float) -> bool:
        """Whether the start of `entry` that begins now is to keep apart; so many `others` are under way."""
        if not others or not self._served.beside(entry):
            return False
        if not self._until:
            _run_on(self._for_calls)
        self._until = now + HOLD_SECONDS
        return True

    def tick(self, entries: Collection[Entry], now: float) -> None:
        """Look again, and come back."""
        if self._served.is_due(now):
            self._served.look({entry: entry.pool.answered_count for entry in entries if entry.pool.ready}, now)
        if self._until and now >= self._until:
            self._until = 0.0
            _run_on(self._all)


def _run_on(processors: Collection[int]) -> None:
    with suppress(OSError):  # somebody has given this process others meanwhile
        os.sched_setaffinity(0, processors)
