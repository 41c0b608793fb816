"""Taking connections from a listening socket that several gateways share.

One socket has one queue: whoever has time takes the next connection, a gateway that died leaves nothing behind in a queue of its own, and a
successor needs no new socket (docs/decisions/0020-gateways.md). A single gateway leaves this to its loop, which empties the whole queue at
once; here each takes one connection a turn, so that a burst is shared by those who are awake. Must never wait. Made by gateway/main.py.
"""

import asyncio
import socket
from collections.abc import Callable

import structlog

log = structlog.get_logger()

PAUSE_SECONDS = 0.25  # without descriptors; others may have some


class Acceptor:
    """Accepts until it is closed. `may_take`: whether this gateway is the one whose turn it is."""

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol], may_take: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make = make
        self._may_take = may_take
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._readable)

    def _readable(self) -> None:
        """Somebody waits: take one, or leave it to others for a moment."""
        if pause := self._may_take():
            self._pause(pause)
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another gateway was quicker, or the client has left
        except OSError as error:
            log.warning("cannot_accept", error=str(error))
            self._pause(PAUSE_SECONDS)
            return
        sock.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._listen)

    def close(self) -> None:
        """Take no more. The socket stays open, for it is everybody's."""
        self._closed = True
        self._loop.remove_reader(self._listener)
