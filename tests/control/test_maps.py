"""Maps in control: items run once below their ceiling, results come as asked, reducers make a tree, and who comes after goes on."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from dayfly.control.map_live import Live
from dayfly.control.map_results import Wish
from dayfly.core.model.durable import LeasedCall, Outcome
from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import MapOrder
from dayfly.core.wire import link
from tests.control.fakes import FakeGateway, proves_everything
from tests.control.test_calls import DEADLINE_SECONDS, ran, wait_for
from tests.control.world import World, folders, run, world

ORDER = MapOrder(function="hello")
RETRY_NEVER = {"async": {"policy": "own", "attempts": 1}}
Answer = Callable[[LeasedCall], "tuple[Outcome, bytes]"]


def double(call: LeasedCall) -> tuple[Outcome, bytes]:
    return "ok", str(2 * json.loads(call.body)).encode()


def add(call: LeasedCall) -> tuple[Outcome, bytes]:
    if call.function != "hello":
        return "ok", str(sum(json.loads(call.body)["results"])).encode()
    return double(call)


class Worker:
    """A gateway that answers what it is given, turn by turn, and remembers how many it had at most."""

    def __init__(self, gateway: FakeGateway, answer: Answer = double, *, holding: Iterable[tuple[str, int]] = ()) -> None:
        self.gateway, self.answer = gateway, answer
        self.taken: list[LeasedCall] = []
        self.most = 0
        self._seen = len([it for it in gateway.told if isinstance(it, link.Run)])
        gateway.send(link.Holding(list(holding)))

    async def turn(self) -> list[LeasedCall]:
        """The next that it was given: taken, and not answered."""
        self._seen += 1
        calls = (await self.gateway.wait_told(link.Run, self._seen)).calls
        self.taken += calls
        return calls

    def say(self, calls: Iterable[LeasedCall]) -> None:
        self.gateway.send(link.Outcomes([ran(call, outcome, body=body) for call in calls for outcome, body in [self.answer(call)]]))

    async def work(self) -> None:
        """Until cancelled."""
        while True:
            calls = await self.turn()
            self.most = max(self.most, len(calls))
            self.say(calls)


async def items(*values: object) -> AsyncIterator[bytes]:
    for value in values:
        yield json.dumps(value).encode() + b"\n"


async def made(w: World, values: Iterable[object], order: MapOrder = ORDER, map_id: str = "m1") -> Live:
    live, _ = await w.control.maps.make("default", map_id, order)
    await w.control.maps.feed(live, 0, items(*values), whole=True)
    return live


async def ended(w: World, live: Live) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not live.record.ended:
            await w.control.maps.wait(live, DEADLINE_SECONDS)


async def results(w: World, live: Live, **wish: Any) -> list[dict[str, Any]]:
    data = b""
    async for lines in w.control.results.stream(live, Wish(**({"seconds": DEADLINE_SECONDS} | wish)), lambda it: it.record.state):
        data += lines
    return [json.loads(line) for line in data.splitlines()]


def with_world(
    test: Callable[[World], Any], *, settings: dict[str, Any] | None = None, functions: Iterable[str] = ("hello",), **config: Any
) -> None:
    with folders() as layout:

        async def whole() -> None:
            async with world(layout, proves_everything, **(settings or {})) as w:
                for name in functions:
                    await w.deploy(name=name, **config)
                await test(w)

        run(whole())


def test_items_run_as_they_come_and_each_has_its_result() -> None:
    async def test(w: World) -> None:
        worker = Worker(w.gateway)
        live, fresh = await w.control.maps.make("default", "m1", ORDER)
        assert fresh and (await w.control.maps.make("default", "m1", ORDER)) == (live, False)
        working = asyncio.create_task(worker.work())
        await w.control.maps.feed(live, 0, items(0, 1, 2), whole=False)
        await wait_for(lambda: live.counts == (3, 3, 0))
        assert live.record.state == "filling"
        await w.control.maps.feed(live, 1, items(1, 2, 3, 4), whole=True)  # from 1 on: two of these are there
        found = await results(w, live)
        assert [(it["index"], it["ok"], it["result"], it["attempts"]) for it in found] == [(n, True, 2 * n, 1) for n in range(5)]
        await ended(w, live)
        assert (live.record.state, live.record.done, live.record.dead) == ("done", 5, 0)
        assert sorted(json.loads(call.body) for call in worker.taken) == [0, 1, 2, 3, 4]
        assert await results(w, live, after="2") == found[3:]
        with pytest.raises(Refusal):
            await w.control.maps.feed(live, 5, items(9), whole=False)
        await w.control.maps.feed(live, 3, items(3, 4), whole=True)  # its answer was lost: once more
        working.cancel()

    with_world(test)


def test_no_more_are_out_than_the_map_says_also_after_a_restart_of_control() -> None:
    with folders() as layout:

        async def test() -> None:
            async with world(layout) as w:
                await w.deploy()
                worker = Worker(w.gateway)
                live = await made(w, range(20), MapOrder(function="hello", concurrency=3))
                first = [call for _ in range(1) for call in await worker.turn()]
                await wait_for(lambda: w.control.calls.leasing.hands.out(live.lane) == 3)
                first = [it for told in w.gateway.told if isinstance(told, link.Run) for it in told.calls]
                assert len(first) == 3
            async with world(layout) as w:
                maps, leasing = w.control.maps, w.control.calls.leasing
                live = maps.get("default", "m1")
                async with FakeGateway(layout.link_socket, "g2", 2) as second:
                    other = Worker(second)  # it comes first, and would be given three, if nobody knew of those that are out
                    await maps.ready(live)
                    kept = Worker(w.gateway, holding=[(call.id, call.epoch) for call in first])
                    await wait_for(lambda: sum(hand.lane == live.lane for hand in leasing.hands.values()) == 3)
                    assert leasing.hands.out(live.lane) == 3 and not [it for it in second.told if isinstance(it, link.Run)]
                    working = [asyncio.create_task(it.work()) for it in (kept, other)]
                    kept.say(first)
                    await ended(w, live)
                    assert live.record.done == 20
                    ran_ids = Counter(call.id for call in [*first, *kept.taken, *other.taken])
                    assert len(ran_ids) == 20 and set(ran_ids.values()) == {1}
                    assert max(kept.most, other.most) <= 3
                    for task in working:
                        task.cancel()

        run(test())


def test_a_map_does_not_hold_up_its_functions_other_calls() -> None:
    async def test(w: World) -> None:
        from tests.control.test_calls import new

        Worker(w.gateway)
        live = await made(w, range(500))
        await wait_for(lambda: w.control.calls.leasing.hands.out(live.lane) >= 8)
        (mine,) = await w.control.calls.accept([new()])
        await wait_for(lambda: any(hand.id == mine.id for hand in w.control.calls.leasing.hands.values()))

    with_world(test)


def test_results_come_as_they_are_settled_and_a_cursor_of_another_control_begins_anew() -> None:
    with folders() as layout:

        async def test() -> None:
            async with world(layout) as w:
                await w.deploy()
                worker = Worker(w.gateway)
                live = await made(w, range(4))
                async with asyncio.timeout(DEADLINE_SECONDS):
                    calls = await worker.turn()
                    while len(calls) < 4:
                        calls += await worker.turn()
                by_value = {json.loads(call.body): call for call in calls}
                for value in (2, 0):
                    worker.say([by_value[value]])
                    await wait_for(partial(_settled, live, value))
                found = await results(w, live, completed=True, seconds=0.0)
                assert [it["index"] for it in found] == [2, 0]
                assert await results(w, live, completed=True, seconds=0.0, after=found[0]["after"]) == found[1:]
                assert [it["index"] for it in await results(w, live, seconds=0.0)] == [0], "1 is not there, so neither is what follows"
            async with world(layout) as w:
                live = w.control.maps.get("default", "m1")
                again = await results(w, live, completed=True, seconds=0.0, after=found[0]["after"])
                assert [it["index"] for it in again] == [2, 0]
                worker = Worker(w.gateway, holding=[(call.id, call.epoch) for call in by_value.values()])
                worker.say([by_value[3], by_value[1]])
                await ended(w, live)
                final = await results(w, live, completed=True)
                assert [it["index"] for it in final[:2]] == [2, 0] and len(final) == 4
                assert await results(w, live, completed=True, after=final[2]["after"]) == final[3:], "an ended map's order stays"
                with pytest.raises(Refusal):
                    await results(w, live, after="g0-1")

        run(test())


def test_reducers_make_a_tree_when_results_do_not_fit_one_event() -> None:
    async def test(w: World) -> None:
        worker = Worker(w.gateway, add)
        working = asyncio.create_task(worker.work())
        live = await made(w, range(23), MapOrder(function="hello", reduce="total"))
        await ended(w, live)
        assert live.record.state == "done"
        seen = await w.control.calls.get(live.record.result, None)
        assert json.loads(await w.control.calls.result(seen)) == 2 * sum(range(23))
        events = [json.loads(call.body) for call in worker.taken if call.function == "total"]
        assert Counter(event["level"] for event in events) == {0: 5, 1: 1}
        assert [event["last"] for event in sorted(events, key=lambda it: it["level"])] == [False] * 5 + [True]
        assert sorted(it for event in events for it in event["results"] if not event["level"]) == [2 * n for n in range(23)]
        assert all(event["map_id"] == "m1" and event["failed"] == 0 for event in events)
        working.cancel()

    with_world(test, functions=("hello", "total"), settings={"map_reduce_items_max": 5})


@pytest.mark.parametrize("state", ["filling", "running", "reducing"])
def test_a_control_killed_at_any_time_is_followed_by_one_that_goes_on(state: str) -> None:
    with folders() as layout:

        async def test() -> None:
            order = MapOrder(function="hello", reduce="hello", concurrency=4)
            async with world(layout, map_reduce_items_max=5, async_lease_seconds=1.0) as w:
                await w.deploy()
                worker = Worker(w.gateway, _either)
                live, _ = await w.control.maps.make("default", "m1", order)
                await w.control.maps.feed(live, 0, items(*range(12)), whole=state != "filling")
                calls = await worker.turn()
                while live.record.state != state or live.counts[1] < 4:
                    worker.say(calls)
                    calls = await worker.turn()
            async with world(layout, map_reduce_items_max=5, async_lease_seconds=1.0) as w:
                maps = w.control.maps
                live = maps.get("default", "m1")
                again = Worker(w.gateway, _either)  # names nothing: what was out is lost, and runs again
                working = asyncio.create_task(again.work())
                if state == "filling":
                    await maps.ready(live)
                    assert live.counts[0] == 12
                    await maps.feed(live, 0, items(*range(12)), whole=True)
                await ended(w, live)
                assert (live.record.state, live.record.done) == ("done", 12), live.record
                found = await results(w, live)
                assert [it["index"] for it in found] == list(range(12)) and all(it["ok"] for it in found)
                seen = await w.control.calls.get(live.record.result, None)
                assert json.loads(await w.control.calls.result(seen)) == 2 * sum(range(12))
                working.cancel()

        run(test())


def _settled(live: Live, index: int) -> bool:
    return live.track is not None and bool(live.track.states[index])


def _either(call: LeasedCall) -> tuple[Outcome, bytes]:
    """A function that maps and reduces."""
    event = json.loads(call.body)
    return "ok", str(sum(event["results"]) if isinstance(event, dict) else 2 * event).encode()


def _fails(*bad: int) -> Answer:
    def answer(call: LeasedCall) -> tuple[Outcome, bytes]:
        if json.loads(call.body) in bad:
            return "error", b'{"errorType":"ValueError","errorMessage":"no"}'
        return add(call)

    return answer


def test_what_fails_is_told_with_its_error_and_redriven_alone() -> None:
    async def test(w: World) -> None:
        worker = Worker(w.gateway, _fails(1, 3))
        working = asyncio.create_task(worker.work())
        live = await made(w, range(5), MapOrder(function="hello", reduce="total"))
        await ended(w, live)
        assert (live.record.state, live.record.done, live.record.dead) == ("done", 3, 2)
        (event,) = [json.loads(call.body) for call in worker.taken if call.function == "total"]
        assert (event["failed"], event["results"]) == (2, [0, 4, 8])
        bad = (await results(w, live))[1]
        assert not bad["ok"] and bad["error"]["errorType"] == "ValueError" and bad["error"]["reason"] == "retries_exhausted"
        dead = live.record.item_id(1)
        assert await w.control.calls.redrive([dead], None) == [False] == await w.control.calls.purge([dead], None), "with its map alone"
        worker.answer, before = add, len(worker.taken)
        await w.control.maps.redrive(live)
        assert not live.record.ended
        await ended(w, live)
        assert (live.record.done, live.record.dead) == (5, 0)
        again = [call for call in worker.taken[before:] if call.function == "hello"]
        assert sorted(json.loads(call.body) for call in again) == [1, 3]
        seen = await w.control.calls.get(live.record.result, None)
        assert json.loads(await w.control.calls.result(seen)) == 20
        with pytest.raises(Refusal):
            await w.control.maps.redrive(live)
        working.cancel()

    with_world(test, functions=("hello", "total"), **RETRY_NEVER)


def test_the_first_failure_ends_a_map_that_wants_it() -> None:
    async def test(w: World) -> None:
        worker = Worker(w.gateway, _fails(0))
        working = asyncio.create_task(worker.work())
        live = await made(w, range(2000), MapOrder(function="hello", fail_fast=True, concurrency=1))
        await ended(w, live)
        assert (live.record.state, live.record.reason) == ("failed", "fail_fast")
        assert live.record.done + live.record.dead == 2000 and len(worker.taken) < 2000
        working.cancel()

    with_world(test, **RETRY_NEVER)


def test_a_cancelled_map_runs_nothing_more_and_its_items_go_with_it() -> None:
    async def test(w: World) -> None:
        worker, maps = Worker(w.gateway), w.control.maps
        live = await made(w, range(100), MapOrder(function="hello", concurrency=2))
        calls = await worker.turn()
        with pytest.raises(Refusal) as caught:
            await maps.delete(live)
        assert caught.value.kind.code == "conflict"
        await maps.cancel(live)
        await w.gateway.wait_told(link.CancelRun)
        worker.say(w_call for told in w.gateway.told if isinstance(told, link.Run) for w_call in told.calls)
        await ended(w, live)
        assert live.record.state == "cancelled" and live.record.done + live.record.dead == 100 and live.record.done <= 2
        assert len(calls) <= 2
        await maps.redrive(live)  # and goes on after all
        working = asyncio.create_task(worker.work())
        await ended(w, live)
        assert maps.get("default", "m1").record.state == "done" and live.record.done == 100
        await maps.delete(live)
        with pytest.raises(Refusal):
            maps.get("default", "m1")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await w.control.durable(lambda queue: queue.counts()):
                await asyncio.sleep(0.01)
        fresh = await made(w, range(3))  # of the same id: another
        await ended(w, fresh)
        assert [it["result"] for it in await results(w, fresh)] == [0, 2, 4]
        working.cancel()

    with_world(test)


def test_what_a_killed_deletion_left_is_cleared_away() -> None:
    with folders() as layout:

        async def test() -> None:
            async with world(layout) as w:
                await w.deploy()
                live = await made(w, range(10))
                await w.control.maps._forget(live)  # the record is gone, and then it was killed
            async with world(layout) as w:
                Worker(w.gateway)
                async with asyncio.timeout(DEADLINE_SECONDS):
                    while await w.control.durable(lambda queue: queue.counts()):
                        await asyncio.sleep(0.01)
                assert not [it for it in w.gateway.told if isinstance(it, link.Run)]

        run(test())


def test_an_upload_that_never_is_whole_ends_its_map_and_an_old_map_is_forgotten() -> None:
    async def test(w: World) -> None:
        live, _ = await w.control.maps.make("default", "m1", ORDER)
        await w.control.maps.feed(live, 0, items(1, 2), whole=False)
        await ended(w, live)
        assert (live.record.state, live.record.reason) == ("cancelled", "upload_abandoned")
        await wait_for(lambda: not w.control.maps.all(["default"]))

    with_world(test, settings={"map_upload_seconds": 0.2, "map_keep_seconds": 0.2})


def test_a_function_that_is_removed_meanwhile_ends_its_items_and_takes_no_more() -> None:
    async def test(w: World) -> None:
        live, _ = await w.control.maps.make("default", "m1", ORDER)
        await w.control.maps.feed(live, 0, items(1, 2), whole=False)
        await w.control.functions.remove("default", "hello")
        with pytest.raises(Refusal) as caught:
            await w.control.maps.feed(live, 2, items(3), whole=True)
        assert caught.value.kind.code == "function_not_found"
        await w.control.maps.feed(live, 2, items(), whole=True)
        Worker(w.gateway)
        await ended(w, live)
        assert (live.record.state, live.record.dead) == ("done", 2)
        assert {it["error"]["reason"] for it in await results(w, live)} == {"function_not_found"}

    with_world(test)


def test_each_bound_is_refused_and_what_came_before_a_bad_line_stays() -> None:
    async def test(w: World) -> None:
        maps = w.control.maps

        async def refused(work: Any) -> str:
            with pytest.raises(Refusal) as caught:
                await work
            return caught.value.kind.code

        assert await refused(maps.make("default", "m1", MapOrder(function="nobody"))) == "function_not_found"
        assert await refused(maps.make("default", "m1", MapOrder(function="hello", reduce="nobody"))) == "function_not_found"
        assert await refused(maps.make("default", "m1", MapOrder(function="hello", qualifier="77"))) == "version_not_found"
        assert await refused(maps.make("default", "m1", MapOrder(function="hello", concurrency=-1))) == "bad_request"
        assert await refused(maps.make("default", "no id", ORDER)) == "bad_name"
        live, _ = await maps.make("default", "m1", ORDER)
        assert await refused(maps.make("default", "m1", MapOrder(function="hello", concurrency=5))) == "conflict"
        assert await refused(maps.feed(live, 0, items(), whole=True)) == "bad_request"
        assert await refused(maps.feed(live, 1, items(1), whole=False)) == "conflict"
        assert await refused(maps.feed(live, 0, _raw(b"1\n2\n{no}\n3\n"), whole=True)) == "bad_json"
        assert live.counts[0] == 2 and live.record.state == "filling"
        assert await refused(maps.feed(live, 2, _raw(b'"' + b"x" * 300), whole=True)) == "body_too_large"
        assert await refused(maps.feed(live, 2, items(*range(9)), whole=True)) == "bad_request"
        assert await refused(maps.feed(live, 2, items(*range(5)), whole=True)) == "async_queue_full"
        await maps.make("default", "m2", ORDER)
        assert await refused(maps.make("default", "m3", ORDER)) == "conflict"

    with_world(test, settings={"body_bytes_max": 200, "map_items_max": 10, "maps_max": 2, "async_waiting_max": 6})


async def _raw(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_progress_is_told_between_results() -> None:
    async def test(w: World) -> None:
        worker = Worker(w.gateway)
        working = asyncio.create_task(worker.work())
        live = await made(w, range(3))
        lines = await results(w, live, progress=True)
        assert lines[0] == {"progress": "running"} or "index" in lines[0] or lines[0] == {"progress": "done"}
        assert lines[-1] == {"progress": "done"} and [it["index"] for it in lines if "index" in it] == [0, 1, 2]
        working.cancel()

    with_world(test)


def test_what_was_written_down_and_never_confirmed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(w: World) -> None:
        put = w.control._kv.put

        def doubtful(*arguments: Any) -> Any:
            put(*arguments)
            monkeypatch.setattr(w.control._kv, "put", put)
            raise Refusal("data_unusable", "The server went away in the middle of a commit.")

        monkeypatch.setattr(w.control._kv, "put", doubtful)
        with pytest.raises(Refusal):
            await w.control.maps.make("default", "m1", ORDER)
        live, fresh = await w.control.maps.make("default", "m1", ORDER)
        assert not fresh
        await w.control.maps.feed(live, 0, items(1, 2), whole=False)
        monkeypatch.setattr(w.control._kv, "put", doubtful)
        with pytest.raises(Refusal):
            await w.control.maps.feed(live, 2, items(), whole=True)
        for _ in range(2):  # the first finds that it is so already
            with suppress(Refusal):
                await w.control.maps.feed(live, 2, items(), whole=True)
        working = asyncio.create_task(Worker(w.gateway).work())
        await ended(w, live)
        assert (live.record.state, live.record.done) == ("done", 2)
        working.cancel()

    with_world(test)


def test_a_thousand_items_are_few_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure by counts: what an item costs must not be a transaction, a statement or a message of its own."""

    async def test(w: World) -> None:
        counted = Counter[str]()
        queue = w.control.durable._queue
        for verb in ("put", "lease", "settle", "get", "list", "counts", "lanes"):
            inner = getattr(queue, verb)

            def counting(*args: Any, _inner: Any = inner, _verb: str = verb, **more: Any) -> Any:
                counted[_verb] += 1
                return _inner(*args, **more)

            monkeypatch.setattr(queue, verb, counting)
        live, _ = await w.control.maps.make("default", "m1", ORDER)
        await w.control.maps.feed(live, 0, items(*range(3000)), whole=True)
        assert counted["put"] == 1
        worker = Worker(w.gateway)
        working = asyncio.create_task(worker.work())
        await ended(w, live)
        assert live.record.done == 3000
        runs = sum(isinstance(it, link.Run) for it in w.gateway.told)
        assert counted["settle"] <= runs and counted["lease"] <= 3 * runs + 10, counted
        assert len(await results(w, live)) == 3000 and counted["get"] <= 3000 / 100
        working.cancel()

    with_world(test)
