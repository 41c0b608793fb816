"""Calls of which nobody knows who has them, after a death in their version: none of them is ever given to another."""

import asyncio

import uvloop

from dayfly.gateway.unbegun import LOOKS_SECONDS
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import function, gateway, until


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


def mark(call: TakenCall, seq: int) -> None:
    call.instance._page[: frames.SLOT.size] = frames.SLOT.pack(seq, 1)


class Slow:
    """Two instances: one takes a call and gets no processor for a while before it marks it, the other dies meanwhile."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.taken = asyncio.Event()
        self.on_processor = asyncio.Event()

    async def __call__(self, call: TakenCall) -> FakeAnswer:
        if call.body == b"slow" and not self.taken.is_set():
            self.taken.set()
            await self.on_processor.wait()
        if call.body == b"die":
            await self.taken.wait()
            mark(call, call.seq)
            raise Crash
        mark(call, call.seq)
        self.ran.append(call.body)
        await asyncio.sleep(0)
        mark(call, 0)
        return FakeAnswer(call.body)


def test_a_call_whose_instance_gets_no_processor_to_mark_it_is_not_given_to_another():
    async def main():
        slow = Slow()
        async with gateway(Behaviour(slow, marks=False)) as rig:
            rig.serve(function(max_instances=2, timeout_seconds=20))
            calls = [asyncio.ensure_future(rig.request("POST", "/function/hello", body=body)) for body in (b"slow", b"die")]
            await slow.taken.wait()
            assert (await calls[1])[0] == 502
            await asyncio.sleep(0.25)  # what is waited for: that nothing happens, while the slow one is kept from its processor
            slow.on_processor.set()
            assert (await calls[0])[::2] == (200, b"slow")
            assert slow.ran == [b"slow"]

    run(main())


def test_one_that_gets_none_for_long_may_have_run_its_call_and_nobody_else_does():
    async def main():
        slow = Slow()
        async with gateway(Behaviour(slow, marks=False)) as rig:
            rig.serve(function(max_instances=2, timeout_seconds=20))
            calls = [asyncio.ensure_future(rig.request("POST", "/function/hello", body=body)) for body in (b"slow", b"die")]
            status, _, body = await calls[0]
            assert (status, b"function_crashed" in body) == (502, True)
            slow.on_processor.set()
            await until(lambda: slow.ran == [b"slow"])
            assert (await calls[1])[0] == 502
            assert (await rig.request("POST", "/function/hello", body=b"next"))[::2] == (200, b"next")
            assert slow.ran == [b"slow", b"next"]

    run(main())


def test_an_answer_that_was_not_read_yet_is_not_asked_for_again():
    """While one caller reads its stream slowly, nothing is read of that instance: the answers of its other calls wait."""

    async def main():
        ran: list[bytes] = []
        over = asyncio.Event()

        async def handler(call: TakenCall) -> FakeAnswer:
            ran.append(call.body)
            if call.body == b"unread":
                await call.instance.send(frames.RESULT, 0, 200, 10, call.seq, b"", call.body)
                await over.wait()
                return FakeAnswer(streamed=True)
            if call.body == b"die":
                mark(call, call.seq)
                raise Crash
            return FakeAnswer(call.body)

        async with gateway(Behaviour(handler, marks=False)) as rig:
            rig.serve(function(max_instances=2, timeout_seconds=20))
            assert (await rig.request("POST", "/function/hello", body=b"first"))[0] == 200
            (entry,) = rig.fleet._entries.values()
            (channel,) = entry.channels.values()
            channel.pause()
            unread = asyncio.ensure_future(rig.request("POST", "/function/hello", body=b"unread"))
            await until(lambda: b"unread" in ran)
            assert (await rig.request("POST", "/function/hello", body=b"die"))[0] == 502
            assert (await rig.request("POST", "/function/hello", body=b"third"))[0] == 200  # by another, who is free from now on
            await asyncio.sleep(sum(LOOKS_SECONDS) + 0.25)  # what is waited for: that nothing happens
            channel.resume()
            assert (await unread)[::2] == (200, b"unread")
            assert ran.count(b"unread") == 1
            over.set()

    run(main())
