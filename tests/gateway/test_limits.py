"""Limits at the gate of a whole gateway: who is refused and with which words, what is counted, and that every place is given back."""

import asyncio
import contextlib
import json
import re
import time

import pytest
import uvloop

from dayfly.core.decide.quota import day_of
from dayfly.core.model.function import Catalog
from dayfly.core.model.limits import Consumed, Limits
from dayfly.core.wire import link
from dayfly.gateway.limited import EARLY_BYTES
from dayfly.gateway.link import Link
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, packed, until

Answer = tuple[int, dict[str, str], bytes]


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


def limited(**limits: float):
    """A function with limits; `timeout_seconds` is long, since some tests hold calls."""
    return function(limits=Limits(**limits), timeout_seconds=60.0)


def reason(answer: Answer) -> str:
    return json.loads(answer[2])["error"]["reason"]


def inside(rig: Rig) -> int:
    return rig.fleet.limits._tallies["default", "hello"].inside


class Held:
    """A handler that keeps calls until it is told, and does what their body says."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, call: TakenCall) -> FakeAnswer | None:
        await self.release.wait()
        if call.body == b"crash":
            raise Crash
        return FakeAnswer(block=b"x-a: 1\r\n\r\nevil\r\n") if call.body == b"bad" else FakeAnswer(b"null")


def test_over_the_rate_is_429_with_reason_and_retry_after_and_counted_by_reason():
    async def main():
        async with gateway() as rig:
            rig.serve(limited(rate_per_second=0.01, burst=2))
            answers = [await rig.request("GET", "/function/hello") for _ in range(3)]
            assert [status for status, _, _ in answers] == [200, 200, 429]
            _, headers, body = answers[2]
            error = json.loads(body)["error"]
            assert (error["code"], error["fault"], error["reason"]) == ("rate_limited", "capacity", "function_rate")
            assert 90 <= int(headers["retry-after"]) <= 100 and error["call_id"] == headers["x-call-id"]
            numbers = rig.ledger.function("default", "hello").numbers
            assert (numbers.calls, numbers.rejected, numbers.refusals) == (2, 1, {"function_rate": 1})
            assert len(rig.behaviour.instances) == 1 and len(rig.behaviour.instances[0].calls) == 2

    run(main())


def test_a_direct_invoke_over_a_limit_also_says_it_in_lambdas_words():
    async def main():
        async with gateway() as rig:
            rig.serve(limited(concurrency=0))
            status, headers, body = await rig.request("POST", "/api/v1/functions/hello/invoke", body=b"{}")
            answer = json.loads(body)
            assert (status, headers["x-amzn-errortype"]) == (429, "TooManyRequestsException")
            assert answer["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded" and answer["Type"] == "User"
            assert answer["error"]["code"] == "paused" and headers["retry-after"] == "60"

    run(main())


@pytest.mark.parametrize("body", [b"", b"crash", b"bad"])
def test_a_place_is_given_back_however_the_call_ends(body: bytes):
    async def main():
        held = Held()
        async with gateway(Behaviour(held)) as rig:
            rig.serve(limited(concurrency=1))
            first = asyncio.ensure_future(rig.request("POST", "/function/hello", body=body))
            await until(lambda: rig.fleet.busy == 1)
            second = await rig.request("GET", "/function/hello")
            assert (second[0], reason(second)) == (429, "function_concurrency")
            held.release.set()
            assert (await first)[0] == (502 if body else 200)
            await until(lambda: inside(rig) == 0)
            assert (await rig.request("GET", "/function/hello"))[0] == 200

    run(main())


def test_a_caller_that_left_keeps_its_place_until_the_call_is_over_and_one_that_waited_does_not():
    async def main():
        held = Held()
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(limits=Limits(concurrency=2), max_instances=1, timeout_seconds=60.0))
            callers = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(2)]
            for count, (_, writer) in enumerate(callers, 1):
                writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
                await until(lambda: rig.fleet.busy == count)  # noqa: B023
            await until(lambda: rig.behaviour.instances[0].calls)
            for _, writer in callers:
                writer.transport.abort()
            await until(lambda: inside(rig) == 1)
            held.release.set()
            await until(lambda: inside(rig) == 0)

    run(main())


def test_the_next_request_of_a_connection_finds_the_place_of_the_one_before():
    async def main():
        async with gateway() as rig:
            rig.serve(limited(concurrency=1, calls_per_day=3))
            one = b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n"
            raw = await rig.raw(one * 3 + one.replace(b"host", b"connection: close\r\nhost"))
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"200", b"200", b"200", b"429"]
            assert b"function_calls_per_day" in raw

    run(main())


def test_a_full_queue_gives_back_place_and_call():
    async def main():
        held = Held()
        async with gateway(Behaviour(held)) as rig:
            rig.serve(function(limits=Limits(concurrency=9, calls_per_day=9), max_instances=1, queue_max=1, timeout_seconds=60.0))
            callers = [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(2)]
            await until(lambda: rig.fleet.busy == 2)
            assert json.loads((await rig.request("GET", "/function/hello"))[2])["error"]["code"] == "queue_full"
            tally = rig.fleet.limits._tallies["default", "hello"]
            assert (tally.inside, tally.days.today.calls) == (2, 2)
            held.release.set()
            assert {answer[0] for answer in await asyncio.gather(*callers)} == {200}

    run(main())


def test_bodies_have_a_limit_of_the_function_and_a_long_one_is_not_taken_when_the_call_would_be_refused():
    async def main():
        async with gateway() as rig:
            rig.serve(limited(body_bytes_max=100_000))
            assert (await rig.request("POST", "/function/hello", body=b"x" * 100_000))[0] == 200
            chunked = b"186a1\r\n" + b"x" * 100_001 + b"\r\n0\r\n\r\n"
            for body, headers in ((b"x" * 100_001, ""), (chunked, "transfer-encoding: chunked\r\n")):
                length = headers or f"content-length: {len(body)}\r\n"
                head = f"POST /function/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{length}\r\n"
                assert (await rig.raw(head.encode() + body)).startswith(b"HTTP/1.1 413")
            rig.serve(limited(concurrency=0))
            head = f"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: {EARLY_BYTES + 1}\r\n\r\nx"
            assert (await rig.raw(head.encode())).startswith(b"HTTP/1.1 429"), "answered at the first byte"
            assert rig.site.buffered == 0

    run(main())


def _target(rig: Rig):
    it = rig.catalog.functions["default", "hello"]
    return it, it.versions[0]


def test_gb_seconds_and_bytes_are_counted_as_control_counts_them():
    async def handler(_: TakenCall) -> FakeAnswer:
        return FakeAnswer(b"x" * 1000, exec_us=1_500_001)

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(limited(gb_seconds_per_day=0.375, response_bytes_per_day=5000))
            assert [(await rig.request("GET", "/function/hello"))[0] for _ in range(3)] == [200, 200, 429]
            used = rig.fleet.limits._tallies["default", "hello"].days.today
            assert (used.calls, used.mb_ms, used.bytes_out) == (2, 2 * 1501 * 128, 2000)

    run(main())


def test_what_was_used_before_the_gateway_came_counts():
    async def main():
        async with gateway() as rig:
            rig.fleet.limits.told(day_of(time.time()), [Consumed("default", "hello", calls=9)])
            rig.serve(limited(calls_per_day=10))
            answers = [await rig.request("GET", "/function/hello") for _ in range(2)]
            assert [status for status, _, _ in answers] == [200, 429] and reason(answers[1]) == "function_calls_per_day"
            assert 0 < int(answers[1][1]["retry-after"]) <= 86_400

    run(main())


def test_what_control_says_of_limits_holds_from_the_moment_it_is_confirmed(tmp_path):
    """A link to a control of our own: usage, snapshot, then a namespace's limits, more of them, none, and a function that goes."""

    async def main():
        applied: asyncio.Queue[link.ToControl] = asyncio.Queue()
        writers: list[asyncio.StreamWriter] = []

        async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(asyncio.IncompleteReadError):  # the gateway left
                while size := int.from_bytes(await reader.readexactly(link.LENGTH_BYTES), "big"):
                    message = link.decode_to_control(await reader.readexactly(size))
                    if isinstance(message, link.Hello | link.Applied):
                        applied.put_nowait(message)
            writer.close()

        async def say(*messages: link.ToGateway) -> None:
            for message in messages:
                writers[0].write(link.encode(message))
            await applied.get()

        async with gateway() as rig:
            server = await asyncio.start_unix_server(control, str(tmp_path / "link.sock"))
            parts = (rig.catalog, rig.fleet, rig.ledger, rig.site)
            task = asyncio.ensure_future(Link(str(tmp_path / "link.sock"), link.Hello("g", 1), parts).run())
            await applied.get()
            used = link.UsedToday(day_of(time.time()), [Consumed("default", "hello", calls=8), Consumed("default", "", calls=100)])
            catalog = Catalog(revision=1, functions=packed(limited(calls_per_day=10), function("free")), tokens=())
            await say(used, link.Snapshot(catalog))
            assert [(await rig.request("GET", "/function/hello"))[0] for _ in range(3)] == [200, 200, 429]
            assert (await rig.request("GET", "/function/free"))[0] == 200
            quota = Limits(calls_per_day=102)
            await say(link.UsedToday(used.day, [Consumed("default", "", calls=101)]), link.LimitsChanged(2, "default", quota))
            answers = [await rig.request("GET", "/function/free") for _ in range(2)]
            assert [status for status, _, _ in answers] == [200, 429] and reason(answers[1]) == "namespace_calls_per_day"
            await say(link.LimitsChanged(3, "default", Limits()))
            assert (await rig.request("GET", "/function/free"))[0] == 200
            await say(link.FunctionRemoved(4, "default", "hello"))
            assert not rig.fleet.limits._tallies and rig.catalog.revision == 4
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()
            await until(writers[0].is_closing)

    run(main())


def test_a_function_without_limits_has_no_gate():
    async def main():
        async with gateway() as rig:
            rig.serve(function())
            assert (await rig.request("GET", "/function/hello"))[0] == 200
            assert rig.fleet.entry(*_target(rig)).gate is None and not rig.fleet.limits._tallies

    run(main())
