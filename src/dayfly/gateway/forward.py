"""Control paths, passed on: /api/…, /metrics, /openapi.json and whatever else is no invocation goes to control over a Unix socket.

Bodies stream both ways with back-pressure, so a 200 MB bundle never sits in this process. One upstream connection per request: these
are not the hot path. When control has gone away requests wait a moment for the next one (it is being replaced); then, and when there never
was one, the answer is 503 control_unavailable. Calls keep flowing meanwhile. Called by gateway/dispatch.py.
"""

import asyncio
from typing import cast

import httptools

from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.gateway.exchange import HOP_BY_HOP, Request, refusal_answer

HIGH_WATER_BYTES = 256 * 1024
CONTROL_WAIT_SECONDS = 5.0  # for a control that is being replaced or restored
AGAIN_SECONDS = 0.02


class Forwarder:
    """Makes a `Forward` for each request that is control's."""

    def __init__(self, settings: Settings, api_socket: str) -> None:
        self._settings = settings
        self._path = api_socket
        self._seen = False  # control was there once
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, request: Request) -> "Forward":
        if request.length > self._settings.upload_bytes_max:
            raise Refusal("bundle_too_large", f"The upload is over {self._settings.upload_bytes_max} bytes (upload_bytes_max).")
        forward = Forward(request, self._settings.upload_bytes_max)
        task = asyncio.get_running_loop().create_task(self._connect(forward))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return forward

    async def _connect(self, forward: "Forward") -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + CONTROL_WAIT_SECONDS
        while not forward.over:
            try:
                await loop.create_unix_connection(lambda: forward, self._path)
                self._seen = True
                return
            except OSError:
                if loop.time() >= until or not self._seen:
                    forward.unreachable()
                    return
            await asyncio.sleep(AGAIN_SECONDS)


class Forward(asyncio.Protocol):
    """One request on its way to control and its answer on the way back: a `Sink` to the client, a protocol to control."""

    def __init__(self, request: Request, body_bytes_max: int) -> None:
        self._request = request
        self._body_max = body_bytes_max
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._out: list[bytes] = [self._head()]
        self._out_bytes = 0
        self._reading_client = True
        self._complete = False
        self._begun = False
        self.over = False
        self._headers: list[tuple[bytes, bytes]] = []

    def _head(self) -> bytes:
        """The request's head as control sees it: with the address that connected, hop-by-hop headers gone."""
        request = self._request
        lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target), b"connection: close\r\n"]
        lines += [b"%b: %b\r\n" % pair for pair in request.headers if pair[0] not in request.dropped]
        lines.append(b"x-forwarded-for: %b\r\n" % request.connection.peer.encode())
        if request.coded:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    # ---- from the client (Sink) ------------------------------------------------------------------------------------------------

    def body(self, chunk: bytes) -> None:
        if self.over:
            return
        self._body_max -= len(chunk)
        if self._body_max < 0:
            self._fail(Refusal("bundle_too_large", "The upload is over upload_bytes_max."))
            return
        self._upstream(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._request.coded else chunk)

    def complete(self) -> None:
        self._complete = True
        if self._request.coded and not self.over:
            self._upstream(b"0\r\n\r\n")

    def left(self) -> None:
        self.over = True
        if self._transport is not None:
            self._transport.abort()

    def writable(self, yes: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if yes else self._transport.pause_reading)()

    def begun(self) -> bool:
        return False  # an answer of control may have no end (logs that are followed)

    def _upstream(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > HIGH_WATER_BYTES and self._reading_client:
            self._reading_client = False
            self._request.connection.pause_reading()

    # ---- from control (asyncio.Protocol) ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        if self.over:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        out, self._out = self._out, []
        if not self._reading_client:
            self._reading_client = True
            self._request.connection.resume_reading()
        transport.write(b"".join(out))

    def pause_writing(self) -> None:
        if self._reading_client and not self._complete:
            self._reading_client = False
            self._request.connection.pause_reading()

    def resume_writing(self) -> None:
        if not self._reading_client:
            self._reading_client = True
            self._request.connection.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(Refusal("control_unavailable", "Control's answer could not be read.", retry_after_seconds=1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if not self.over:
            self._fail(Refusal("control_unavailable", "Control ended before it answered.", retry_after_seconds=1.0))

    def unreachable(self) -> None:
        """Control could not be connected to."""
        if not self._reading_client:
            self._reading_client = True
            self._request.connection.resume_reading()
        self._fail(Refusal("control_unavailable", "Control is not there; it is being restarted.", retry_after_seconds=1.0))

    def _fail(self, refusal: Refusal) -> None:
        if self.over:
            return
        self.over = True
        if self._transport is not None:
            self._transport.abort()
        if self._begun:
            self._request.abort()
        else:
            self._request.respond(*refusal_answer(refusal))

    # ---- control's answer, parsed ----------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.over:
            return
        length = -1
        lines = []
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name not in HOP_BY_HOP and name != b"date":
                lines.append(b"%b: %b\r\n" % (name, value))
        self._begun = True
        self._request.begin(self._parser.get_status_code(), b"".join(lines), length)
        if self._request.bodyless:
            self.on_message_complete()  # the parser would wait for the body whose length the answer to a HEAD names

    def on_body(self, chunk: bytes) -> None:
        if not self.over:
            self._request.send(chunk)
            if self._request.connection.write_paused:
                self.writable(False)

    def on_message_complete(self) -> None:
        if self.over or not self._begun:
            return
        self.over = True
        if self._transport is not None:
            self._transport.close()
        self._request.finish()
