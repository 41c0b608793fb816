"""When offered calls go out to the instances: at once while one of them is free, else with all others of this turn of the loop.

Instances are faster than a gateway. One that is handed its calls one by one falls asleep between any two, and to wake it is the dearest
part of sending (measured at 64 connections: a third more calls a second without it). So while none can be free, a version is noted, and
when all that the loop has read is looked at, its pool decides once about all of it, and its calls go out in a row (gateway/burst.py).
Never decides whether a call is offered (core/decide/pool.py has), only when it is sent. Used by gateway/fleet.py.
"""

import asyncio
from collections.abc import Callable

from dayfly.gateway.entry import Entry


class Turn:
    """Versions that this turn of the loop has something for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, carry_out: Callable[[Entry], None]) -> None:
        self._loop = loop
        self._carry_out = carry_out
        self._noted: list[Entry] = []

    def __repr__(self) -> str:
        return f"<Turn {len(self._noted)} noted>"

    def note(self, entry: Entry) -> None:
        """Its pool has calls to send, or facts it has not yet decided on."""
        pool = entry.pool
        if pool.urgent or (pool.unsettled and not pool.ready):  # who is to start something waits for nobody
            self._carry_out(entry)
        if entry.noted:
            return
        if not pool.unsettled and len(pool.offered) <= pool.ready * pool.limits.concurrency:
            entry.send()
            return
        if not self._noted:
            self._loop.call_soon(self.end)
        entry.noted = True
        self._noted.append(entry)

    def end(self) -> None:
        """Decide on what is noted, and send."""
        noted, self._noted = self._noted, []
        try:
            for entry in noted:
                self._carry_out(entry)
                entry.noted = False
                entry.send()
        except BaseException:  # a defect at one version must not silence the others: the clock notes them again
            for entry in noted:
                entry.noted = False
            raise
