"""Bodies that are passed on as they come, and long answers through sockets of their own: bounds, ends, and who waits for whom."""

import asyncio
import functools
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dayfly.core.model.limits import Limits
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, dechunk, function, gateway, parse, until
from tests.gateway.test_calls import run

APP = {"handler": "web:app"}
PIECE = bytes(range(256)) * 256
TEXT = b"content-type: text/plain\r\n"


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def runs(**arguments: Any) -> None:
        run(test(**arguments))

    return runs


def head(length: int | None, path: str = "/function/hello", *more: str) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return "\r\n".join((f"POST {path} HTTP/1.1", "host: test", framing, *more, "", "")).encode()


async def read_body(call: TakenCall) -> bytes:
    """What an application reads; raises ConnectionResetError for a body that broke off."""
    if call.stream is None:
        return call.body
    loop, received = asyncio.get_running_loop(), []
    with call.stream:
        while piece := await loop.sock_recv(call.stream, 1 << 20):
            received.append(piece)
    return b"".join(received)


async def count(call: TakenCall) -> FakeAnswer:
    return FakeAnswer(b"%d" % len(await read_body(call)), block=TEXT)


async def connected(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", rig.port, limit=1 << 22)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
    status, headers, _ = parse(lines.encode())
    return status, await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)


@in_a_loop
async def test_a_body_over_the_limit_reaches_an_application_and_the_connection_goes_on_behind_it() -> None:
    """Of known length: also what is pipelined behind it, in the same packet."""
    async with gateway(Behaviour(count), body_bytes_max=100_000) as rig:
        rig.serve(function(**APP))
        reader, writer = await connected(rig)
        for size in (100_001, 5_000_000):
            writer.write(head(size) + bytes(size) + head(3) + b"abc" + head(200_000) + bytes(200_000))
            assert [await answer(reader) for _ in range(3)] == [(200, b"%d" % size), (200, b"3"), (200, b"200000")]
        writer.close()
        assert [call.stream is None for call in rig.behaviour.instances[0].calls] == [False, True, False] * 2


@in_a_loop
async def test_a_chunked_body_reaches_an_application_while_it_is_sent() -> None:
    arrived = asyncio.Event()

    async def takes(call: TakenCall) -> FakeAnswer:
        assert call.stream is not None
        assert await asyncio.get_running_loop().sock_recv(call.stream, 100) == b"first"
        arrived.set()
        return FakeAnswer(await read_body(call), block=TEXT)

    async with gateway(Behaviour(takes)) as rig:
        rig.serve(function(**APP))
        reader, writer = await connected(rig)
        writer.write(head(None) + b"5\r\nfirst\r\n")
        await asyncio.wait_for(arrived.wait(), 10)
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        assert await answer(reader) == (200, b"second")
        writer.write(head(2) + b"ab")
        writer.close()


@pytest.mark.parametrize("length", [1_000_000, None])
@in_a_loop
async def test_who_leaves_in_the_middle_breaks_the_body(length: int | None) -> None:
    broken: asyncio.Future[type[BaseException] | None] = asyncio.get_running_loop().create_future()

    async def takes(call: TakenCall) -> FakeAnswer:
        try:
            await read_body(call)
            broken.set_result(None)
        except OSError as error:
            broken.set_result(type(error))
        return FakeAnswer()

    async with gateway(Behaviour(takes), body_bytes_max=1000) as rig:
        rig.serve(function(**APP))
        _, writer = await connected(rig)
        writer.write(head(length) + (b"" if length else b"f000\r\n") + bytes(50_000))
        await until(lambda: rig.behaviour.instances and rig.behaviour.instances[0].calls)
        writer.close()
        assert await asyncio.wait_for(broken, 10) is ConnectionResetError
        await until(lambda: not rig.fleet.busy)
        assert rig.site.uploads == 0


@in_a_loop
async def test_a_client_that_stops_sending_is_told_and_breaks_the_body() -> None:
    async with gateway(Behaviour(count), body_bytes_max=1000, body_timeout_seconds=0.1) as rig:
        rig.serve(function(**APP))
        reader, writer = await connected(rig)
        writer.write(head(1_000_000) + bytes(2000))
        assert (await answer(reader))[0] == 408
        writer.close()


@in_a_loop
async def test_an_application_that_does_not_read_stops_the_client_and_keeps_its_time() -> None:
    """The client's clock does not run while it is held back; what it can send is what sockets hold, and one read."""
    go = asyncio.Event()

    async def takes(call: TakenCall) -> FakeAnswer:
        await go.wait()
        return await count(call)

    async with gateway(Behaviour(takes), body_timeout_seconds=0.5) as rig:
        rig.serve(function(**APP, timeout_seconds=20))
        reader, writer = await connected(rig)
        size, sent = 60_000_000, 0
        writer.write(head(size))
        writer.transport.set_write_buffer_limits(high=0)
        same = 0
        while same < 50:  # until nothing moves, for longer than the timeout
            before = sent
            try:
                while sent < size:
                    writer.write(PIECE)
                    sent += len(PIECE)
                    await asyncio.wait_for(writer.drain(), 0.02)
            except TimeoutError:
                pass
            same = same + 1 if sent - before <= len(PIECE) else 0
        assert sent < size - 100 * len(PIECE)
        go.set()
        while sent < size:
            writer.write(PIECE[: size - sent])
            sent += len(PIECE)
            await writer.drain()
        assert await answer(reader) == (200, b"%d" % size)
        writer.close()


@in_a_loop
async def test_bodies_that_are_too_large_or_too_many_are_refused() -> None:
    go = asyncio.Event()

    async def takes(call: TakenCall) -> FakeAnswer:
        await go.wait()
        return await count(call)

    async with gateway(Behaviour(takes), body_bytes_max=1000, stream_bytes_max=50_000, uploads_max=1) as rig:
        rig.serve(function(**APP, max_instances=1), function("event"))
        for path, length in (("/function/hello", 50_001), ("/function/event", 1001)):
            reader, writer = await connected(rig)
            writer.write(head(length, path))
            status, body = await answer(reader)
            assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
            writer.close()
        first, second = await connected(rig), await connected(rig)
        first[1].write(head(None) + b"f000\r\n" + bytes(0xF000))
        assert (await answer(first[0]))[0] == 413, "more than may be, found out on the way"
        third = await connected(rig)
        third[1].write(head(2000))
        await until(lambda: rig.site.uploads == 1)
        second[1].write(head(2000))
        status, body = await answer(second[0])
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        go.set()
        third[1].write(bytes(2000))
        assert await answer(third[0]) == (200, b"2000")
        await until(lambda: rig.site.uploads == 0)
        for _, writer in (first, second, third):
            writer.close()


@in_a_loop
async def test_limits_of_a_function_hold_for_what_it_streams() -> None:
    async with gateway(Behaviour(count), body_bytes_max=1000) as rig:
        rig.serve(function(**APP, limits=Limits(body_bytes_max=5000, concurrency=1)))
        reader, writer = await connected(rig)
        for size, expected in ((4000, 200), (5001, 413)):
            writer.write(head(size) + bytes(size))
            assert (await answer(reader))[0] == expected
        writer.close()
        reader, writer = await connected(rig)
        writer.write(head(None) + b"1770\r\n" + bytes(6000))
        assert (await answer(reader))[0] == 413
        writer.close()
        await until(lambda: not rig.fleet.busy)
        assert (await rig.request("POST", "/function/hello", body=bytes(4000)))[0] == 200, "nobody is left inside"


@in_a_loop
async def test_a_body_is_still_whole_when_whoever_took_the_call_died_before_it_began() -> None:
    taken: list[TakenCall] = []

    async def takes(call: TakenCall) -> FakeAnswer:
        taken.append(call)
        if len(taken) == 1:
            assert call.stream is not None
            call.stream.close()
            raise Crash
        return await count(call)

    async with gateway(Behaviour(takes, marks=False), body_bytes_max=1000) as rig:
        rig.serve(function(**APP, max_instances=1))
        reader, writer = await connected(rig)
        writer.write(head(500_000) + bytes(500_000))
        assert await answer(reader) == (200, b"500000")
        writer.close()


@in_a_loop
async def test_who_dies_in_the_middle_of_a_body_is_an_answer_and_the_connection_closes() -> None:
    async def takes(call: TakenCall) -> FakeAnswer:
        assert call.stream is not None
        with call.stream:
            await asyncio.get_running_loop().sock_recv(call.stream, 100)
        raise Crash

    async with gateway(Behaviour(takes), body_bytes_max=1000) as rig:
        rig.serve(function(**APP))
        reader, writer = await connected(rig)
        writer.write(head(5_000_000) + bytes(10_000))
        status, body = await answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (502, "function_crashed")
        writer.write(bytes(4_990_000))  # read away, as HTTP has it
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert rig.site.uploads == 0


@in_a_loop
async def test_who_leaves_while_the_call_waits_takes_it_along() -> None:
    go = asyncio.Event()

    async def takes(call: TakenCall) -> FakeAnswer:
        await go.wait()
        return await count(call)

    async with gateway(Behaviour(takes), body_bytes_max=1000, prefetch_max=1) as rig:
        rig.serve(function(**APP, max_instances=1))
        first = await connected(rig)
        first[1].write(head(2) + b"ab")
        await until(lambda: rig.behaviour.instances and rig.behaviour.instances[0].calls)
        others = [await connected(rig) for _ in range(3)]
        for _, writer in others:
            writer.write(head(50_000) + bytes(40_000))
        await until(lambda: rig.site.uploads == 3)
        for _, writer in others:
            writer.close()
        await until(lambda: rig.site.uploads == 0)
        go.set()
        assert await answer(first[0]) == (200, b"2")
        first[1].close()


@in_a_loop
async def test_who_leaves_before_the_offered_call_is_sent_leaves_no_empty_body_behind() -> None:
    async with gateway(Behaviour(lambda call: asyncio.sleep(60)), body_bytes_max=1000) as rig:
        rig.serve(function(**APP))
        _, writer = await connected(rig)
        writer.write(head(50_000) + bytes(100))
        await until(lambda: rig.site.uploads == 1 and rig.fleet.busy)
        (connection,) = rig.site.connections
        reply: Any = connection._current.sink  # type: ignore[attr-defined]
        reply.left()
        assert reply.body_size > frames.INLINE_BYTES_MAX
        flag, descriptor = reply.body_descriptor()
        with socket.socket(fileno=descriptor) as body, pytest.raises(ConnectionResetError):
            body.recv(1)
        assert (flag, rig.site.uploads) == (frames.BODY_IN_STREAM, 0)
        writer.close()


@in_a_loop
async def test_an_application_answers_invokes_with_a_refusal() -> None:
    async with gateway() as rig:
        rig.serve(function(**APP))
        status, _, body = await rig.request("POST", "/api/v1/functions/hello/invoke", body=b"{}")
        assert status == 400 and b"web application" in body


@in_a_loop
async def test_an_application_learns_where_it_stands() -> None:
    async with gateway(Behaviour(lambda call: _meta(call))) as rig:
        rig.serve(function(**APP))
        for target, path, root in (
            ("/function/hello", b"/", b"/function/hello"),
            ("/function/hello/", b"/", b"/function/hello"),
            ("/function/hello/a%20b?c=d", b"/a%20b", b"/function/hello"),
            ("/function/hello.default/x", b"/x", b"/function/hello.default"),
        ):
            lines = (await rig.request("GET", target))[2].split(b"\n")
            assert (lines[1], lines[-1]) == (path, b":root: " + root)


async def _meta(call: TakenCall) -> FakeAnswer:
    return FakeAnswer(call.meta, block=TEXT)


# ---- answers ---------------------------------------------------------------------------------------------------------------------


def streams(size: int, *, end_first: bool = False) -> Any:
    """A handler that goes on through the socket that it is offered."""

    async def handler(call: TakenCall) -> FakeAnswer:
        loop, instance = asyncio.get_running_loop(), call.instance
        await instance.send(frames.HEAD, 0, 200, 0, call.seq, TEXT, PIECE)
        await instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", PIECE)
        seq, way = await instance.next_move()
        assert seq == call.seq
        await instance.send(frames.MOVED, 0, 0, 0, call.seq)
        with way:
            for _ in range(size // len(PIECE)):
                try:
                    await loop.sock_sendall(way, PIECE)
                except OSError:
                    break  # the client has left
        await instance.send(frames.END, 0, 0, 5, call.seq)
        return FakeAnswer(streamed=True)

    return handler


@in_a_loop
async def test_a_long_answer_goes_on_through_its_own_socket_whole_and_in_order() -> None:
    size = 200 * len(PIECE)
    async with gateway(Behaviour(streams(size))) as rig:
        rig.serve(function())
        for version, join in (("1.1", dechunk), ("1.0", bytes)):
            raw = await rig.raw(f"GET /function/hello HTTP/{version}\r\nhost: t\r\nconnection: close\r\n\r\n".encode())
            assert join(raw.partition(b"\r\n\r\n")[2]) == PIECE * 202
        await until(lambda: not rig.fleet.busy)


@in_a_loop
async def test_a_slow_reader_of_a_moved_answer_does_not_stop_the_instance_s_other_words() -> None:
    """Its END, and the next call's answer, come while the client has not read yet; nothing of the answer is lost by that."""
    async with gateway(Behaviour(streams(3 * len(PIECE))), write_buffer_bytes_max=65_536) as rig:
        rig.serve(function(max_instances=1))
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", rig.port))
        with slow:
            await loop.sock_sendall(slow, b"GET /function/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
            await until(lambda: rig.behaviour.instances and rig.behaviour.instances[0].calls and not rig.fleet.busy)
            received = b""
            while piece := await loop.sock_recv(slow, 65_536):
                received += piece
        assert dechunk(received.partition(b"\r\n\r\n")[2]) == PIECE * 5


@in_a_loop
async def test_who_leaves_a_moved_answer_ends_it_for_the_instance() -> None:
    async with gateway(Behaviour(streams(1 << 40))) as rig:
        rig.serve(function())
        reader, writer = await connected(rig)
        writer.write(b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
        await reader.readexactly(10 * len(PIECE))
        writer.transport.abort()
        await until(lambda: not rig.fleet.busy)


@in_a_loop
async def test_a_client_that_never_takes_the_rest_is_cut() -> None:
    async with gateway(Behaviour(streams(100 * len(PIECE))), write_buffer_bytes_max=65_536, body_timeout_seconds=0.1) as rig:
        rig.serve(function(timeout_seconds=2))
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", rig.port))
        with slow:
            await loop.sock_sendall(slow, b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            await until(lambda: rig.site.connections)
            await until(lambda: not rig.site.connections, 10)


@in_a_loop
async def test_an_instance_that_says_moved_unasked_or_twice_gains_nothing() -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        instance = call.instance
        await instance.send(frames.MOVED, 0, 0, 0, call.seq)
        await instance.send(frames.HEAD, 0, 200, 0, call.seq, TEXT, b"a")
        for _ in range(3):
            await instance.send(frames.MOVED, 0, 0, 0, call.seq)
        await instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"b")
        await instance.send(frames.MOVED, 0, 0, 0, call.seq + 1000)
        await instance.send(frames.END, 0, 0, 5, call.seq)
        return FakeAnswer(streamed=True)

    async with gateway(Behaviour(handler)) as rig:
        rig.serve(function())
        for _ in range(2):
            assert (await rig.request("GET", "/function/hello"))[2] == b"ab"


@in_a_loop
async def test_an_instance_that_ignores_the_offer_goes_on_in_frames() -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, TEXT, PIECE)
        for _ in range(300):
            await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", PIECE)
        await call.instance.send(frames.END, 0, 0, 5, call.seq)
        return FakeAnswer(streamed=True)

    async with gateway(Behaviour(handler)) as rig:
        rig.serve(function())
        assert (await rig.request("GET", "/function/hello"))[2] == PIECE * 301


@pytest.mark.parametrize(("said", "whole"), [(10, True), (9, False), (11, False)])
@in_a_loop
async def test_a_length_that_an_answer_promises_is_kept_or_the_connection_is_cut(said: int, whole: bool) -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, TEXT + b"content-length: %d\r\n" % said, b"12345")
        await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"67890")
        await call.instance.send(frames.END, 0, 0, 5, call.seq)
        return FakeAnswer(streamed=True)

    async with gateway(Behaviour(handler)) as rig:
        rig.serve(function())
        raw = await rig.raw(b"GET /function/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head and (not head or b"content-length: %d\r\n" % said in head)
        assert (body == b"1234567890") == (said >= 10) or not head
        assert (len(body) == said) == whole
        assert (await rig.request("HEAD", "/function/hello"))[1]["content-length"] == str(said)
        await until(lambda: not rig.fleet.busy)


@pytest.mark.parametrize("size", [60_000, 262_144, 262_112, 300_000, 6_291_556])
@in_a_loop
async def test_results_of_every_size_arrive_whole(size: int) -> None:
    body = (PIECE * (size // len(PIECE) + 1))[:size]

    async def handler(call: TakenCall) -> FakeAnswer:
        return FakeAnswer(body, block=TEXT)

    async with gateway(Behaviour(handler)) as rig:
        rig.serve(function())
        answers = await asyncio.gather(*(rig.request("GET", "/function/hello") for _ in range(4)))
        assert [answer[2] == body for answer in answers] == [True] * 4


@in_a_loop
async def test_an_empty_chunked_body_gives_its_place_back() -> None:
    async with gateway(Behaviour(count), uploads_max=1) as rig:
        rig.serve(function(**APP))
        for _ in range(3):
            reader, writer = await connected(rig)
            writer.write(head(None) + b"0\r\n\r\n")
            assert await answer(reader) == (200, b"0")
            writer.close()
        assert rig.site.uploads == 0
