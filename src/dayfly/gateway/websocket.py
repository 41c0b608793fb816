"""WebSockets of functions: the gateway holds the connection, and each message is a call.

The contract is that of API Gateway's WebSocket APIs (facts: lambda.md §4): a CONNECT event asks the function whether the connection may be,
MESSAGE events bring what the client says, and what the function returns goes back as a message; DISCONNECT says that it is over. So a
thousand open sockets keep no instance alive, and every message passes the same admission, pool and metering as any call. Messages
of one socket are handled one after the other, in order.
Framing is a library's (websockets, without its I/O). Must never read a client of which MESSAGES_MAX messages wait already: then they wait
in its own socket.
Made by gateway/dispatch.py.
"""

import asyncio
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from dayfly.core.model.errors import Refusal
from dayfly.gateway.exchange import Request, Shared, refusal_answer
from dayfly.gateway.reply import EventReply, Reply
from dayfly.runtime import frames

MESSAGES_MAX = 16  # of one socket that wait for their turn
CLOSE_SECONDS = 2.0  # how long the client has to answer a close
GOING_AWAY, NOT_UTF8, POLICY = 1001, 1007, 1008  # RFC 6455 §7.4.1
ABNORMAL = 1006
_ERRORS_FROM = 400
_SUBPROTOCOL = re.compile(rb"(?im)^sec-websocket-protocol:[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*\r\n")
_OF_HANDSHAKE = frozenset((b"host", b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version"))
_BINARY = b"content-type: application/octet-stream\r\n"

Admit = Callable[[Request], Reply]  # a call's reply, admitted now; raises Refusal


class Sockets(dict[str, "Socket"]):
    """Those that are open on this gateway, by connection id. `prefix`: what the ids begin with, where several gateways hold some."""

    prefix = ""


class SocketReply(EventReply):
    """A socket's event: its answer is a message."""

    __slots__ = ()
    kind = frames.SOCKET
    movable = False  # each piece is a message


def is_upgrade(request: Request) -> bool:
    """Whether the client asks for a WebSocket."""
    return request.method == b"GET" and request.header(b"upgrade").lower() == b"websocket"


class Letter(Request):
    """A call that no HTTP request made: what is answered to it goes to a socket."""

    __slots__ = ("_done", "_lines", "_said", "_status")

    def __init__(self, socket: "Socket", headers: list[tuple[bytes, bytes]], done: Callable[[int, bytes, bytes], None]) -> None:
        super().__init__(socket, time.monotonic())
        self.method = b"POST"
        self.headers = headers
        for name, value in headers:
            if name == b"authorization":
                self.authorization = value
        self.complete = True
        self._done = done
        self._said: Callable[[bytes, bytes], None] = socket.say
        self._status, self._lines = 200, b""

    def respond(self, status: int, lines: bytes, body: bytes) -> None:
        self.answered = True
        self._done(status, lines, bytes(body))

    def begin(self, status: int, lines: bytes, length: int = -1) -> None:
        self.begun = True
        self._status, self._lines = status, lines

    def send(self, chunk: bytes) -> None:
        """Each piece of a streamed answer is a message."""
        if chunk:
            self._said(self._lines, chunk)

    def finish(self) -> None:
        self.answered = True
        self._done(self._status, b"", b"")

    def abort(self) -> None:
        """A stream broke: the client must not take half of it for all."""
        self.respond(*refusal_answer(Refusal("function_error", "The function's stream broke.")))


class Socket(asyncio.Protocol):
    """One client's WebSocket: first the sink of the request that asks for it, then the transport's protocol."""

    receiving = False  # what comes is calls, and those are counted

    def __init__(self, request: Request, namespace: str, head: bytes, admit: Admit, sockets: Sockets) -> None:
        self.id = sockets.prefix + secrets.token_urlsafe(12)
        self.peer = request.connection.peer
        self.deadline = float("inf")
        self.opened_at = self.heard_at = 0.0
        self._request = request
        self.namespace = namespace
        self._head = head
        self._headers = [(name, value) for name, value in request.headers if name not in (b"x-call-id", b"content-length")]
        self._admit = admit
        self._sockets = sockets
        self._number = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()  # "text" or "binary", the message
        self._parts: list[bytes] = []
        self._form = b"text"
        self._letter: Letter | None = None  # the call that runs
        self._transport: asyncio.Transport | None = None
        self._protocol = ServerProtocol(max_size=self.site.settings.websocket_message_bytes_max)
        self._write_paused = False
        self.closing = False

    @property
    def site(self) -> Shared:
        return self._request.connection.site

    @property
    def write_paused(self) -> bool:
        return self._write_paused

    def __repr__(self) -> str:
        return f"<Socket {self.id} of {self.peer} waiting={len(self._waiting)}>"

    # ---- the request that asks for it (Sink) -----------------------------------------------------------------------------------------

    def body(self, chunk: bytes) -> None:
        """Such a request has none; what comes is not looked at."""

    def complete(self) -> None:
        self._call(b"CONNECT", b"-", b"", self._answered_connect)

    def left(self) -> None:
        self.closing = True

    def writable(self, yes: bool) -> None:
        """Nothing is written yet."""

    def begun(self) -> bool:
        return True

    def _answered_connect(self, status: int, lines: bytes, body: bytes) -> None:
        """What the function says to CONNECT decides: an error is the answer to the client, anything else opens the socket."""
        self._letter = None
        if self.closing:
            return
        if status >= _ERRORS_FROM:
            self._request.respond(status, lines, body)
            return
        response = self._accepted()
        if response.status_code != 101:
            head = b"content-type: text/plain; charset=utf-8\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
            self._request.respond(response.status_code, head, bytes(response.body or b""))
            return
        if chosen := self._chosen_subprotocol(lines):
            response.headers["Sec-WebSocket-Protocol"] = chosen
        self._transport = self._request.connection.hand_over(self)
        if self._transport is None:
            return
        self._protocol.send_response(response)
        self.opened_at = self.heard_at = time.monotonic()
        self.deadline = self.heard_at + self.site.settings.websocket_idle_seconds / 2
        self._sockets[self.id] = self
        self._flush()

    def _accepted(self) -> Response:
        """What the library says to the handshake. It wants to read that itself: of the request, only what it looks at."""
        wanted = [b"%b: %b\r\n" % pair for pair in self._request.headers if pair[0] in _OF_HANDSHAKE]
        self._protocol.receive_data(b"GET / HTTP/1.1\r\n%b\r\n" % b"".join(wanted))
        events = self._protocol.events_received()
        return self._protocol.accept(cast(Handshake, events[0])) if events else self._protocol.reject(400, "Not a handshake.\n")

    def _chosen_subprotocol(self, lines: bytes) -> str:
        """What the function's answer to CONNECT names, if the client offered it."""
        offered = {it.strip() for name, value in self._request.headers if name == b"sec-websocket-protocol" for it in value.split(b",")}
        found = _SUBPROTOCOL.search(lines)
        return found[1].decode() if found and found[1] in offered else ""

    # ---- the transport ---------------------------------------------------------------------------------------------------------------

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
        if self._sockets.pop(self.id, None) is None:
            return
        self.closing = True
        self._waiting.clear()
        self._write_paused = False  # a streamed answer that waited for this client goes on, to nobody: its instance has other calls
        self._tell_sink(writable=True)
        received = self._protocol.close_rcvd
        code, reason = (received.code, received.reason) if received is not None else (ABNORMAL, "")
        self._call(b"DISCONNECT", b"-", b"", lambda *_: None, b"%d %b" % (code, reason.replace("\n", " ").encode()))

    def pause_writing(self) -> None:
        """A client that does not read is not read either: its pings are answered, too."""
        self._write_paused = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._tell_sink(writable=False)

    def resume_writing(self) -> None:
        self._write_paused = False
        self._tell_sink(writable=True)
        self._next()

    def _tell_sink(self, *, writable: bool) -> None:
        sink = self._letter.sink if self._letter is not None else None
        if sink is not None:
            sink.writable(writable)

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
        if self._form == b"text" and not _is_utf8(message):
            self.close(NOT_UTF8, "not UTF-8")
            return
        self._waiting.append((self._form, message))
        if len(self._waiting) >= MESSAGES_MAX and self._transport is not None:
            self._transport.pause_reading()

    # ---- calls -----------------------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """One message's call at a time, and none for a client that does not read its answers."""
        while self._waiting and self._letter is None and not self.closing and not self._write_paused:
            form, message = self._waiting.popleft()
            self._call(b"MESSAGE", form, message, self._answered)
        if self._transport is not None and len(self._waiting) < MESSAGES_MAX // 2 and not self.closing and not self._write_paused:
            self._transport.resume_reading()

    def _call(self, event: bytes, form: bytes, body: bytes, done: Callable[[int, bytes, bytes], None], more: bytes = b"") -> None:
        letter = self._letter = Letter(self, self._headers, done)
        letter.length = len(body)
        self._number += 1
        try:
            reply = self._admit(letter)
            at = int((time.time() - (time.monotonic() - self.opened_at if self.opened_at else 0.0)) * 1000)
            line = b"%b %b %b %d %d %b" % (event, form, self.id.encode(), at, self._number, more)
            reply.meta = b"%b\n%b%b" % (self._head, frames.SOCKET_LINE, line)
            letter.sink = reply
            if body:
                reply.body(body)
            reply.complete()
        except Refusal as refusal:
            letter.respond(*refusal_answer(refusal))
            if refusal.kind.status in (401, 403, 404):
                self.close(POLICY, refusal.kind.code)

    def _answered(self, status: int, lines: bytes, body: bytes) -> None:
        """A message's call is over. What went wrong is told as a message, too, as the native answers have it."""
        self._letter = None
        if body and not self.closing:
            self.say(lines, body)
        asyncio.get_running_loop().call_soon(self._next)

    # ---- out -------------------------------------------------------------------------------------------------------------------------

    def say(self, lines: bytes, body: bytes) -> None:
        """Send a message: text, unless the function says that it is bytes, or it is no UTF-8."""
        if self._protocol.state is not State.OPEN:
            return
        if _BINARY in lines or not _is_utf8(body):
            self._protocol.send_binary(body)
        else:
            self._protocol.send_text(body)
        self._flush()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; the client answers, and then the connection ends."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
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

    # ---- what the site and a request ask (gateway/site.py Client, exchange.py Wire) -----------------------------------------------

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

    def write(self, data: bytes) -> None:
        raise NotImplementedError  # letters write messages

    def answered(self, request: Request) -> None:
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Bodies are whole when they get here."""

    def resume_reading(self) -> None:
        """Bodies are whole when they get here."""

    def lend(self, request: Request) -> None:
        raise NotImplementedError

    def hand_over(self, protocol: Any) -> None:
        raise NotImplementedError


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
