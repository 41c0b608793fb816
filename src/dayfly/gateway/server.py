"""The public port: HTTP/1.1 bytes in, requests out; answers in, bytes out. Parsing is httptools (llhttp), framing and limits are ours.

`Connection` is one client's socket, `Request` one exchange on it. Pipelined requests are answered in order: one is in work, a bounded
number waits, then the socket is not read. What a request means is asked of the dispatcher (gateway/dispatch.py) once its headers are
complete (so that a refusal needs no body) and again when its body is. Nothing here knows functions, pools or control.
"""

import asyncio
import time
from collections import deque
from typing import Protocol, cast

import httptools

from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.gateway.exchange import Request, Sink, bare_answer, refusal_answer

PIPELINE_MAX = 16
HELD_BYTES_MAX = 256 * 1024  # of bodies whose turn has not come, per connection; then the client must wait
LINGER_SECONDS = 2.0  # after a refusal, how long the rest of a body is still read away so that the client sees the answer
METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))


class Dispatcher(Protocol):
    def open(self, request: Request) -> Sink:
        """Headers are complete. Raises Refusal when the request can be refused without its body."""
        ...


class Site:
    """What all connections of one gateway share."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        self.settings = settings
        self.dispatcher = dispatcher
        self.connections: set[Connection] = set()
        self.requests = 0
        self.buffered = 0  # bytes of request bodies in memory
        self.stopping = False
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Ten times a second: the Date header, and connections whose time is up."""
        now = time.time()
        self.date = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        clock = time.monotonic()
        for connection in [c for c in self.connections if c.deadline <= clock]:
            connection.timed_out()

    def protocol(self) -> "Connection":
        return Connection(self)

    def stop(self) -> None:
        """Take no new requests; idle connections close, busy ones close after their answer."""
        self.stopping = True
        for connection in list(self.connections):
            connection.close_when_idle()


class Connection(asyncio.Protocol):
    """One client. The parser calls the on_… methods."""

    __slots__ = (
        "_current", "_head_bytes", "_held", "_in_head", "_parser", "_queue", "_reading", "_request", "_transport", "_write_paused",
        "closing", "deadline", "peer", "site",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        self.site = site
        self.peer = ""
        self.deadline = 0.0
        self.closing = False
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made, before anything else
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # being parsed
        self._current: Request | None = None  # being answered
        self._queue: deque[Request] = deque()  # parsed, waiting for their turn
        self._in_head = True
        self._head_bytes = 0
        self._held = 0  # bytes of bodies that came before their turn
        self._reading = True
        self._write_paused = False

    # ---- the socket ------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(high=self.site.settings.write_buffer_bytes_max)
        self.deadline = time.monotonic() + self.site.settings.header_timeout_seconds
        if len(self.site.connections) >= self.site.settings.connections_max or self.site.stopping:
            refusal = Refusal("overloaded", "This gateway has all the connections it takes.", retry_after_seconds=1.0)
            transport.write(bare_answer(refusal))
            self.closing = True
            transport.close()
            return
        self.site.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.site.connections.discard(self)
        self.closing = True
        for request in (self._current, self._request, *self._queue):
            if request is not None and not request.answered:
                request.answered = True
                if request.sink is not None:
                    request.sink.left()
        self._queue.clear()
        self._current = self._request = None

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self._in_head:
            if self._head_bytes == 0 and self._current is None:
                self.deadline = time.monotonic() + self.site.settings.header_timeout_seconds
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An upgrade nobody here speaks is ignored, as RFC 9110 §7.8 allows; what follows it is not HTTP we could trust.
            if self._request is not None or self._current is not None:
                (self._request or self._current).close = True  # type: ignore[union-attr]
            self._stop_reading()
        except httptools.HttpParserError as error:
            self._malformed(error)
            return
        if self._in_head and self._head_bytes > self.site.settings.header_bytes_max + self.site.settings.url_bytes_max:
            self._refuse_parse(Refusal("header_too_large", "The request's headers are over header_bytes_max."))

    def eof_received(self) -> bool:
        # A client that closed and one that only half-closed look alike here. Nearly all have left, and a caller that left must
        # leave the queue too, so end-of-file means goodbye (what is already written still goes out).
        return False

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._current is not None and self._current.sink is not None:
            self._current.sink.writable(False)

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._current is not None and self._current.sink is not None:
            self._current.sink.writable(True)

    # ---- the parser ------------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request = Request(self)
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        request = self._request
        if request is not None:
            request.target += url
            if len(request.target) > self.site.settings.url_bytes_max and request.refusal is None:
                request.refusal = Refusal("uri_too_long", "The request's address is over url_bytes_max.")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is not None:
            request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._request
        if request is None:
            return
        self._in_head = False
        self._head_bytes = 0
        request.method = method = self._parser.get_method()
        request.is_head = method == b"HEAD"
        request.version = self._parser.get_http_version()
        request.close = not self._parser.should_keep_alive()
        if request.refusal is None:
            request.refusal = self._check_head(request)
        self.deadline = time.monotonic() + self.site.settings.body_timeout_seconds
        if self._current is None and not self._queue:
            self._open(request)

    def on_body(self, chunk: bytes) -> None:
        request = self._request
        if request is None:
            return
        request.received += len(chunk)
        self.deadline = time.monotonic() + self.site.settings.body_timeout_seconds
        if request.answered or request.refusal is not None:
            return  # read away
        if request.sink is not None:
            request.sink.body(chunk)
        elif request.received <= self.site.settings.body_bytes_max:
            request.held.append(chunk)
            self._held += len(chunk)
            if self._held > HELD_BYTES_MAX:
                self._stop_reading()
        else:
            request.refusal = Refusal("body_too_large", "The request's body is over body_bytes_max.")

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        self._in_head = True
        self._head_bytes = 0
        request.complete = True
        self.deadline = float("inf")
        self.site.requests += 1
        if request is self._current:
            if not request.answered and request.sink is not None:
                request.sink.complete()
            elif request.answered:
                self._next()
        else:
            self._queue.append(request)
            if self._current is None:
                self._next()
            elif len(self._queue) >= PIPELINE_MAX:
                self._stop_reading()

    def _check_head(self, request: Request) -> Refusal | None:
        settings = self.site.settings
        if request.method not in METHODS:
            return Refusal("method_not_allowed", f"The method {request.method.decode('latin-1')} is not served here.")
        if len(request.headers) > settings.headers_max:
            return Refusal("header_too_large", f"The request has more than {settings.headers_max} headers.")
        hosts = 0
        size = 0
        for name, value in request.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                request.length = int(value) if value.isdigit() else -1
            elif name == b"expect":
                request.expects = value.lower() == b"100-continue"
        if size > settings.header_bytes_max:
            return Refusal("header_too_large", "The request's headers are over header_bytes_max.")
        if hosts != 1 and not (hosts == 0 and request.version == "1.0"):
            return Refusal("bad_request", "An HTTP/1.1 request needs exactly one Host header.")
        return None

    # ---- one request after the other -------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> None:
        """It is this request's turn: ask what it means, give it what has come of its body."""
        self._current = request
        held, request.held = request.held, []
        self._held -= sum(map(len, held))
        if request.refusal is None:
            try:
                request.sink = self.site.dispatcher.open(request)
            except Refusal as refusal:
                request.refusal = refusal
        if request.refusal is not None:
            self._refuse(request, request.refusal)
            return
        assert request.sink is not None
        for chunk in held:
            request.sink.body(chunk)
        if request.expects and not request.complete and not request.answered:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.complete and not request.answered:
            request.sink.complete()

    def _next(self) -> None:
        """The current request is answered and read: take the next one that waits."""
        self._current = None
        while self._queue and self._current is None and not self.closing:
            self._open(self._queue.popleft())
        if self._current is None and self._request is not None and not self._in_head and not self.closing:
            self._open(self._request)  # its headers came while the one before was in work
        if not self._reading and len(self._queue) < PIPELINE_MAX and self._held <= HELD_BYTES_MAX and not self.closing:
            self._reading = True
            self._transport.resume_reading()
        if self._current is None and not self.closing:
            self.deadline = time.monotonic() + self.site.settings.idle_timeout_seconds
            if self.site.stopping:
                self._close()

    def answered(self, request: Request) -> None:
        """Called by Request.finish: exactly once for every request that got an answer."""
        if self.closing:
            return
        if request.close:
            self._linger() if not request.complete else self._close()
        elif request.complete:
            self._next()

    def _refuse(self, request: Request, refusal: Refusal) -> None:
        status, lines, body = refusal_answer(refusal)
        if refusal.kind.code in ("uri_too_long", "header_too_large", "method_not_allowed", "bad_request"):
            request.close = True
        request.respond(status, lines, body)

    def _refuse_parse(self, refusal: Refusal) -> None:
        """The bytes cannot be followed any further. Answer after what is still being answered, if anything, is lost: cut."""
        if self._current is not None and self._current is not self._request:
            self._stop_reading()  # an earlier request is in work: let it finish, then close
            self._current.close = True
            self._queue.clear()
            return
        if self._current is not None and not self._current.answered:
            current = self._current
            if current.sink is not None:
                current.sink.left()
            current.answered = True
        if not self.closing:
            self.write(bare_answer(refusal))
            self._linger()

    def _malformed(self, error: httptools.HttpParserError) -> None:
        reason = str(error) or type(error).__name__
        self._refuse_parse(Refusal("bad_request", f"This is not valid HTTP/1.1: {reason}."))

    def timed_out(self) -> None:
        """The deadline passed: a slow head or body is told so, an idle connection is closed."""
        self.deadline = float("inf")
        if self.closing or (self._request is None and (self._current is None and self._head_bytes == 0)):
            self._transport.abort() if self.closing else self._close()
        elif self._current is None or self._current is self._request:
            self._refuse_parse(Refusal("request_timeout", "The request did not arrive in time."))

    # ---- bytes out -------------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def write_paused(self) -> bool:
        return self._write_paused

    def pause_reading(self) -> None:
        """Back-pressure from a sink that passes bodies on."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.closing:
            self._transport.resume_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _linger(self) -> None:
        """Answered before the body was read: read it away for a moment (closing with unread bytes would reset the answer away)."""
        self.closing = True
        self.deadline = time.monotonic() + LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self.closing = True
        self._transport.close()

    def abort(self) -> None:
        self.closing = True
        self._transport.abort()

    def close_when_idle(self) -> None:
        if self._current is None and self._request is None and not self._queue:
            self._close()
