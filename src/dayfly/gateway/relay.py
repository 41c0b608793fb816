"""One call on its way to the gateway that is its function's home, and the answer on the way back: HTTP/1.1 on a Unix socket.

A sink to the client and a protocol to the other gateway, as gateway/forward.py is to control; but connections are kept for the next call,
and a short answer goes out in one write. The other side is an ordinary connection (`InnerConnection`) that believes its first header about
who called. Must never send a call twice: what was sent may have run. Made by gateway/neighbour.py.
"""

import asyncio
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import httptools

from dayfly.core.decide.forwarded import NAMES as FORWARDED
from dayfly.core.model.errors import Refusal
from dayfly.gateway.exchange import HOP_BY_HOP, Request, Sink
from dayfly.gateway.forward import Forward
from dayfly.gateway.server import Connection
from dayfly.gateway.site import Site

PEER = b"x-dayfly-peer"
KEPT_BYTES_MAX = 64 * 1024  # of a body, to be sent again when a gateway dies before it has read it


class Opener(Protocol):
    """What serves a call here after all (gateway/dispatch.py)."""

    def open(self, request: Request) -> Sink: ...


class Relay(Forward):
    """`keep` takes the connection when it can be used again."""

    def __init__(self, request: Request, here: Opener, keep: Callable[[asyncio.Transport], None]) -> None:
        super().__init__(request, sys.maxsize)
        self._here = here
        self._keep = keep
        self._body: list[bytes] = []  # kept in case that nobody takes it
        self._body_bytes = 0
        self._answer: tuple[int, bytes, int] | None = None  # its head, when that is here and not passed on
        self._parts: list[bytes] = []

    def _head(self) -> bytes:
        """As it came, but for what is this hop's own, with the client's address in front."""
        request = self._request
        lines = [b"%b %b HTTP/1.1\r\n%b: %b\r\n" % (request.method, request.target, PEER, request.connection.peer.encode())]
        lines += [b"%b: %b\r\n" % pair for pair in request.headers if pair[0] not in request.dropped or pair[0] in FORWARDED]
        if request.coded:
            lines.append(b"transfer-encoding: chunked\r\n")
        if request.expects:
            lines.append(b"expect: 100-continue\r\n")
            request.expects = False  # the home says whether it wants the body
        lines.append(b"\r\n")
        return b"".join(lines)

    def body(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        if self._body_bytes <= KEPT_BYTES_MAX or self._transport is None:
            self._body.append(chunk)
        else:
            self._body.clear()
        super().body(chunk)

    def begun(self) -> bool:
        """Asked for a client that has closed its sending side: the home decides by its own clock what becomes of its call."""
        return self._complete

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(self._lost())
            return
        if self._answer is not None and not self.over:  # more is to come: what is here goes now
            self._begin()
            parts, self._parts = self._parts, []
            for part in parts:
                self.on_body(part)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if self.over:
            return
        # Linux says "reset" when the other end of a Unix socket goes with something unread in it. There is one request on a connection, and
        # a call begins when all of it was read: this one has not.
        unread = isinstance(exc, ConnectionResetError) and self._answer is None and not self._begun
        if unread and self._body_bytes <= KEPT_BYTES_MAX:
            self._transport = None
            self.unreachable()
        else:
            self._fail(self._lost())

    def unreachable(self) -> None:
        """There is nobody at the other end after all, and nothing was taken: serve it here."""
        request = self._request
        if self.over or request.answered:
            return
        self.over = True
        try:
            sink = request.sink = self._here.open(request)
        except Refusal as refusal:
            self.over = False
            self._fail(refusal)
            return
        for chunk in self._body:
            sink.body(chunk)
        self._body.clear()
        if not self._reading_client:
            self._reading_client = True
            request.connection.resume_reading()
        if request.complete and not request.answered:
            sink.complete()

    def busy(self, refusal: Refusal) -> None:
        """The other end takes no further connection."""
        self._fail(refusal)

    @staticmethod
    def _lost() -> Refusal:
        return Refusal("gateway_lost", "The gateway that had this call ended before it answered; the call may have run.")

    # ---- the answer, parsed --------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = []

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.over or status < HTTPStatus.OK:
            if status == HTTPStatus.CONTINUE and not self.over:
                self._request.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        length, lines = -1, []
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name not in HOP_BY_HOP and name != b"date":
                lines.append(b"%b: %b\r\n" % (name, value))
        self._answer = (status, b"".join(lines), length)
        if self._request.bodyless:
            self.on_message_complete()

    def on_body(self, chunk: bytes) -> None:
        if self._begun:
            super().on_body(chunk)
        else:
            self._parts.append(chunk)

    def on_message_complete(self) -> None:
        if self.over or (self._answer is None and not self._begun):
            return
        request, transport = self._request, self._transport
        self.over = True
        if transport is not None and self._complete and self._parser.should_keep_alive():
            self._keep(transport)
        elif transport is not None:
            transport.close()
        if self._answer is not None and self._answer[2] >= 0 and not request.bodyless:
            status, lines, _ = self._answer
            request.respond(status, lines, b"".join(self._parts))
            return
        if self._answer is not None:
            self._begin()
            for part in self._parts:
                request.send(part)
        request.finish()

    def _begin(self) -> None:
        assert self._answer is not None
        head, self._answer = self._answer, None
        self._begun = True
        self._request.begin(*head)


class InnerConnection(Connection):
    """Another gateway's connection: what it says in its first header is whom the call comes from."""

    __slots__ = ("watches",)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.watches = False  # it brings no calls: its end says that we leave

    def on_headers_complete(self) -> None:
        request = self._request
        if request is not None:
            self.watches = not (request.headers and request.headers[0][0] == PEER)
            if not self.watches:
                self.peer = request.headers.pop(0)[1].decode("latin-1")
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer = ""  # whom the site counted
        super().connection_lost(exc)
