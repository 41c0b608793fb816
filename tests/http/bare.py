"""The gateway's protocol class with nothing around it: bytes in by hand, in any pieces; a dispatcher that answers with what it was sent.

For the fuzzer, which wants exact pieces and thousands of connections a second. The corpus runs against the real port.
"""

import json
from collections import deque
from typing import Any, cast

from dayfly.core.model.settings import Settings
from dayfly.gateway.exchange import Request, Sink
from dayfly.gateway.server import Connection
from dayfly.gateway.site import Site

JSON = b"content-type: application/json\r\n"


class Echo:
    """Takes a request and answers with all of it: what two requests have in common, their answers have."""

    def __init__(self, dispatcher: "Dispatcher", request: Request) -> None:
        self.dispatcher = dispatcher
        self.request = request
        self.parts: list[bytes] = []
        self.over = False

    def body(self, chunk: bytes) -> None:
        assert not self.over
        self.parts.append(chunk)

    def complete(self) -> None:
        assert not self.over
        self.dispatcher.seen.append((self.request.method, self.request.target, b"".join(self.parts)))
        if self.dispatcher.at_once:
            self.answer()
        else:
            self.dispatcher.waiting.append(self)

    def answer(self) -> None:
        if not self.over:
            self.over = True
            request = self.request
            lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers if name not in request.dropped]
            said = [request.method.decode(), request.target.decode("latin-1"), lines, b"".join(self.parts).decode("latin-1")]
            request.respond(200, JSON, json.dumps(said).encode())

    def left(self) -> None:
        assert not self.over
        self.over = True

    def writable(self, yes: bool) -> None:
        """It always is."""

    def begun(self) -> bool:
        return True


class Dispatcher:
    """Opens an Echo for everything, answered at once or when `turn` is called."""

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self.waiting: deque[Echo] = deque()
        self.seen: list[tuple[bytes, bytes, bytes]] = []

    def open(self, request: Request) -> Sink:
        return Echo(self, request)


class Transport:
    """What uvloop's would be: it refuses a write behind the end, and calls connection_lost once."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.paused = self.ended = self.closed = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing is buffered."""

    def write(self, data: bytes) -> None:
        assert not self.ended, "a write behind the end"
        if not self.closed:
            self.sent += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def converse(pieces: list[bytes], *, at_once: bool = True) -> tuple[bytes, Dispatcher]:
    """Feed these pieces and the end of the stream. Everything that was answered, and the dispatcher. The connection must end by itself."""
    dispatcher, transport = Dispatcher(at_once), Transport()
    site = Site(Settings())
    site.dispatcher = dispatcher
    connection = Connection(site)
    connection.connection_made(cast(Any, transport))
    for piece in pieces:
        while transport.paused and not transport.closed:  # the client waits until somebody is answered
            assert dispatcher.waiting, "it does not read, and nothing is in work"
            dispatcher.waiting.popleft().answer()
        if transport.closed:
            break
        connection.data_received(piece)
    if not transport.closed:
        keep = connection.eof_received()
        if not keep:
            transport.close()
    while dispatcher.waiting:
        dispatcher.waiting.popleft().answer()
    assert transport.closed or transport.ended, connection.__class__
    connection.connection_lost(None)
    assert not site.connections
    return bytes(transport.sent), dispatcher
