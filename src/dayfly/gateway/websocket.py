"""One client's WebSocket: handshake, framing, pings, goodbyes. What a message means is others': a call (gateway/conversation.py), or words
to an application (gateway/session.py).

Framing is a library's (websockets, without its I/O). Must never be read while its client does not read what it was sent.
Base of those two; how many there are, and for how long, they and the site say.
"""

import asyncio
import re
import time
from typing import cast

from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from dayfly.gateway.exchange import Request, Shared

CLOSE_SECONDS = 2.0  # how long the client has to answer a close
GOING_AWAY, NOT_UTF8, POLICY, INTERNAL = 1001, 1007, 1008, 1011  # RFC 6455 §7.4.1
ABNORMAL = 1006
REASON_BYTES_MAX = 123  # RFC 6455 §5.5
SWITCHING_PROTOCOLS = 101
NO_HANDSHAKE = b"content-type: text/plain; charset=utf-8\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
_SUBPROTOCOL = re.compile(rb"(?im)^sec-websocket-protocol:[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*\r\n")
_OF_HANDSHAKE = frozenset((b"host", b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version"))


def is_upgrade(request: Request) -> bool:
    """Whether the client asks for a WebSocket."""
    return request.method == b"GET" and request.header(b"upgrade").lower() == b"websocket"


def handshake(request: Request, message_bytes_max: int) -> tuple[ServerProtocol, Response]:
    """What the library says to it: status 101, or why not. It wants to read it itself: of the request, only what it looks at."""
    protocol = ServerProtocol(max_size=message_bytes_max)
    wanted = [b"%b: %b\r\n" % pair for pair in request.headers if pair[0] in _OF_HANDSHAKE]
    protocol.receive_data(b"GET / HTTP/1.1\r\n%b\r\n" % b"".join(wanted))
    events = protocol.events_received()
    return protocol, protocol.accept(cast(Handshake, events[0])) if events else protocol.reject(400, "Not a handshake.\n")


def chosen_subprotocol(request: Request, lines: bytes) -> str:
    """What the function's answer names, if the client offered it."""
    offered = {it.strip() for name, value in request.headers if name == b"sec-websocket-protocol" for it in value.split(b",")}
    found = _SUBPROTOCOL.search(lines)
    return found[1].decode() if found and found[1] in offered else ""


class WebSocket(asyncio.Protocol):
    """One connection, from its handshake on. Subclasses say what happens to a message, and when it is over."""

    receiving = False  # what comes is calls, and those are counted
    _protocol: ServerProtocol  # set when its handshake is looked at

    def __init__(self, request: Request) -> None:
        self.peer = request.connection.peer
        self.deadline = float("inf")
        self.opened_at = self.heard_at = 0.0
        self._request = request
        self._parts: list[bytes] = []
        self._form = b"text"
        self._transport: asyncio.Transport | None = None
        self._write_paused = False
        self.closing = False

    @property
    def site(self) -> Shared:
        return self._request.connection.site

    @property
    def write_paused(self) -> bool:
        return self._write_paused

    # ---- what it is for --------------------------------------------------------------------------------------------------------------

    def _said(self, form: bytes, message: bytes) -> None:
        """The client has said this. `form`: text (then it is UTF-8) or binary."""
        raise NotImplementedError

    def _next(self) -> None:
        """All that came with one read is said; or the client reads again."""

    def _writable(self, yes: bool) -> None:
        """The client does not take what it is sent (False), or does again."""

    def _over(self, code: int, reason: str) -> None:
        """It was open, and is over."""

    # ---- the transport ---------------------------------------------------------------------------------------------------------------

    def _open(self, response: Response, lines: bytes) -> bool:
        """Take the connection over. False: its client has not waited for that."""
        if chosen := chosen_subprotocol(self._request, lines):
            response.headers["Sec-WebSocket-Protocol"] = chosen
        self._transport = self._request.connection.hand_over(self)
        if self._transport is None:
            return False
        self._protocol.send_response(response)
        self.opened_at = self.heard_at = time.monotonic()
        self.deadline = self.heard_at + self.site.settings.websocket_idle_seconds / 2
        self._flush()
        return True

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self._heard(cast(Frame, event))
        self._flush()
        if self._protocol.state is not State.OPEN and not self.closing:
            self._close_soon()
        self._next()

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.site.leave(self)
        self.closing = True
        self._write_paused = False
        last = self._protocol.close_rcvd or self._protocol.close_sent
        self._over(*(last.code, last.reason) if last is not None else (ABNORMAL, ""))

    def pause_writing(self) -> None:
        """A client that does not read is not read either: its pings are answered, too."""
        self._write_paused = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._writable(False)

    def resume_writing(self) -> None:
        self._write_paused = False
        self._writable(True)
        self._next()

    def _heard(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._form = b"text" if frame.opcode is Opcode.TEXT else b"binary"
            self._parts = []
        elif frame.opcode is not Opcode.CONT:
            return  # the library has answered it
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        message, self._parts = b"".join(self._parts), []
        if self._form == b"text" and not is_utf8(message):
            self.close(NOT_UTF8, "not UTF-8")
            return
        self._said(self._form, message)

    # ---- out -------------------------------------------------------------------------------------------------------------------------

    def _send(self, body: bytes, *, binary: bool) -> None:
        if self._protocol.state is State.OPEN:
            (self._protocol.send_binary if binary else self._protocol.send_text)(body)
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; the client answers, and then the connection ends."""
        if self._protocol.state is State.OPEN:
            try:
                self._protocol.send_close(code, reason.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore"))
            except ProtocolError:  # a code that is nobody's to send
                self._protocol.send_close(INTERNAL, "")
            self._flush()
        self._close_soon()

    def _close_soon(self) -> None:
        self.closing = True
        self.deadline = time.monotonic() + CLOSE_SECONDS
        if self._protocol.state is State.CLOSED and self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        transport = self._transport
        for data in self._protocol.data_to_send():
            if transport is None or transport.is_closing():
                return
            if data:
                transport.write(data)
            else:  # the library's sign that nothing more is said
                self.closing = True
                transport.close()

    # ---- what the site asks (gateway/site.py Client) -------------------------------------------------------------------

    def timed_out(self) -> None:
        """The clock: whoever is silent is pinged, whoever stays silent goes."""
        now, idle = time.monotonic(), self.site.settings.websocket_idle_seconds
        if self.closing:
            self.abort()
        elif now - self.heard_at >= idle:
            self.close(GOING_AWAY, "idle")
        else:
            self.deadline = now + idle / 2
            self._protocol.send_ping(b"")
            self._flush()

    def close_when_idle(self) -> None:
        if not self.closing:
            self.close(GOING_AWAY, "the platform is stopping")

    def abort(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()


def is_utf8(data: bytes) -> bool:
    """Whether it may be a text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
