"""The public port held to HTTP/1.1: framing, limits, slow and hostile clients, pipelining. Raw bytes against a real port."""

import asyncio
import json

import pytest
import uvloop

from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, parse, until


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 30))


def status_of(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1]) if raw else 0


HOST = "host: t\r\n"

REFUSED = {
    "no host": ("GET /function/hello HTTP/1.1\r\n\r\n", 400),
    "two hosts": (f"GET /function/hello HTTP/1.1\r\n{HOST}{HOST}\r\n", 400),
    "garbage": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "unknown method": (f"BREW /function/hello HTTP/1.1\r\n{HOST}\r\n", 501),
    "trace": (f"TRACE /function/hello HTTP/1.1\r\n{HOST}\r\n", 405),
    "connect": ("CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n", 405),
    "bad version": (f"GET /function/hello HTTP/3.9\r\n{HOST}\r\n", 505),
    "two lengths": (f"POST /function/hello HTTP/1.1\r\n{HOST}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    "length and chunked": (
        f"POST /function/hello HTTP/1.1\r\n{HOST}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "bad length": (f"POST /function/hello HTTP/1.1\r\n{HOST}content-length: +3\r\n\r\nabc", 400),
    "bad chunk size": (f"POST /function/hello HTTP/1.1\r\n{HOST}transfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
    "space before colon": (f"GET /function/hello HTTP/1.1\r\n{HOST}x-a : 1\r\n\r\n", 400),
    "nul in header": (f"GET /function/hello HTTP/1.1\r\n{HOST}x-a: \x00\r\n\r\n", 400),
    "fold": (f"GET /function/hello HTTP/1.1\r\n{HOST}x-a: 1\r\n folded\r\n\r\n", 400),
    "long address": (f"GET /function/hello?{'a' * 9000} HTTP/1.1\r\n{HOST}\r\n", 414),
    "long header": (f"GET /function/hello HTTP/1.1\r\n{HOST}x-a: {'a' * 40000}\r\n\r\n", 431),
    "many headers": (f"GET /function/hello HTTP/1.1\r\n{HOST}{'x-a: 1' + chr(13) + chr(10)}" * 1 + "x-b: 1\r\n" * 200 + "\r\n", 431),
    "endless header": (f"GET /function/hello HTTP/1.1\r\n{HOST}x-a: {'a' * 200000}", 431),
    "foreign absolute form": (f"GET ftp://x/ HTTP/1.1\r\n{HOST}\r\n", 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_valid_request_is_refused_and_the_connection_closed(case: str) -> None:
    raw, expected = REFUSED[case]

    async def main() -> None:
        async with gateway() as rig:
            rig.serve(function())
            answer = await rig.raw(raw.encode("latin-1"))
            assert status_of(answer) == expected, answer
            assert b"connection: close" in answer
            assert parse(answer)[2].startswith(b'{"error"')
            assert not rig.behaviour.instances  # nothing of it reached a function
            assert (await rig.request("GET", "/function/hello"))[0] == 200

    run(main())


async def exchange(rig: Rig, raw: bytes) -> bytes:
    return await rig.raw(raw)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        await asyncio.sleep(0.05 if call.body == b"0" else 0)
        return FakeAnswer(call.body)

    async def main() -> None:
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            one = "POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n{}\r\n{}"
            raw = "".join(one.format(len(str(i)), "connection: close\r\n" if i == 39 else "", i) for i in range(40))
            answer = (await rig.raw(raw.encode())).decode()
            bodies = [part.split("\r\n\r\n", 1)[1] for part in answer.split("HTTP/1.1 ")[1:]]
            assert bodies == [str(i) for i in range(40)]

    run(main())


def test_bytes_that_trickle_in_one_by_one_make_the_same_request() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(function())
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            for (
                byte
            ) in b"POST /function/hello HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-t: 1\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            head = await reader.readuntil(b"\r\n\r\n")
            assert status_of(head) == 200 and await reader.readexactly(3) == b"abc"
            writer.close()

    run(main())


def test_expect_continue_head_options_and_old_http() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(function())
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"POST /function/hello HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ok")
            assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200
            assert await reader.readexactly(2) == b"ok"
            writer.write(b"HEAD /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 4\r\n" in head
            writer.write(b"OPTIONS /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200  # no body came between
            writer.close()
            old = await rig.raw(b"GET /function/hello HTTP/1.0\r\n\r\n")
            assert old.endswith(b"null") and b"connection: close" in old

    run(main())


def test_slow_heads_and_bodies_time_out_and_idle_connections_close() -> None:
    async def main() -> None:
        async with gateway(header_timeout_seconds=0.2, body_timeout_seconds=0.2, idle_timeout_seconds=0.3) as rig:
            rig.serve(function())
            for raw in (b"GET /function/hello HTTP/1.1\r\nx-a", b"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nab"):
                assert status_of(await rig.raw(raw)) == 408
            assert await rig.raw(b"") == b""
            answer = await rig.raw(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")  # kept alive, then closed for idling
            assert status_of(answer) == 200
            await until(lambda: not rig.site.connections)

    run(main())


def test_a_refused_upload_is_answered_although_its_body_is_still_coming() -> None:
    async def main() -> None:
        async with gateway(body_bytes_max=1000) as rig:
            rig.serve(function())
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 5000000\r\n\r\n")
            for _ in range(50):
                writer.write(bytes(10_000))
            answer = await reader.readuntil(b"}}")
            assert status_of(answer) == 413
            writer.transport.abort()

    run(main())


def test_connections_beyond_the_limit_are_told_so_and_the_others_served() -> None:
    async def main() -> None:
        async with gateway(connections_max=3) as rig:
            rig.serve(function())
            held = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(3)]
            await until(lambda: len(rig.site.connections) == 3)
            assert status_of(await rig.raw(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n")) == 503
            reader, writer = held[0]
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n")
            assert status_of(await reader.readuntil(b"}")) == 200
            for _, writer in held:
                writer.close()

    run(main())


def test_an_upgrade_nobody_speaks_is_ignored() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(function())
            raw = b"GET /function/hello HTTP/1.1\r\nhost: t\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n"
            raw += b"http2-settings: AAMAAABk\r\n\r\n"
            status, _, body = parse(await rig.raw(raw))
            assert (status, body) == (200, b"null")
            assert b"upgrade" not in rig.behaviour.instances[0].calls[0].meta.split(b"\n", 5)[5]

    run(main())


def test_a_slow_reader_of_a_stream_stops_the_instance_and_not_the_gateway() -> None:
    from dayfly.runtime import frames

    sent = 0

    async def handler(call: TakenCall) -> FakeAnswer:
        nonlocal sent
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq)
        for _ in range(1000):
            await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", bytes(60_000))
            sent += 1
        await call.instance.send(frames.END, 0, 0, 0, call.seq)
        return FakeAnswer(streamed=True)

    async def main() -> None:
        async with gateway(Behaviour(handler), write_buffer_bytes_max=65_536) as rig:
            rig.serve(function(), function("other"))
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=65_536)
            writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 900  # stuck: what is between is bounded
            total = 0
            while chunk := await reader.read(1 << 20):
                total += len(chunk)
            assert total > 60_000_000 and sent == 1000
            writer.close()

    run(main())


def test_errors_have_code_fault_and_hint() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve()
            _, headers, body = await rig.request("GET", "/function/hello")
            error = json.loads(body)["error"]
            assert (error["code"], error["fault"], error["retryable"]) == ("function_not_found", "caller", False)
            assert error["hint"] and headers["content-type"] == "application/json"

    run(main())


def test_bodies_that_come_before_their_turn_are_bounded_and_still_arrive() -> None:
    gate = asyncio.Event()

    async def handler(call: TakenCall) -> FakeAnswer:
        if not call.body:
            await gate.wait()
        return FakeAnswer(str(len(call.body)).encode())

    async def main() -> None:
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            large = b"POST /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 5000000\r\n\r\n" + bytes(5_000_000)
            for _ in range(4):
                writer.write(large)
            await until(lambda: rig.site.connections and not next(iter(rig.site.connections))._reading)
            assert next(iter(rig.site.connections))._held < 2_000_000
            gate.set()
            for expected in (b"0", *[b"5000000"] * 4):
                head = await reader.readuntil(b"\r\n\r\n")
                assert status_of(head) == 200 and await reader.readexactly(len(expected)) == expected
            writer.close()

    run(main())
