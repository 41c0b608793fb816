"""Two TCP connections spliced: what arrives on one leaves on the other, ends and resets included. Used by node/egress.py.

An instance that is over its rate is not read for a while. When one side is slow its peer is not read, so a slow reader costs one
chunk and stalls nobody else. Plain readiness callbacks instead of transports: half-closing and resetting need exact control, and
uvloop's transports read before a peer is attached. Must never look into the bytes.
"""

import asyncio
import contextlib
import socket
import struct

from dayfly.core.decide.pace import Pace

_CHUNK_BYTES = 128 * 1024  # read at once; also all that a direction ever holds
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Meter:
    """Running totals of one instance, and its pace."""

    __slots__ = ("connections", "pace", "received", "refused", "sent")

    def __init__(self, bytes_per_second: int = 0) -> None:
        self.pace = Pace(bytes_per_second)
        self.sent = self.received = self.connections = self.refused = 0


def family(host: str) -> socket.AddressFamily:
    """Of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, so that the other end learns at once that this was no orderly end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    connection.close()


class _Way:
    """One direction: reads `source`, writes `sink`; while `sink` is full, holds one chunk and does not read."""

    def __init__(self, flow: "Flow", source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        self._flow = flow
        self._source, self._sink = source, sink
        self._from_client = from_client
        self._held = memoryview(b"")
        self._pause: asyncio.TimerHandle | None = None  # over the rate: not read until then
        self.ended = False  # end-of-file was read and passed on

    def start(self, early: bytes = b"") -> None:
        self._flow.loop.add_reader(self._source, self._readable)
        if early:
            self._pass_on(early)

    def stop(self) -> None:
        if self._pause:
            self._pause.cancel()
        self._flow.loop.remove_reader(self._source)
        self._flow.loop.remove_writer(self._sink)

    def _readable(self) -> None:
        try:
            data = self._source.recv(_CHUNK_BYTES)
            if data:
                self._pass_on(data)
            else:
                self._flow.loop.remove_reader(self._source)
                self._sink.shutdown(socket.SHUT_WR)
                self.ended = True
                self._flow.way_ended()
        except BlockingIOError:
            pass
        except OSError:
            self._flow.broken()

    def _pass_on(self, data: bytes) -> None:
        wait_seconds = self._flow.moved(len(data), self._from_client)
        if wait_seconds:
            self._flow.loop.remove_reader(self._source)
            self._pause = self._flow.loop.call_later(wait_seconds, self._go_on)
        try:
            sent = self._sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._flow.broken()
            return
        if sent < len(data):
            self._held = memoryview(data)[sent:]
            self._flow.loop.remove_reader(self._source)
            self._flow.loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        try:
            self._held = self._held[self._sink.send(self._held) :]
            self._flow.touched()
        except BlockingIOError:
            return
        except OSError:
            self._flow.broken()
            return
        if not self._held:
            self._flow.loop.remove_writer(self._sink)
            if not self._pause:
                self._flow.loop.add_reader(self._source, self._readable)

    def _go_on(self) -> None:
        self._pause = None
        if not self._held:
            self._flow.loop.add_reader(self._source, self._readable)


class Flow:
    """One spliced connection of an instance."""

    def __init__(self, meter: Meter, idle_seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._meter = meter
        self._idle_seconds = idle_seconds
        self._moved_at = self.loop.time()
        self._over: asyncio.Future[bool] = self.loop.create_future()  # True: orderly
        self._ways: tuple[_Way, ...] = ()

    def moved(self, count: int, from_client: bool) -> float:
        """Bytes were read. Seconds until more may be."""
        self._moved_at = self.loop.time()
        if from_client:
            self._meter.sent += count
        else:
            self._meter.received += count
        return self._meter.pace.passed(count, self._moved_at)

    def touched(self) -> None:
        """Bytes were written that had waited."""
        self._moved_at = self.loop.time()

    def way_ended(self) -> None:
        """One direction has passed on its end-of-file; the other goes on."""
        if all(way.ended for way in self._ways) and not self._over.done():
            self._over.set_result(True)

    def broken(self) -> None:
        """One of the two connections is gone."""
        if not self._over.done():
            self._over.set_result(False)

    async def run(self, client: socket.socket, upstream: socket.socket, early: bytes = b"") -> None:
        """Splice until both have ended, one breaks, nothing has moved for `idle_seconds`, or the task is cancelled.

        Both sockets are connected, non-blocking, and closed when this returns. `early` was read from the client already.
        """
        self._ways = _Way(self, client, upstream, True), _Way(self, upstream, client, False)
        orderly = False
        try:
            for one in (client, upstream):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways[0].start(early)
            self._ways[1].start()
            orderly = await self._wait_over()
        finally:
            for way in self._ways:
                way.stop()
            for one in (client, upstream):
                if orderly:
                    one.close()
                else:
                    reset(one)

    async def _wait_over(self) -> bool:
        while not self._over.done():
            left = self._moved_at + self._idle_seconds - self.loop.time()
            if left <= 0:
                return False
            await asyncio.wait([self._over], timeout=left)
        return self._over.result()
