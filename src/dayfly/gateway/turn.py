"""When an offered call goes out to the instances: at once while one of them is free, else with all others of this turn of the loop.

Instances are faster than a gateway. One that is handed its calls one by one falls asleep between any two, and to wake it is the dearest
part of sending (measured at 64 connections: a third more calls a second without it). So while none can be free, calls are kept until all
that the loop has read is looked at, and then sent in a row: an instance is woken once, and its answers come back in a row, too.
Never decides whether a call is offered (core/decide/pool.py has), only when it is sent. Used by gateway/fleet.py.
"""

import asyncio

from dayfly.core.model.call import OFFERED, Call
from dayfly.gateway.entry import Entry


class Turn:
    """Offers of one turn of the loop, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kept: dict[int, tuple[Entry, Call]] = {}  # by sequence number: who is taken back and offered again is still sent once

    def __repr__(self) -> str:
        return f"<Turn {len(self._kept)} kept>"

    def offer(self, entry: Entry, call: Call) -> None:
        """Send it, now or at this turn's end."""
        pool = entry.pool
        if self._kept or len(pool.offered) > pool.ready * pool.limits.concurrency:
            if not self._kept:
                self._loop.call_soon(self.send)
            self._kept[call.seq] = (entry, call)
        elif not _sent(entry, call):
            pool.blocked(call)

    def send(self) -> None:
        """All that is kept. Also called before anybody asks what is on a socket."""
        if not self._kept:
            return
        kept, self._kept = self._kept, {}
        blocked: list[tuple[Entry, Call]] = []
        full: set[Entry] = set()
        for entry, call in kept.values():
            if call.state == OFFERED and (entry in full or not _sent(entry, call)):  # others were answered or taken back since
                full.add(entry)
                blocked.append((entry, call))
        for entry, call in reversed(blocked):  # each goes to the front
            entry.pool.blocked(call)


def _sent(entry: Entry, call: Call) -> bool:
    return entry.socket.offer(call.seq, int(call.deadline * 1e9), call.reply)
