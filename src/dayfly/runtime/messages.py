"""A WebSocket's messages on their way between a gateway and an ASGI application, through the socket that its call brought.

Both ends use this one codec. Kinds and heads are runtime/frames.py's (MESSAGE). Must never believe a length above what may be. Used by
asgi_websocket.py and gateway/session.py.
"""

from dayfly.runtime.frames import CLOSE, CLOSE_CODE, MESSAGE, TEXT

_HEAD = MESSAGE.size


def message(kind: int, body: bytes) -> bytes:
    """One message as it travels."""
    return MESSAGE.pack(kind, len(body)) + body


def farewell(code: int, reason: str) -> bytes:
    """A CLOSE as it travels. `code`: 0 to 65535."""
    return message(CLOSE, CLOSE_CODE.pack(code) + reason.encode("utf-8", "replace"))


def farewell_in(body: bytes) -> tuple[int, str]:
    """Code and reason of a CLOSE. Raises ValueError when they are not there."""
    if len(body) < CLOSE_CODE.size:
        raise ValueError("a CLOSE without its code")
    return int(CLOSE_CODE.unpack_from(body)[0]), body[CLOSE_CODE.size :].decode("utf-8", "replace")


class Incoming:
    """Messages out of the bytes of a stream, in order. `bytes_max`: of one message."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """More of the stream."""
        self._rest += data

    def next(self) -> tuple[int, bytes] | None:
        """(kind, body) of the next message; None when it is not whole yet. Raises ValueError when it is none, or too long."""
        rest = self._rest
        if len(rest) < _HEAD:
            return None
        kind, size = MESSAGE.unpack_from(rest)
        if not TEXT <= kind <= CLOSE:
            raise ValueError(f"no kind of message: {kind}")
        if size > self._bytes_max:
            raise ValueError(f"a message of {size} bytes, of which {self._bytes_max} may be")
        end = _HEAD + size
        if len(rest) < end:
            return None
        body = bytes(rest[_HEAD:end])
        del rest[:end]
        return kind, body
