"""A request's body as a web application reads it: what has come of it now, and more as the gateway passes it on.

The gateway writes into the body's socket what the client sends, as long as there is room: an application that reads slowly stops the
client, and costs no memory. A body that broke off (the client or the gateway left) is an error at its end and never looks complete.
Used by wsgi.py (a file) and asgi.py (messages).
"""

import io
from _socket import AF_UNIX, SOCK_STREAM, socket

from dayfly.runtime.inbox import NO_FD, Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ_BYTES = 256 * 1024
BROKEN = "The request ended before its body was complete."


def open_stream(call: Call) -> "socket | None":
    """The socket of a body that is still on its way; None when it is all here. Raises Fault when it was lost."""
    fd = call.take_stream()
    return None if fd == NO_FD else socket(AF_UNIX, SOCK_STREAM, 0, fd)


class _Arriving(io.RawIOBase):
    """The bytes of a body's socket."""

    def __init__(self, source: socket) -> None:
        source.setblocking(True)
        self._source = source
        self._broken = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Any") -> int:
        try:
            if not self._broken:
                return self._source.recv_into(buffer)
        except ConnectionResetError:
            self._broken = True  # the kernel says it once
        raise ConnectionResetError(BROKEN)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def body_file(call: Call) -> "io.BytesIO | io.BufferedReader":
    """The body as a binary file. Reading it raises ConnectionResetError when it broke off."""
    source = open_stream(call)
    return io.BytesIO(call.body) if source is None else io.BufferedReader(_Arriving(source), READ_BYTES)
