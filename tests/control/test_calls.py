"""Durable calls in control, with gateways that come, go and lie: what was accepted is settled once, and only by who holds its lease."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dayfly.control.calls import Calls, Seen
from dayfly.control.durable import Durable
from dayfly.control.plane import Control
from dayfly.core.model.durable import LeasedCall, NewCall, Outcome, Ran
from dayfly.core.model.errors import Refusal
from dayfly.core.wire import link
from dayfly.store.queue import NewItem, Put, Settlement
from dayfly.store.queue_sqlite import SqliteQueue
from dayfly.store.trouble import Doubtful
from tests.control.fakes import FakeGateway, proves_everything
from tests.control.world import World, folders, run, world

DEADLINE_SECONDS = 20.0


def new(function: str = "hello", **more: Any) -> NewCall:
    return NewCall(**({"id": str(uuid.uuid4()), "namespace": "default", "function": function, "body": b"1"} | more))


def ran(call: LeasedCall, outcome: Outcome = "ok", **more: Any) -> Ran:
    return Ran(
        **({"id": call.id, "epoch": call.epoch, "outcome": outcome, "status": 200, "body": b'"done"', "began_at": time.time()} | more)
    )


class Hands:
    """A gateway that takes leases, and answers them when the test says so."""

    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway
        gateway.send(link.Holding([]))

    async def leases(self, count: int) -> list[LeasedCall]:
        """The first so many that it was given."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            number = 1
            while len(found := [it for told in self.gateway.told if isinstance(told, link.Run) for it in told.calls]) < count:
                await self.gateway.wait_told(link.Run, number)
                number += 1
        return found

    def say(self, *outcomes: Ran) -> None:
        self.gateway.send(link.Outcomes(list(outcomes)))


async def until_settled(calls: Calls, call_id: str) -> Seen:
    seen = await calls.wait(call_id, None, DEADLINE_SECONDS)
    assert seen.settled, seen
    return seen


async def wait_for(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def test_accepted_leased_and_settled_once() -> None:
    async def test(w: World) -> None:
        hands, calls = Hands(w.gateway), w.control.calls
        (accepted,) = await calls.accept([new()])
        (lease,) = await hands.leases(1)
        assert (lease.id, lease.attempt, lease.body) == (accepted.id, 1, b"1")
        hands.say(ran(msgspec.structs.replace(lease, epoch=lease.epoch + 1), "error"))  # not its lease
        hands.say(ran(lease))
        seen = await until_settled(calls, accepted.id)
        assert seen.item.state == "done" and await calls.result(seen) == b'"done"' and len(seen.attempts) == 1
        await w.gateway.wait_told(link.Heard, 2)
        hands.say(ran(lease, "error"))  # once more
        await w.gateway.wait_told(link.Heard, 3)
        assert (await calls.get(accepted.id, None)).item.state == "done"
        assert not calls.leasing.hands

    _with_world(test)


def test_a_gateway_that_is_gone_loses_what_it_had_and_another_runs_it() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        async with FakeGateway(w.control.layout.link_socket, "g2", 2) as second:
            hands = Hands(second)
            (accepted,) = await calls.accept([new()])
            await hands.leases(1)
        again = Hands(w.gateway)
        (lease,) = await again.leases(1)
        assert lease.attempt == 1, "what nobody knows of is not counted"
        again.say(ran(lease))
        seen = await until_settled(calls, accepted.id)
        assert [it.outcome for it in seen.attempts] == ["lost", "ok"]

    _with_world(test)


def test_what_may_not_run_twice_is_dead_when_its_gateway_is_gone() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        async with FakeGateway(w.control.layout.link_socket, "g2", 2) as second:
            hands = Hands(second)
            (accepted,) = await calls.accept([new()])
            await hands.leases(1)
        seen = await until_settled(calls, accepted.id)
        assert (seen.item.state, seen.item.reason) == ("dead", "lost")

    _with_world(test, **{"async": {"idempotent": False}})


def test_a_gateway_whose_link_broke_keeps_its_leases_when_it_comes_back_and_names_them() -> None:
    async def test(w: World) -> None:
        calls, path = w.control.calls, w.control.layout.link_socket
        async with FakeGateway(path, "g2", 2) as second:
            (kept, forgotten) = await calls.accept([new(), new()])
            leases = {it.id: it for it in await Hands(second).leases(2)}
        async with FakeGateway(path, "g2", 2) as second:
            second.send(link.Holding([(kept.id, leases[kept.id].epoch)]))
            second.send(link.Outcomes([ran(leases[kept.id])]))
            assert [it.outcome for it in (await until_settled(calls, kept.id)).attempts] == ["ok"]
            again = next(it for told in [await second.wait_told(link.Run)] for it in told.calls)
            assert again.id == forgotten.id and again.epoch > leases[forgotten.id].epoch

    _with_world(test)


def test_the_next_control_takes_over_leases_and_outcomes_of_the_one_before() -> None:
    with folders() as layout:

        async def test() -> None:
            async with world(layout, async_lease_seconds=2) as w:
                await w.deploy()
                hands = Hands(w.gateway)
                runs, ended, lost = await w.control.calls.accept([new(), new(), new()])
                leases = {it.id: it for it in await hands.leases(3)}
            async with world(layout, async_lease_seconds=2) as w:
                calls = w.control.calls
                w.gateway.send(link.Holding([(it.id, leases[it.id].epoch) for it in (runs, ended)]))
                w.gateway.send(link.Outcomes([ran(leases[ended.id])]))
                assert [it.outcome for it in (await until_settled(calls, ended.id)).attempts] == ["ok"]
                hands = Hands(w.gateway)
                (again,) = await hands.leases(1)  # nobody named it: its lease ran out, while that of the other was extended
                assert again.id == lost.id and again.epoch > leases[lost.id].epoch
                hands.say(ran(leases[runs.id]), ran(again))
                assert [it.outcome for it in (await until_settled(calls, runs.id)).attempts] == ["ok"]
                assert [it.outcome for it in (await until_settled(calls, lost.id)).attempts] == ["lost", "ok"]

        run(test())


def test_a_gateway_is_given_nothing_before_it_said_what_it_has_or_when_it_leaves() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        async with FakeGateway(w.control.layout.link_socket, "g2", 2) as second:
            await calls.accept([new()])
            hands = Hands(second)
            (lease,) = await hands.leases(1)
            second.send(link.Holding([(lease.id, lease.epoch)], closing=True))
            await wait_for(lambda: calls.leasing._closing)
            await calls.accept([new()])
            other = Hands(w.gateway)
            await other.leases(1)
            hands.say(ran(lease))
            await until_settled(calls, lease.id)
            assert len(await hands.leases(1)) == 1

    _with_world(test)


def test_one_functions_backlog_does_not_hold_up_another() -> None:
    async def test(w: World) -> None:
        await w.deploy(name="other")
        hands, calls = Hands(w.gateway), w.control.calls
        await calls.accept([new() for _ in range(500)])
        await hands.leases(1)
        (mine,) = await calls.accept([new("other")])
        await wait_for(lambda: any(hand.id == mine.id for hand in calls.leasing.hands.values()))
        backlog = sum(hand.lane == "default/hello" for hand in calls.leasing.hands.values())
        assert backlog <= 16, "no more are out than their share of the pools"

    _with_world(test)


def test_a_full_queue_a_stranger_and_a_bad_call_are_refused_each_for_itself() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        good = new()
        found = await calls.accept_each([good, new("nobody"), new(priority=10), new(group="g" * 300), new(id="no id!"), new()])
        assert [it.kind.code if isinstance(it, Refusal) else "ok" for it in found] == [
            "ok", "function_not_found", "bad_request", "bad_request", "bad_request", "ok",
        ]  # fmt: skip
        with pytest.raises(Refusal) as caught:
            await calls.accept([new(), new("nobody")])
        assert caught.value.kind.code == "function_not_found"
        counts = (await calls.counts(["default"]))["default/hello"]
        assert counts["waiting"] == 2 == sum(counts.values())
        await calls.accept([new(), new()])
        with pytest.raises(Refusal) as caught:
            await calls.accept([new(), new()])
        assert caught.value.kind.code == "async_queue_full" and caught.value.retry_after_seconds

    _with_world(test, settings={"async_waiting_max": 5})


@pytest.mark.parametrize("trouble", [Refusal("storage_full", "No space is left."), Doubtful("the server")])
def test_nobody_is_told_that_a_call_is_accepted_when_it_is_not_written_or_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, trouble: Refusal
) -> None:
    async def test(w: World) -> None:
        def full(*_: object) -> list[Put]:
            raise trouble

        monkeypatch.setattr(SqliteQueue, "put", full)
        w.gateway.send(link.Accept(1, [new()]))
        accepted = await w.gateway.wait_told(link.Accepted)
        assert [it.code for it in accepted.answers] == ["acceptance_unknown" if isinstance(trouble, Doubtful) else "storage_full"]

    _with_world(test)


def test_an_outcome_that_cannot_be_written_down_is_kept_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(w: World) -> None:
        hands, calls = Hands(w.gateway), w.control.calls
        (accepted,) = await calls.accept([new()])
        (lease,) = await hands.leases(1)
        settle, refused = SqliteQueue.settle, asyncio.Event()
        loop = asyncio.get_running_loop()

        def full(*_: object) -> list[bool]:
            loop.call_soon_threadsafe(refused.set)
            raise Refusal("storage_full", "No space is left.")

        monkeypatch.setattr(SqliteQueue, "settle", full)
        hands.say(ran(lease))
        await refused.wait()
        assert not [it for it in w.gateway.told if isinstance(it, link.Heard)]
        monkeypatch.setattr(SqliteQueue, "settle", settle)
        seen = await until_settled(calls, accepted.id)
        assert [it.outcome for it in seen.attempts] == ["ok"]
        await w.gateway.wait_told(link.Heard)

    _with_world(test)


def test_large_bodies_are_blobs_that_go_with_their_calls(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        hands, calls = Hands(w.gateway), w.control.calls
        folder = Path(w.control.layout.blobs)
        (accepted,) = await calls.accept([new(body=b"x" * 100_000)])
        (lease,) = await hands.leases(1)
        assert lease.body == b"x" * 100_000
        hands.say(ran(lease, body=b"y" * 100_000))
        seen = await until_settled(calls, accepted.id)
        assert await calls.result(seen) == b"y" * 100_000
        assert len(list(folder.iterdir())) == 2
        later = time.time() + 1e6
        assert await calls._spill.sweep(w.control.durable, later) == 0, "they are needed"
        assert await calls.purge([accepted.id], None) == [True]
        assert await calls._spill.sweep(w.control.durable, later) == 2
        assert not list(folder.iterdir())

    _with_world(test)


def test_a_call_nobody_could_run_in_time_is_dead_and_redriven_with_new_time() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        (accepted,) = await calls.accept([new(expires=time.time() + 0.05)])
        seen = await until_settled(calls, accepted.id)
        assert (seen.item.state, seen.item.reason, seen.item.attempt) == ("dead", "expired", 0)
        assert await calls.redrive([accepted.id, "unknown"], None) == [True, False]
        hands = Hands(w.gateway)
        (lease,) = await hands.leases(1)
        hands.say(ran(lease))
        assert (await until_settled(calls, accepted.id)).item.state == "done"

    _with_world(test)


def test_a_cancelled_call_that_runs_is_dead_however_it_ends() -> None:
    async def test(w: World) -> None:
        hands, calls = Hands(w.gateway), w.control.calls
        first, second = await calls.accept([new(), new()])
        leases = {it.id: it for it in await hands.leases(2)}
        assert await calls.cancel([first.id, second.id, "unknown"], None) == ["cancelling", "cancelling", "unknown"]
        await w.gateway.wait_told(link.CancelRun, 2)
        hands.say(ran(leases[first.id], "cancelled", status=0, body=b""), ran(leases[second.id], "error"))
        for call in (first, second):
            seen = await until_settled(calls, call.id)
            assert (seen.item.state, seen.item.reason) == ("dead", "cancelled")

    _with_world(test)


def test_other_namespaces_calls_are_not_there() -> None:
    async def test(w: World) -> None:
        calls = w.control.calls
        (accepted,) = await calls.accept([new()])
        with pytest.raises(Refusal) as caught:
            await calls.get(accepted.id, ("elsewhere",))
        assert caught.value.kind.code == "call_not_found"
        assert await calls.cancel([accepted.id], ("elsewhere",)) == ["unknown"]
        assert await calls.purge([accepted.id], ("elsewhere",)) == [False]
        assert await calls.newest(("elsewhere",)) == [] and await calls.newest(()) == []

    _with_world(test)


class Counting(SqliteQueue):
    """Counts its transactions, and holds the first one until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []

    def put(self, items: Sequence[NewItem]) -> list[Put]:
        self.batches.append(len(items))
        return super().put(items)

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        raise AssertionError("nothing is settled here")


def _item(number: int, **more: Any) -> NewItem:
    return NewItem(**({"id": f"i{number}", "lane": "a/b", "body": b"", "accepted_at": 1.0, "due": 1.0, "expires": 9e9} | more))


def test_what_gathers_while_the_disk_is_waited_for_is_one_transaction_and_each_gets_his_own(tmp_path: Path) -> None:
    async def test() -> None:
        queue = Counting(tmp_path / "durable.db")
        durable = Durable(queue)
        try:
            found = await asyncio.gather(*(durable.put([_item(number), _item(number + 1000)]) for number in range(100)))
            assert [[put.id for put in puts] for puts in found] == [[f"i{number}", f"i{number + 1000}"] for number in range(100)]
            assert sum(queue.batches) == 200 and len(queue.batches) <= 2
        finally:
            await durable.close()
        with pytest.raises(Refusal):
            await durable.put([_item(5000)])

    run(test())


def test_who_breaks_a_bound_does_not_take_the_others_with_him(tmp_path: Path) -> None:
    async def test() -> None:
        durable = Durable(SqliteQueue(tmp_path / "durable.db"))
        try:
            good, bad, other = await asyncio.gather(
                durable.put([_item(1)]), durable.put([_item(2, tag="x" * 5000)]), durable.put([_item(3)]), return_exceptions=True
            )
            assert isinstance(bad, ValueError)
            assert [good, other] == [[Put(id="i1", duplicate=False)], [Put(id="i3", duplicate=False)]]
        finally:
            await durable.close()

    run(test())


def _with_world(test: Callable[[World], Any], *, settings: dict[str, Any] | None = None, **config: Any) -> None:
    """Control with one function `hello` and one gateway, which has not yet said that it takes calls."""
    with folders() as layout:

        async def whole() -> None:
            async with world(layout, proves_everything, **(settings or {})) as w:
                events = await w.deploy(**config)
                assert isinstance(w.control, Control) and type(events[-1]).__name__ == "Deployed", events[-1]
                await test(w)

        run(whole())
