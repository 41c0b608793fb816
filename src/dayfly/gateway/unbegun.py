"""Calls that an instance had received and not begun when it died: they go back to the queue.

The gateway learns who took a call only from the instance's progress page. Offered calls that are neither on the socket nor in anybody's
slot were received by the dead one before it marked them: never begun. Looked at twice, so that an answer on its way is not taken for a
loss. Called by gateway/fleet.py.
"""

import asyncio
import time
from collections.abc import Callable

from dayfly.gateway.entry import Entry

CHECK_SECONDS = 0.05  # after this, an offered call that nobody holds was never begun
LOOKS = 2


def return_unbegun(loop: asyncio.AbstractEventLoop, entry: Entry, carry_out: Callable[[Entry], None]) -> None:
    """An instance of this version died: look after its calls in a moment."""
    loop.call_later(CHECK_SECONDS, _look, loop, entry, carry_out, frozenset(entry.pool.offered), LOOKS)


def _look(loop: asyncio.AbstractEventLoop, entry: Entry, carry_out: Callable[[Entry], None], suspects: frozenset[int], looks: int) -> None:
    missing = suspects & entry.pool.offered.keys()
    if not missing or entry.pool.closed:
        return
    missing -= set(entry.socket.untaken())
    for channel in entry.channels.values():
        missing -= set(channel.running(entry.pool.limits.concurrency))
    if missing and looks > 1:
        loop.call_later(CHECK_SECONDS, _look, loop, entry, carry_out, missing, looks - 1)
    elif missing:
        entry.pool.returned(missing, time.monotonic())
        carry_out(entry)
