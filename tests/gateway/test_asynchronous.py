"""Asynchronous calls in a gateway: a 202 only after control's word, and leases that take nobody's place and are never forgotten."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from dayfly.core.model.durable import LeasedCall, Ran
from dayfly.core.model.function import Cors
from dayfly.core.model.limits import Limits
from dayfly.core.wire.link import Accept, Accepted, Answered, CancelRun, Heard, Holding, Outcomes, Run
from dayfly.gateway.asynchronous import OrderedIds
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway

ASYNC = "prefer: respond-async\r\n"
DEADLINE_SECONDS = 10.0
M = TypeVar("M")


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (found := condition()):
            await asyncio.sleep(0.005)
        return found


async def said(rig: Rig, kind: type[M]) -> M:
    found: list[M] = await until(lambda: _of(rig, kind))
    return found[0]


def _of(rig: Rig, kind: type[M]) -> list[M]:
    return [message for message in rig.said if isinstance(message, kind)]


def outcomes(rig: Rig) -> dict[str, Ran]:
    return {ran.id: ran for message in _of(rig, Outcomes) for ran in message.ran}


def lease(name: str = "c1", **more: Any) -> LeasedCall:
    fields: dict[str, Any] = {"id": name, "epoch": 1, "attempt": 1, "namespace": "default", "function": "f", "qualifier": "live"}
    return LeasedCall(**(fields | {"kind": "direct", "meta": b"", "body": b'"in"', "expires": time.time() + 1000} | more))


# ---- the door --------------------------------------------------------------------------------------------------------------------------


def test_calls_of_one_turn_are_one_message_and_each_is_answered_what_control_says_of_it() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f", auth="none"))
            rig.is_linked = True
            asked = [asyncio.create_task(rig.request("POST", "/function/f", ASYNC, b"body")) for _ in range(3)]
            await until(lambda: sum(len(it.calls) for it in _of(rig, Accept)) == 3)
            assert not any(task.done() for task in asked), "nobody is told before control says so"
            for message in _of(rig, Accept):
                answers = [Answered(call.id) for call in message.calls]
                rig.door.take(Accepted(message.request, answers))
            assert [(await task)[0] for task in asked] == [202] * 3
            assert not rig.site.buffered

    run(test())


def test_a_refusal_of_controls_is_the_answer() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f", auth="none"))
            rig.is_linked = True
            asked = asyncio.create_task(rig.request("POST", "/async-function/f", "", b"body"))
            message = await said(rig, Accept)
            rig.door.take(Accepted(message.request, [Answered("", code="async_queue_full", detail="Full.", retry_after_seconds=5.0)]))
            status, headers, body = await asked
            assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (429, "5", "async_queue_full")

    run(test())


def test_what_a_lost_control_did_not_answer_is_said_to_the_next_with_the_same_ids() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f", auth="none"))
            asked = asyncio.create_task(rig.request("POST", "/function/f", ASYNC, b"body"))
            await until(lambda: rig.door._sent)
            for _ in range(2):  # two controls, of which the first dies before it answers
                rig.is_linked = True
                rig.door.linked()
            first, second = _of(rig, Accept)
            assert first == second
            rig.door.take(Accepted(second.request, [Answered(second.calls[0].id)]))
            rig.door.take(Accepted(first.request, [Answered(first.calls[0].id)]))
            assert (await asked)[0] == 202

    run(test())


@pytest.mark.parametrize(("is_linked", "code"), [(True, "acceptance_unknown"), (False, "control_unavailable")])
def test_without_control_it_is_503_which_says_whether_the_call_may_have_been_accepted(is_linked: bool, code: str) -> None:
    async def test() -> None:
        async with gateway(async_accept_seconds=0.05) as rig:
            rig.serve(function("f", auth="none"))
            rig.is_linked = is_linked
            status, headers, body = await rig.request("POST", "/function/f", ASYNC, b"body")
            assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, code, "1")

    run(test())


def test_a_client_that_leaves_takes_nothing_back_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with gateway(half_closed_seconds=0) as rig:
            rig.serve(function("f", auth="none"))
            rig.is_linked = True
            _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"POST /async-function/f HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
            message = await said(rig, Accept)
            writer.close()
            await until(lambda: not rig.site.connections)
            rig.door.take(Accepted(message.request, [Answered(message.calls[0].id)]))
            assert rig.site.buffered == 0 and rig.door._pending == 0

    run(test())


def test_a_browser_may_ask_before_it_calls_asynchronously() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f", auth="none", cors=Cors(origins=("https://a.example",))))
            asks = "origin: https://a.example\r\naccess-control-request-method: POST\r\n"
            status, headers, _ = await rig.request("OPTIONS", "/async-function/f", asks)
            assert (status, headers["access-control-allow-origin"]) == (204, "https://a.example")

    run(test())


# ---- the runner ------------------------------------------------------------------------------------------------------------------------


def test_a_lease_runs_in_the_pool_and_its_outcome_is_said_until_it_is_heard() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f"))
            rig.runner.take(Run([lease()]))
            await until(lambda: rig.runner.unheard)
            assert not rig.said, "there was no control"
            rig.is_linked = True
            rig.runner.linked()
            assert _of(rig, Holding) == [Holding([("c1", 1)])]
            ran = outcomes(rig)["c1"]
            assert (ran.outcome, ran.body, ran.status, ran.epoch, ran.version) == ("ok", b'"in"', 200, 1, 1)
            assert 0 < ran.began_at <= ran.ended_at
            rig.runner.linked()  # once more, to the next control
            assert len(_of(rig, Outcomes)) == 2
            rig.runner.take(Heard([("c1", 1)]))
            rig.runner.linked()
            assert _of(rig, Holding)[-1] == Holding([]) and len(_of(rig, Outcomes)) == 2
            assert rig.ledger.function("default", "f").numbers.calls == 1

    run(test())


async def _crash(call: TakenCall) -> FakeAnswer:
    raise Crash


async def _raise(call: TakenCall) -> FakeAnswer:
    return FakeAnswer(b'{"errorType":"ValueError","errorMessage":"no good"}', flags=frames.ERROR)


async def _busy(call: TakenCall) -> FakeAnswer:
    return FakeAnswer(b"later", status=503, block=b"Retry-After: 7\r\n")


async def _stream(call: TakenCall) -> FakeAnswer:
    await call.instance.send(frames.HEAD, 0, 201, 0, call.seq, b"content-type: text/plain\r\n", b"a")
    await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"b")
    await call.instance.send(frames.END, 0, 0, 5, call.seq)
    return FakeAnswer(streamed=True)


@pytest.mark.parametrize(
    ("handler", "outcome", "code", "body"),
    [
        (_crash, "crashed", "function_crashed", b""),
        (_raise, "error", "function_error", b'{"errorType":"ValueError","errorMessage":"no good"}'),
        (_busy, "ok", "", b"later"),
        (_stream, "ok", "", b"ab"),
    ],
)
def test_every_end_of_a_call_is_told_apart(handler: Any, outcome: str, code: str, body: bytes) -> None:
    async def test() -> None:
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function("f"))
            rig.is_linked = True
            rig.runner.take(Run([lease(kind="http", meta=b"GET\n/\n\n1.2.3.4\nhttp")]))
            ran = await until(lambda: outcomes(rig).get("c1"))
            assert (ran.outcome, ran.code, ran.body) == (outcome, code, body)
            assert ran.retry_after_seconds == (7.0 if handler is _busy else 0.0)

    run(test())


def test_a_timeout_a_failed_init_a_limit_and_a_stranger_are_told_apart() -> None:
    async def test() -> None:
        async with gateway(Behaviour(lambda call: asyncio.sleep(60))) as rig:
            rig.serve(function("f", timeout_seconds=0.1), function("limited", limits=Limits(concurrency=0)))
            rig.is_linked = True
            rig.runner.take(Run([lease(), lease("c2", function="limited"), lease("c3", function="nobody"), lease("c4", qualifier="9")]))
            found = await until(lambda: found if len(found := outcomes(rig)) == 4 else None)
            assert {name: (ran.outcome, ran.code) for name, ran in found.items()} == {
                "c1": ("timeout", "function_timeout"),
                "c2": ("throttled", "paused"),
                "c3": ("gone", "function_not_found"),
                "c4": ("gone", "version_not_found"),
            }
        error = {"errorType": "ImportError", "errorMessage": "no module"}
        async with gateway(Behaviour(init_error=error)) as rig:
            rig.serve(function("f"))
            rig.is_linked = True
            rig.runner.take(Run([lease()]))
            ran = await until(lambda: outcomes(rig).get("c1"))
            assert ran.outcome == "init_failed" and "no module" in ran.detail

    run(test())


def test_leases_take_their_share_and_no_more_and_wait_for_synchronous_calls() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def handler(call: TakenCall) -> FakeAnswer:
            await go.wait()
            return FakeAnswer()

        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function("f", max_instances=4, auth="none"))
            rig.is_linked = True
            rig.runner.take(Run([lease(f"c{number}") for number in range(10)]))
            await until(lambda: sum(len(it.calls) for it in rig.provider.behaviour.instances) == 2)
            sync = [asyncio.create_task(rig.request("GET", "/function/f")) for _ in range(4)]
            await until(lambda: sum(len(it.calls) for it in rig.provider.behaviour.instances) == 4)
            line = next(iter(rig.runner._lines.values()))
            assert len(line.running) == 2 and len(line.waiting) == 8
            pool = next(iter(rig.fleet._entries.values())).pool
            await until(lambda: len(pool.waiting) == 2)
            entry = next(iter(rig.fleet._entries.values()))
            line.running, kept = set(), line.running
            assert not rig.runner._has_room(entry, line), "two synchronous calls wait"
            line.running = kept
            go.set()
            assert [(await task)[0] for task in sync] == [200] * 4
            await until(lambda: len(outcomes(rig)) == 10)

    run(test())


def test_beside_synchronous_calls_leases_begin_in_turns_and_every_function_has_its_own() -> None:
    """A rate so slow that none but the first begins, until the synchronous call is long ago."""

    async def test() -> None:
        async with gateway(Behaviour(), async_beside_per_second=0.001) as rig:
            rig.serve(function("f"), function("g"), function("quiet"))
            rig.is_linked = True
            assert (await rig.request("GET", "/function/quiet"))[0] == 200
            rig.runner.take(Run([lease(f"c{number}") for number in range(5)] + [lease("g1", function="g")]))
            await until(lambda: len(outcomes(rig)) == 1)
            assert rig.runner._turn is not None
            waiting = {key[1]: len(line.waiting) for key, line in rig.runner._lines.items()}
            assert waiting == {"f": 4, "g": 1}
            for count in (2, 3):
                rig.runner._beside._full_at = 0.0  # as if so much time had passed
                await until(lambda: len(outcomes(rig)) == count)  # noqa: B023
            assert "g1" in outcomes(rig), "f had its turn"
            rig.runner._beside._seen_at = 0.0  # the synchronous call was long ago
            await until(lambda: len(outcomes(rig)) == 6)
            assert rig.runner._turn is None

    run(test())


def test_a_gateway_that_leaves_hands_back_what_has_not_begun() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def handler(call: TakenCall) -> FakeAnswer:
            await go.wait()
            return FakeAnswer()

        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function("f", max_instances=2))
            rig.is_linked = True
            rig.runner.take(Run([lease("c1"), lease("c2")]))
            await until(lambda: [call for it in rig.provider.behaviour.instances for call in it.calls])
            rig.runner.stop()
            assert _of(rig, Holding)[-1].closing
            assert outcomes(rig)["c2"].outcome == "returned" and outcomes(rig)["c2"].began_at == 0.0
            rig.runner.take(Run([lease("c3")]))
            ran = await until(lambda: outcomes(rig).get("c3"))
            assert ran.outcome == "returned"
            go.set()
            assert (await until(lambda: outcomes(rig).get("c1"))).outcome == "ok"

    run(test())


def test_cancelled_leases_never_begin_or_are_ended() -> None:
    async def test() -> None:
        async with gateway(Behaviour(lambda call: asyncio.sleep(60))) as rig:
            rig.serve(function("f", max_instances=2))
            rig.is_linked = True
            rig.runner.take(Run([lease("c1"), lease("c2")]))
            await until(lambda: [call for it in rig.provider.behaviour.instances for call in it.calls])
            rig.runner.take(CancelRun([("c2", 1), ("c1", 2), ("unknown", 1)]))
            assert (await until(lambda: outcomes(rig).get("c2"))).outcome == "cancelled"
            assert "c1" not in outcomes(rig), "that was another lease"
            rig.runner.take(CancelRun([("c1", 1)]))
            assert (await until(lambda: outcomes(rig).get("c1"))).outcome == "cancelled"
            assert not rig.provider.alive or all(not it.calls for it in rig.provider.alive.values())

    run(test())


def test_a_lease_that_is_too_old_when_there_is_room_is_not_begun() -> None:
    async def test() -> None:
        async with gateway() as rig:
            rig.serve(function("f"))
            rig.is_linked = True
            rig.runner.take(Run([lease(expires=time.time() - 1)]))
            ran = await until(lambda: outcomes(rig).get("c1"))
            assert ran.code == "expired" and ran.began_at == 0.0 and not rig.provider.behaviour.instances

    run(test())


def test_outcomes_that_nobody_hears_are_kept_to_a_bound() -> None:
    async def test() -> None:
        async with gateway(async_in_hand_max=3) as rig:
            rig.serve(function("f"))
            rig.runner.take(Run([lease(f"c{number}") for number in range(8)]))
            await until(lambda: not rig.runner._held)
            assert rig.runner.unheard == 3

    run(test())


def test_ids_of_durable_calls_rise_with_time_and_are_uuids_of_version_7() -> None:
    ids = OrderedIds()
    made = [uuid.UUID(ids.next(1_800_000_000.0 + number / 1000)) for number in range(300)]
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)} and made == sorted(set(made))
    assert made[7].int >> 80 == 1_800_000_000_007
