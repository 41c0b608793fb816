"""The one thread that writes the durable queue, with group commit: what gathers while a transaction is under way goes into the next.

Callers of one round share its transactions (one to settle, one to put, one to lease), and so its waits for the disk: sixty callers cost
what one does. Nobody is told anything before the transaction that has it is on disk. Decides nothing, knows no item's meaning.
Made by control/plane.py; used by calls.py and leasing.py. Belongs to the event loop; only `_round` runs in the thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dayfly.core.model.errors import Refusal
from dayfly.store.queue import BATCH_MAX, Lease, NewItem, Put, Queue, Settlement

T = TypeVar("T")
CALLERS_MAX = 50_000  # that wait for a round

_Gathered = list[tuple[Sequence[Any], "asyncio.Future[Any]"]]


class Durable:
    """A queue behind its thread. `close` waits for what was handed in."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="durable")
        self._settles: _Gathered = []
        self._puts: _Gathered = []
        self._others: list[tuple[Callable[[Queue], Any], asyncio.Future[Any]]] = []
        self._busy = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Durable {len(self._settles)} settles, {len(self._puts)} puts, {len(self._others)} others wait>"

    async def put(self, items: Sequence[NewItem]) -> list[Put]:
        """Durable when this returns. Raises Refusal storage_full, data_unusable."""
        found: list[Put] = await self._gather(self._puts, items)
        return found

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Which took effect."""
        found: list[bool] = await self._gather(self._settles, settlements)
        return found

    async def lease(self, wanted: Sequence[tuple[str, int]], now: float, until: float, owner: str) -> list[Lease]:
        return await self(lambda queue: queue.lease(wanted, now, until, owner))

    async def __call__(self, verb: Callable[[Queue], T]) -> T:
        """Any other verb, in the thread, after what was gathered to be settled and put."""
        future = self._future(len(self._others))
        self._others.append((verb, future))
        self._begin_soon()
        found: T = await future
        return found

    async def close(self) -> None:
        """What was handed in is done, then nothing more."""
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self._pool.shutdown(wait=True))
        await loop.run_in_executor(None, self._queue.close)

    async def _gather(self, line: _Gathered, batch: Sequence[Any]) -> Any:
        if not batch:
            return []
        future = self._future(len(line))
        line.append((batch, future))
        self._begin_soon()
        return await future

    def _future(self, waiting: int) -> "asyncio.Future[Any]":
        if self._closed:
            raise Refusal("shutting_down", "Control is ending.", retry_after_seconds=1.0)
        if waiting >= CALLERS_MAX:
            raise Refusal("overloaded", "The store is far behind.", retry_after_seconds=1.0)
        return asyncio.get_running_loop().create_future()

    def _begin_soon(self) -> None:
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """A round: everything that has gathered by now."""
        settles, self._settles = self._settles, []
        puts, self._puts = self._puts, []
        others, self._others = self._others, []
        loop = asyncio.get_running_loop()
        try:
            self._pool.submit(self._round, loop, settles, puts, others)
        except RuntimeError:  # closed meanwhile
            error = Refusal("shutting_down", "Control is ending.", retry_after_seconds=1.0)
            self._tell([(future, error) for _, future in (*settles, *puts, *others)])

    def _round(
        self, loop: asyncio.AbstractEventLoop, settles: _Gathered, puts: _Gathered, others: list[tuple[Callable[[Queue], Any], Any]]
    ) -> None:
        """In the thread."""
        told: list[tuple[asyncio.Future[Any], Any]] = []
        told += _together(self._queue.settle, settles)
        told += _together(self._queue.put, puts)
        for verb, future in others:
            try:
                told.append((future, verb(self._queue)))
            except Exception as error:
                told.append((future, error))
        loop.call_soon_threadsafe(self._tell, told)

    def _tell(self, told: list[tuple["asyncio.Future[Any]", Any]]) -> None:
        self._busy = False
        if self._settles or self._puts or self._others:
            self._busy = True
            self._begin()
        for future, found in told:
            if future.done():
                continue  # who asked has left; what was done is done
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)


def _together(verb: Callable[[Sequence[Any]], list[Any]], gathered: _Gathered) -> list[tuple["asyncio.Future[Any]", Any]]:
    """One transaction for as many callers as one may have, and for each what is his. What breaks a bound fails alone."""
    told: list[tuple[asyncio.Future[Any], Any]] = []
    while gathered:
        part, size = [gathered[0]], len(gathered[0][0])
        for batch, future in gathered[1:]:
            if size + len(batch) > BATCH_MAX:
                break
            part.append((batch, future))
            size += len(batch)
        gathered = gathered[len(part) :]
        try:
            found = verb([it for batch, _ in part for it in batch])
        except ValueError as error:
            told += [(part[0][1], error)] if len(part) == 1 else [pair for it in part for pair in _together(verb, [it])]
            continue
        except Exception as error:
            told += [(future, error) for _, future in part]
            continue
        at = 0
        for batch, future in part:
            told.append((future, found[at : at + len(batch)]))
            at += len(batch)
    return told
