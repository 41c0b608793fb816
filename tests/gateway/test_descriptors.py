"""What an instance costs the gateway in open files, and what happens when there are no more."""

import asyncio
import json
import os
import resource

from dayfly.gateway import channel
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import function, gateway, until
from tests.gateway.test_calls import run


def test_without_descriptors_for_another_instance_busy_versions_queue_and_strangers_are_refused_with_retry_after(monkeypatch):
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        await release.wait()
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(), function("stranger"))
            calls = [asyncio.ensure_future(rig.request("GET", "/function/hello"))]
            await until(lambda: len(rig.provider.alive) == 1)
            monkeypatch.setattr(channel, "SPARE_DESCRIPTORS", resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # from now on all are spare
            calls += [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(2)]
            await until(lambda: rig.fleet.busy == 3)
            open_files = len(os.listdir("/proc/self/fd"))
            status, headers, body = await rig.request("GET", "/function/stranger")
            assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
            await until(lambda: len(os.listdir("/proc/self/fd")) <= open_files + 2)  # its calls have a socket, an instance has none
            assert len(rig.provider.alive) == 1 and not any(call.done() for call in calls)
            release.set()
            assert [(await call)[0] for call in calls] == [200] * 3
            rig.check_conservation()

    run(main())


def test_an_instance_costs_the_gateway_two_descriptors():
    async def main():
        before = len(os.listdir("/proc/self/fd"))
        its_own = channel.Channel("g-1", None, None, 0.0)
        theirs, page, output = its_own.open(b"{}")
        os.pwrite(page, frames.SLOT.pack(7, 0), 0)
        theirs.close()
        os.close(page)
        os.close(output)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert its_own.running(2) == [7] and its_own.latest() == 0
        its_own.close()
        assert len(os.listdir("/proc/self/fd")) == before and its_own.running(2) == []

    run(main())
