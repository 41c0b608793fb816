"""Calls that an instance had received and not marked when it died, while others of its version live on.

The gateway learns who took a call only from the instance's progress page. Offered calls that are neither on the socket nor in anybody's
slot were received by the dead one before it marked them. Or a living one has received such a call and got no processor since to mark
it, or has answered it and was not read yet. So they are looked at several times, over far longer than a process waits for its turn, and
not judged while somebody's answers are left unread. What is in nobody's hand then is answered "may have run", and not repeated: a
process may be stopped for as long as anybody likes, and to give its call to another would run that twice. (When the last instance of
a version dies nobody else can have them: core/decide/pool.py takes them back at once.) Called by gateway/fleet.py.
"""

import asyncio
import time
from collections.abc import Callable

from dayfly.gateway.entry import Entry

LOOKS_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.4)  # before each look; at the last, a call that nobody ever held is given up


def settle_unbegun(loop: asyncio.AbstractEventLoop, entry: Entry, carry_out: Callable[[Entry], None]) -> None:
    """An instance of this version died: look after its calls in a moment."""
    loop.call_later(LOOKS_SECONDS[0], _look, loop, entry, carry_out, frozenset(entry.pool.offered), 1)


def _look(loop: asyncio.AbstractEventLoop, entry: Entry, carry_out: Callable[[Entry], None], suspects: frozenset[int], looks: int) -> None:
    missing = suspects & entry.pool.offered.keys()
    if not missing or entry.pool.closed:
        return
    missing -= entry.untaken()
    for channel in entry.channels.values():
        missing -= set(channel.running(entry.pool.limits.concurrency))
    all_read = {channel.read() for channel in list(entry.channels.values())} <= {True}  # an answer may be all that is left of a call
    missing &= entry.pool.offered.keys()
    if missing and (not all_read or looks < len(LOOKS_SECONDS)):
        loop.call_later(LOOKS_SECONDS[min(looks, len(LOOKS_SECONDS) - 1)], _look, loop, entry, carry_out, missing, looks + 1)
    elif missing:
        entry.pool.doubted(missing, time.monotonic())
        carry_out(entry)
