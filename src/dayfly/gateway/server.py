"""The public port: HTTP/1.1 bytes in, requests out; answers in, bytes out. Parsing is httptools (llhttp), framing and limits are ours.

`Connection` is one client's socket, `Request` one exchange on it. Pipelined requests are answered in order: one is in work, a bounded
number waits, then the socket is not read. A head is checked by gateway/head.py; what the request means is asked of the dispatcher
(gateway/dispatch.py) once its headers are complete (so that a refusal needs no body) and again when its body is. Bytes that cannot be
followed any further are answered in their turn, and are the last. Nothing here knows functions, pools or control.
"""

import asyncio
import time
from collections import deque
from typing import cast

import httptools
import structlog

from dayfly.core.model.errors import Refusal
from dayfly.gateway.again import LastHead
from dayfly.gateway.exchange import Request, bare_answer, refusal_answer
from dayfly.gateway.head import parse_refusal, read_head
from dayfly.gateway.lent import Lending
from dayfly.gateway.site import Site

log = structlog.get_logger()

PIPELINE_MAX = 16
HELD_BYTES_MAX = 256 * 1024  # of bodies whose turn has not come, per connection; then the client must wait
LINGER_SECONDS = 2.0  # after the last answer, how long the client has to close, too; what it still sends is read away
FRAMING_BYTES_MAX = 64 * 1024  # of chunk sizes, extensions and trailers in one body, beyond FRAMING_FACTOR times its content
FRAMING_FACTOR = 16  # chunks of one byte need five

# Refusals after which nobody knows, or wants to know, what the client's next bytes mean.
_LAST = frozenset(("bad_request", "header_too_large", "internal", "method_not_allowed", "not_implemented", "request_timeout",
                   "uri_too_long", "version_not_supported"))  # fmt: skip


class Connection(Lending, asyncio.Protocol):
    """One client. The parser calls the on_… methods."""

    __slots__ = (
        "_current", "_deaf", "_early", "_ended", "_framing", "_head_bytes", "_held", "_held_back", "_in_head", "_last_head", "_latest",
        "_now", "_parser", "_queue", "_reading", "_request", "_transport", "_turning", "_upgrading", "closing", "deadline", "peer",
        "site", "write_paused",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        self.site = site
        self.peer = ""
        self.deadline = self._now = 0.0  # `_now`: when the bytes came that are being parsed
        self.closing = self.write_paused = False
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made, before anything else
        self._parser = httptools.HttpRequestParser(self)
        self._last_head = LastHead()
        self._latest: Request | None = None  # that became complete in this read
        self._request: Request | None = None  # being parsed
        self._upgrading: Request | None = None  # its head asks for an upgrade, its body is still to come
        self._current: Request | None = None  # being answered
        self._queue: deque[Request] = deque()  # parsed, waiting for their turn
        self._turning = False  # the next one's turn is being given
        self._in_head = True
        self._head_bytes = 0  # read for the head that is coming
        self._early = False  # and more of it was read along with the request before
        self._held = 0  # bytes of bodies that came before their turn
        self._framing = 0  # bytes read since a head was complete; what of them is not its body is framing
        self._reading = True
        self._held_back = False  # by a sink: that no body comes is not the client's fault
        self._deaf = False  # what comes now is no request of which one could know where it begins
        self._ended = False  # the client sends no more, but may still read

    # ---- the socket ------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(high=self.site.settings.write_buffer_bytes_max)
        self.deadline = time.monotonic() + self.site.settings.header_timeout_seconds
        if (refusal := self.site.join(self)) is not None:
            transport.write(bare_answer(refusal, self.site.date))
            self._linger() if self.site.turn_away(self) else self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.site.leave(self)
        self.closing = True
        for request in (self._current, self._request, *self._queue):
            if request is not None and not request.answered:
                request.answered = True
                if request.sink is not None:
                    request.sink.left()
                request.sink = None
        self._queue.clear()
        self._current = self._request = self._latest = None
        self._last_head.forget()
        del self._parser  # it holds this connection

    def data_received(self, data: bytes) -> None:
        if self.closing or self._deaf:
            return
        self._now = time.monotonic()
        last = self._last_head
        if len(data) == last.size and self._current is None and data.startswith(last.head):
            self._repeated(last.again(self, self._now, data))
            return
        last.forget()
        at_rest = self._request is None and self._in_head and self._head_bytes == 0
        if self._in_head:
            if self._head_bytes == 0 and self._current is None:
                self.deadline = self._now + self.site.settings.header_timeout_seconds
            self._head_bytes += len(data)
        else:
            self._framing += len(data)
        while True:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self.ignore_upgrade()
            except httptools.HttpParserCallbackError as error:  # raised by what the parser called: ours, not the client's
                self._failed(error.__context__ or error)
                return
            except httptools.HttpParserError as error:
                self._give_up(parse_refusal(str(error) or type(error).__name__, data))
                return
        if self._in_head:
            if self._head_bytes > self.site.settings.header_bytes_max + self.site.settings.url_bytes_max:
                self._give_up(Refusal("header_too_large", "The request's headers are over header_bytes_max."))
        elif self._request is not None and self._framing > FRAMING_BYTES_MAX + (FRAMING_FACTOR + 1) * self._request.received:
            self._give_up(Refusal("bad_request", "The body has more framing (chunk sizes, extensions, trailers) than content."))
        latest, self._latest = self._latest, None
        if at_rest and latest is not None and self._request is None:
            last.keep(latest, data)

    def _repeated(self, request: Request) -> None:
        """One that was not parsed: its head is that of the one before (gateway/again.py)."""
        self.deadline = float("inf")
        self.site.requests += 1
        self._held += request.received
        try:
            self._open(request)
        except Exception as error:
            self._request = request
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        log.error("connection_failed", exc_info=error)
        self._give_up(Refusal("internal", "The gateway failed at this request; its log says why."))

    def eof_received(self) -> bool:
        """The client sends no more. One that has left and one that still reads look alike (docs/decisions/0015-half-closed.md)."""
        if self.closing:
            return False
        if self._request is not None:
            self._give_up(Refusal("bad_request", "The request ended before it was complete."))
        last = self._queue[-1] if self._queue else self._current
        wait = self.site.settings.half_closed_seconds
        if self.closing or last is None or not wait:
            return False
        last.close = self._ended = True
        self.deadline = time.monotonic() + wait
        return True

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._current is not None and self._current.sink is not None:
            self._current.sink.writable(False)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._current is not None and self._current.sink is not None:
            self._current.sink.writable(True)

    # ---- the parser ------------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.closing or self._upgrading is not None:
            return  # what comes behind the last request of a connection is not looked at
        self._request = Request(self, self._now)
        self._in_head = True
        self._early = not self._head_bytes

    def on_url(self, url: bytes) -> None:
        request = self._request
        if request is not None:
            request.target += url
            if len(request.target) > self.site.settings.url_bytes_max and request.refusal is None:
                request.refusal = Refusal("uri_too_long", "The request's address is over url_bytes_max.")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is not None and self._in_head:  # trailers come after the head; nobody asked for them (RFC 9110 §6.5.1)
            request.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        request = self._request
        if request is None:
            return
        self._in_head = False
        head_bytes = 0 if self._early else self._head_bytes
        self._head_bytes = self._framing = 0
        request.method = method = self._parser.get_method()
        request.bodyless = method == b"HEAD"
        request.version = self._parser.get_http_version()
        request.close = not self._parser.should_keep_alive()
        if request.refusal is None:
            request.refusal = read_head(request, self.site.settings, head_bytes)
        self.deadline = self._now + self.site.settings.body_timeout_seconds
        if self._current is None and not self._queue:
            self._open(request)
        if (request.length > 0 or request.coded) and self._parser.should_upgrade():
            self._upgrading, self._request = request, None

    def on_body(self, chunk: bytes) -> None:
        request = self._request
        if request is None:
            return
        request.received += len(chunk)
        self.deadline = self._now + self.site.settings.body_timeout_seconds
        if request.answered or request.refusal is not None:
            return  # read away
        if request.sink is not None:
            request.sink.body(chunk)
        else:
            request.held.append(chunk)
            self._held += len(chunk)
            if self._held > HELD_BYTES_MAX:
                self._stop_reading()

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        self._in_head = request.complete = True
        self._head_bytes = 0
        self._latest = request
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

    # ---- one request after the other -------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> None:
        """It is this request's turn: ask what it means, give it what has come of its body."""
        self._current = request
        held, request.held = request.held, []
        self._held -= sum(map(len, held))
        if request.refusal is None:
            try:
                sink = request.sink = self.site.dispatcher.open(request)
            except Refusal as refusal:
                request.refusal = refusal
        if request.refusal is not None:
            self._refuse(request, request.refusal)
            return
        for chunk in held:
            sink.body(chunk)
        if request.expects and not request.complete and not request.answered:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.complete and not request.answered:
            sink.complete()

    def _next(self) -> None:
        """The current request is answered and read: take the next one that waits."""
        self._current = None
        if self._turning:
            return  # answered as soon as it was opened: the loop below takes the next, or thousands of them would nest
        if self._queue:
            self._turning = True
            try:
                while self._queue and self._current is None and not self.closing:
                    self._open(self._queue.popleft())
            finally:
                self._turning = False
        if self._current is None and self._request is not None and not self._in_head and not self.closing:
            self._open(self._request)  # its headers came while the one before was in work
        if self.closing:
            return
        if not self._reading and not self._deaf and len(self._queue) < PIPELINE_MAX and self._held <= HELD_BYTES_MAX:
            self._reading = True
            self._transport.resume_reading()
        settings = self.site.settings
        if self._request is not None:  # half of it came while the one before was in work: from now on, its time runs
            self.deadline = time.monotonic() + (settings.header_timeout_seconds if self._in_head else settings.body_timeout_seconds)
        elif self._current is None:
            self.deadline = time.monotonic() + settings.idle_timeout_seconds
            if (self.site.stopping and not self.site.polite) or self._ended:
                self._close()

    def answered(self, request: Request) -> None:
        """Called by Request.finish: exactly once for every request that got an answer."""
        request.sink = None  # they hold each other: both end now, and not when the collector comes
        if self.closing:
            return
        if request.close:
            self._close() if self._ended else self._linger()
        elif request.complete:
            self._next()

    def _refuse(self, request: Request, refusal: Refusal) -> None:
        request.close = request.close or refusal.kind.code in _LAST
        request.respond(*refusal_answer(refusal))

    def _give_up(self, refusal: Refusal) -> None:
        """The bytes cannot be followed any further. This is answered when its turn comes, and is the last."""
        if self.closing:
            return
        request, self._request = self._request or Request(self, self._now), None
        self._deaf = request.close = True
        request.refusal = request.refusal or refusal
        if request is self._current:
            if request.sink is not None and not request.answered:
                request.sink.left()
            if request.begun or request.answered:
                self.abort()
            else:
                self._refuse(request, request.refusal)
        elif self._current is None and not self._queue:
            self._open(request)
        else:
            self._queue.append(request)
            self.deadline = float("inf")
            self._stop_reading()

    def timed_out(self) -> None:
        """The deadline passed: a slow head or body is told so, an idle connection is closed."""
        self.deadline = float("inf")
        current = self._current
        if self.closing:
            self._transport.abort()
        elif self._ended:  # whoever still waits for his turn has most likely left; what runs is answered
            if current is not None and current.sink is not None and current.sink.begun():
                self.deadline = time.monotonic() + self.site.settings.half_closed_seconds
            else:
                self._close()
        elif self._held_back:
            self.deadline = time.monotonic() + self.site.settings.body_timeout_seconds
        elif self._request is None and current is None and self._head_bytes == 0:
            self._close()
        elif current is None or current is self._request:
            self._give_up(Refusal("request_timeout", "The request did not arrive in time."))

    # ---- bytes out -------------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def receiving(self) -> bool:
        return self._request is not None or bool(self._queue)

    def pause_reading(self) -> None:
        """Back-pressure from a sink that passes bodies on."""
        self._held_back = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._held_back = False
        if self._request is not None:
            self.deadline = time.monotonic() + self.site.settings.body_timeout_seconds  # the client's time runs again
        if not self.closing and not self._ended:
            self._transport.resume_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _linger(self) -> None:
        """Close in two steps (RFC 9112 §9.6): say that no more comes, and read away what the client still sends until it closes, too.
        Closing with unread bytes makes TCP reset the connection, and a reset takes the answer away that was just sent."""
        self.closing = True
        self.deadline = time.monotonic() + LINGER_SECONDS
        if not self._reading or self._held_back:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self.closing = True
        self._transport.close()

    def abort(self) -> None:
        """Cut: nothing more is said."""
        self.closing = True
        self._transport.abort()

    def close_when_idle(self) -> None:
        if self._current is None and not self.receiving and not self.closing:
            self._close()
