"""One request and its answer on a connection: `Request` gathers, then frames what is answered. Also how a refusal looks as HTTP.

gateway/server.py makes requests; dispatch, reply and forward answer them.
"""

import asyncio
from http import HTTPStatus
from math import ceil
from typing import Any, Protocol

import msgspec

from dayfly.core.decide.forwarded import NAMES as FORWARDED
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings

ALLOWED = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# Of this hop only (RFC 9110 §7.6.1), or acted on by the gateway itself: never passed on, in either direction.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    )
)
NOT_PASSED = HOP_BY_HOP | FORWARDED  # the latter are told by the gateway itself, as far as it believes them
_EMPTY = frozenset((204, 205, 304))  # statuses whose answers have no content (RFC 9110 §15.3.5, §15.3.6, §15.4.5)
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


class Sink(Protocol):
    """What takes a request's body: bodies are kept (calls) or passed on as they come (control)."""

    def body(self, chunk: bytes) -> None: ...

    def complete(self) -> None: ...

    def left(self) -> None:
        """The client went away, or the request was refused half way."""

    def writable(self, yes: bool) -> None:
        """The client's socket is full (False) or takes bytes again (True)."""

    def begun(self) -> bool:
        """Whether it will be answered soon whoever still listens. Asked for clients that may have left (Connection.eof_received)."""
        ...


class Shared(Protocol):
    """What a request needs of all connections' common ground (gateway/site.py Site)."""

    settings: Settings
    date: bytes
    stopping: bool
    buffered: int

    def leave(self, connection: Any) -> None: ...


class Wire(Protocol):
    """The connection below a request (gateway/server.py Connection)."""

    peer: str

    @property
    def site(self) -> Shared: ...

    @property
    def write_paused(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def answered(self, request: "Request") -> None: ...

    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def hand_over(self, protocol: Any) -> asyncio.Transport | None:
        """The bytes of this connection are another protocol's from now on. None: they cannot be, the connection is over."""
        ...


class Request:
    """One exchange. Headers are (lower-case name, value) in order, trailers are not among them; `target` is the raw request target, which
    begins with '/' (or is '*'). `dropped` are the headers that are not passed on; `bodyless` answers have a head only."""

    __slots__ = (
        "answered", "authorization", "begun", "bodyless", "chunked", "close", "coded", "complete", "connection", "cors", "dropped",
        "expects", "given_id", "headers", "held", "length", "method", "prefer", "received", "received_at", "refusal", "sink", "target",
        "version", "x_amz",
    )  # fmt: skip

    def __init__(self, connection: Wire, received_at: float) -> None:
        self.connection = connection
        self.received_at = received_at  # monotonic
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.dropped = NOT_PASSED
        self.authorization = self.given_id = self.prefer = b""  # of Authorization, X-Call-Id and Prefer, the last of each
        self.x_amz = False  # there are headers of Lambda's
        self.length = -1
        self.coded = False  # chunked
        self.received = 0
        self.held: list[bytes] = []  # body that came while an earlier request was in work
        self.expects = False
        self.close = False
        self.complete = False
        self.answered = False
        self.begun = False
        self.chunked = False  # the answer
        self.bodyless = False
        self.cors = b""  # header lines for browsers, in whatever answer there will be; b"" where the function asks for none
        self.sink: Sink | None = None
        self.refusal: Refusal | None = None

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or b""."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    # ---- answering, called by dispatch and forward -----------------------------------------------------------------------------

    def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """The whole answer in one write. `lines` are complete header lines without length, date or connection."""
        connection = self.connection
        if status in _EMPTY:
            self.bodyless = True
            length = b"content-length: 0\r\n" if status == 205 else b""
        else:
            length = b"content-length: %d\r\n" % len(body)
        plain = self.complete and not self.close and self.version == "1.1" and not connection.site.stopping
        parts = (status_line(status), lines, self.cors, length, connection.site.date, b"" if plain else self._connection_line(), b"\r\n")
        if self.bodyless:
            connection.write(b"".join(parts))
        else:
            connection.write(b"".join((*parts, body)))
        self.answered = True
        connection.answered(self)

    def begin(self, status: int, lines: bytes, length: int = -1) -> None:
        """The head of an answer whose body follows by `send` and `finish`; chunked unless its length is known."""
        self.begun = True
        if status in _EMPTY:
            self.bodyless = True  # whatever follows must not be taken for the next answer
            framing = b"content-length: 0\r\n" if status == 205 else b""
        elif length >= 0:
            framing = b"content-length: %d\r\n" % length
        elif self.bodyless:
            framing = b""
        elif self.version == "1.1":
            self.chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.close = True
            framing = b""
        head = (status_line(status), lines, self.cors, framing, self.connection.site.date, self._connection_line(), b"\r\n")
        self.connection.write(b"".join(head))

    def send(self, chunk: bytes) -> None:
        """More of a body begun with `begin`."""
        if chunk and not self.bodyless:
            self.connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.chunked else chunk)

    def finish(self) -> None:
        """The answer is complete; the connection's next request may run."""
        if self.chunked:
            self.connection.write(b"0\r\n\r\n")
        self.answered = True
        self.connection.answered(self)

    def abort(self) -> None:
        """A begun answer cannot be completed: cut the connection so that the client knows."""
        self.close = True
        self.answered = True
        self.connection.abort()

    def _connection_line(self) -> bytes:
        if self.connection.site.stopping or (not self.complete and (self.coded or self.length > 0)):
            self.close = True  # the rest of its body is unread: no next request can be found behind it
        if self.close:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.version == "1.0" else b""


def refusal_answer(refusal: Refusal, call_id: str = "") -> tuple[int, bytes, bytes]:
    """(status, header lines, body) of a refusal as native answers show it."""
    kind = refusal.kind
    lines = b"content-type: application/json\r\n"
    if refusal.retry_after_seconds is not None:
        lines += b"retry-after: %d\r\n" % max(1, ceil(refusal.retry_after_seconds))
    if kind.code == "unauthorized":
        lines += b'www-authenticate: Bearer realm="dayfly"\r\n'
    elif kind.code == "method_not_allowed":
        lines += b"allow: %b\r\n" % str(refusal.extra.get("allow", ALLOWED)).encode()
    return kind.status, lines, msgspec.json.encode(refusal.body(call_id))


def bare_answer(refusal: Refusal, date: bytes) -> bytes:
    """A whole answer that closes the connection, for when there is no request to answer. `date` is the header's line."""
    status, lines, body = refusal_answer(refusal)
    return b"".join((status_line(status), lines, b"content-length: %d\r\n" % len(body), date, b"connection: close\r\n\r\n", body))
