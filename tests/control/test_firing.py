"""control/firing.py over a real store and a real queue, with a clock in the test's hand: one call for each due time, whatever happens."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dayfly.control import firing
from dayfly.control.firing import Firing
from dayfly.control.schedules import Schedules
from dayfly.control.worker import Store
from dayfly.core.model.durable import Accepted, NewCall, lane_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import FunctionConfig, Version
from dayfly.core.model.schedule import Kept, Schedule
from dayfly.core.model.settings import Settings
from dayfly.store import functions, schedules
from dayfly.store.durable import open_queue
from dayfly.store.migrate import open_database
from dayfly.store.queue import Item, NewItem, Queue, Settlement
from dayfly.store.server import Server
from tests.control.world import run

BEGUN = 1_790_000_000.0
LANE = lane_of("default", "report")
FOREVER = 1e12
Places = tuple[Path | Server, Path | Server]  # of the store and of the queue


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """Two files, or one database."""
    if request.param == "sqlite":
        return tmp_path / "dayfly.db", tmp_path / "durable.db"
    server = Server(request.getfixturevalue("postgres"))
    return server, server


class QueueCalls:
    """What control's Calls do for schedules, straight on a queue. Functions named in `refusing` are refused."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.refusing: set[str] = set()
        self.batches: list[int] = []
        self.accepted = asyncio.Event()

    async def accept_each(self, calls: Sequence[NewCall]) -> list[Accepted | Refusal]:
        self.batches.append(len(calls))
        good = [call for call in calls if call.function not in self.refusing]
        taken = iter(self.queue.put([_item(call) for call in good]))
        self.accepted.set()
        refusal = Refusal("function_not_found", "It is gone.")
        return [Accepted((put := next(taken)).id, put.duplicate) if call in good else refusal for call in calls]

    async def newest(self, namespaces: Sequence[str], function: str, states: Any, tag: str, *, limit: int) -> list[Item]:
        return self.queue.list(lanes=[lane_of(space, function) for space in namespaces], states=states, tag=tag, limit=limit)


def _item(call: NewCall) -> NewItem:
    return NewItem(
        id=call.id,
        lane=lane_of(call.namespace, call.function),
        body=call.body,
        accepted_at=BEGUN,
        due=0.0,
        expires=FOREVER,
        group=call.group,
        dedup=call.dedup,
        dedup_until=FOREVER,
        tag=call.tag,
    )


class Control:
    """One control process, as far as schedules go."""

    def __init__(self, places: Places, clock: "Clock", **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.store = Store(open_database(places[0], BEGUN))
        self.calls: Any = QueueCalls(open_queue(places[1]))
        self.schedules = Schedules(self.settings, self.store, self.calls)
        self.firing = Firing(self.settings, self.store, self.calls, self.schedules, clock)

    async def kept(self, name: str = "daily") -> Kept:
        return await self.schedules.get("default", name)

    def close(self) -> None:
        self.calls.queue.close()
        self.store.close()


class Clock:
    def __init__(self, now: float = BEGUN) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class World:
    """Some control processes with one store; the first is `control`."""

    def __init__(self, places: Places, clock: Clock) -> None:
        self.places, self.clock, self.controls = places, clock, list[Control]()

    @property
    def control(self) -> Control:
        return self.controls[0]

    def more(self, **settings: Any) -> Control:
        self.controls.append(Control(self.places, self.clock, **settings))
        return self.controls[-1]

    async def function(self, name: str = "report") -> None:
        version = Version(namespace="default", function=name, number=1, config=FunctionConfig(), code_digest="0" * 64)
        await self.control.store(functions.add_version, version)

    async def put(self, name: str = "daily", function: str = "report", **said: Any) -> Kept:
        """As if it had been put at BEGUN, with the whole of its jitter."""
        kept = await self.control.schedules.put("default", function, Schedule(name=name, **({"rate": "1 minute"} | said)))
        values = {"anchor": BEGUN, "decided": BEGUN, "next_at": BEGUN + 1, "dice": 1.0}
        where = schedules.schedules.c.name == name
        await self.control.store(lambda tx: tx.execute(sa.update(schedules.schedules).where(where).values(**values)))
        return kept

    async def at(self, seconds: float) -> None:
        """Every control process fires what is due so long after BEGUN."""
        self.clock.now = BEGUN + seconds
        for control in self.controls:
            await control.firing.fire(self.clock.now)

    def items(self, lane: str = LANE) -> list[Item]:
        found: list[Item] = []
        while page := self.control.calls.queue.list(
            lanes=(lane,), before=(found[-1].accepted_at, found[-1].id) if found else None, limit=1000
        ):
            found += page
        return found

    def slots(self, lane: str = LANE) -> list[float]:
        """Due times that were fired, in seconds after BEGUN."""
        return sorted(float(it.dedup.rpartition("/")[2]) - BEGUN for it in self.items(lane))

    def finish(self) -> int:
        """All that can be run is run; how many calls that were."""
        queue = self.control.calls.queue
        leases = queue.lease([(LANE, 1000)], self.clock.now, self.clock.now + 60, "test")
        queue.settle([Settlement(id=it.id, epoch=it.epoch, now=self.clock.now, state="done", keep_until=FOREVER) for it in leases])
        return len(leases)


@contextmanager
def world(places: Places, **settings: Any) -> Iterator[World]:
    made = World(places, Clock())
    made.more(**settings)
    try:
        yield made
    finally:
        for control in made.controls:
            control.close()


def test_each_due_time_makes_one_call_and_the_schedule_tells_of_it(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            await w.function()
            await w.put(payload='{"a":1}')
            for seconds in (1, 59.9, 60, 60, 61, 120, 179, 180.2):
                await w.at(seconds)
                w.finish()
            assert w.slots() == [60, 120, 180]
            kept = await w.control.kept()
            assert (kept.fired, kept.skipped, kept.missed, kept.last_due, kept.next_at) == (3, 0, 0, BEGUN + 180, BEGUN + 240)
            (last,) = w.control.calls.queue.get([kept.last_call])
            assert last.body == b'{"a":1}' and last.tag == "schedule:daily" and last.dedup == f"schedule/daily/{BEGUN + 180:.3f}"

    run(main())


@pytest.mark.parametrize(("missed", "expected", "count"), [("none", [], 4), ("last", [240], 3), ("all", [60, 120, 180, 240], 0)])
def test_what_was_due_while_control_was_away_is_made_up_for_by_the_policy(places: Places, missed: str, expected: list[float], count: int):
    async def main() -> None:
        with world(places) as w:
            await w.function()
            await w.put(missed=missed, overlap="parallel")
            await w.at(1)
            w.control.close()
            w.controls.clear()
            w.more()
            await w.at(250)
            assert w.slots() == expected and (await w.control.kept()).missed == count
            await w.at(300)
            assert w.slots() == [*expected, 300]

    run(main())


@pytest.mark.parametrize(
    ("overlap", "while_running", "when_done"),
    [("skip", [60], [60, 240]), ("queue", [60, 120], [60, 120, 240]), ("parallel", [60, 120, 180], [60, 120, 180, 240])],
)
def test_a_firing_while_the_one_before_runs(places: Places, overlap: str, while_running: list[float], when_done: list[float]):
    async def main() -> None:
        with world(places, schedule_queued_max=2) as w:
            await w.function()
            await w.put(overlap=overlap)
            await w.at(60)
            queue = w.control.calls.queue
            (lease,) = queue.lease([(LANE, 10)], w.clock.now, w.clock.now + 1000, "test")
            for seconds in (120, 180):
                await w.at(seconds)
            assert w.slots() == while_running
            kept = await w.control.kept()
            assert (kept.fired, kept.skipped) == (len(while_running), 3 - len(while_running))
            beside = queue.lease([(LANE, 10)], w.clock.now, w.clock.now + 1000, "test")
            assert len(beside) == (2 if overlap == "parallel" else 0), "queued ones are leased one by one"
            queue.settle(
                [Settlement(id=it.id, epoch=it.epoch, now=w.clock.now, state="done", keep_until=FOREVER) for it in (lease, *beside)]
            )
            assert w.finish() == (1 if overlap == "queue" else 0)
            await w.at(240)
            assert w.slots() == when_done

    run(main())


def test_dead_between_the_call_and_the_mark_it_is_still_one_call_and_no_overlap_of_itself(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            await w.function()
            await w.put(overlap="skip")
            w.clock.now = BEGUN + 60
            written = firing._write
            try:
                firing._write = _dies  # type: ignore[assignment]
                with pytest.raises(RuntimeError):
                    await w.control.firing.fire(w.clock.now)
            finally:
                firing._write = written
            assert w.slots() == [60] and (await w.control.kept()).fired == 0
            await w.at(61)
            kept = await w.control.kept()
            assert w.slots() == [60] and (kept.fired, kept.skipped, kept.last_due) == (1, 0, BEGUN + 60)

    run(main())


def test_a_pause_in_the_moment_of_a_firing_holds_and_the_firing_counts(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            await w.function()
            await w.put(overlap="parallel")
            taken = w.control.calls.accept_each

            async def and_then_it_is_paused(calls: Sequence[NewCall]) -> list[Accepted | Refusal]:
                answers: list[Accepted | Refusal] = await taken(calls)
                await w.control.schedules.pause("default", "daily", True)
                return answers

            w.control.calls.accept_each = and_then_it_is_paused
            await w.at(60)
            kept = await w.control.kept()
            assert kept.paused and kept.next_at is None and (kept.fired, kept.last_due, kept.decided) == (1, BEGUN + 60, BEGUN + 60)
            await w.at(120)
            assert w.slots() == [60]

    run(main())


def _dies(tx: sa.Connection, changes: Sequence[tuple[Kept, Kept]]) -> None:
    raise RuntimeError("killed")


def test_control_processes_with_one_store_fire_each_due_time_once(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            await w.function()
            for name in ("a", "b", "c"):
                await w.put(name, overlap="parallel", missed="all")
            w.more()
            w.more()
            for seconds in range(0, 1200, 20):
                skewed = [BEGUN + seconds + skew for skew in (0.0, 0.4, -0.3)]
                await asyncio.gather(*(control.firing.fire(now) for control, now in zip(w.controls, skewed, strict=True)))
            by_name = {name: [it.dedup for it in w.items() if it.tag == f"schedule:{name}"] for name in ("a", "b", "c")}
            for name, found in by_name.items():
                assert sorted(found) == sorted(f"schedule/{name}/{BEGUN + 60 * number:.3f}" for number in range(1, 20)), name
                assert (await w.control.kept(name)).fired == 19, "and each is counted once"

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_jumps_and_dies_no_due_time_is_fired_twice_and_with_all_none_is_lost(places: Places, seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        with world(places, schedule_missed_max=500, schedule_missed_seconds_max=1e9) as w:
            await w.function()
            jitter = dice.choice([0.0, 30.0, 4000.0])
            await w.put(overlap="parallel", missed="all", jitter_seconds=jitter)
            w.more(schedule_missed_max=500, schedule_missed_seconds_max=1e9)
            now, written = 0.0, firing._write
            for _ in range(60):
                now = max(0.0, now + dice.choice([dice.uniform(0, 100), dice.uniform(0, 9000), -dice.uniform(0, 9000)]))
                w.clock.now = BEGUN + now
                control = dice.choice(w.controls)
                await control.store(schedules.rouse, w.clock.now + firing.CLOCK_BACK_SECONDS, w.clock.now)
                firing._write = _dies if dice.random() < 0.2 else written  # type: ignore[assignment]
                try:
                    await control.firing.fire(w.clock.now)
                except RuntimeError:
                    continue
                finally:
                    firing._write = written
            await w.at(now)
            found, expected = w.slots(), [60.0 * number for number in range(1, int((now - jitter) // 60) + 1)]
            assert len(found) == len(set(found)) and set(expected) <= set(found)

    run(main())


def test_a_clock_that_was_in_the_future_leaves_no_schedule_silent(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            await w.function()
            await w.put()
            await w.at(60)
            w.finish()
            await w.at(365 * 86_400.0)
            w.finish()
            assert w.slots() == [60, 365 * 86_400.0]
            await w.at(120)
            assert w.slots()[:2] == [60, 365 * 86_400.0], "its next time lies in a year"
            await w.control.store(schedules.rouse, w.clock.now + firing.CLOCK_BACK_SECONDS, w.clock.now)
            for seconds in (120, 180, 240):
                await w.at(seconds)
                w.finish()
            assert w.slots() == [60, 120, 180, 240, 365 * 86_400.0]

    run(main())


def test_a_schedule_that_is_refused_or_cannot_be_read_does_not_hold_up_the_others(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            for name in ("report", "gone"):
                await w.function(name)
            await w.put()
            await w.put("other", "gone", missed="all")
            await w.put("broken")
            broken = '{"name":"broken","rate":"1 minute","timezone":"Nowhere/Atall"}'
            where = schedules.schedules.c.name == "broken"
            await w.control.store(lambda tx: tx.execute(sa.update(schedules.schedules).where(where).values(schedule=broken)))
            w.control.calls.refusing = {"gone"}
            await w.at(60)
            assert w.slots() == [60] and w.slots("default/gone") == []
            assert (await w.control.kept("other")).next_at == BEGUN + 60 + firing.AGAIN_SECONDS
            w.control.calls.refusing = set()
            await w.at(200)
            assert w.slots("default/gone") == [180], "with skip, one of those that were missed"
            assert (await w.control.kept("broken")).next_at == BEGUN + 60 + firing.BROKEN_SECONDS

    run(main())


def test_many_schedules_at_once_go_in_batches_that_the_queue_takes(places: Places) -> None:
    async def main() -> None:
        with world(places, schedule_missed_max=200) as w:
            await w.function()
            for number in range(12):
                await w.put(f"s{number}", missed="all", overlap="parallel")
            await w.at(60 * 100)
            assert sum(w.control.calls.batches) == 1200 and max(w.control.calls.batches) <= firing.CALLS_MAX

    run(main())


def test_the_task_sleeps_until_the_next_due_time_and_wakes_for_changes(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            w.control.firing._clock = time.time  # this once the real one
            task = asyncio.create_task(w.control.firing.run())
            await w.function()
            kept = await w.control.schedules.put("default", "report", Schedule(name="soon", rate="1 second"))
            await asyncio.wait_for(w.control.calls.accepted.wait(), 30)
            found = [it.dedup for it in w.items()]
            assert found[-1] == f"schedule/soon/{kept.anchor + 1:.3f}"
            await w.control.schedules.pause("default", "soon", True)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_the_task_notices_that_the_clock_is_put_back(places: Places) -> None:
    async def main() -> None:
        with world(places) as w:
            year, calls = 365 * 86_400.0, w.control.calls
            w.control.firing._clock = lambda: time.time() + year
            await w.function()
            await w.control.schedules.put("default", "report", Schedule(name="tick", rate="1 second", overlap="parallel"))
            task = asyncio.create_task(w.control.firing.run())
            await asyncio.wait_for(calls.accepted.wait(), 30)
            w.control.firing._clock = time.time
            async with asyncio.timeout(30):
                while not any(float(it.dedup.rpartition("/")[2]) < time.time() for it in w.items()):
                    calls.accepted.clear()
                    await calls.accepted.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())
