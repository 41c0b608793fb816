"""The other half of durable calls: which are leased when, to which gateway, and what is done with their outcomes.

One task leases: woken by what is put or settled and by the next due time, it asks core/decide/lanes.py how many of which lane, and sends
them to the gateway that has the fewest. One task keeps house: it extends what connected gateways hold, settles as lost what nobody holds
any more, buries what nobody ran in time, forgets what is old. A gateway that comes back says what it still holds; what it does not
name is lost. Nothing is settled from memory alone: the queue believes only the present epoch.
Never runs a call. Made by control/plane.py; called by link.py (messages of gateways) and calls.py.
"""

import asyncio
import heapq
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog

from dayfly.control.catalog import Catalog
from dayfly.control.durable import Durable
from dayfly.control.settling import Hand, Settler
from dayfly.control.spill import Spill, decode_stored
from dayfly.core.decide.lanes import Shares, Window
from dayfly.core.decide.rollout import live_config
from dayfly.core.model.durable import CALLBACK, LeasedCall, Ran, split_lane
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import with_lineage
from dayfly.core.wire.link import CancelRun, Heard, Holding, Run, ToGateway
from dayfly.store.queue import RECLAIM_MAX, Item, Lease, Settlement

LEASE_BATCH = 512
RUN_BYTES_MAX = 8 * 1024 * 1024  # of one message
LOOK_AGAIN_SECONDS = 0.25  # at a lane that has something due of which nothing could be leased (a group's first is out)
ORPHAN_SECONDS = 2.0  # how long a gateway whose link broke may take to come back
AGAIN_SECONDS = 0.5  # after the store could not be written
HOUSE_SECONDS = 1.0
FORGET_MAX = 5_000
SWEEP_SECONDS = 600.0
IDLE_SECONDS = 30.0  # a backstop: the loop looks at all lanes, whoever woke it or not

Key = tuple[str, int]
CallbackRunner = Callable[[Hand, bytes], Awaitable[Ran]]

log = structlog.get_logger()


class Gateway(Protocol):
    """A connected gateway (control/link.py Peer)."""

    @property
    def name(self) -> str: ...

    def tell(self, message: ToGateway) -> None: ...


class Leasing:
    """What is in gateways' hands, and how it gets there and back."""

    def __init__(self, settings: Settings, catalog: Catalog, durable: Durable, settler: Settler, spill: Spill) -> None:
        self._settings, self._catalog = settings, catalog
        self._durable, self._settler, self._spill = durable, settler, spill
        self._die = random.Random()  # noqa: S311  (jitter)
        self._owner = f"{time.time_ns():x}"
        self.hands: dict[Key, Hand] = {}
        self._bytes = 0
        self._load: Counter[str] = Counter()  # by gateway
        self._gateways: dict[str, Gateway] = {}
        self._closing: set[str] = set()  # gateways that take no more
        self._orphans: dict[str, float] = {}  # gateways whose link broke → until when they may come back
        self._windows: dict[str, Window] = {}
        self._shares = Shares()
        self._ready: set[str] = set()  # lanes that may have something due
        self._later: list[tuple[float, str]] = []
        self._wake = asyncio.Event()
        self._unsettled: list[tuple[Hand, Ran, Gateway | None]] = []  # the store could not take them yet
        self._tasks: set[asyncio.Task[None]] = set()
        self.callback: CallbackRunner | None = None
        self.on_settled: Callable[[Sequence[Settlement]], None] = lambda _: None

    def __repr__(self) -> str:
        return f"<Leasing {len(self.hands)} out to {len(self._gateways)} gateways, {len(self._ready)} lanes ready>"

    def start(self) -> list[asyncio.Task[None]]:
        """The two tasks; control ends them."""
        return [asyncio.create_task(self._lease_forever()), asyncio.create_task(self._keep_house())]

    def noted(self, lanes: Iterable[tuple[str, float]]) -> None:
        """Something waits in these lanes from these times on."""
        now = time.time()
        for lane, due in lanes:
            if due <= now:
                self._ready.add(lane)
            else:
                heapq.heappush(self._later, (due, lane))
        self._wake.set()

    # ---- gateways --------------------------------------------------------------------------------------------------------------

    def left(self, gateway: Gateway) -> None:
        """Its link broke. It has a moment to come back and say what it holds."""
        if self._gateways.get(gateway.name) is gateway:
            del self._gateways[gateway.name]
            self._closing.discard(gateway.name)
            self._orphans[gateway.name] = time.monotonic() + ORPHAN_SECONDS

    async def holding(self, gateway: Gateway, message: Holding) -> None:
        """What a gateway has, the first that it says after it connected: it is given none before. What it was given by way of an old link
        and does not have is lost. Said again when it takes no more."""
        named = set(message.leases)
        if self._gateways.get(gateway.name) is not gateway:
            self._orphans.pop(gateway.name, None)
            self._lose([hand for key, hand in self.hands.items() if hand.gateway == gateway.name and key not in named])
            self._gateways[gateway.name] = gateway
            self._wake.set()
        if message.closing:
            self._closing.add(gateway.name)
        unknown = [key for key in named if key not in self.hands]
        if unknown:
            until = time.time() + self._settings.async_lease_seconds
            kept = await self._durable(lambda queue: queue.extend(unknown, until))
            await self._adopt([key for key, mine in zip(unknown, kept, strict=True) if mine], gateway.name)

    async def _adopt(self, keys: Sequence[Key], gateway: str) -> None:
        """Leases that another control gave out."""
        items = await self._durable(lambda queue: queue.get([id_ for id_, _ in keys]))
        for key, item in zip(keys, items, strict=True):
            if item is not None and item.state == "leased" and item.epoch == key[1] and key not in self.hands:
                self._hold(_hand_of(item, gateway))

    async def ran(self, gateway: Gateway, outcomes: Sequence[Ran]) -> None:
        """What became of leases. Answered with Heard when it is written down, or not believed."""
        unknown = [(ran.id, ran.epoch) for ran in outcomes if (ran.id, ran.epoch) not in self.hands]
        if unknown:
            await self._adopt(unknown, gateway.name)
        known, strange = [], []
        for ran in outcomes:
            hand = self._let_go((ran.id, ran.epoch))
            if hand is None:
                strange.append((ran.id, ran.epoch))
            else:
                known.append((hand, ran, gateway))
        if strange:
            gateway.tell(Heard(strange))
        await self._settle(known)

    def cancel(self, ids: Iterable[str]) -> None:
        """These are leased, and somebody cancelled them: whoever has them is told."""
        wanted = set(ids)
        for key, hand in self.hands.items():
            if hand.id in wanted:
                hand.cancelled = True
                if (gateway := self._gateways.get(hand.gateway)) is not None:
                    gateway.tell(CancelRun([key]))

    # ---- settling --------------------------------------------------------------------------------------------------------------

    async def _settle(self, ended: Sequence[tuple[Hand, Ran, Gateway | None]]) -> None:
        """Write down how leases ended. What the store cannot take now is tried again by the housekeeper."""
        if not ended:
            return
        now = time.time()
        try:
            settlements = [
                await self._settler.expired(hand, now) if ran.code == "expired" else
                await self._settler.settlement(hand, ran, now, self._die.random())
                for hand, ran, _ in ended
            ]  # fmt: skip
            took = await self._durable.settle(settlements)
        except Refusal as refusal:
            log.error("calls_not_settled", code=refusal.kind.code, detail=refusal.detail, calls=len(ended))
            for hand, _, _ in ended:
                self._hold(hand)  # or nobody would extend it
            self._unsettled += ended
            return
        finally:
            self._wake.set()
        done, lanes = [], []
        heard: dict[str, tuple[Gateway, list[Key]]] = {}
        for (hand, ran, gateway), settlement, valid in zip(ended, settlements, took, strict=True):
            self._spill.written(f"{hand.id}~{hand.epoch}")
            for item in settlement.items:
                self._spill.written(item.id)
            if gateway is not None:
                heard.setdefault(gateway.name, (gateway, []))[1].append(hand.key)
            self._count(hand, ran, now)
            if valid:
                lanes += [(item.lane, item.due) for item in settlement.items]
                if settlement.state == "waiting":
                    lanes.append((hand.lane, settlement.due))
                else:
                    done.append(settlement)
            if hand.grouped:
                lanes.append((hand.lane, now))  # the next of its group may go
        self.noted(lanes)
        for gateway, keys in heard.values():
            gateway.tell(Heard(keys))
        self.on_settled(done)

    def _count(self, hand: Hand, ran: Ran, now: float) -> None:
        window = self._windows.get(hand.lane)
        if window is None:
            return
        if ran.outcome in ("throttled", "returned", "platform"):
            window.refused(now)
        elif ran.outcome != "lost":
            window.succeeded(ran.exec_us / 1e6)

    def _lose(self, hands: Iterable[Hand]) -> None:
        """Nobody knows what became of these."""
        ended: list[tuple[Hand, Ran, Gateway | None]] = []
        for hand in hands:
            if self._let_go(hand.key) is not None:
                ran = Ran(id=hand.id, epoch=hand.epoch, outcome="lost", code="lost", detail="The gateway that had it was lost.")
                ended.append((hand, ran, None))
        if ended:
            log.warning("leases_lost", calls=len(ended))
            self._spawn(self._settle(ended))

    # ---- leasing ---------------------------------------------------------------------------------------------------------------

    async def _lease_forever(self) -> None:
        self.noted((await self._durable(lambda queue: queue.lanes(time.time()))).items())
        while True:
            self._wake.clear()
            try:
                more = await self._lease_some()
            except Refusal as refusal:
                log.error("calls_not_leased", code=refusal.kind.code, detail=refusal.detail)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except Exception as error:
                log.error("calls_leasing_defect", exc_info=error)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if not more:
                wait = min(IDLE_SECONDS, max(0.0, self._later[0][0] - time.time()) if self._later else IDLE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()

    async def _lease_some(self) -> bool:
        """One round. True when another may find more at once."""
        now = time.time()
        while self._later and self._later[0][0] <= now:
            self._ready.add(heapq.heappop(self._later)[1])
        wanted = self._wanted()
        if not wanted:
            return False
        leases = await self._durable.lease(wanted, now, now + self._settings.async_lease_seconds, self._owner)
        got: dict[str, int] = {}
        for lease in leases:
            got[lease.lane] = got.get(lease.lane, 0) + 1
        short = {lane for lane, most in wanted if got.get(lane, 0) < most}
        if short:
            self._ready -= short
            lanes = await self._durable(lambda queue: queue.lanes(now))
            self.noted((lane, max(due, now + LOOK_AGAIN_SECONDS) if due <= now else due) for lane, due in lanes.items() if lane in short)
        self._give(leases, now)
        return bool(leases)

    def _wanted(self) -> list[tuple[str, int]]:
        takers = [name for name in self._gateways if name not in self._closing]
        budget = min(LEASE_BATCH, len(takers) * self._settings.async_in_hand_max - len(self.hands))
        if budget <= 0 or self._bytes > self._settings.async_in_hand_bytes_max * len(takers):
            return []
        rooms = {lane: room for lane in self._ready if (room := self._room(lane, len(takers))) > 0}
        if not rooms:
            return []
        return self._shares.wanted(rooms, {lane: window.in_hand for lane, window in self._windows.items() if window.in_hand}, budget)

    def _room(self, lane: str, takers: int) -> int:
        window = self._windows.get(lane)
        if window is None:
            window = self._windows[lane] = Window()
        if lane.endswith(CALLBACK):
            return window.room(self._settings.callback_concurrency, ahead=False)
        function = self._catalog.functions.get(split_lane(lane))
        if function is None:
            return window.room(LEASE_BATCH, ahead=False)  # they are only buried
        config, settings = live_config(function), self._settings
        share = int(settings.async_share * config.max_instances * config.concurrency)
        slots = max(1, min(share, config.durable.concurrency or settings.async_concurrency)) * takers
        return window.room(slots, ahead=config.durable.idempotent)

    def _give(self, leases: Sequence[Lease], now: float) -> None:
        """Each to the gateway that has the fewest, in few messages; large bodies are fetched first."""
        takers = [name for name in self._gateways if name not in self._closing]
        runs: dict[str, list[LeasedCall]] = {}
        for lease in leases:
            is_callback = lease.lane.endswith(CALLBACK)
            hand = _hand_of(lease, min(takers, key=lambda name: self._load[name]) if takers and not is_callback else "", now)
            self._hold(hand)
            if hand.stored.kind == "callback":
                self._spawn(self._call_back(hand))
            elif split_lane(hand.lane) not in self._catalog.functions:
                self._spawn(self._bury(hand))
            elif not takers:
                self._spawn(self._return(hand))
            elif hand.stored.blob:
                self._spawn(self._give_large(hand))
            else:
                runs.setdefault(hand.gateway, []).append(_leased(hand, hand.stored.body))
        for name, calls in runs.items():
            self._send(name, calls)

    def _send(self, name: str, calls: Sequence[LeasedCall]) -> None:
        gateway = self._gateways.get(name)
        if gateway is None:
            return  # it has just left; what it held is lost, and so is this
        part: list[LeasedCall] = []
        size = 0
        for call in calls:
            part.append(call)
            size += len(call.body) + len(call.meta)
            if size > RUN_BYTES_MAX:
                gateway.tell(Run(part))
                part, size = [], 0
        if part:
            gateway.tell(Run(part))

    async def _give_large(self, hand: Hand) -> None:
        try:
            body = await self._spill.body(hand.stored)
        except Refusal as refusal:
            self._let_go(hand.key)
            ran = Ran(id=hand.id, epoch=hand.epoch, outcome="platform", code=refusal.kind.code, detail=refusal.detail)
            await self._settle([(hand, ran, None)])
            return
        self._send(hand.gateway, [_leased(hand, body)])

    async def _bury(self, hand: Hand) -> None:
        self._let_go(hand.key)
        _, function = split_lane(hand.lane)
        detail = f"There is no function {function!r} any more."
        await self._settle([(hand, Ran(id=hand.id, epoch=hand.epoch, outcome="gone", code="function_not_found", detail=detail), None)])

    async def _return(self, hand: Hand) -> None:
        self._let_go(hand.key)
        await self._settle([(hand, Ran(id=hand.id, epoch=hand.epoch, outcome="returned", code="overloaded"), None)])

    async def _call_back(self, hand: Hand) -> None:
        assert self.callback is not None, "introduced before start"
        try:
            ran = await self.callback(hand, await self._spill.body(hand.stored))
        except Refusal as refusal:
            ran = Ran(id=hand.id, epoch=hand.epoch, outcome="platform", code=refusal.kind.code, detail=refusal.detail)
        if self._let_go(hand.key) is not None:
            await self._settle([(hand, ran, None)])

    # ---- house -----------------------------------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        extended_at = swept_at = 0.0
        while True:
            await asyncio.sleep(HOUSE_SECONDS)
            try:
                now, clock = time.time(), time.monotonic()
                await self._settle_again()
                self._lose_orphans(clock)
                if clock - extended_at >= self._settings.async_lease_seconds / 3:
                    extended_at = clock
                    await self._extend(now)  # ours first: the clock may have jumped
                    await self._reclaim(now)
                await self._expire(now)
                await self._durable(lambda queue: queue.forget(now, FORGET_MAX))  # noqa: B023 (awaited here)
                if clock - swept_at >= SWEEP_SECONDS:
                    swept_at = clock
                    await self._spill.sweep(self._durable, now)
                    self._forget_windows()
            except Refusal as refusal:
                log.error("calls_housekeeping_failed", code=refusal.kind.code, detail=refusal.detail)
            except Exception as error:
                log.error("calls_housekeeping_defect", exc_info=error)

    async def _settle_again(self) -> None:
        again, self._unsettled = self._unsettled, []
        for hand, _, _ in again:
            self._let_go(hand.key)
        await self._settle(again)

    def _lose_orphans(self, clock: float) -> None:
        for name in [name for name, until in self._orphans.items() if until <= clock]:
            del self._orphans[name]
            self._lose([hand for hand in self.hands.values() if hand.gateway == name])

    async def _extend(self, now: float) -> None:
        keys = list(self.hands)
        if keys:
            until = now + self._settings.async_lease_seconds
            kept = await self._durable(lambda queue: queue.extend(keys, until))
            for key, mine in zip(keys, kept, strict=True):
                if not mine:
                    self._let_go(key)

    async def _reclaim(self, now: float) -> None:
        """Leases of a control before this one, whose gateway has not said that it has them. Ours are extended before anybody asks."""
        while True:
            leases = await self._durable(lambda queue: queue.reclaim(now))
            hands = [_hand_of(lease, "", now) for lease in leases]
            detail = "Control and the gateway that had it were lost."
            lost: list[tuple[Hand, Ran, Gateway | None]] = [
                (hand, Ran(id=hand.id, epoch=hand.epoch, outcome="lost", code="lost", detail=detail), None) for hand in hands
            ]
            await self._settle(lost)
            if len(leases) < RECLAIM_MAX:
                return

    async def _expire(self, now: float) -> None:
        while True:
            leases = await self._durable(lambda queue: queue.expire(now, RECLAIM_MAX, self._owner))
            await self._settle(
                [(hand, Ran(id=hand.id, epoch=hand.epoch, outcome="throttled", code="expired"), None)
                 for hand in (_hand_of(lease, "", now) for lease in leases)]
            )  # fmt: skip
            if len(leases) < RECLAIM_MAX:
                return

    def _forget_windows(self) -> None:
        self._windows = {lane: window for lane, window in self._windows.items() if window.in_hand or lane in self._ready}
        self._shares.forget(set(self._windows))

    def _hold(self, hand: Hand) -> None:
        self.hands[hand.key] = hand
        self._bytes += hand.size
        self._load[hand.gateway] += 1
        window = self._windows.get(hand.lane)
        if window is None:
            window = self._windows[hand.lane] = Window()
        window.in_hand += 1

    def _let_go(self, key: Key) -> Hand | None:
        hand = self.hands.pop(key, None)
        if hand is not None:
            self._bytes -= hand.size
            self._load[hand.gateway] -= 1
            self._windows[hand.lane].in_hand -= 1
        return hand

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("calls_defect", exc_info=error)

    async def close(self) -> None:
        """What is under way is broken off; leases end by themselves, or their gateways name them to the next control."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _hand_of(it: Lease | Item, gateway: str, leased_at: float = 0.0) -> Hand:
    stored = decode_stored(it.body)
    return Hand(
        id=it.id, epoch=it.epoch, attempt=it.attempt, lane=it.lane, accepted_at=it.accepted_at, expires=it.expires, stored=stored,
        leased_at=leased_at, gateway=gateway, size=stored.size + len(stored.meta), grouped=bool(it.group),
    )  # fmt: skip


def _leased(hand: Hand, body: bytes) -> LeasedCall:
    namespace, function = split_lane(hand.lane)
    stored = hand.stored
    return LeasedCall(
        id=hand.id,
        epoch=hand.epoch,
        attempt=hand.attempt,
        namespace=namespace,
        function=function,
        qualifier=stored.qualifier,
        kind=stored.kind,
        meta=with_lineage(stored.kind, stored.meta, stored.lineage, hand.id),
        body=body,
        expires=hand.expires,
    )
