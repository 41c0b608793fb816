"""A streamed answer's bytes on their way: HEAD with the first of them, CHUNK frames (large pieces cut), END. Sans-IO.

A stream that gets long, or whose caller reads slowly, is given a socket of its own by the gateway (frames.MOVE): from then on its bytes
are written there as they are, and hold up no other call's. Both kinds of call stream alike; contracts/* say what an item may be.
Used by sequential.py, concurrent.py and asgi.py, which send.
"""

from time import monotonic_ns

from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.frames import CHUNK, CHUNK_BYTES_MAX, END, HEAD, MOVED
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterator

    from dayfly.runtime.instance import Contract


class Stream:
    """One call's stream. `begun`: the status is out, so an error can only break the stream. `way`: its own socket, once it has one."""

    def __init__(self, call: Call, answers: Answers) -> None:
        self._call = call
        self._answers = answers
        self.begun = False
        self.way: socket | None = None
        self._in_frames = 0

    @property
    def is_long(self) -> bool:
        """Whether it may have been offered a way of its own by now."""
        return self._in_frames > CHUNK_BYTES_MAX

    def frames(self, item: object, contract: "Contract") -> "Iterator[bytes | memoryview]":
        """The frames of one yielded item, to be sent in order; once `way` is set, plain bytes for it. Raises Fault when the item is none of
        the contract's."""
        if self.begun:
            yield from self.pieces(contract.chunk(item))
            return
        status, meta, chunk = contract.head(item)
        yield self.head(status, meta, chunk[:CHUNK_BYTES_MAX])
        yield from self.pieces(memoryview(chunk)[CHUNK_BYTES_MAX:])

    def head(self, status: int, meta: bytes, chunk: bytes = b"") -> bytes:
        """The first frame."""
        self.begun = True
        return frame(HEAD, self._call.seq, chunk, status=status, meta=meta, exec_us=self._elapsed())

    def pieces(self, chunk: "bytes | memoryview") -> "Iterator[bytes | memoryview]":
        """More bytes, the same way."""
        if self.way is not None:
            if chunk:
                yield chunk
            return
        seq = self._call.seq
        for at in range(0, len(chunk), CHUNK_BYTES_MAX):
            way = self._answers.take_move(seq)
            if way is not None:
                yield frame(MOVED, seq)
                self.way = way
                yield memoryview(chunk)[at:]
                return
            piece = bytes(chunk[at : at + CHUNK_BYTES_MAX])
            self._in_frames += len(piece)
            yield frame(CHUNK, seq, piece)

    def end(self, flags: int = 0, body: bytes = b"") -> bytes:
        """The last frame; with HEAD before it when nothing was ever yielded. The socket is closed: all that was written to it is in it."""
        begun = self.begun
        head = b"" if begun else self.head(200, b"content-type: text/plain; charset=utf-8\r\n")
        self.close()
        return head + frame(END, self._call.seq, body, flags=flags, exec_us=self._elapsed())

    def close(self) -> None:
        """Let go of the socket; idempotent."""
        way = self.way or self._answers.take_move(self._call.seq)
        if way is not None:
            way.close()

    def _elapsed(self) -> int:
        return (monotonic_ns() - self._call.began) // 1000
