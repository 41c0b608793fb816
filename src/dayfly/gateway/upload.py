"""Bodies that are passed on as they come: from the client's socket into one of the call's own, which the instance reads.

For web applications (handler = "module:application") and bodies that are larger than a call's may be, or of unknown length. Nothing is
kept but one read that did not fit: when the instance does not read, neither is the client. The call is in the pool from the beginning, and
its instance is held by the client's pace, which is why small bodies do not come this way.

An unread byte lies in our end of the socket from the beginning, and is taken out when the body is whole. Whenever our end is closed
without that, because the client left or this process died, the kernel tells the reader ECONNRESET instead of end-of-file: half a body never
looks like a whole one, whoever closes and why.

`StreamReply` is made by gateway/dispatch.py. A body of known length comes to it by gateway/lent.py.
"""

import asyncio
import os
import socket

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import Answered
from dayfly.gateway.channel import Channel
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import Request, Wire
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.reply import RETRY_AFTER_SECONDS, EventReply, Reply
from dayfly.gateway.version_socket import SEND_BUFFER_BYTES
from dayfly.runtime import frames

BESIDE = frames.INLINE_BYTES_MAX + 1  # the size of a body that never travels inside its message


class Upload:
    """One body's socket."""

    __slots__ = ("_complete", "_loop", "_ours", "_rest", "_theirs", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._theirs.send(b"!")
        self._ours.shutdown(socket.SHUT_RD)  # the instance can add nothing to it
        self._ours.setblocking(False)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._rest: list[bytes] = []
        self._complete = False

    def descriptor(self) -> int:
        """A new descriptor of the instance's end. Ours stays open: who takes the call and dies before it begins has read nothing of it."""
        return os.dup(self._theirs.fileno())

    def write(self, data: bytes) -> None:
        """Pass this on; what does not fit waits here, and the client is not read until it is gone."""
        sent = 0
        if not self._rest:
            try:
                sent = self._ours.send(data)
            except BlockingIOError:
                pass
            except OSError:
                return  # closed
        if sent < len(data):
            if not self._rest:
                self._wire.pause_reading()
                self._loop.add_writer(self._ours, self._writable)
            self._rest.append(bytes(data[sent:]))

    def _writable(self) -> None:
        try:
            while self._rest:
                sent = self._ours.send(self._rest[0])
                if sent < len(self._rest[0]):
                    self._rest[0] = self._rest[0][sent:]
                    return
                del self._rest[0]
        except BlockingIOError:
            return
        except OSError:
            self._rest.clear()
        self._loop.remove_writer(self._ours)
        self._wire.resume_reading()
        if self._complete:
            self.complete()

    def complete(self) -> None:
        """The body is whole."""
        self._complete = True
        if not self._rest and self._ours.fileno() >= 0:
            self._ours.recv(1)
            self._ours.close()

    def close(self) -> None:
        """Let go of it: unless it was complete, the reader learns that it broke. Idempotent."""
        if self._rest:
            self._rest.clear()
            self._loop.remove_writer(self._ours)
            self._wire.resume_reading()
        self._ours.close()
        self._theirs.close()


class StreamReply(EventReply):
    """A call whose body is passed on: it enters before its body is here."""

    def __init__(self, fleet: Fleet, request: Request, entry: Entry, call_id: bytes) -> None:
        super().__init__(fleet, request, entry, call_id)
        site = request.connection.site
        if site.uploads >= site.settings.uploads_max:
            raise Refusal("overloaded", "As many bodies as may be are being passed on.", retry_after_seconds=RETRY_AFTER_SECONDS)
        try:
            self._upload: Upload | None = Upload(request.connection)
        except OSError:
            raise Refusal("overloaded", "The gateway has no descriptors to spare.", retry_after_seconds=RETRY_AFTER_SECONDS) from None
        site.uploads += 1
        self._received = 0
        self.body_size = BESIDE
        asyncio.get_running_loop().call_soon(self.enter)  # when whoever makes this is done with it

    def enter(self) -> None:
        """Into the pool; and what is left of a body of known length comes here without being looked at."""
        if not self.over:
            Reply.complete(self)
        request = self.request
        if not self.over and request.length > request.received:
            request.connection.lend(request)

    def body_descriptor(self) -> tuple[int, int]:
        upload = self._upload
        if upload is not None:
            return frames.BODY_IN_STREAM, upload.descriptor()
        broken = Upload(self.request.connection)  # the client left after the call was offered and before it was sent
        try:
            return frames.BODY_IN_STREAM, broken.descriptor()
        finally:
            broken.close()

    def body(self, chunk: bytes) -> None:
        if self.over or self._upload is None:
            return
        self._received += len(chunk)
        most = self.body_bytes_max
        if self._received <= most:
            self._upload.write(chunk)
            return
        self.left()
        if self.head_sent:
            self.request.abort()
        else:
            self._refuse(
                Refusal("body_too_large", f"The request's body is over {most} bytes (stream_bytes_max, or limits.body_bytes_max).")
            )

    @property
    def body_bytes_max(self) -> int:
        return self.request.connection.site.settings.stream_bytes_max

    def complete(self) -> None:
        if self._upload is not None and not self.over:
            self._upload.complete()

    def _record(self, outcome: str, channel: Channel | None, exec_us: int, bytes_out: int) -> Answered:
        self.body_size = self._received
        try:
            return super()._record(outcome, channel, exec_us, bytes_out)
        finally:
            self._release_body()  # also of an empty body, of which there is nothing to give back otherwise
            self.body_size = BESIDE

    def _release_body(self) -> None:
        if self._upload is not None:
            self._upload.close()
            self._upload = None
            self.request.connection.site.uploads -= 1
