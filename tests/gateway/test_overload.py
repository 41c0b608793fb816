"""More calls than can be run, through a whole gateway: the newest are refused and told when to come again, what has begun is protected."""

import asyncio
import json

import uvloop

from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, until


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


class Held:
    """A handler that keeps its calls until it is told."""

    def __init__(self, exec_us: int = 10) -> None:
        self.release = asyncio.Event()
        self.exec_us = exec_us

    async def __call__(self, call: TakenCall) -> FakeAnswer:
        if call.body != b"now":
            await self.release.wait()
        return FakeAnswer(b"done", exec_us=self.exec_us)


def call(rig: Rig, headers: str = "") -> "asyncio.Future[tuple[int, dict[str, str], bytes]]":
    return asyncio.ensure_future(rig.request("GET", "/function/hello", headers))


def code(answer: tuple[int, dict[str, str], bytes]) -> str:
    return json.loads(answer[2])["error"]["code"]


def test_a_full_queue_refuses_the_newest_with_the_time_it_takes_and_those_inside_are_served():
    async def main():
        held = Held(exec_us=2_000_000)
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(max_instances=1, queue_max=2, timeout_seconds=60))
            assert (await rig.request("POST", "/function/hello", body=b"now"))[0] == 200  # now a call is known to take two seconds
            inside = [call(rig) for _ in range(3)]
            await until(lambda: rig.fleet.busy == 3)
            refused = await call(rig)
            assert (refused[0], code(refused), refused[1]["retry-after"]) == (429, "queue_full", "7")  # three of two seconds, and a bit
            held.release.set()
            assert {answer[0] for answer in await asyncio.gather(*inside)} == {200}

    run(main())


def test_a_call_that_cannot_begin_before_its_timeout_is_refused_at_once():
    async def main():
        held = Held(exec_us=2_000_000)
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(max_instances=1, timeout_seconds=5))
            await rig.request("POST", "/function/hello", body=b"now")
            inside = [call(rig) for _ in range(2)]
            await until(lambda: rig.fleet.busy == 2)
            third = call(rig)
            await until(lambda: rig.fleet.busy == 3 or third.done())
            refused = third if third.done() else call(rig)
            status, headers, body = await refused
            assert (status, json.loads(body)["error"]["code"]) == (503, "deadline_out_of_reach") and int(headers["retry-after"]) >= 5
            assert rig.ledger.function("default", "hello").numbers.outcomes["deadline_out_of_reach"] == 1
            held.release.set()
            assert {answer[0] for answer in await asyncio.gather(*inside)} == {200}

    run(main())


def test_a_caller_in_a_hurry_is_refused_at_once_or_in_time_but_never_when_an_instance_is_free():
    async def main():
        held = Held(exec_us=2_000_000)
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(max_instances=1, timeout_seconds=60))
            await rig.request("POST", "/function/hello", body=b"now")
            answer = await rig.request("POST", "/function/hello", "prefer: wait=0\r\n", b"now")
            assert answer[0] == 200, "an instance was free"
            inside = call(rig)
            await until(lambda: rig.fleet.busy == 1)
            assert code(await call(rig, "prefer: wait=0\r\n")) == "deadline_out_of_reach"
            assert code(await call(rig, "prefer: wait=1\r\n")) == "deadline_out_of_reach"  # the one before takes two
            held.exec_us = 10
            held.release.set()
            assert (await inside)[0] == 200

    run(main())


def test_a_caller_in_a_hurry_who_waits_is_let_go_when_the_time_has_come():
    async def main():
        held = Held()
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(max_instances=1, timeout_seconds=60))
            inside = call(rig)
            await until(lambda: rig.fleet.busy == 1)
            assert code(await call(rig, "prefer: wait=0.05\r\n")) == "queue_timeout"
            held.release.set()
            assert (await inside)[0] == 200

    run(main())
