"""A streamed answer as frames: HEAD with the first chunk, CHUNK per yielded item (large ones cut), END. Sans-IO.

Both kinds of call stream alike; contracts/* say what an item may be. Used by sequential.py and concurrent.py, which send.
"""

from time import monotonic_ns

from dayfly.runtime.answers import frame
from dayfly.runtime.frames import CHUNK, CHUNK_BYTES_MAX, END, HEAD
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from dayfly.runtime.instance import Contract


class Stream:
    """One call's stream. `begun`: the status is out, so an error can only break the stream."""

    def __init__(self, call: Call, contract: "Contract") -> None:
        self._call = call
        self._contract = contract
        self.begun = False

    def frames(self, item: object) -> "Iterator[bytes]":
        """The frames of one yielded item, to be sent in order. Raises Fault when the item is none of the contract's."""
        call = self._call
        if self.begun:
            chunk = self._contract.chunk(item)
        else:
            status, meta, chunk = self._contract.head(item)
            self.begun = True
            yield frame(HEAD, call.seq, chunk[:CHUNK_BYTES_MAX], status=status, meta=meta, exec_us=self._elapsed())
            chunk = chunk[CHUNK_BYTES_MAX:]
        for at in range(0, len(chunk), CHUNK_BYTES_MAX):
            yield frame(CHUNK, call.seq, chunk[at : at + CHUNK_BYTES_MAX])

    def end(self, flags: int = 0, body: bytes = b"") -> bytes:
        """The last frame; with HEAD before it when nothing was ever yielded."""
        last = frame(END, self._call.seq, body, flags=flags, exec_us=self._elapsed())
        return last if self.begun else b"".join(self.frames("")) + last

    def _elapsed(self) -> int:
        return (monotonic_ns() - self._call.began) // 1000
