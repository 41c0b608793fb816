"""Schedules as people handle them: looked at, put, paused, run now, removed; and as a function's manifest declares them.

A name belongs to the manifest of the version that is live, or to whoever put it through the API; the one does not touch the other's.
Pausing is for both: it stays what it is whatever is deployed. The clock's side is control/firing.py. Names and payload
have been checked by the face (core/manifest/schedule.py); whether the bearer may, too.
"""

import asyncio
import math
import random
import time
import uuid
from collections.abc import Iterable
from itertools import islice

import msgspec
import sqlalchemy as sa

from dayfly.control import due
from dayfly.control.calls import Calls
from dayfly.control.worker import Store
from dayfly.core.decide import rollout
from dayfly.core.decide.firing import call_now
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function
from dayfly.core.model.names import NAME
from dayfly.core.model.schedule import Kept, Schedule
from dayfly.core.model.settings import Settings
from dayfly.store import access, functions, schedules

NEXT_MAX = 100
replaced = msgspec.structs.replace


class Schedules:
    """Verbs. Raises Refusal schedule_not_found, function_not_found, bad_config, conflict."""

    def __init__(self, settings: Settings, store: Store, calls: Calls) -> None:
        self._settings, self._store, self._calls = settings, store, calls
        self.changed = asyncio.Event()

    def wake(self) -> None:
        """Schedules were changed: whoever sleeps until the next one looks again."""
        self.changed.set()

    async def listed(self, namespaces: tuple[str, ...], function: str = "") -> list[Kept]:
        """Those of some namespaces, and of one function, sorted by namespace and name."""
        return await self._store(_listed, namespaces, function)

    async def get(self, namespace: str, name: str) -> Kept:
        """One of them."""
        return await self._store(_known, namespace, name)

    async def put(self, namespace: str, function: str, schedule: Schedule) -> Kept:
        """Make or replace one that no manifest declares. What does not change when it comes keeps its place in time."""
        now = time.time()
        await asyncio.to_thread(due.check, schedule, now, self._settings.schedule_period_seconds_min)
        if schedule.at and next(due.times_of(schedule, now).after(now), None) is None:
            raise Refusal("bad_config", f"at = {schedule.at!r}: is over.")
        self._check_payload(schedule)
        kept = await self._store(self._put, namespace, function, schedule, now)
        self.wake()
        return kept

    async def remove(self, namespace: str, name: str) -> None:
        """Remove one that no manifest declares; its calls that were made stay."""
        await self._store(_remove, namespace, name)
        self.wake()

    async def pause(self, namespace: str, name: str, paused: bool) -> Kept:
        """Stop it, or let it go on: what was due in between is neither fired nor missed."""
        kept = await self._store(_paused, namespace, name, paused, time.time())
        self.wake()
        return kept

    async def run_now(self, namespace: str, name: str) -> str:
        """One call beside the clock, whatever runs, paused or not; its id."""
        kept = await self.get(namespace, name)
        return (await self._calls.accept([call_now(kept, str(uuid.uuid4()), time.time())]))[0].id

    async def coming(self, namespace: str, name: str, count: int) -> list[float]:
        """When it fires next, as things stand; empty while it is off."""
        kept = await self.get(namespace, name)
        after = max(kept.decided, time.time() - kept.offset)
        return await asyncio.to_thread(_coming, kept, after, count) if kept.is_on else []

    def preview(self, schedule: Schedule, count: int) -> list[float]:
        """When a schedule that is put now would come, its jitter aside."""
        now = time.time()
        due.check(schedule, now, self._settings.schedule_period_seconds_min)
        return list(islice(due.times_of(schedule, float(math.floor(now))).after(now), count))

    def check(self, tx: sa.Connection, namespace: str, function: str, declared: Iterable[Schedule]) -> None:
        """Raises Refusal conflict when a manifest with these schedules cannot be taken (another has the name, or there are too many), and
        bad_config for a payload that is too large."""
        present = {kept.name for kept in schedules.of(tx, (namespace,), function) if kept.declared}
        wanted = _named(function, declared)
        for schedule in wanted.values():
            self._check_payload(schedule)
        for name in wanted.keys() - present:
            if (taken := schedules.get(tx, namespace, name)) is not None:
                raise Refusal("conflict", f"The schedule {name!r} is there already, for {taken.function!r}; give this one another `name`.")
        self._check_room(schedules.count(tx, namespace) + len(wanted) - len(present))

    def declare(self, tx: sa.Connection, function: Function) -> None:
        """The schedules of a function's manifest become those of the version that is live, in the transaction that makes it so."""
        namespace, now = function.namespace, time.time()
        declared = rollout.live_config(function).schedule
        self.check(tx, namespace, function.name, declared)
        wanted = _named(function.name, declared)
        present = {kept.name: kept for kept in schedules.of(tx, (namespace,), function.name) if kept.declared}
        for name in present.keys() - wanted.keys():
            schedules.drop(tx, namespace, name)
        for name, schedule in wanted.items():
            kept = present.get(name)
            if kept is None or kept.schedule != schedule:
                schedules.put(tx, _as_put(kept, namespace, function.name, schedule, now, declared=True))

    def _put(self, tx: sa.Connection, namespace: str, function: str, schedule: Schedule, now: float) -> Kept:
        if functions.created_at(tx, namespace, function) is None:
            raise Refusal("function_not_found", f"There is no function {function!r} in this namespace.")
        present = schedules.get(tx, namespace, schedule.name)
        if present is None:
            self._check_room(schedules.count(tx, namespace) + 1)
        else:
            _check_free(present)
        kept = _as_put(present, namespace, function, schedule, now, declared=False)
        schedules.put(tx, kept)
        return kept

    def _check_payload(self, schedule: Schedule) -> None:
        most = self._settings.schedule_payload_bytes_max
        if len(schedule.payload.encode()) > most:
            raise Refusal("bad_config", f"The payload of {schedule.name!r} has over {most} bytes (schedule_payload_bytes_max).")

    def _check_room(self, wanted: int) -> None:
        most = self._settings.schedules_per_namespace_max
        if wanted > most:
            raise Refusal("conflict", f"A namespace holds at most {most} schedules (schedules_per_namespace_max).")


def _named(function: str, declared: Iterable[Schedule]) -> dict[str, Schedule]:
    """By name. One without has its function's and its place. Raises Refusal bad_config when that is too long."""
    found: dict[str, Schedule] = {}
    for number, schedule in enumerate(declared, 1):
        name = schedule.name or f"{function}-{number}"
        if not NAME.fullmatch(name) or name in found:
            raise Refusal("bad_config", f"schedule[{number - 1}]: needs a `name` of its own; {name!r} will not do.")
        found[name] = replaced(schedule, name=name)
    return found


def _as_put(present: Kept | None, namespace: str, function: str, schedule: Schedule, now: float, *, declared: bool) -> Kept:
    """A schedule as it is from now on. It begins anew unless it comes when it came before, for the same function."""
    new = Kept(namespace=namespace, function=function, schedule=schedule, declared=declared, created_at=now)
    kept = new if present is None else replaced(present, function=function, schedule=schedule, declared=declared)
    if present is None or present.function != function or present.schedule.when != schedule.when:
        kept = replaced(kept, anchor=float(math.floor(now)), decided=now, dice=random.random(), last_due=None, last_call="")  # noqa: S311
    elif schedule.enabled and not present.schedule.enabled:
        kept = replaced(kept, decided=now)
    return with_next(replaced(kept, revision=kept.revision + 1, updated_at=now))


def with_next(kept: Kept) -> Kept:
    """With the time at which it must be looked at next."""
    found = _coming(kept, kept.decided, 1) if kept.is_on else []
    return replaced(kept, next_at=found[0] if found else None)


def _coming(kept: Kept, after: float, count: int) -> list[float]:
    times = due.times_of(kept.schedule, kept.anchor)
    return [moment + kept.offset for moment in islice(times.after(after), count)]


def _known(tx: sa.Connection, namespace: str, name: str) -> Kept:
    kept = schedules.get(tx, namespace, name)
    if kept is None:
        raise Refusal("schedule_not_found", f"There is no schedule {name!r} in this namespace.")
    return kept


def _check_free(kept: Kept) -> None:
    if kept.declared:
        detail = f"The schedule {kept.name!r} stands in the dayfly.toml of {kept.function!r}: change it there, or pause it."
        raise Refusal("conflict", detail)


def _listed(tx: sa.Connection, namespaces: tuple[str, ...], function: str) -> list[Kept]:
    if len(namespaces) == 1 and not access.has_namespace(tx, namespaces[0]):
        raise Refusal("not_found", f"There is no namespace {namespaces[0]!r}.")
    return schedules.of(tx, namespaces, function)


def _remove(tx: sa.Connection, namespace: str, name: str) -> None:
    _check_free(_known(tx, namespace, name))
    schedules.drop(tx, namespace, name)


def _paused(tx: sa.Connection, namespace: str, name: str, paused: bool, now: float) -> Kept:
    kept = _known(tx, namespace, name)
    if paused != kept.paused:
        kept = with_next(replaced(kept, paused=paused, updated_at=now, decided=kept.decided if paused else now))
        schedules.change(tx, kept)
        kept = _known(tx, namespace, name)
    return kept
