"""Calls through a whole gateway with fake instances: both doors, failures, limits, lost instances, drains."""

import asyncio
import base64
import json

import msgspec
import pytest
import uvloop

from dayfly.core.model.function import Catalog
from dayfly.gateway.channel import Ready
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import BEARER, dechunk, function, gateway, until


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


def test_an_event_call_reaches_the_function_and_comes_back_with_every_header():
    async def main():
        async with gateway() as rig:
            rig.serve(function())
            status, headers, body = await rig.request("POST", "/function/hello/a%20b?x=1", "x-call-id: mine-1\r\n", b'{"a":1}')
            assert (status, body) == (200, b'{"a":1}')
            assert headers["x-call-id"] == "mine-1"
            assert headers["x-dayfly-version"] == "1"
            assert headers["x-dayfly-start"] == "cold"
            assert "start;dur=" in headers["server-timing"] and "exec;dur=" in headers["server-timing"]
            status, headers, _ = await rig.request("GET", "/function/hello")
            assert headers["x-dayfly-start"] == "warm"
            taken = rig.behaviour.instances[0].calls[0]
            lines = taken.meta.split(b"\n")
            assert lines[:5] == [b"POST", b"/a%20b", b"x=1", b"127.0.0.1", b"http"]
            assert not any(line.startswith(b"x-forwarded") for line in lines), "an instance knows them by the lines above"
            [used] = rig.ledger.take_usage()
            assert (used.function, used.calls, used.cold, used.errors, used.bytes_in) == ("hello", 2, 1, 0, 7)
            assert rig.ledger.take_usage() == []

    run(main())


def test_an_invoke_call_answers_json_and_wraps_function_errors_in_200():
    async def handler(call: TakenCall) -> FakeAnswer:
        if call.body == b'"fail"':
            return FakeAnswer(b'{"errorType":"ValueError","errorMessage":"no"}', flags=frames.ERROR)
        assert json.loads(call.meta) == {"custom": {"k": "v"}} or call.meta == b""
        await call.instance.send(frames.LOG, frames.STDOUT, 20, 0, call.seq, b"", b"hello log")
        await call.instance.send(frames.LOG, frames.STDERR, 30, 0, call.seq, b"", b"second")
        return FakeAnswer(b'{"ok":true}')

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            context = base64.b64encode(b'{"custom":{"k":"v"}}').decode()
            extra = BEARER + f"x-amz-client-context: {context}\r\nx-amz-log-type: Tail\r\n"
            status, headers, body = await rig.request("POST", "/api/v1/functions/hello/invoke", extra, b"{}")
            assert (status, body) == (200, b'{"ok":true}')
            assert base64.b64decode(headers["x-amz-log-result"]) == b"hello log\nsecond\n"
            assert headers["x-amz-executed-version"] == "1"
            status, headers, body = await rig.request("POST", "/api/v1/functions/hello/invoke?qualifier=live", BEARER, b'"fail"')
            assert (status, headers["x-amz-function-error"]) == (200, "Unhandled")
            assert json.loads(body)["errorType"] == "ValueError"
            assert [record.text for record in rig.ledger.take_logs(10)[0]] == ["hello log", "second"]

    run(main())


def test_private_functions_need_a_token_of_their_namespace():
    async def main():
        async with gateway() as rig:
            rig.serve(function(auth="token"))
            for headers, expected in (
                ("", 401),
                ("authorization: Bearer nonsense\r\n", 401),
                (BEARER[:-5] + "xxx\r\n", 401),
                ("authorization: Basic abc\r\n", 401),
                (BEARER, 200),
            ):
                status, answer, _ = await rig.request("GET", "/function/hello", headers)
                assert status == expected, headers
                assert (status == 401) == ("www-authenticate" in answer)
            assert b"authorization" not in rig.behaviour.instances[0].calls[0].meta

    run(main())


def test_unknown_functions_versions_and_bad_names_are_told_apart():
    async def main():
        async with gateway() as rig:
            assert (await rig.request("GET", "/function/hello"))[0] == 503  # no catalog yet: not found would be a lie
            rig.serve(function())
            for target, expected in (
                ("/function/nobody", 404),
                ("/function/hello.other", 404),
                ("/function/hello:7", 404),
                ("/function/hello:nope", 404),
                ("/function/hello:1", 200),
                ("/function/hello:live/x", 200),
                ("/function/hello.default", 200),
                ("/function/", 400),
                ("/function/%2e%2e", 400),
                ("/function/a.b.c", 400),
            ):
                status, _, body = await rig.request("GET", target)
                assert status == expected, (target, body)

    run(main())


def test_calls_beyond_the_queue_are_refused_with_retry_after_and_counted():
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        await release.wait()
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler), prefetch_max=1) as rig:  # or the clock offers more of them after so short a first one
            rig.serve(function(max_instances=1, queue_max=3))
            release.set()
            assert (await rig.request("GET", "/function/hello"))[0] == 200
            release.clear()
            calls = [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(8)]
            await until(lambda: sum(call.done() for call in calls) >= 4)
            refused = [call.result() for call in calls if call.done()]
            assert {status for status, _, _ in refused} == {429}
            assert all(headers["retry-after"] == "1" for _, headers, _ in refused)
            release.set()
            assert sorted(answer[0] for answer in await asyncio.gather(*calls)) == [200] * 4 + [429] * 4
            assert rig.ledger.function("default", "hello").numbers.rejected == 4

    run(main())


def test_a_call_past_its_deadline_is_answered_and_its_instance_ended():
    async def main():
        async with gateway(Behaviour(lambda call: asyncio.sleep(60))) as rig:
            rig.serve(function(timeout_seconds=0.2))
            status, _, body = await rig.request("GET", "/function/hello")
            assert (status, json.loads(body)["error"]["code"]) == (504, "function_timeout")
            status, headers, body = await rig.request("POST", "/api/v1/functions/hello/invoke", BEARER, b"{}")
            assert (status, headers["x-amz-function-error"]) == (200, "Unhandled")
            assert json.loads(body)["errorType"] == "Sandbox.Timedout"
            assert "Task timed out after 0.20 seconds" in json.loads(body)["errorMessage"]
            await until(lambda: all(instance.closed for instance in rig.behaviour.instances))
            assert [(used.calls, used.errors) for used in rig.ledger.take_usage()] == [(2, 2)]

    run(main())


def test_a_call_begun_by_an_instance_that_dies_is_told_so_and_the_others_still_run():
    async def handler(call: TakenCall) -> FakeAnswer:
        if call.body == b'"die"':
            raise Crash(11)
        return FakeAnswer(call.body)

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(max_instances=1))
            calls = [rig.request("POST", "/function/hello", body=body) for body in (b'"die"', b"1", b"2", b"3")]
            answers = await asyncio.gather(*calls)
            assert sorted(status for status, _, _ in answers) == [200, 200, 200, 502]
            error = json.loads(next(body for status, _, body in answers if status == 502))["error"]
            assert error["code"] == "function_crashed" and "segmentation fault" in error["message"]

    run(main())


def test_calls_received_but_never_begun_by_a_dying_instance_run_elsewhere():
    async def handler(call: TakenCall) -> FakeAnswer | None:
        if call.instance is behaviour.instances[0]:
            raise Crash()
        return FakeAnswer(b'"second"')

    behaviour = Behaviour(handler, marks=False)

    async def main():
        async with gateway(behaviour) as rig:
            rig.serve(function(max_instances=1))
            assert (await rig.request("GET", "/function/hello"))[::2] == (200, b'"second"')
            assert len(behaviour.instances) == 2

    run(main())


def test_a_failing_init_answers_those_who_waited_and_names_the_error():
    error = {"errorType": "Runtime.ImportModuleError", "errorMessage": "No module named 'nope'", "stackTrace": []}

    async def main():
        async with gateway(Behaviour(init_error=error)) as rig:
            rig.serve(function())
            status, _, body = await rig.request("GET", "/function/hello")
            assert (status, json.loads(body)["error"]["code"]) == (422, "init_failed")
            assert "No module named 'nope'" in json.loads(body)["error"]["message"]
            rig.behaviour.init_error, rig.behaviour.refuse = None, "no such runtime"
            status, _, body = await rig.request("GET", "/function/hello")
            assert (status, json.loads(body)["error"]["code"]) == (503, "start_failed")
            rig.behaviour.refuse = ""
            assert (await rig.request("GET", "/function/hello"))[0] == 200

    run(main())


def test_init_that_never_ends_is_ended():
    async def main():
        async with gateway(Behaviour(start_seconds=60), init_timeout_seconds=0.2) as rig:
            rig.serve(function())
            status, _, body = await rig.request("GET", "/function/hello")
            assert (status, json.loads(body)["error"]["code"]) == (422, "init_failed")
            await until(lambda: rig.behaviour.instances[0].closed)

    run(main())


def test_streamed_answers_flush_chunk_by_chunk_and_a_broken_stream_is_cut():
    gate = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer | None:
        me = call.instance
        await me.send(frames.HEAD, 0, 201, 0, call.seq, b"content-type: text/plain\r\n", b"one ")
        await gate.wait()
        await me.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"two")
        if call.body == b"break":
            await me.send(frames.END, frames.ERROR, 0, 5, call.seq, b"", b"{}")
        else:
            await me.send(frames.END, 0, 0, 5, call.seq)
        return FakeAnswer(streamed=True)

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            head = await reader.readuntil(b"one \r\n")
            assert b"201 Created" in head and b"x-dayfly-start: cold" in head
            gate.set()
            assert dechunk(await reader.readuntil(b"0\r\n\r\n")) == b"two"
            writer.close()
            raw = await rig.raw(b"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nbreak")
            assert not raw.endswith(b"0\r\n\r\n") and b"two" in raw

    run(main())


def test_large_bodies_travel_beside_the_message_and_too_large_ones_are_refused_early():
    async def main():
        async with gateway(body_bytes_max=2_000_000) as rig:
            rig.serve(function())
            body = bytes(range(256)) * 4096
            assert (await rig.request("POST", "/function/hello", body=body))[2] == body
            head = b"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 9000000\r\n\r\n"
            assert b" 413 " in (await rig.raw(head)).split(b"\r\n")[0]
            chunk = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
            head = b"POST /function/hello HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
            assert b" 413 " in (await rig.raw(head + chunk * 3 + b"0\r\n\r\n")).split(b"\r\n")[0]
            assert rig.site.buffered == 0

    run(main())


def test_a_caller_that_leaves_the_queue_costs_nothing_and_running_calls_run_on():
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        await release.wait()
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(max_instances=1))
            writers = []
            for _ in range(3):
                _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
                writers.append(writer)
            await until(lambda: rig.behaviour.instances and rig.behaviour.instances[0].calls and rig.fleet.busy == 3)
            for writer in writers:
                writer.transport.abort()
            await until(lambda: rig.fleet.busy == 1)  # the one that runs
            release.set()
            await until(lambda: rig.fleet.busy == 0)
            assert len(rig.behaviour.instances[0].calls) == 1

    run(main())


def test_a_new_version_takes_over_without_losing_a_call_and_the_old_instances_leave():
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        if call.instance.boot["version"] == 1:
            await release.wait()
        return FakeAnswer(str(call.instance.boot["version"]).encode())

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(number=1, max_instances=2))
            old = [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(6)]
            await until(lambda: rig.fleet.busy == 6)
            rig.serve(function(number=2))
            assert (await rig.request("GET", "/function/hello"))[2] == b"2"
            release.set()
            assert {(await call)[2] for call in old} == {b"1"}
            await until(lambda: all(it.closed for it in rig.behaviour.instances if it.boot["version"] == 1))

    run(main())


def test_idle_instances_leave_to_zero_and_min_instances_stay():
    async def main():
        async with gateway() as rig:
            rig.serve(function(keep_alive_seconds=0.0), function("kept", keep_alive_seconds=0.0, min_instances=2))
            rig.fleet.warm(rig.catalog.functions["default", "kept"])
            assert (await rig.request("GET", "/function/hello"))[0] == 200
            await until(lambda: len(rig.provider.alive) == 2)
            assert {it.boot["function"] for it in rig.provider.alive.values()} == {"kept"}

    run(main())


def test_losing_the_node_answers_begun_calls_and_the_rest_wait_for_it_to_come_back():
    async def handler(call: TakenCall) -> FakeAnswer | None:
        return None if call.body == b"hang" else FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(max_instances=1))
            begun = asyncio.ensure_future(rig.request("POST", "/function/hello", body=b"hang"))
            await until(lambda: rig.behaviour.instances and rig.behaviour.instances[0].calls)
            waiting = asyncio.ensure_future(rig.request("GET", "/function/hello"))
            await until(lambda: rig.fleet.busy == 2)
            rig.provider.connected = False
            rig.provider.lose()
            assert (await begun)[0] == 502
            assert not waiting.done()
            rig.provider.connected = True
            assert (await waiting)[0] == 200

    run(main())


def test_garbage_from_an_instance_ends_it_and_nobody_else():
    async def handler(call: TakenCall) -> FakeAnswer | None:
        if call.body:
            await call.instance.send_raw(b"\xff" * 64)
            return None
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            assert (await rig.request("POST", "/function/hello", body=b"x"))[0] == 502
            assert (await rig.request("GET", "/function/hello"))[0] == 200

    run(main())


def test_headers_a_function_may_not_set_are_dropped_and_split_ones_refused():
    async def handler(call: TakenCall) -> FakeAnswer:
        if call.body:
            return FakeAnswer(block=b"x-a: 1\r\n\r\nevil: 1\r\n")
        return FakeAnswer(block=b"content-length: 999\r\nConnection: upgrade\r\nx-call-id: forged\r\nx-fine: yes\r\n")

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            status, headers, body = await rig.request("GET", "/function/hello")
            assert (status, body, headers["x-fine"]) == (200, b"null", "yes")
            assert headers["x-call-id"] != "forged" and headers["connection"] == "close"
            status, headers, body = await rig.request("POST", "/function/hello", body=b"x")
            assert (status, json.loads(body)["error"]["code"]) == (502, "function_bad_answer")

    run(main())


def test_control_paths_say_503_while_control_is_away():
    async def main():
        async with gateway() as rig:
            rig.serve(function())
            status, headers, body = await rig.request("GET", "/api/v1/functions")
            assert (status, json.loads(body)["error"]["code"]) == (503, "control_unavailable")
            assert headers["retry-after"] == "1"
            assert (await rig.request("GET", "/healthz"))[0] == 200

    run(main())


def test_a_removed_function_is_gone_at_once_and_its_running_calls_finish():
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        await release.wait()
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            call = asyncio.ensure_future(rig.request("GET", "/function/hello"))
            await until(lambda: rig.fleet.busy == 1)
            rig.catalog.replace(Catalog(revision=2, functions=(), tokens=()))
            rig.fleet.functions_changed(rig.catalog.names, None)
            assert (await rig.request("GET", "/function/hello"))[0] == 404
            release.set()
            assert (await call)[0] == 200
            await until(lambda: not rig.provider.alive)

    run(main())


def test_a_version_that_nobody_calls_gives_its_sockets_back_and_can_be_called_again(monkeypatch):
    monkeypatch.setattr("dayfly.gateway.fleet.DORMANT_SECONDS", 0.05)

    async def main():
        async with gateway() as rig:
            rig.serve(function(keep_alive_seconds=0.0))
            for _ in range(2):
                assert (await rig.request("GET", "/function/hello"))[0] == 200
                await until(lambda: not rig.fleet._entries and not rig.fleet._leaving)
            assert len(rig.behaviour.instances) == 2

    run(main())


def test_what_is_not_allowed_says_what_is():
    async def main():
        async with gateway() as rig:
            status, headers, _ = await rig.request("POST", "/healthz", body=b"x")
            assert (status, headers["allow"]) == (405, "GET, HEAD")

    run(main())


@pytest.mark.parametrize(
    "meta", [b"", b"[]", b'{"init_us":-1}', b'{"init_us":1e30}', b'{"init_us":%d}' % 10**30, b'{"async":1}', b'{"async":null}']
)
def test_a_ready_that_no_runtime_sends_is_garbage(meta):
    """A number that does not fit into a message to control would break the link for everybody."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(meta, type=Ready)


def test_a_kept_version_is_called_by_its_number_and_only_named_ones_are_kept_warm():
    async def handler(call: TakenCall) -> FakeAnswer:
        return FakeAnswer(str(call.instance.boot["version"]).encode())

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            old, new = function(number=1, min_instances=2), function(number=2, min_instances=1)
            both = msgspec.structs.replace(new, versions=(*old.versions, *new.versions))
            rig.serve(both)
            rig.fleet.warm(both)
            assert (await rig.request("GET", "/function/hello"))[2] == b"2"
            assert (await rig.request("GET", "/function/hello:1"))[2] == b"1"
            assert [it.boot.get("version") for it in rig.behaviour.instances].count(1) == 1
            back = msgspec.structs.replace(both, aliases=old.aliases)
            rig.serve(back)
            rig.fleet.warm(back)
            await until(lambda: sum(it.boot.get("version") == 1 for it in rig.provider.alive.values()) >= 2)
            await until(lambda: not any(it.boot.get("version") == 2 for it in rig.provider.alive.values()))

    run(main())


def test_at_the_machines_cap_busy_versions_queue_and_strangers_are_refused_with_retry_after():
    release = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        await release.wait()
        return FakeAnswer()

    async def main():
        async with gateway(Behaviour(handler), instances_max=2) as rig:
            rig.serve(function(), function("stranger"))
            calls = [asyncio.ensure_future(rig.request("GET", "/function/hello")) for _ in range(8)]
            await until(lambda: rig.fleet.busy == 8 and len(rig.provider.alive) == 2)
            status, headers, body = await rig.request("GET", "/function/stranger")
            assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
            assert len(rig.provider.alive) == 2 and not any(call.done() for call in calls)
            release.set()
            assert [(await call)[0] for call in calls] == [200] * 8

    run(main())


def test_a_burst_of_one_function_does_not_keep_another_functions_first_caller_waiting():
    """All starts that may be under way for a function that wants many are; another that is called for the first time starts at once."""

    async def main():
        behaviour = Behaviour(start_seconds=60.0)
        async with gateway(behaviour, starts_in_flight_max=4, starts_per_version_max=8) as rig:
            rig.serve(function("burst"), function("other"))
            callers = [asyncio.ensure_future(rig.request("GET", "/function/burst")) for _ in range(8)]
            await until(lambda: len(behaviour.instances) == 3 and all(it.boot for it in behaviour.instances))
            behaviour.start_seconds = 0.0
            status, headers, _ = await rig.request("GET", "/function/other")
            assert (status, headers["x-dayfly-start"]) == (200, "cold")
            assert [it.boot["function"] for it in behaviour.instances] == ["burst"] * 3 + ["other"]
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)

    run(main())
