"""Two TCP connections spliced: what arrives on one leaves on the other, ends and resets included. Used by node/egress.py.

Bounded by flow control alone: when one side is slow its peer is not read, so a slow reader costs one write buffer and stalls
nobody else. Must never look into the bytes.
"""

import asyncio
import contextlib
import socket
import struct
from typing import cast

_BUFFER_BYTES = 256 * 1024  # written but not yet taken by the kernel, per direction, before the other side is paused
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Meter:
    """Running totals of one instance."""

    __slots__ = ("connections", "received", "refused", "sent")

    def __init__(self) -> None:
        self.sent = self.received = self.connections = self.refused = 0


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, so that the other end learns at once that this was no orderly end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    connection.close()


class _Side(asyncio.Protocol):
    """One of the two connections. `peer` is set before any event arrives."""

    peer: "_Side"
    transport: asyncio.Transport

    def __init__(self, flow: "Flow", connection: socket.socket, is_client: bool) -> None:
        self._flow = flow
        self._connection = connection
        self._is_client = is_client
        self.ended = False  # it has sent end-of-file
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_BUFFER_BYTES)
        self.transport.pause_reading()  # until the peer stands too

    def data_received(self, data: bytes) -> None:
        self._flow.moved(len(data), self._is_client)
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.peer.ended:
            self.transport.close()  # both close once their buffers are written
            self.peer.transport.close()
        elif not self.peer.lost:
            self.peer.transport.write_eof()
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        if not self.peer.lost:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.lost:
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if error or not (self.ended and self.peer.ended):
            self.peer.abort()
        self._flow.side_lost(self.peer.lost)

    def abort(self) -> None:
        """End now; the other end sees a reset."""
        if not self.lost:
            with contextlib.suppress(OSError):
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self.transport.abort()


class Flow:
    """One spliced connection of an instance."""

    def __init__(self, meter: Meter, idle_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._meter = meter
        self._idle_seconds = idle_seconds
        self._moved_at = self._loop.time()
        self._over = self._loop.create_future()

    def moved(self, count: int, from_client: bool) -> None:
        self._moved_at = self._loop.time()
        if from_client:
            self._meter.sent += count
        else:
            self._meter.received += count

    def side_lost(self, both: bool) -> None:
        if both and not self._over.done():
            self._over.set_result(None)

    async def run(self, client: socket.socket, upstream: socket.socket, early: bytes = b"") -> None:
        """Splice until both sides are done, nothing has moved for `idle_seconds`, or the task is cancelled.

        Both sockets are connected, non-blocking, and closed when this returns. `early` was read from the client already.
        """
        sides = _Side(self, client, True), _Side(self, upstream, False)
        sides[0].peer, sides[1].peer = sides[1], sides[0]
        try:
            await self._attach(sides[0], client)
            await self._attach(sides[1], upstream)
            if early:
                sides[0].data_received(early)
            for side in sides:
                side.transport.resume_reading()
            await self._wait_over()
        finally:
            for side in sides:
                if hasattr(side, "transport"):
                    side.abort()

    async def _attach(self, side: _Side, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.create_connection(lambda: side, sock=connection)

    async def _wait_over(self) -> None:
        while not self._over.done():
            left = self._moved_at + self._idle_seconds - self._loop.time()
            if left <= 0:
                return
            await asyncio.wait([self._over], timeout=left)
