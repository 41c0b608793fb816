"""The other half of durable calls: which are leased when, to which gateway, and what is done with their outcomes.

One task leases: woken by what is put or settled and by the next due time, it asks core/decide/lanes.py how many of which lane, and sends
them to the gateways that are their functions' homes. One task keeps house: it extends what connected gateways hold, settles as lost what
nobody holds any more, buries what nobody ran in time, forgets what is old. A gateway that comes back says what it still holds; what it
does not name is lost. Nothing is settled from memory alone: the queue believes only the present epoch. Never runs a call. Called by
link.py (messages of gateways), calls.py, plane.py.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from dayfly.control.catalog import Catalog
from dayfly.control.durable import Durable
from dayfly.control.hands import Due, Gateway, Hands, Key, hand_of, homes_of, in_messages, leased, lost
from dayfly.control.settling import Hand, Settler
from dayfly.control.spill import Spill
from dayfly.core.decide.lanes import Shares
from dayfly.core.decide.rollout import live_config
from dayfly.core.model.durable import CALLBACK, LeasedCall, Outcome, Ran, split_lane
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire.link import CancelRun, Heard, Holding
from dayfly.store.queue import RECLAIM_MAX, Lease, Settlement

LEASE_BATCH = 512
CALLBACK_SHARE = 4  # one namespace's callbacks under way are at most this part of callback_concurrency
LOOK_AGAIN_SECONDS = 0.25  # at a lane that has something due of which nothing could be leased (a group's first is out)
ORPHAN_SECONDS = 2.0  # how long a gateway whose link broke may take to come back
AGAIN_SECONDS = 0.5  # after the store could not be written
HOUSE_SECONDS = 1.0
FORGET_MAX = 5_000
SWEEP_SECONDS = 600.0
IDLE_SECONDS = 30.0
LOOK_SECONDS = 10.0  # a backstop: all lanes are looked at, whoever has said that something waits there or not

CallbackRunner = Callable[[Hand, bytes], Awaitable[Ran]]

log = structlog.get_logger()


class Leasing:
    """What is in gateways' hands, and how it gets there and back."""

    def __init__(self, settings: Settings, catalog: Catalog, durable: Durable, settler: Settler, spill: Spill) -> None:
        self._settings, self._catalog = settings, catalog
        self._durable, self._settler, self._spill = durable, settler, spill
        self._die = random.Random()  # noqa: S311  (jitter)
        self._owner = f"{time.time_ns():x}"
        self.hands, self._due, self._shares = Hands(), Due(), Shares()
        self._gateways: dict[str, Gateway] = {}
        self._closing: set[str] = set()  # gateways that take no more
        self._orphans: dict[str, float] = {}  # gateways whose link broke → until when they may come back
        self._wake = asyncio.Event()
        self._unsettled: list[tuple[Hand, Ran, Gateway | None]] = []  # the store could not take them yet
        self._tasks: set[asyncio.Task[None]] = set()
        self.callback: CallbackRunner | None = None
        self.on_settled: Callable[[Sequence[Settlement]], None] = lambda _: None
        self.ceiling: Callable[[str], int | None] = lambda _: None  # how many of a map's lane may be out at once; None: no matter

    def __repr__(self) -> str:
        return f"<Leasing {len(self.hands)} out to {len(self._gateways)} gateways, {len(self._due.ready)} lanes ready>"

    def start(self) -> list[asyncio.Task[None]]:
        """The two tasks; control ends them."""
        return [asyncio.create_task(self._lease_forever()), asyncio.create_task(self._keep_house())]

    def noted(self, lanes: Iterable[tuple[str, float]]) -> None:
        """Something waits in these lanes from these times on."""
        self._due.noted(lanes, time.time())
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
            self._lose([hand for hand in self.hands.of(gateway.name) if hand.key not in named])
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
                self.hands.adopt(hand_of(item, gateway))

    async def ran(self, gateway: Gateway, outcomes: Sequence[Ran]) -> None:
        """What became of leases. Answered with Heard when it is written down, or not believed."""
        unknown = [(ran.id, ran.epoch) for ran in outcomes if (ran.id, ran.epoch) not in self.hands]
        if unknown:
            await self._adopt(unknown, gateway.name)
        known, strange = [], []
        for ran in outcomes:
            hand = self.hands.let_go((ran.id, ran.epoch))
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
                self.hands.hold(hand)  # or nobody would extend it
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
            self.hands.counted(hand, ran, now)
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

    def _lose(self, hands: Iterable[Hand]) -> None:
        """Nobody knows what became of these."""
        ended: list[tuple[Hand, Ran, Gateway | None]] = []
        for hand in hands:
            if self.hands.let_go(hand.key) is not None:
                ended.append((hand, lost(hand, "The gateway that had it was lost."), None))
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
                wait = self._due.next_seconds(time.time(), IDLE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()

    async def _lease_some(self) -> bool:
        """One round. True when another may find more at once."""
        now = time.time()
        self._due.passed(now)
        wanted = self._wanted()
        if not wanted:
            return False
        leases, short, lanes = await self._durable.lease(wanted, now, now + self._settings.async_lease_seconds, self._owner)
        self._due.ready -= short
        self.noted((lane, max(due, now + LOOK_AGAIN_SECONDS) if due <= now else due) for lane, due in lanes.items() if lane in short)
        self._give(leases, now)
        return bool(leases)

    def _wanted(self) -> list[tuple[str, int]]:
        takers = [name for name in self._gateways if name not in self._closing]
        houses = max(1, len(takers))  # callbacks need no gateway
        budget = min(LEASE_BATCH, houses * self._settings.async_in_hand_max - len(self.hands))
        if budget <= 0 or self.hands.bytes > houses * self._settings.async_in_hand_bytes_max:
            return []
        rooms = {lane: room for lane in self._due.ready if (room := self._room(lane, len(takers))) > 0}
        return self._shares.wanted(rooms, self.hands.by_lane(), budget)

    def _room(self, lane: str, takers: int) -> int:
        window = self.hands.window(lane)
        if lane.endswith(CALLBACK):
            return window.room(max(1, self._settings.callback_concurrency // CALLBACK_SHARE), ahead=False)
        function = self._catalog.functions.opened(split_lane(lane))
        if function is None:
            return window.room(LEASE_BATCH, ahead=False)  # they are only buried
        config, most = live_config(function), self._settings.async_concurrency
        share = int(self._settings.async_share * config.max_instances * config.concurrency)
        slots = max(1, min(share, config.durable.concurrency or most))
        return self.hands.room(lane, slots, self.ceiling(lane), ahead=config.durable.idempotent) if takers else 0

    def _give(self, leases: Sequence[Lease], now: float) -> None:
        """Each to the gateway that is its function's home, in few messages; large bodies are fetched first."""
        takers = [name for name in self._gateways if name not in self._closing]
        hellos = {name: self._gateways[name].hello for name in takers}
        homes = homes_of({lease.lane for lease in leases}, hellos, self.hands.load, self._catalog.limits)
        runs: dict[str, list[LeasedCall]] = {}
        for lease in leases:
            is_callback = lease.lane.endswith(CALLBACK)
            hand = hand_of(lease, "" if is_callback else homes.get(lease.lane, ""), now)
            self.hands.hold(hand)
            if hand.stored.kind == "callback":
                self._spawn(self._call_back(hand))
            elif split_lane(hand.lane) not in self._catalog.functions:
                self._spawn(self._unbegun(hand, "gone", "function_not_found", "The function is there no more."))
            elif not takers:
                self._spawn(self._unbegun(hand, "returned", "overloaded", "There is no gateway."))
            elif hand.stored.blob:
                self._spawn(self._give_large(hand))
            else:
                runs.setdefault(hand.gateway, []).append(leased(hand, hand.stored.body))
        for name, calls in runs.items():
            self._send(name, calls)

    def _send(self, name: str, calls: Sequence[LeasedCall]) -> None:
        gateway = self._gateways.get(name)
        if gateway is not None:  # one that has just left has lost them with the rest
            for message in in_messages(calls):
                gateway.tell(message)

    async def _give_large(self, hand: Hand) -> None:
        try:
            body = await self._spill.body(hand.stored)
        except Refusal as refusal:
            await self._unbegun(hand, "platform", refusal.kind.code, refusal.detail)
        else:
            self._send(hand.gateway, [leased(hand, body)])

    async def _unbegun(self, hand: Hand, outcome: Outcome, code: str, detail: str) -> None:
        """A lease ends here, nobody was given it."""
        self.hands.let_go(hand.key)
        await self._settle([(hand, Ran(id=hand.id, epoch=hand.epoch, outcome=outcome, code=code, detail=detail), None)])

    async def _call_back(self, hand: Hand) -> None:
        assert self.callback is not None, "introduced before start"
        try:
            ran = await self.callback(hand, await self._spill.body(hand.stored))
        except Refusal as refusal:
            await self._unbegun(hand, "platform", refusal.kind.code, refusal.detail)
            return
        if self.hands.let_go(hand.key) is not None:
            await self._settle([(hand, ran, None)])

    # ---- house -----------------------------------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        extended_at = swept_at = looked_at = 0.0
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
                if clock - looked_at >= LOOK_SECONDS:
                    looked_at = clock
                    self.noted((await self._durable(lambda queue: queue.lanes(now))).items())  # noqa: B023 (awaited here)
                await self._durable(lambda queue: queue.forget(now, FORGET_MAX))  # noqa: B023 (awaited here)
                if clock - swept_at >= SWEEP_SECONDS:
                    swept_at = clock
                    await self._spill.sweep(self._durable, now)
                    self.hands.forget_windows(self._due.ready)
                    self._shares.forget(set(self.hands.windows))
            except Refusal as refusal:
                log.error("calls_housekeeping_failed", code=refusal.kind.code, detail=refusal.detail)
            except Exception as error:
                log.error("calls_housekeeping_defect", exc_info=error)

    async def _settle_again(self) -> None:
        again, self._unsettled = self._unsettled, []
        for hand, _, _ in again:
            self.hands.let_go(hand.key)
        await self._settle(again)

    def _lose_orphans(self, clock: float) -> None:
        for name in [name for name, until in self._orphans.items() if until <= clock]:
            del self._orphans[name]
            self._lose(self.hands.of(name))

    async def _extend(self, now: float) -> None:
        keys = list(self.hands)
        if keys:
            until = now + self._settings.async_lease_seconds
            kept = await self._durable(lambda queue: queue.extend(keys, until))
            for key, mine in zip(keys, kept, strict=True):
                if not mine:
                    self.hands.let_go(key)

    async def _reclaim(self, now: float) -> None:
        """Leases of a control before this one, whose gateway has not said that it has them. Ours are extended before anybody asks."""
        while True:
            leases = await self._durable(lambda queue: queue.reclaim(now))
            self.hands.told_of(lease.lane for lease in leases)
            hands = [hand_of(lease, "", now) for lease in leases]
            await self._settle([(hand, lost(hand, "Control and the gateway that had it were lost."), None) for hand in hands])
            if len(leases) < RECLAIM_MAX:
                return

    async def _expire(self, now: float) -> None:
        while True:
            leases = await self._durable(lambda queue: queue.expire(now, RECLAIM_MAX, self._owner))
            await self._settle(
                [(hand, Ran(id=hand.id, epoch=hand.epoch, outcome="throttled", code="expired"), None)
                 for hand in (hand_of(lease, "", now) for lease in leases)]
            )  # fmt: skip
            if len(leases) < RECLAIM_MAX:
                return

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
