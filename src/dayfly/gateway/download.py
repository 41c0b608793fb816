"""A long answer's own socket: from the instance's end of it to the client, as fast as the client reads, one copy in and one copy out.

The instance is asked by frames.MOVE and may go on in frames instead; `begin` is called when it says that it did not. What it writes is
passed on as it comes and never kept here beyond what the client's transport holds. Made by gateway/streamed.py.
"""

import asyncio
import socket
from typing import Protocol

from dayfly.gateway.channel import Channel
from dayfly.gateway.version_socket import SEND_BUFFER_BYTES

READ_BYTES = 256 * 1024


class Taker(Protocol):
    """Whose answer it is (gateway/streamed.py Streamed)."""

    sent_bytes: int

    def passed(self, data: bytes) -> None: ...

    def drained(self) -> None: ...

    def stalled(self) -> None: ...


class Download:
    """One streamed answer's socket."""

    __slots__ = ("_loop", "_paused", "_reading", "_seen", "_socket", "_taker", "_timer", "asked_at", "is_moving")

    def __init__(self, loop: asyncio.AbstractEventLoop, taker: Taker) -> None:
        self._loop = loop
        self._taker = taker
        self._socket: socket.socket | None = None
        self._paused = self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._seen = -1
        self.asked_at = taker.sent_bytes
        self.is_moving = False  # bytes come here, or may still

    def ask(self, channel: Channel, seq: int) -> None:
        """Offer the instance the other end. Nothing is lost when it, or this process, has no descriptor to spare."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return
        with theirs:
            ours.setblocking(False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            channel.move(seq, theirs.fileno())
        self._socket = ours

    def begin(self) -> None:
        """The instance writes there now."""
        if self._socket is not None and not self.is_moving:
            self.is_moving = True
            self._watch()

    def pause(self) -> None:
        """The client does not read."""
        self._paused = True
        self._watch()

    def resume(self) -> None:
        """It does."""
        self._paused = False
        self._watch()

    def _watch(self) -> None:
        wanted = self.is_moving and not self._paused
        if wanted != self._reading and self._socket is not None:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._readable)
            else:
                self._loop.remove_reader(self._socket)

    def last_call(self, seconds: float) -> None:
        """The instance has ended: what is left must move, if ever so slowly."""
        if self._seen == self._taker.sent_bytes:
            self._taker.stalled()
            return
        self._seen = self._taker.sent_bytes
        self._timer = self._loop.call_later(seconds, self.last_call, seconds)

    def close(self) -> None:
        """Let go of it; the instance, if it still writes, learns that nobody reads. Idempotent."""
        self.is_moving = False
        self._watch()
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._taker.passed(data)
        else:
            self.close()
            self._taker.drained()
