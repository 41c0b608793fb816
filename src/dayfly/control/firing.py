"""The task that fires schedules: sleeps until the next due time, puts its call into the queue, moves the mark.

Order is what makes it exact: first the call is written down under the due time's key (durable when `accept` returns), then the mark
moves. Dead in between, it is put again and found to be there; several control processes with one store do the same to each other.
It keeps nothing: what it must know stands in the store, read when somebody changes a schedule (`Schedules.changed`), when a time has
come, and now and then, for what another control process changed. Once a second it looks at the clock alone, which may be changed.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec
import sqlalchemy as sa
import structlog

from dayfly.control import due
from dayfly.control.calls import Calls
from dayfly.control.schedules import Schedules, with_next
from dayfly.control.worker import Store
from dayfly.core.decide.firing import call_for, slot_of, tag_of
from dayfly.core.decide.schedule import CLOCK_BACK_SECONDS, Bounds, Plan, allowed, plan
from dayfly.core.model.durable import NewCall, lane_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.schedule import Kept
from dayfly.core.model.settings import Settings
from dayfly.store import schedules
from dayfly.store.queue import State

BATCH = 100  # schedules at once; their rows are in memory together
CALLS_MAX = 500  # calls at once; a schedule alone makes no more (schedule_missed_max)
LOOK_SECONDS = 1.0  # how late it is noticed that the clock was changed
POLL_SECONDS = 10.0  # …and that another control process changed a schedule
AGAIN_SECONDS = 1.0  # after a store or a queue that would not
BROKEN_SECONDS = 3600.0  # a schedule that cannot be read any more: its time zone went from this machine
UNFINISHED: tuple[State, ...] = ("waiting", "leased")
SLOTS = uuid.UUID("0e0c9a9e-5f0b-4b5c-9d0e-64617966c179")  # of our own: two due times with one name are one call

log = structlog.get_logger()
replaced = msgspec.structs.replace


class Planned(msgspec.Struct, frozen=True):
    """A schedule whose time has come, and what is to be done."""

    kept: Kept
    plan: Plan


class Firing:
    """One task per control process: `run`."""

    def __init__(self, settings: Settings, store: Store, calls: Calls, found: Schedules, clock: Callable[[], float] = time.time) -> None:
        self._store, self._calls, self._changed, self._clock = store, calls, found.changed, clock
        self._queued_max = settings.schedule_queued_max
        self._bounds = Bounds(
            late_seconds=settings.schedule_late_seconds,
            missed_max=settings.schedule_missed_max,
            missed_seconds_max=settings.schedule_missed_seconds_max,
        )

    async def run(self) -> None:
        """Until it is cancelled. Whatever fails is said, and tried again."""
        seen = 0.0
        while True:
            try:
                seen = await self._look(seen)
            except Refusal as refusal:
                log.error("schedules_wait", code=refusal.kind.code, detail=refusal.detail)
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception as error:
                log.error("schedules_defect", exc_info=error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _look(self, seen: float) -> float:
        """Fire what is due and sleep until there is a reason to look again. `seen`: what the clock said before; 0 = at no time."""
        self._changed.clear()
        now = self._clock()
        if now < seen or not seen:
            await self._store(schedules.rouse, now + CLOCK_BACK_SECONDS, now)
        while await self.fire(self._clock()) == BATCH:
            pass
        upcoming = await self._store(schedules.next_at)
        return await self._sleep(self._clock() + POLL_SECONDS if upcoming is None else upcoming, now)

    async def _sleep(self, until: float, highest: float) -> float:
        """Until then, or a change, or the clock goes back, or it is time to look whatever happens. The highest that the clock said."""
        begun = time.monotonic()
        while (now := self._clock()) >= highest:
            highest = now
            left = min(until - now, begun + POLL_SECONDS - time.monotonic(), LOOK_SECONDS)
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._changed.wait(), left)
                break
            except TimeoutError:
                continue
        return highest

    async def fire(self, now: float) -> int:
        """Do for at most BATCH schedules what their time has come for; how many there were."""
        planned, broken = await self._store(_planned, now, self._bounds)
        running = await self._unfinished([it.kept for it in planned if it.plan.firings and it.kept.schedule.overlap != "parallel"])
        chosen = [_chosen(it, running.get(_key(it.kept), frozenset()), self._queued_max) for it in planned]
        refused = {key for group in _groups(chosen) for key in await self._accept(group)}
        later = {_key(it.kept): replaced(it.kept, next_at=now + AGAIN_SECONDS) for it in chosen if _key(it.kept) in refused}
        changes = [(it.kept, later.get(_key(it.kept)) or _moved(it, now)) for it in chosen]
        changes += [(kept, replaced(kept, next_at=now + BROKEN_SECONDS)) for kept in broken]
        if changes:
            await self._store(_write, changes)
        return len(changes)

    async def _unfinished(self, asked: Sequence[Kept]) -> dict[tuple[str, str], frozenset[str]]:
        """Ids of the calls of each schedule that wait or run (as many as can matter)."""
        limit = self._queued_max + self._bounds.missed_max
        found = await asyncio.gather(
            *(self._calls.newest((kept.namespace,), kept.function, UNFINISHED, tag_of(kept.name), limit=limit) for kept in asked)
        )
        return {_key(kept): frozenset(item.id for item in items) for kept, items in zip(asked, found, strict=True)}

    async def _accept(self, chosen: "Sequence[Chosen]") -> set[tuple[str, str]]:
        """Put the calls; the schedules of which some were not taken. All of theirs are put again later: what was taken is known then."""
        answers = await self._calls.accept_each([call for it in chosen for call in it.calls])
        owners = (it.kept for it in chosen for _ in it.calls)
        refused = {_key(kept): (kept, answer) for kept, answer in zip(owners, answers, strict=True) if isinstance(answer, Refusal)}
        for kept, refusal in refused.values():
            log.error("schedule_waits", namespace=kept.namespace, schedule=kept.name, code=refusal.kind.code, detail=refusal.detail)
        return set(refused)


class Chosen(msgspec.Struct, frozen=True):
    """A schedule with the calls that it makes now, and how many due times an overlap cost."""

    kept: Kept
    plan: Plan
    firings: tuple[float, ...]
    calls: tuple[NewCall, ...]


def _chosen(planned: Planned, running: frozenset[str], queued_max: int) -> Chosen:
    kept = planned.kept
    ids = {moment: _id(kept, moment) for moment in planned.plan.firings}
    others = running - set(ids.values())  # those of a control process that died before the mark moved are no overlap
    firings = allowed(kept.schedule.overlap, planned.plan.firings, len(others), queued_max)
    return Chosen(kept, planned.plan, firings, tuple(call_for(kept, ids[moment], moment) for moment in firings))


def _groups(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """Those that make calls, so many together that no batch is too large for the queue or for memory."""
    groups: list[list[Chosen]] = []
    room = 0
    for it in chosen:
        if it.calls:
            if len(it.calls) > room:
                groups.append([])
                room = CALLS_MAX
            groups[-1].append(it)
            room -= len(it.calls)
    return groups


def _moved(chosen: Chosen, now: float) -> Kept:
    """As it is after its firings."""
    kept, planned, firings = chosen.kept, chosen.plan, chosen.firings
    return replaced(
        kept,
        decided=planned.decided,
        next_at=planned.next_at,
        updated_at=now,
        last_due=firings[-1] if firings else kept.last_due,
        last_call=chosen.calls[-1].id if firings else kept.last_call,
        fired=kept.fired + len(firings),
        skipped=kept.skipped + len(planned.firings) - len(firings),
        missed=kept.missed + planned.missed,
    )


def _id(kept: Kept, moment: float) -> str:
    """The id of the call of one due time: the same, whoever makes it."""
    return str(uuid.uuid5(SLOTS, f"{lane_of(kept.namespace, kept.function)}/{slot_of(kept, moment)}"))


def _key(kept: Kept) -> tuple[str, str]:
    return kept.namespace, kept.name


def _planned(tx: sa.Connection, now: float, bounds: Bounds) -> tuple[list[Planned], list[Kept]]:
    """What is due, and those that cannot be read any more. In the store's thread: reading many expressions takes a while."""
    planned, broken = [], []
    for kept in schedules.due(tx, now, BATCH):
        try:
            times = due.times_of(kept.schedule, kept.anchor)
        except Refusal as refusal:
            log.error("schedule_broken", namespace=kept.namespace, schedule=kept.name, detail=refusal.detail)
            broken.append(kept)
            continue
        planned.append(Planned(kept, plan(times, kept.schedule.missed, kept.decided, kept.offset, now, bounds)))
    return planned, broken


def _write(tx: sa.Connection, changes: Sequence[tuple[Kept, Kept]]) -> None:
    """Move the marks, from what was read to what is. Who was paused or put anew meanwhile stays so, and has fired all the same; another
    control process that moved the mark as far has counted, too."""
    for before, after in changes:
        if schedules.change(tx, after):
            continue
        now = schedules.get(tx, before.namespace, before.name)
        if now is not None and (now.created_at, now.anchor) == (before.created_at, before.anchor) and now.decided < after.decided:
            merged = replaced(
                now,
                decided=after.decided,
                last_due=after.last_due,
                last_call=after.last_call,
                fired=now.fired + after.fired - before.fired,
                skipped=now.skipped + after.skipped - before.skipped,
                missed=now.missed + after.missed - before.missed,
            )
            schedules.change(tx, with_next(merged))
