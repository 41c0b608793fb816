"""The one thread that writes the durable queue, with group commit: what gathers while a transaction is under way goes into the next.

Callers of one round share its transaction (what is settled, put and leased), and so its wait for the disk: sixty callers cost what one
does. When it fails, or where the store has none for several verbs, each verb is done for itself. Nobody is told anything before the
transaction that has it is on disk. Decides nothing, knows no item's meaning.
Made by control/plane.py; used by calls.py and leasing.py. Belongs to the event loop; only `_round` runs in the thread.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from dayfly.core.model.errors import Refusal
from dayfly.store.queue import BATCH_MAX, Lease, NewItem, Put, Queue, Settlement

T = TypeVar("T")
CALLERS_MAX = 50_000  # that wait for a round

_Gathered = list[tuple[Sequence[Any], "asyncio.Future[Any]"]]
_Verbs = list[tuple[Callable[[Queue], Any], "asyncio.Future[Any]"]]
_Told = list[tuple["asyncio.Future[Any]", Any]]


class Leased(NamedTuple):
    """Leases; lanes of which there were fewer than wanted; if there are such: all lanes that have something now or later, and when."""

    leases: list[Lease]
    short: set[str]
    lanes: dict[str, float]


class Durable:
    """A queue behind its thread. `close` waits for what was handed in."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="durable")
        self._settles: _Gathered = []
        self._puts: _Gathered = []
        self._leases: _Verbs = []
        self._others: _Verbs = []
        self._busy = False
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<Durable {len(self._settles)} settles, {len(self._puts)} puts, {len(self._leases)} leases, {len(self._others)} others wait>"
        )

    async def put(self, items: Sequence[NewItem]) -> list[Put]:
        """Durable when this returns. Raises Refusal storage_full, data_unusable."""
        found: list[Put] = await self._gather(self._puts, items)
        return found

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Which took effect."""
        found: list[bool] = await self._gather(self._settles, settlements)
        return found

    async def lease(self, wanted: Sequence[tuple[str, int]], now: float, until: float, owner: str) -> Leased:
        def lease(queue: Queue) -> Leased:
            leases = queue.lease(wanted, now, until, owner)
            got = Counter(lease.lane for lease in leases)
            short = {lane for lane, most in wanted if got[lane] < most}
            return Leased(leases, short, queue.lanes(now) if short else {})

        found: Leased = await self._add(self._leases, lease)
        return found

    async def __call__(self, verb: Callable[[Queue], T]) -> T:
        """Any other verb, in the thread, after what was gathered to be settled, put and leased."""
        found: T = await self._add(self._others, verb)
        return found

    async def close(self) -> None:
        """What was handed in is done, then nothing more."""
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self._pool.shutdown(wait=True))
        await loop.run_in_executor(None, self._queue.close)

    async def _add(self, line: _Verbs, verb: Callable[[Queue], Any]) -> Any:
        future = self._future(len(line))
        line.append((verb, future))
        self._begin_soon()
        return await future

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
        leases, self._leases = self._leases, []
        others, self._others = self._others, []
        loop = asyncio.get_running_loop()
        try:
            self._pool.submit(self._round, loop, settles, puts, leases, others)
        except RuntimeError:  # closed meanwhile
            error = Refusal("shutting_down", "Control is ending.", retry_after_seconds=1.0)
            self._tell([(future, error) for _, future in (*settles, *puts, *leases, *others)])

    def _round(self, loop: asyncio.AbstractEventLoop, settles: _Gathered, puts: _Gathered, leases: _Verbs, others: _Verbs) -> None:
        """In the thread."""
        told = self._in_one(settles, puts, leases)
        if told is None:
            told = [*_together(self._queue.settle, settles), *_together(self._queue.put, puts), *self._each(leases)]
        loop.call_soon_threadsafe(self._tell, [*told, *self._each(others)])

    def _in_one(self, settles: _Gathered, puts: _Gathered, leases: _Verbs) -> _Told | None:
        """All in one transaction. None: it came to nothing."""
        if bool(settles) + bool(puts) + len(leases) < 2 or (transaction := self._queue.together()) is None:
            return None
        try:
            with transaction:
                told = [*_parted(self._queue.settle, settles), *_parted(self._queue.put, puts)]
                told += [(future, verb(self._queue)) for verb, future in leases]
        except Exception:
            return None  # and nothing was changed: who is at fault shows when each is done for itself
        return told

    def _each(self, verbs: _Verbs) -> _Told:
        told: _Told = []
        for verb, future in verbs:
            try:
                told.append((future, verb(self._queue)))
            except Exception as error:
                told.append((future, error))
        return told

    def _tell(self, told: _Told) -> None:
        self._busy = False
        if self._settles or self._puts or self._leases or self._others:
            self._busy = True
            self._begin()
        for future, found in told:
            if future.done():
                continue  # who asked has left; what was done is done
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)


def _together(verb: Callable[[Sequence[Any]], list[Any]], gathered: _Gathered) -> _Told:
    """One transaction for as many callers as one may have, and for each what is his. What breaks a bound fails alone."""
    told: _Told = []
    for part in _parts(gathered):
        try:
            told += _parted(verb, part)
        except ValueError as error:
            told += [(part[0][1], error)] if len(part) == 1 else [pair for it in part for pair in _together(verb, [it])]
        except Exception as error:
            told += [(future, error) for _, future in part]
    return told


def _parted(verb: Callable[[Sequence[Any]], list[Any]], gathered: _Gathered) -> _Told:
    """What a verb has answered, for each caller his part. Raises what the verb raises."""
    told: _Told = []
    for part in _parts(gathered):
        found = iter(verb([it for batch, _ in part for it in batch]))
        told += [(future, list(islice(found, len(batch)))) for batch, future in part]
    return told


def _parts(gathered: _Gathered) -> Iterator[_Gathered]:
    """As many callers at once as a verb takes, at least one."""
    while gathered:
        count, size = 1, len(gathered[0][0])
        while count < len(gathered) and size + len(gathered[count][0]) <= BATCH_MAX:
            size += len(gathered[count][0])
            count += 1
        yield gathered[:count]
        gathered = gathered[count:]
