"""What of a call is large lies in a blob, what is small in its row: this decides by size, and fetches what was spilled.

Writing and reading are done in a thread, since they wait for the disk. A blob is written before the row that names it, and swept only when
no row does: `writing` has those whose row is on its way. Used by control/calls.py, leasing.py and settling.py.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from dayfly.control.durable import Durable
from dayfly.core.model.durable import Result, Stored
from dayfly.store.blobs import Blobs, owner_of
from dayfly.store.queue import Queue

INLINE_BYTES_MAX = 64 * 1024
SPILLS_MAX = 4  # at once: each waits for the disk
WRITING_SECONDS = 3600.0  # blobs younger than this are not looked at
SWEPT_MAX = 50_000  # looked at in one sweep
SWEEP_BATCH = 200

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

    async def sweep(self, durable: Durable, now: float) -> int:
        """Remove old blobs that no row names; the queue is asked in small batches, between which others have their turn."""
        before, gone = now - WRITING_SECONDS, 0
        names = await asyncio.to_thread(self._blobs.old, before, SWEPT_MAX)
        for at in range(0, len(names), SWEEP_BATCH):
            batch = names[at : at + SWEEP_BATCH]
            needed = await durable(lambda queue: _named(queue, batch))  # noqa: B023 (awaited here)
            idle = [name for name in batch if name not in needed and owner_of(name) not in self.writing]
            gone += await asyncio.to_thread(self._blobs.remove, idle, before)
        return gone


def _named(queue: Queue, names: Sequence[str]) -> set[str]:
    """Those of these blobs that a row names."""
    owners = {owner_of(name).partition("~")[0] for name in names}
    found: set[str] = set()
    for item in queue.get(sorted(owners)):
        if item is not None:
            found.add(decode_stored(item.body).blob)
            found.add(decode_result(item.result).blob if item.result else "")
    return found
