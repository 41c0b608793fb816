"""Maps, as the faces see them: made, filled, looked at, cancelled, redriven, deleted; and the task that takes each one on, step by step.

What a map does next is core/decide/mapping.py's decision; its record is one key, written by compare-and-set; its items are durable calls in
a lane of its own, which leasing.py hands out like any other, below the map's ceiling. Whatever is in memory here is rebuilt from these two.
Scopes were asked by the face. Never runs anything itself. Made by control/plane.py; called by api/maps.py, and by calls.py for settlements.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from dayfly.control.calls import Calls
from dayfly.control.catalog import Catalog
from dayfly.control.durable import Durable
from dayfly.control.map_live import Live
from dayfly.control.map_records import Records
from dayfly.control.map_sweeps import Sweeps
from dayfly.control.map_track import Track, load
from dayfly.control.reducing import Reducing
from dayfly.control.spill import Spill
from dayfly.core.decide import mapping
from dayfly.core.decide.mapping import Bounds, Facts
from dayfly.core.decide.route import pick_version
from dayfly.core.model.durable import Stored, map_seed
from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import CONCURRENCY_MAX, MapOrder, MapRecord
from dayfly.core.model.names import checked_name
from dayfly.core.model.settings import Settings
from dayfly.core.wire.lines import Lines
from dayfly.store.kv import KV

PUT_ITEMS = 4_000  # of one transaction
PUT_BYTES = 4 * 1024 * 1024
AGAIN_SECONDS = 0.5  # after the store could not be written
SWEEP_SECONDS = 600.0

log = structlog.get_logger()


class Maps:
    """All maps."""

    def __init__(self, settings: Settings, catalog: Catalog, durable: Durable, kv: KV, calls: Calls, spill: Spill) -> None:
        self._settings, self._catalog, self._durable, self._calls = settings, catalog, durable, calls
        self._bounds = Bounds(settings.map_upload_seconds, settings.map_keep_seconds)
        self._records = Records(durable, kv)
        self._reducing = Reducing(settings, durable, calls, spill)
        self._sweeps = Sweeps(settings, durable, calls)
        self._maps: dict[tuple[str, str], Live] = {}
        self._by_seed: dict[str, Live] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        calls.heard = self._heard
        calls.leasing.ceiling = self._ceiling

    def __repr__(self) -> str:
        return f"<Maps {len(self._maps)}, {sum(not it.record.ended for it in self._maps.values())} not ended>"

    async def start(self) -> None:
        """Read all records. Before anything is leased: who leases asks for the ceilings."""
        for kept in await self._records.all():
            self._add(Live(*kept))
        self._calls.leasing.hands.inherit(await self._durable(lambda queue: queue.counts()))
        self._spawn(self._sweep_forever())

    async def close(self) -> None:
        """What is under way is broken off, and goes on with the next control."""
        tasks = [*self._tasks, *(it.task for it in self._maps.values() if it.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- verbs -----------------------------------------------------------------------------------------------------------------

    async def make(self, namespace: str, map_id: str, order: MapOrder) -> tuple[Live, bool]:
        """A new map without items, and True; or the one that has this id, when it is of the same order, and False.

        Raises Refusal bad_name, bad_request, function_not_found, version_not_found, conflict."""
        map_id = map_id or secrets.token_hex(8)
        checked_name(map_id, "map")
        known = self._maps.get((namespace, map_id))
        if known is not None:
            if known.record.order != order:
                raise Refusal("conflict", f"There is a map {map_id!r} already, and it is another: {known.record.order}.")
            return known, False
        if not 0 <= order.concurrency <= CONCURRENCY_MAX:
            raise Refusal("bad_request", f"concurrency = {order.concurrency}: must be from 0 (no limit) to {CONCURRENCY_MAX}.")
        self._there(namespace, order.function, order.qualifier)
        if order.reduce:
            self._there(namespace, order.reduce)
        if len(self._maps) >= self._settings.maps_max:
            raise Refusal("conflict", f"{len(self._maps)} maps are kept (maps_max): delete some that have ended.")
        now = time.time()
        record = MapRecord(id=map_id, namespace=namespace, order=order, seed=_seed(now), created_at=now)
        version = await self._records.put(record, 0)
        if version:
            live = Live(record, version)
            self._add(live)
            return live, True
        # It is there, and we do not know of it: written by an order that was never answered.
        await self._read_again(namespace, map_id)
        return await self.make(namespace, map_id, order)

    def get(self, namespace: str, map_id: str) -> Live:
        """Raises Refusal map_not_found."""
        live = self._maps.get((namespace, map_id))
        if live is None:
            raise Refusal("map_not_found", f"There is no map {map_id[:80]!r} in namespace {namespace!r}, or no longer.")
        return live

    def all(self, namespaces: Sequence[str]) -> list[Live]:
        """Newest first."""
        found = [live for live in self._maps.values() if live.record.namespace in namespaces]
        return sorted(found, key=lambda live: live.record.created_at, reverse=True)

    async def feed(self, live: Live, first: int, stream: AsyncIterator[bytes], *, whole: bool) -> None:
        """Take items, one JSON value a line, the first of which is item `first`; those that are there already are passed over. `whole`:
        these are the last. Whatever was taken before a bad line or a broken upload stays.

        Raises Refusal bad_json, body_too_large, bad_request, conflict, function_not_found and what putting calls raises."""
        if live.feeding.locked():
            raise Refusal("conflict", "Somebody else is sending items of this map.", extra={"accepted": live.counts[0]})
        async with live.feeding:
            await self.ready(live)
            if first > live.counts[0]:
                detail = f"Item {first} cannot come next: {live.counts[0]} are there."
                raise Refusal("conflict", detail, extra={"accepted": live.counts[0]})
            lines, batch, size = Lines(self._settings.body_bytes_max), list[bytes](), 0
            async for data in stream:
                try:
                    for value in lines.feed(data):
                        batch.append(value)
                        size += len(value)
                        if len(batch) >= PUT_ITEMS or size >= PUT_BYTES:
                            first, batch, size = await self._put(live, first, batch), [], 0
                except Refusal as refusal:
                    if refusal.kind.code in ("bad_json", "body_too_large"):
                        await self._put(live, first, batch)
                    raise
            await self._put(live, first, [*batch, *lines.rest()])
            if whole:
                await self._change(live, lambda record: record if record.total >= 0 else mapping.whole(record, live.counts[0]))

    async def ready(self, live: Live) -> None:
        """Until it is known what its items are at: after a restart that has to be read first."""
        while not (live.record.ended or live.loaded.is_set()):
            await self.wait(live, AGAIN_SECONDS)

    async def cancel(self, live: Live) -> None:
        """Raises Refusal conflict when it has ended."""
        await self._change(live, mapping.cancelled)

    async def redrive(self, live: Live) -> None:
        """Its failed items run again, and then its reducer. Raises Refusal conflict."""
        await self._change(live, mapping.redriven)

    async def delete(self, live: Live) -> None:
        """With its items and their results. Raises Refusal conflict while it has not ended."""
        async with live.lock:
            if not live.record.ended:
                raise Refusal("conflict", f"The map is {live.record.state}: cancel it first.")
            await self._forget(live)
        if live.task is not None:
            live.task.cancel()
        self._spawn(self._sweeps.clear(live.lanes))

    async def wait(self, live: Live, seconds: float) -> None:
        """Until something is settled or its state is another, or the time is up."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        live.waiters.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            live.waiters.discard(future)

    def running(self, live: Live) -> int:
        """How many of its items are in gateways' hands."""
        return 0 if live.record.ended else self._calls.leasing.hands.out(live.lane)

    # ---- items -----------------------------------------------------------------------------------------------------------------

    async def _put(self, live: Live, first: int, values: Sequence[bytes]) -> int:
        """Put those that are not there; returns the index behind them."""
        async with live.putting:
            record, track = live.record, live.track
            behind = first + len(values)
            accepted = live.counts[0]
            if record.total >= 0 and behind <= record.total:
                return behind  # sent a second time
            if record.state != "filling" or track is None:
                raise Refusal("conflict", f"The map is {record.state}: it takes no more items.", extra={"accepted": accepted})
            if behind > self._settings.map_items_max:
                raise Refusal("bad_request", f"A map may have {self._settings.map_items_max} items (map_items_max).")
            fresh = values[max(0, accepted - first) :]
            numbered = [(record.item_id(index), value) for index, value in enumerate(fresh, behind - len(fresh))]
            if numbered:
                self._there(record.namespace, record.order.function, record.order.qualifier)
                stored = Stored(qualifier=record.order.qualifier, source="map")
                expires = record.created_at + self._settings.map_seconds_max
                await self._calls.put_aside(live.lane, numbered, stored, expires, f"map:{record.id}")
                track.accept(behind)
            live.fed_at = time.time()
            return behind

    def _there(self, namespace: str, name: str, qualifier: str = "live") -> None:
        checked_name(name)
        function = self._catalog.functions.get((namespace, name))
        if function is None:
            raise Refusal("function_not_found", f"There is no function {name!r} in namespace {namespace!r}.")
        pick_version(function, qualifier, 0.0)

    def _heard(self, settled: Iterable[tuple[str, bool]]) -> None:
        """Calls are settled; some of them may be maps'."""
        touched = set[Live]()
        for id_, ok in settled:
            seed, _, name = id_.partition(".")
            live = self._by_seed.get(seed)
            if live is None or live.track is None:
                continue
            touched.add(live)
            if name.startswith("r"):
                live.track.note_reducer(name, ok=ok)
            else:
                live.track.note(int(name), ok=ok)
        for live in touched:
            if live.track is not None:
                live.track.sample(time.monotonic())
            live.moved()

    def _ceiling(self, lane: str) -> int | None:
        """How many of a map's lane may be out at once; None: it does not matter."""
        seed = map_seed(lane)
        if not seed:
            return None
        live = self._by_seed.get(seed)
        if live is None:
            return 0
        record = live.record
        if lane != live.lane:
            return None if record.state == "reducing" else 0
        return (record.order.concurrency or None) if record.state in ("filling", "running") else 0

    # ---- step by step ----------------------------------------------------------------------------------------------------------

    def _add(self, live: Live) -> None:
        self._maps[live.record.namespace, live.record.id] = live
        self._by_seed[live.record.seed] = live
        live.task = asyncio.create_task(self._drive(live))

    async def _drive(self, live: Live) -> None:
        """Take a map on until it is forgotten."""
        while True:
            try:
                if live.track is None and not live.record.ended:
                    await self._load(live)
                live.wake.clear()
                if await self._step(live):
                    return
            except Refusal as refusal:
                log.error("map_step_failed", map=live.record.id, code=refusal.kind.code, detail=refusal.detail)
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception as error:
                log.error("map_defect", map=live.record.id, exc_info=error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _load(self, live: Live) -> None:
        track = live.track = Track()
        try:
            await load(self._durable, live.record, track)
        except BaseException:
            live.track = None
            raise
        live.loaded.set()
        live.moved()

    async def _step(self, live: Live) -> bool:
        """One step; True when the map is no more."""
        record = live.record
        match mapping.step(record, self._facts(live), self._bounds):
            case mapping.Wait(until):
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, until - time.time()) if until < float("inf") else None):
                        await live.wake.wait()
            case mapping.Become(following):
                await self._become(live, record, following)
            case mapping.Cancel():
                await self._cancel_rest(live)
                live.swept = live.record is record
            case mapping.PutBack():
                await self._sweeps.put_back(live.lane)
                live.swept = live.record is record
            case mapping.Plan():
                calls = await self._reducing.plan(record, live.counts[2])
                await self._become(live, record, mapping.planned(record, calls))
            case mapping.Forget():
                async with live.lock:
                    if live.record is not record:
                        return False
                    await self._forget(live)
                self._spawn(self._sweeps.clear(live.lanes))
                return True
        return False

    def _facts(self, live: Live) -> Facts:
        accepted, done, dead = live.counts
        reduced, reducers_dead = live.track.reduced(live.record) if live.track is not None else (0, 0)
        return Facts(time.time(), accepted, done, dead, reduced, reducers_dead, live.swept, live.fed_at)

    async def _change(self, live: Live, verb: Callable[[MapRecord], MapRecord]) -> None:
        """What somebody asks for: the next record follows from the present one, whichever that is by then."""
        async with live.lock:
            following = verb(live.record)
            if following is not live.record:
                await self._save(live, following)

    async def _become(self, live: Live, record: MapRecord, following: MapRecord) -> None:
        """What followed from `record`, unless somebody has changed it meanwhile."""
        async with live.lock:
            if live.record is record:
                await self._save(live, following)

    async def _save(self, live: Live, following: MapRecord) -> None:
        before = live.record
        version = await self._records.put(following, live.version)
        if not version:  # by an order that was never answered
            await self._read_again(following.namespace, following.id)
            raise Refusal("conflict", "The map has changed meanwhile: look at it again.")
        live.record, live.version = following, version
        live.swept = False
        if following.ended or (before.state == "redriving" and following.state != "redriving"):
            live.track = None  # what was dead may be so no more: read again
            live.loaded.clear()
        if following.state != before.state:
            log.info("map_state", map=following.id, namespace=following.namespace, state=following.state, reason=following.reason)
        self._calls.leasing.noted((lane, 0.0) for lane in live.lanes)
        live.moved()

    async def _read_again(self, namespace: str, map_id: str) -> None:
        """What the store has is the truth."""
        kept, live = await self._records.get(namespace, map_id), self._maps.get((namespace, map_id))
        if kept is not None and live is None:
            self._add(Live(*kept))
        elif kept is not None and live is not None:
            (live.record, live.version), live.track, live.swept = kept, None, False
            live.loaded.clear()
            live.moved()

    async def _forget(self, live: Live) -> None:
        """First the record: what is then left in the queue belongs to nobody and is cleared away, if not now then later."""
        await self._records.delete(live.record, live.version)
        self._maps.pop((live.record.namespace, live.record.id), None)
        self._by_seed.pop(live.record.seed, None)
        live.moved()

    async def _cancel_rest(self, live: Live) -> None:
        async with live.putting:
            pass  # what was being put is there now, and nothing more comes: the state says so
        for lane in live.lanes:
            await self._sweeps.cancel(lane)

    async def _sweep_forever(self) -> None:
        """Lanes of maps that are no more: control was killed while it cleared them, or something ran on."""
        while True:
            try:
                counts = await self._durable(lambda queue: queue.counts())
                await self._sweeps.clear([lane for lane in counts if (seed := map_seed(lane)) and seed not in self._by_seed])
            except Refusal as refusal:
                log.error("maps_not_swept", code=refusal.kind.code, detail=refusal.detail)
            await asyncio.sleep(SWEEP_SECONDS)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("maps_defect", exc_info=error)


def _seed(now: float) -> str:
    """Unique, and later than that of any map before, nearly."""
    return f"{int(now * 1000):012x}{secrets.token_hex(6)}"
