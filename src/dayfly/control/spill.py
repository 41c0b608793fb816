"""What of a call is large lies in a blob, what is small in its row: this decides by size, and fetches what was spilled.

Writing and reading are done in a thread, since they wait for the disk. A blob is written before the row that names it, and swept only when
no row does: `writing` has those whose row is on its way. Used by control/calls.py, leasing.py and settling.py.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from dayfly.core.model.durable import Result, Stored
from dayfly.store.blobs import Blobs, owner_of
from dayfly.store.queue import Queue

INLINE_BYTES_MAX = 64 * 1024
SPILLS_MAX = 4  # at once: each waits for the disk
WRITING_SECONDS = 3600.0  # blobs younger than this are not looked at

encode = msgspec.msgpack.Encoder().encode
decode_stored = msgspec.msgpack.Decoder(Stored).decode
decode_result = msgspec.msgpack.Decoder(Result).decode


class Spill:
    """Bodies and results, wherever they lie."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._turn = asyncio.Semaphore(SPILLS_MAX)
        self.writing: set[str] = set()  # owners

    async def stored(self, owner: str, stored: Stored, body: bytes) -> bytes:
        """The body of an item's row. Until the row is there the owner stands in `writing`: `written` takes it out."""
        blob = await self.out(owner, body)
        return encode(msgspec.structs.replace(stored, body=b"" if blob else body, blob=blob, size=len(body)))

    async def out(self, owner: str, content: bytes) -> str:
        """The name of the blob that has `content` now; "" when it is small enough for a row."""
        if len(content) <= INLINE_BYTES_MAX:
            return ""
        self.writing.add(owner)
        async with self._turn:
            return await asyncio.to_thread(self._blobs.put, owner, content)

    def written(self, owner: str) -> None:
        """Its row is there, or will never be."""
        self.writing.discard(owner)

    async def body(self, stored: Stored) -> bytes:
        """Raises Refusal data_unusable when its blob is damaged."""
        return await self.fetch(stored.blob) if stored.blob else stored.body

    async def fetch(self, blob: str) -> bytes:
        async with self._turn:
            return await asyncio.to_thread(self._blobs.get, blob)

    def sweep(self, queue: Queue, now: float) -> int:
        """Remove blobs that no row names. Runs in the queue's thread."""

        def needed(names: Sequence[str]) -> list[bool]:
            owners = [owner_of(name) for name in names]
            items = queue.get([owner.partition("~")[0] for owner in owners])
            found = []
            for name, owner, item in zip(names, owners, items, strict=True):
                named = item is not None and name in (
                    decode_result(item.result).blob if item.result else "",
                    decode_stored(item.body).blob,
                )
                found.append(named or owner in self.writing)
            return found

        return self._blobs.sweep(now - WRITING_SECONDS, needed)
