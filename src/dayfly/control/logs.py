"""Log records: from gateways into their own store in batches, out again by question, and followed as they come.

A bounded queue stands before the store: when the disk is slower than the functions talk, records are dropped and counted, and
no gateway waits. While a database server is away they wait in that queue. Followers are woken after each write and ask for what is newer
than the last id they saw, so a slow follower costs nothing but its own lateness.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
import structlog

from dayfly.control.worker import Worker
from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store.logs import LogQuery, LogStore
from dayfly.store.trouble import Unreachable

QUEUE_RECORDS_MAX = 50_000
BATCH_MAX = 5_000
TEXT_CHARACTERS_MAX = 16 * 1024
FOLLOW_BATCH = 1_000
AWAY_SECONDS = 0.5  # between two looks at a server that is away
SHARED_SECONDS = 1.0  # how late a follower sees what another control wrote
TIDY_STEPS_MAX = 32  # of giving room back, each minute; a step is 4 MiB
LOOKS = 16  # at the store's size, while as much is written as it may hold

log = structlog.get_logger()


class Logs:
    """The log store behind its own thread. `run()` writes until it is cancelled; `drain()` writes the rest."""

    def __init__(self, store: LogStore, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._unlooked_bytes = 0  # written since the store's size was looked at
        self._store = store
        self._worker = Worker("logs")
        self._queue: list[LogRecord] = []
        self._filled = asyncio.Event()
        self._written = asyncio.Event()
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Logs {len(self._queue)} records to write, {self.dropped} dropped>"

    def add(self, records: list[LogRecord], dropped: int = 0) -> None:
        """Take a batch of a gateway; what is over the bound is dropped and counted."""
        room = QUEUE_RECORDS_MAX - len(self._queue)
        self._queue += records[:room]
        self.dropped += dropped + max(0, len(records) - room)
        self._filled.set()

    async def run(self) -> None:
        """Write batch after batch. A full disk loses them loudly; it must not end control."""
        while True:
            await self._filled.wait()
            try:
                await self.drain(patient=True)
            except Unreachable:
                await asyncio.sleep(AWAY_SECONDS)

    async def drain(self, *, patient: bool = False) -> None:
        """Write everything that was taken. `patient`: what a server cannot take now is kept, as far as there is room for it, and
        Unreachable raised; otherwise it is lost."""
        while self._queue:
            batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
            writing = asyncio.ensure_future(self._worker.call(self._store.append, [_bounded(record) for record in batch]))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:  # its thread goes on, and what becomes of the batch is to be known
                await asyncio.wait((writing,))
                if writing.exception() is not None:
                    self._put_back(batch)
                raise
            except Refusal as error:
                if patient and isinstance(error, Unreachable):
                    self._put_back(batch)
                    raise
                self.dropped += len(batch)
                log.error("logs_lost", count=len(batch), detail=error.detail)
            self._wake()
            self._unlooked_bytes += sum(len(record.text) for record in batch)
            if self._unlooked_bytes * LOOKS > self._bytes_max:
                await self._shrink()
        self._filled.clear()

    def _put_back(self, batch: list[LogRecord]) -> None:
        """To the front, as far as there is room for it."""
        kept = batch[: max(0, QUEUE_RECORDS_MAX - len(self._queue))]
        self._queue = kept + self._queue
        self.dropped += len(batch) - len(kept)

    async def _shrink(self) -> None:
        """A flood fills the disk long before anybody looks at the records' age."""
        self._unlooked_bytes = 0
        try:
            while await self._worker.call(self._store.shrink, self._bytes_max):
                pass
        except Refusal as error:
            log.error("logs_not_shrunk", detail=error.detail)

    async def read(self, query: LogQuery) -> list[LogRecord]:
        """Records kept so far, oldest first."""
        return [record for _, record in await self._worker.call(self._store.read, query)]

    async def follow(self, query: LogQuery) -> AsyncIterator[list[LogRecord]]:
        """What `read` gives, then every matching record as it is written, in batches; never ends by itself."""
        written, last = self._written, await self._worker.call(self._store.last_id)
        found = await self._worker.call(self._store.read, query)
        while True:
            if found:
                last = max(last, found[-1][0])
                yield [record for _, record in found]
            step = msgspec.structs.replace(query, after=last or -1, limit=FOLLOW_BATCH)
            found = await self._worker.call(self._store.read, step)
            if not found:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SHARED_SECONDS if self._store.shared else None):
                        await written.wait()
                written = self._written

    async def forget(self, before: float, keep: int) -> int:
        """Delete what is too old or too many; how many went. Then some of the room that is free goes back to the disk."""
        total = 0
        while gone := await self._worker.call(self._store.forget, before, keep):
            total += gone
        for _ in range(TIDY_STEPS_MAX):
            if not await self._worker.call(self._store.tidy):
                break
        return total

    def close(self) -> None:
        """After `run` ended."""
        self._worker.close()
        self._store.close()

    def _wake(self) -> None:
        """Everybody who waits for the present event goes on; later waiters get a new one."""
        written, self._written = self._written, asyncio.Event()
        written.set()


def _bounded(record: LogRecord) -> LogRecord:
    if len(record.text) <= TEXT_CHARACTERS_MAX:
        return record
    return msgspec.structs.replace(record, text=record.text[:TEXT_CHARACTERS_MAX] + "…")
