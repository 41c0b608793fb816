"""A client's connection that moves to another gateway, as it is: its descriptor goes along, with the head that was read of it.

For WebSockets, whose messages are all calls of one function: relaying each would cost more than moving the client once to that function's
home. One datagram on a Unix socket carries both. The client notices nothing; if it cannot be moved it is told that we are overloaded. Must
never be done twice to a connection: where it arrives, it is served. Made by gateway/elsewhere.py, taken by gateway/several.py.
"""

import array
import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from dayfly.core.model.errors import Refusal
from dayfly.gateway.exchange import Request, Shared, bare_answer
from dayfly.gateway.server import Connection

log = structlog.get_logger()

HEAD_BYTES_MAX = 128 * 1024
TRIES_MAX, AGAIN_SECONDS = 100, 0.01  # the other's queue may be full for a moment


class Moving(asyncio.Protocol):
    """The sink of a request whose connection is to move; then, for a moment, the connection's protocol."""

    receiving = True

    def __init__(self, request: Request, path: str) -> None:
        self._request = request
        self._path = path
        self._transport: asyncio.Transport | None = None
        self.peer = request.connection.peer
        self.deadline = float("inf")
        self._tries = 0

    @property
    def _site(self) -> Shared:
        return self._request.connection.site

    # ---- the request (Sink)

    def body(self, chunk: bytes) -> None:
        """Such a request has none; what comes is not looked at."""

    def complete(self) -> None:
        self._transport = self._request.connection.hand_over(self)
        if self._transport is not None:
            self._transport.pause_reading()  # whatever comes now is the other's to read
            self._send()

    def left(self) -> None:
        """Nothing to clean up."""

    def writable(self, yes: bool) -> None:
        """Nothing is written."""

    def begun(self) -> bool:
        return True

    # ---- the move

    def _send(self) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        request = self._request
        lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target), *(b"%b: %b\r\n" % pair for pair in request.headers), b"\r\n"]
        rights = array.array("i", [self._transport.get_extra_info("socket").fileno()])
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendmsg([b"".join(lines)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, self._path)
        except BlockingIOError as error:
            self._tries += 1
            if self._tries < TRIES_MAX:
                asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._send)
            else:
                self._give_up(error)
        except OSError as error:
            self._give_up(error)
        else:
            self._transport.abort()  # our descriptor of it; the other's stays

    def _give_up(self, error: OSError) -> None:
        log.warning("connection_not_moved", error=str(error))
        assert self._transport is not None
        refusal = Refusal("overloaded", "The gateway of this function cannot be reached.", retry_after_seconds=1.0)
        self._transport.write(bare_answer(refusal, self._site.date))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.leave(self)

    # ---- what the site asks (gateway/site.py Client)

    def timed_out(self) -> None:
        self.abort()

    def close_when_idle(self) -> None:
        """It is on its way."""

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Arrived(Connection):
    """A connection that came from another gateway, for one request."""

    __slots__ = ()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        request = self._upgrading or self._request or self._current
        if request is not None:
            request.close = True  # if no WebSocket comes of it; the next request may be another gateway's


class Arrivals:
    """The end of the way: takes connections and what was read of them."""

    def __init__(self, path: str, make: Callable[[], Arrived]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._door.setblocking(False)
        unseen = Path(f"{path}.new")
        unseen.unlink(missing_ok=True)
        self._door.bind(str(unseen))
        unseen.rename(path)  # from now on they come to us and not to a predecessor
        self._loop.add_reader(self._door, self._readable)

    def _readable(self) -> None:
        try:
            head, ancillary, flags, _ = self._door.recvmsg(HEAD_BYTES_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("connection_not_taken", error=str(error))
            return
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        for fd in descriptors:
            if flags & socket.MSG_TRUNC:
                os.close(fd)
                continue
            task = self._loop.create_task(self._take(socket.socket(fileno=fd), head))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take(self, sock: socket.socket, head: bytes) -> None:
        sock.setblocking(False)
        _, connection = await self._loop.connect_accepted_socket(self._make, sock)
        connection.data_received(head)

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._door)
        self._door.close()
