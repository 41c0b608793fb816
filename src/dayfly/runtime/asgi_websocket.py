"""One WebSocket of an ASGI application: a `websocket` scope, whose messages go both ways through the socket that its call brought.

The gateway speaks WebSocket; here are only whole messages (messages.py). Back-pressure is the socket's: nothing is read before the
application receives, and `send` returns when its message is out. Must never leave half a message there: applications put time limits around
`receive` and `send`, so both may be cancelled at any point. Used by concurrent.py.
"""

from _socket import MSG_NOSIGNAL

from dayfly.runtime.asgi import Application, Exchange, result_of
from dayfly.runtime.body import READ_BYTES
from dayfly.runtime.contracts.http import bad_answer
from dayfly.runtime.contracts.web import head_of
from dayfly.runtime.frames import BINARY, CLOSE, TEXT, WEBSOCKET
from dayfly.runtime.messages import Incoming, farewell, farewell_in, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from typing import Any

    from dayfly.runtime.asgi import Message

SWITCHING_PROTOCOLS, FORBIDDEN = 101, 403
NORMAL, ABNORMAL = 1000, 1006  # RFC 6455 §7.4.1
CODE_MAX = 4999
DENIAL = "websocket.http.response."
LEFT = "The client has left."
BYTES_MAX = 1 << 32  # of a message: the gateway has looked at that


class WebSocket(Exchange):
    """One connection: `receive` and `send` of the application."""

    kind = WEBSOCKET
    left_seconds = 4.0  # its goodbye may have to be written down; less than what gateway/session.py leaves of a call's time

    def __init__(self, *arguments: "Any") -> None:
        super().__init__(*arguments)
        self._incoming = Incoming(BYTES_MAX)
        self._connected = self._accepted = self._closed = False
        self._disconnect: Message | None = None  # what it was told, once it was
        self._arrived: Future[None] | None = None
        self._rest = memoryview(b"")  # of a message on its way out
        self._sent: Future[None] | None = None

    def scope(self, application: Application, context: object) -> "Message":
        """What is asked."""
        scope = super().scope(application, context)
        offered = b",".join(value for name, value in scope["headers"] if name == b"sec-websocket-protocol").decode("latin-1")
        del scope["method"]
        return scope | {
            "type": "websocket",
            "scheme": "wss" if scope["scheme"] == "https" else "ws",
            "subprotocols": [name.strip() for name in offered.split(",") if name.strip()],
            "extensions": {"websocket.http.response": {}},
        }

    # ---- in ------------------------------------------------------------------------------------------------------------------------

    async def receive(self) -> "Message":
        """That somebody wants to connect; what the client says; that it is over."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while self._disconnect is None:
            found = self._incoming.next()
            if found is None:
                await self._wait_arrival()
            elif found[0] == CLOSE:
                self._over(*farewell_in(found[1]))
            else:
                kind, body = found
                return (
                    {"type": "websocket.receive", "text": body.decode()} if kind == TEXT else {"type": "websocket.receive", "bytes": body}
                )
        return self._disconnect

    def _over(self, code: int, reason: str) -> None:
        self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self.left()

    async def _wait_arrival(self) -> None:
        source = self._source
        if source is None:  # it was denied
            self._over(ABNORMAL, "")
            return
        descriptor = source.fileno()
        arrived = self._arrived = self._loop.create_future()
        self._loop.add_reader(descriptor, self._readable)
        try:
            await arrived
        finally:
            if self._source is not None:
                self._loop.remove_reader(descriptor)

    def _readable(self) -> None:
        if self._source is None:
            return
        try:
            data = self._source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._incoming.feed(data)
        elif self._disconnect is None:
            self._over(ABNORMAL, "")
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _close_source(self) -> None:
        if self._source is not None:
            self._loop.remove_reader(self._source.fileno())
            self._loop.remove_writer(self._source.fileno())
        super()._close_source()
        self._rest = memoryview(b"")
        for waiting in (self._arrived, self._sent):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    # ---- out -----------------------------------------------------------------------------------------------------------------------

    async def send(self, message: "Message") -> None:
        """Accept or deny it, say something, close it. Raises OSError when the client has left, Fault for what has no place here."""
        kind = message["type"]
        if self._gone.done() and not self.answered:
            raise OSError(LEFT)
        if kind == "websocket.send" and self._accepted and not self._closed:
            text = message.get("text")
            body = bytes(message.get("bytes") or b"") if text is None else text.encode()
            await self._write(BINARY if text is None else TEXT, body)
        elif kind == "websocket.close" and self._accepted and not self._closed:
            await self._close(message.get("code", NORMAL), str(message.get("reason") or ""))
        elif self._accepted or self.answered:
            raise bad_answer(f"The application sent {kind!r}, which has no place behind what it sent before.")
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.close":
            await self._deny()
        elif kind.startswith(DENIAL):
            await super().send(message | {"type": kind.removeprefix("websocket.")})
        else:
            raise bad_answer(f"The application sent {kind!r}, which is not its turn or not known here.")

    async def _accept(self, message: "Message") -> None:
        pairs = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in message.get("headers") or ()]
        if subprotocol := message.get("subprotocol"):
            pairs.append(("sec-websocket-protocol", subprotocol))
        _, block, _ = head_of(200, pairs)
        await self._sender.put(self._stream.head(SWITCHING_PROTOCOLS, block))
        self._accepted = True

    async def _deny(self) -> None:
        await self._end(lambda: result_of(self._call, FORBIDDEN, b"", b""))

    async def _close(self, code: int, reason: str) -> None:
        if not isinstance(code, int) or not NORMAL <= code <= CODE_MAX:
            raise bad_answer(f"A close's code must be a number from {NORMAL} to {CODE_MAX}, not {str(code)[:40]!r}.")
        self._closed = True
        await self._out(farewell(code, reason))

    async def _write(self, kind: int, body: bytes) -> None:
        await self._out(message(kind, body))

    async def _out(self, data: bytes) -> None:
        """Send a message; returns when it is out. Whoever stops waiting for that leaves it on its way."""
        await self._drain()
        if self._gone.done():
            raise OSError(LEFT)
        self._rest = memoryview(data)
        self._push()
        await self._drain()
        if self._gone.done():
            raise OSError(LEFT)

    async def _drain(self) -> None:
        from asyncio import shield

        while self._rest and self._source is not None:
            if self._sent is None:
                self._sent = self._loop.create_future()
                self._loop.add_writer(self._source.fileno(), self._push)
            await shield(self._sent)

    def _push(self) -> None:
        source = self._source
        try:
            while self._rest and source is not None:
                self._rest = self._rest[source.send(self._rest, MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = memoryview(b"")
            self.left()
        if self._sent is not None and source is not None:
            self._loop.remove_writer(source.fileno())
            sent, self._sent = self._sent, None
            sent.set_result(None)

    async def finish(self, error: BaseException | None) -> None:
        """The application has returned, or raised."""
        await self._drain()
        has_left = self._gone.done() and not self.answered
        if self._accepted and (error is None or has_left):
            if self._timer is not None:
                self._timer.cancel()
            self.answered = True
            self._close_source()
            self._instance.finish_lines(self._call.seq)
            await self._sender.put(self._stream.end())
            return
        if has_left and error is None and not self._stream.begun:
            await self._deny()  # nobody hears it
        await super().finish(error)
