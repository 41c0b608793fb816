"""Durable calls, as the faces and others inside control see them: accept, look, wait, cancel, redrive, purge.

What may enter is checked here, once, for every door: the gateway has resolved and admitted a call before, and this does it again with
control's own catalog, which is newer. Leasing and settling are leasing.py's. Scopes were asked by the face before any of these is called:
every verb takes the namespaces that its caller may see, and others' calls are not there for it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec
import structlog

from dayfly.control.catalog import Catalog
from dayfly.control.durable import Durable
from dayfly.control.hands import Gateway
from dayfly.control.leasing import Leasing
from dayfly.control.settling import Settler
from dayfly.control.spill import Spill, decode_result, decode_stored
from dayfly.core.decide.route import pick_version
from dayfly.core.model.durable import (
    CALLBACK,
    DEFAULT_PRIORITY,
    MAP_MARK,
    PRIORITIES,
    Accepted,
    Attempt,
    NewCall,
    Result,
    Stored,
    lane_of,
    map_seed,
    split_lane,
)
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import CALL_ID
from dayfly.core.model.settings import Settings
from dayfly.core.wire import link
from dayfly.store.queue import Item, NewItem, Settlement, State
from dayfly.store.trouble import Doubtful

TEXT_MAX = 255  # of a key, a group, a tag
CALLS_PER_ORDER_MAX = 5_000
IDS_MAX = 1_000  # of one cancel, redrive or purge
RETRY_AFTER_SECONDS = 5.0
ALL = ("",)  # prefixes of lanes: everybody's

log = structlog.get_logger()
decode_attempt = msgspec.msgpack.Decoder(Attempt).decode


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it is now."""

    item: Item
    stored: Stored
    attempts: list[Attempt]
    result: Result | None

    @property
    def settled(self) -> bool:
        return self.item.state in ("done", "dead")


class Calls:
    """Verbs on durable calls."""

    def __init__(self, settings: Settings, catalog: Catalog, durable: Durable, spill: Spill, settler: Settler) -> None:
        self._settings, self._catalog, self._durable = settings, catalog, durable
        self._spill = spill
        self.leasing = Leasing(settings, catalog, durable, settler, spill)
        self.leasing.on_settled = self._settled
        self._settler = settler
        self.heard: Callable[[Iterable[tuple[str, bool]]], None] = lambda _: None  # (id, ok) of what is settled, for maps
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._waiting = 0  # calls that are not settled; exact after `count`, nearly so in between
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Calls about {self._waiting} unsettled, {len(self._waiters)} waited for, {self.leasing!r}>"

    async def count(self) -> None:
        """Bring the number of unsettled calls up to date."""
        counts = await self._durable(lambda queue: queue.counts())
        self._waiting = sum(states.get("waiting", 0) + states.get("leased", 0) for states in counts.values())

    # ---- accept ----------------------------------------------------------------------------------------------------------------

    async def accept(self, calls: Sequence[NewCall]) -> list[Accepted]:
        """Write the calls down; when this returns they are durable, in one transaction.

        Raises Refusal function_not_found, version_not_found, chain_too_deep, bad_request, async_queue_full, and storage_full or
        data_unusable when the store cannot take them: then none of them was taken. acceptance_unknown: all were, or none.
        """
        if len(calls) > CALLS_PER_ORDER_MAX:
            raise Refusal("bad_request", f"{len(calls)} calls at once; {CALLS_PER_ORDER_MAX} may be accepted together.")
        self._room_for(len(calls))
        now = time.time()
        for call in calls:
            self._check(call)
        return await self._put(calls, now)

    async def accept_each(self, calls: Sequence[NewCall]) -> list[Accepted | Refusal]:
        """The same for calls that have nothing to do with each other: each is taken or refused for itself."""
        answers: list[Accepted | Refusal | None] = []
        good: list[NewCall] = []
        for call in calls:
            try:
                self._room_for(len(good) + 1)
                self._check(call)
            except Refusal as refusal:
                answers.append(refusal)
            else:
                good.append(call)
                answers.append(None)
        try:
            taken: Sequence[Accepted | Refusal] = await self._put(good, time.time())
        except Refusal as refusal:
            taken = [refusal] * len(good)
        left = iter(taken)
        return [next(left) if answer is None else answer for answer in answers]

    async def put_aside(self, lane: str, calls: Sequence[tuple[str, bytes]], stored: Stored, expires: float, tag: str) -> None:
        """Calls that control makes itself, (id, body), in a lane of their own (a map's): durable, in one transaction, when this returns;
        those that are there already stay as they are. Raises Refusal async_queue_full, storage_full, data_unusable."""
        self._room_for(len(calls))
        now = time.time()
        try:
            items = [
                NewItem(
                    id=id_, lane=lane, body=await self._spill.stored(id_, stored, body), accepted_at=now, due=now, expires=expires,
                    priority=DEFAULT_PRIORITY, tag=tag,
                )
                for id_, body in calls
            ]  # fmt: skip
            puts = await self._durable.put(items)
        finally:
            for id_, _ in calls:
                self._spill.written(id_)
        self._waiting += sum(not put.duplicate for put in puts)
        self.leasing.noted([(lane, now)])

    async def take(self, gateway: Gateway, message: link.Accept | link.Holding | link.Outcomes) -> None:
        """A gateway's message about durable calls."""
        try:
            if isinstance(message, link.Holding):
                await self.leasing.holding(gateway, message)
            elif isinstance(message, link.Outcomes):
                await self.leasing.ran(gateway, message.ran)
            else:
                found = await self.accept_each(message.calls)
                answers = [_answer(call, answer) for call, answer in zip(message.calls, found, strict=True)]
                gateway.tell(link.Accepted(message.request, answers))
        except Refusal as refusal:
            log.error("calls_message_failed", code=refusal.kind.code, detail=refusal.detail)

    def left(self, gateway: Gateway) -> None:
        """Its link broke."""
        self.leasing.left(gateway)

    def _room_for(self, count: int) -> None:
        if self._waiting + count > self._settings.async_waiting_max:
            detail = f"{self._waiting} asynchronous calls wait (async_waiting_max)."
            raise Refusal("async_queue_full", detail, retry_after_seconds=RETRY_AFTER_SECONDS)

    def _check(self, call: NewCall) -> None:
        """Raises Refusal when the call may not enter."""
        function = self._catalog.functions.opened((call.namespace, call.function))
        if function is None:
            raise Refusal("function_not_found", f"There is no function {call.function!r} in namespace {call.namespace!r}.")
        pick_version(function, call.qualifier, 0.0)
        if call.lineage.depth > self._settings.async_depth_max:
            detail = f"{call.lineage.depth} calls, each made by the one before, began with {call.lineage.root}."
            raise Refusal("chain_too_deep", detail)
        if not CALL_ID.fullmatch(call.id):
            raise Refusal("bad_request", f"{call.id[:80]!r} is no call id.")
        if not 0 <= call.priority < PRIORITIES:
            raise Refusal("bad_request", f"priority = {call.priority}: must be from 0 to {PRIORITIES - 1}.")
        for name, text in (("group", call.group), ("idempotency key", call.dedup), ("tag", call.tag)):
            if len(text) > TEXT_MAX:
                raise Refusal("bad_request", f"The {name} has {len(text)} characters; {TEXT_MAX} may be.")
        if len(call.body) > self._settings.body_bytes_max:
            raise Refusal("body_too_large", f"The body is over {self._settings.body_bytes_max} bytes (body_bytes_max).")

    async def _put(self, calls: Sequence[NewCall], now: float) -> list[Accepted]:
        try:
            items = [await self._item(call, now) for call in calls]
            puts = await self._durable.put(items)
        except Doubtful as doubt:
            raise Refusal("acceptance_unknown", doubt.detail, retry_after_seconds=1.0) from doubt
        finally:
            for call in calls:
                self._spill.written(call.id)
        fresh = [item for item, put in zip(items, puts, strict=True) if not put.duplicate]
        self._waiting += len(fresh)
        self.leasing.noted((item.lane, item.due) for item in fresh)
        return [Accepted(put.id, put.duplicate) for put in puts]

    async def _item(self, call: NewCall, now: float) -> NewItem:
        lane = lane_of(call.namespace, call.function)
        stored = Stored(
            qualifier=call.qualifier, kind=call.kind, meta=call.meta, lineage=call.lineage, callback=call.callback, source=call.source
        )
        due = max(now, call.due)
        return NewItem(
            id=call.id,
            lane=lane,
            body=await self._spill.stored(call.id, stored, call.body),
            accepted_at=now,
            due=due,
            expires=call.expires or due + self._settler.policy(lane).max_age_seconds,
            priority=call.priority,
            group=call.group,
            dedup=call.dedup,
            dedup_until=now + self._settings.async_dedup_seconds if call.dedup else 0.0,
            tag=call.tag,
        )

    # ---- look ------------------------------------------------------------------------------------------------------------------

    async def get(self, call_id: str, namespaces: Sequence[str] | None) -> Seen:
        """`namespaces`: those whose calls the caller may see, None: all. Raises Refusal call_not_found."""
        found = (await self._durable(lambda queue: queue.get([call_id])))[0] if CALL_ID.fullmatch(call_id) else None
        if found is None or (namespaces is not None and split_lane(found.lane)[0] not in namespaces):
            raise Refusal("call_not_found", f"There is no call {call_id[:80]!r}, or no longer.")
        return _seen(found)

    async def wait(self, call_id: str, namespaces: Sequence[str] | None, seconds: float) -> Seen:
        """As `get`, but not before the call is settled or the time is up. Woken by the settlement; nobody asks the store meanwhile."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(call_id, set())
        waiters.add(future)  # first: it may be settled while we look
        try:
            seen = await self.get(call_id, namespaces)
            if seen.settled:
                return seen
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(call_id) is waiters:
                del self._waiters[call_id]
        return await self.get(call_id, namespaces)

    async def result(self, seen: Seen) -> bytes:
        """The body of its answer."""
        if seen.result is None:
            return b""
        return await self._spill.fetch(seen.result.blob) if seen.result.blob else seen.result.body

    async def newest(
        self,
        namespaces: Sequence[str],
        function: str = "",
        states: Sequence[State] = (),
        tag: str = "",
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> list[Item]:
        """Newest first, without bodies and results."""
        lanes = [lane_of(namespace, function) for namespace in namespaces] if function else []
        prefixes = [] if function else [lane_of(namespace, "") for namespace in namespaces]
        if function and tag.startswith("map:"):
            prefixes = [f"{lane}{MAP_MARK}" for lane in lanes]
        if not namespaces:
            return []
        return await self._durable(
            lambda queue: queue.list(lanes=lanes, lane_prefixes=prefixes, states=states, tag=tag, before=before, limit=limit)
        )

    async def counts(self, namespaces: Sequence[str]) -> dict[str, dict[str, int]]:
        """Lane → state → how many."""
        prefixes = [lane_of(namespace, "") for namespace in namespaces]
        return await self._durable(lambda queue: queue.counts(prefixes)) if prefixes else {}

    # ---- change ----------------------------------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str], namespaces: Sequence[str] | None) -> list[str]:
        """Per id: cancelled, cancelling (it runs; it is ended if it can be), settled or unknown."""
        mine = await self._mine(ids, namespaces)
        said = dict(zip(mine, await self.cancel_known(mine, self._settings.async_dead_keep_seconds), strict=True))
        return [said.get(id_, "unknown") for id_ in ids]

    async def cancel_known(self, ids: Sequence[str], keep_seconds: float) -> list[str]:
        """The same, whoever's they are."""
        now = time.time()
        said = dict(zip(ids, await self._durable(lambda queue: queue.cancel(ids, now, now + keep_seconds)), strict=True))
        gone = [id_ for id_, word in said.items() if word == "cancelled"]
        self._waiting = max(0, self._waiting - len(gone))
        self.leasing.cancel(id_ for id_, word in said.items() if word == "cancelling")
        self._wake(gone)
        self.heard((id_, False) for id_ in gone)
        return [said[id_] for id_ in ids]

    async def redrive(self, ids: Sequence[str], namespaces: Sequence[str] | None) -> list[bool]:
        """Dead ones wait again, with all their attempts before them. False: it is not dead, not there, or a map's."""
        mine = await self._mine(ids, namespaces, maps=False)
        done = await self.redrive_known(mine)
        return [id_ in done for id_ in ids]

    async def redrive_known(self, ids: Sequence[str], age_seconds: float = 0.0) -> set[str]:
        """The same, whoever's they are: which wait again. They may wait as long as their function says, or for `age_seconds`."""
        now = time.time()
        items = await self._durable(lambda queue: queue.get(ids))
        ages: dict[float, list[Item]] = {}
        for item in items:
            if item is not None and item.state == "dead":
                ages.setdefault(age_seconds or self._settler.policy(item.lane).max_age_seconds, []).append(item)
        done: set[str] = set()
        for age, part in ages.items():
            names = [item.id for item in part]
            expires = now + age
            went = await self._durable(lambda queue: queue.redrive(names, now, expires))  # noqa: B023 (awaited here)
            done |= {id_ for id_, took in zip(names, went, strict=True) if took}
            self.leasing.noted((item.lane, now) for item in part if item.id in done)
        self._waiting += len(done)
        return done

    async def purge(self, ids: Sequence[str], namespaces: Sequence[str] | None) -> list[bool]:
        """Waiting and settled ones are deleted. False: it runs, is not there, or is a map's."""
        mine = await self._mine(ids, namespaces, maps=False)
        gone = dict(zip(mine, await self._durable(lambda queue: queue.purge(mine)), strict=True))
        self._wake(id_ for id_, went in gone.items() if went)
        return [gone.get(id_, False) for id_ in ids]

    async def _mine(self, ids: Sequence[str], namespaces: Sequence[str] | None, *, maps: bool = True) -> list[str]:
        """Those that are there and the caller's; without `maps`: and no map's, which are redriven and deleted with it alone."""
        if len(ids) > IDS_MAX:
            raise Refusal("bad_request", f"{len(ids)} calls at once; {IDS_MAX} may be named together.")
        good = [id_ for id_ in dict.fromkeys(ids) if CALL_ID.fullmatch(id_)]
        items = await self._durable(lambda queue: queue.get(good))
        return [
            it.id
            for it in items
            if it is not None and (namespaces is None or split_lane(it.lane)[0] in namespaces) and (maps or not map_seed(it.lane))
        ]

    # ---- waiters ---------------------------------------------------------------------------------------------------------------

    def _settled(self, settlements: Sequence[Settlement]) -> None:
        self._waiting = max(0, self._waiting - len(settlements) + sum(len(it.items) for it in settlements))
        self._wake(it.id for it in settlements)
        self.heard((it.id, it.state == "done") for it in settlements)

    def _wake(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            for future in self._waiters.get(id_, ()):
                if not future.done():
                    future.set_result(None)


def is_callback(item: Item) -> bool:
    """Whether this is an HTTP callback, and no function's call."""
    return item.lane.endswith(CALLBACK)


def _seen(item: Item) -> Seen:
    return Seen(
        item=item,
        stored=decode_stored(item.body),
        attempts=[decode_attempt(record) for record in item.attempts if record],
        result=decode_result(item.result) if item.result else None,
    )


def _answer(call: NewCall, found: Accepted | Refusal) -> link.Answered:
    """To a gateway: what it sends a second time, having missed the answer, is no duplicate to whoever made the call."""
    if isinstance(found, Accepted):
        return link.Answered(found.id, found.duplicate and found.id != call.id)
    return link.Answered("", False, found.kind.code, found.detail, found.retry_after_seconds or 0.0)
