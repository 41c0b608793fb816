"""A frame larger than one read of a channel: its memory is set aside once, and the rest is received straight into it.

Its lengths have been checked by whoever makes one (gateway/channel.py), so it is bounded as frames are.
"""

import socket

from dayfly.runtime import frames


class Large:
    """One frame on its way in. `begun` is what has come of it, its header at least."""

    __slots__ = ("_filled", "_meta_end", "_view", "header")

    def __init__(self, begun: bytes) -> None:
        self.header = frames.ANSWER.unpack_from(begun)
        self._meta_end = frames.ANSWER.size + self.header[3]
        self._view = memoryview(bytearray(self._meta_end + self.header[4]))
        self._view[: len(begun)] = begun
        self._filled = len(begun)

    def receive(self, source: socket.socket) -> int:
        """Take what is there. Returns how many bytes that was; 0 at end of file. Raises OSError as the socket does."""
        count = source.recv_into(self._view[self._filled :])
        self._filled += count
        return count

    @property
    def is_complete(self) -> bool:
        return self._filled == len(self._view)

    @property
    def meta(self) -> bytes:
        return bytes(self._view[frames.ANSWER.size : self._meta_end])

    @property
    def body(self) -> memoryview:
        """Where it was received, not copied."""
        return self._view[self._meta_end :]


def size_of(begun: bytes) -> int:
    """How long the frame is that begins so; 0 when its header is not whole."""
    if len(begun) < frames.ANSWER.size:
        return 0
    _, _, _, meta_size, body_size, _, _ = frames.ANSWER.unpack_from(begun)
    return frames.ANSWER.size + int(meta_size) + int(body_size)
