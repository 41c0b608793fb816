"""The rest of one body, read without a parser: into one buffer and from there to whoever takes it.

A body of known length needs no looking at. While it comes the transport belongs to `Lent`; then the connection, a `Lending`, takes it
back. Must never read beyond the body: what comes behind it is the parser's. Used by gateway/server.py, asked for by gateway/upload.py.
"""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from dayfly.gateway.exchange import Request

READ_BYTES = 256 * 1024
_buffer = memoryview(bytearray(READ_BYTES))  # one for all: what is read is written, or copied, before the next read


class Lending(asyncio.Protocol):
    """The part of a connection that lends its transport for the rest of a body, or gives it away."""

    if not TYPE_CHECKING:
        __slots__ = ()
    else:  # what is a connection's, which has the slots
        site: Any
        closing: bool
        deadline: float
        _transport: asyncio.Transport
        _parser: httptools.HttpRequestParser
        _current: Request | None
        _upgrading: Request | None
        _latest: Request | None
        _request: Request | None
        _reading: bool
        _held_back: bool
        _queue: deque[Request]
        _ended: bool

        def on_message_complete(self) -> None: ...

        def abort(self) -> None: ...

    def lend(self, request: Request) -> None:
        """The rest of the current request's body goes to its sink without being parsed."""
        if not self.closing and request is self._request and request is self._current:
            self._switch(Lent(self, request))

    def take_back(self) -> None:
        """It is here. The parser still waits for it, and is of no more use."""
        self._switch(self)
        self._parser = httptools.HttpRequestParser(self)
        self.on_message_complete()

    def ignore_upgrade(self) -> None:
        """An upgrade nobody here speaks is ignored (RFC 9110 §7.8): HTTP/1.1 goes on, for a parser that has not paused. httptools has
        skipped the body, if there is one; the new parser is told of it by a head that nobody hears."""
        self._parser = httptools.HttpRequestParser(self)
        self._latest = None
        request = self._upgrading
        if request is not None:
            framing = b"transfer-encoding: chunked" if request.coded else b"content-length: %d" % request.length
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
            self._request, self._upgrading = request, None

    def hand_over(self, protocol: Any) -> asyncio.Transport | None:
        """The bytes are `protocol`'s from now on, which joins the site. None: the client sent more than it was to, and is cut."""
        if self.closing or self._queue or self._request is not None or self._ended or self._current is None:
            self.abort()
            return None
        self._current.answered = self.closing = True
        self._current = None
        self.site.replace(self, protocol)
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()
        return self._transport

    def _switch(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        if self._reading and not self._held_back:
            self._transport.resume_reading()


class Lent(asyncio.BufferedProtocol):
    """The transport's protocol meanwhile."""

    def __init__(self, connection: Lending, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._timeout_seconds = connection.site.settings.body_timeout_seconds

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer if self._connection.closing else _buffer[: self._request.length - self._request.received]

    def buffer_updated(self, size: int) -> None:
        connection, request = self._connection, self._request
        if connection.closing:
            return  # read away
        request.received += size
        connection.deadline = time.monotonic() + self._timeout_seconds
        if request.sink is not None and not request.answered:
            request.sink.body(cast(bytes, _buffer[:size]))  # to be used or copied at once
        if request.received >= request.length and not connection.closing:
            connection.take_back()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
