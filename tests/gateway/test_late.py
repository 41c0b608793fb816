"""Calls at their deadline: what they are told says whether they may have run, also when this process was away for longer than they had."""

import asyncio
import json
import time

import uvloop

from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import function, gateway


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


def test_an_answer_that_came_in_time_is_given_although_nobody_was_there_to_read_it():
    """The machine was suspended, or the gateway had no processor: when it is back the deadline has passed, and the answer lies there."""

    async def main():
        async def handler(call: TakenCall) -> FakeAnswer:
            await call.instance.send(frames.RESULT, 0, 200, 10, call.seq, b"", b"in time")
            call.instance._page[: frames.SLOT.size] = frames.SLOT.pack(0, 0)
            time.sleep(0.5)  # the gateway shares this loop: it stops with us
            rig.fleet.tick(rig.catalog.names)
            return FakeAnswer(streamed=True)

        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(timeout_seconds=0.25))
            assert (await rig.request("GET", "/function/hello"))[::2] == (200, b"in time")

    run(main())


def test_a_call_that_was_taken_by_nobody_knows_whom_may_have_run():
    async def main():
        async with gateway(Behaviour(lambda call: asyncio.sleep(60), marks=False)) as rig:
            rig.serve(function(timeout_seconds=0.2))
            status, _, body = await rig.request("GET", "/function/hello")
            assert (status, json.loads(body)["error"]["code"]) == (504, "function_timeout")

    run(main())


def test_a_call_that_nobody_took_is_told_so():
    async def main():
        # Starting takes a while: who comes after the instance that is ended must not be there in time for the second call.
        behaviour = Behaviour(lambda call: asyncio.sleep(60), start_seconds=0.2)
        async with gateway(behaviour) as rig:
            rig.serve(function(timeout_seconds=0.5, max_instances=1))
            calls = [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(2)]
            codes = sorted(json.loads(body)["error"]["code"] for _, _, body in await asyncio.gather(*calls))
            assert codes == ["function_timeout", "queue_timeout"]
            assert sum(len(instance.calls) for instance in behaviour.instances) == 1

    run(main())
