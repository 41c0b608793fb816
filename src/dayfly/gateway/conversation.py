"""WebSockets of handlers: the gateway holds the connection, and each message is a call.

The contract is that of API Gateway's WebSocket APIs (facts: lambda.md §4): a CONNECT event asks the function whether the connection may be,
MESSAGE events bring what the client says, and what the function returns goes back as a message; DISCONNECT says that it is over. So a
thousand open sockets keep no instance alive, and every message passes the same admission, pool and metering as any call. Messages
of one socket are handled one after the other, in order.
Must never read a client of which MESSAGES_MAX messages wait already: then they wait in its own socket.
Made by gateway/dispatch.py.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dayfly.core.model.errors import Refusal
from dayfly.gateway.exchange import Request, refusal_answer
from dayfly.gateway.reply import EventReply, Reply
from dayfly.gateway.websocket import NO_HANDSHAKE, POLICY, SWITCHING_PROTOCOLS, WebSocket, handshake, is_utf8
from dayfly.runtime import frames

MESSAGES_MAX = 16  # of one socket that wait for their turn
_ERRORS_FROM = 400
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


class Socket(WebSocket):
    """One client's WebSocket: first the sink of the request that asks for it, then the transport's protocol."""

    def __init__(self, request: Request, namespace: str, head: bytes, admit: Admit, sockets: Sockets) -> None:
        super().__init__(request)
        self.id = sockets.prefix + secrets.token_urlsafe(12)
        self.namespace = namespace
        self._head = head
        self._headers = [(name, value) for name, value in request.headers if name not in (b"x-call-id", b"content-length")]
        self._admit = admit
        self._sockets = sockets
        self._number = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()  # "text" or "binary", the message
        self._letter: Letter | None = None  # the call that runs
        self._protocol, self._response = handshake(request, self.site.settings.websocket_message_bytes_max)

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
        response = self._response
        if self.closing:
            return
        if status >= _ERRORS_FROM:
            self._request.respond(status, lines, body)
        elif response.status_code != SWITCHING_PROTOCOLS:
            self._request.respond(response.status_code, NO_HANDSHAKE, bytes(response.body or b""))
        elif self._open(response, lines):
            self._sockets[self.id] = self

    # ---- what it is for --------------------------------------------------------------------------------------------------------------

    def _over(self, code: int, reason: str) -> None:
        del self._sockets[self.id]
        self._waiting.clear()
        self._writable(True)  # a streamed answer that waited for this client goes on, to nobody: its instance has other calls
        self._call(b"DISCONNECT", b"-", b"", lambda *_: None, b"%d %b" % (code, reason.replace("\n", " ").encode()))

    def _writable(self, yes: bool) -> None:
        sink = self._letter.sink if self._letter is not None else None
        if sink is not None:
            sink.writable(yes)

    def _said(self, form: bytes, message: bytes) -> None:
        self._waiting.append((form, message))
        if len(self._waiting) >= MESSAGES_MAX and self._transport is not None:
            self._transport.pause_reading()

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

    def say(self, lines: bytes, body: bytes) -> None:
        """Send a message: text, unless the function says that it is bytes, or it is no UTF-8."""
        self._send(body, binary=_BINARY in lines or not is_utf8(body))

    # ---- what a request asks (exchange.py Wire) --------------------------------------------------------------------------------------

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
