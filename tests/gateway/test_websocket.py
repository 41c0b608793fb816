"""WebSockets through a whole gateway with fake instances: each message is a call, in order, admitted anew; and what clients may not do."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dayfly.core.model.function import Catalog
from dayfly.core.model.limits import Limits
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import BEARER, Rig, function, gateway, until

UPGRADE = b"GET /function/hello HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"  # fmt: skip  # noqa: E501
TOKEN = BEARER.partition(": ")[2].strip()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


def said(call: TakenCall) -> list[str]:
    """The words of a call's socket line."""
    return call.meta.rpartition(frames.SOCKET_LINE)[2].decode().split(" ")


async def echo(call: TakenCall) -> FakeAnswer:
    """CONNECT and DISCONNECT say nothing, as a handler that returns None."""
    return FakeAnswer(call.body if said(call)[0] == "MESSAGE" else b"", block=b"")


def client(rig: Rig, path: str = "/function/hello?a=b", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{rig.port}{path}", compression=None, **options)


def taken(rig: Rig) -> list[TakenCall]:
    return [call for instance in rig.behaviour.instances for call in instance.calls]


def test_a_connection_is_three_kinds_of_calls() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                for message in ("one", "", "zwei ü", b"\x00\xff", b"text as bytes"):
                    await socket.send(message)
                assert [await socket.recv() for _ in range(3)] == ["one", "zwei ü", b"\x00\xff"], "nothing is said for an empty answer"
            await until(lambda: len(taken(rig)) == 7)
            events = [said(call) for call in taken(rig)]
            assert [it[0] for it in events] == ["CONNECT", *["MESSAGE"] * 5, "DISCONNECT"]
            assert [it[1] for it in events] == ["-", "text", "text", "text", "binary", "binary", "-"]
            assert len({it[2] for it in events}) == 1, "one connection id"
            assert events[-1][5] == "1000"
            assert all(call.kind == frames.SOCKET for call in taken(rig))
            assert taken(rig)[0].meta.split(b"\n")[:4] == [b"GET", b"/", b"a=b", b"127.0.0.1"]
            await until(lambda: not rig.site.connections)

    run(main())


def test_messages_are_handled_in_order_and_a_flood_waits_in_the_clients_socket() -> None:
    async def main() -> None:
        running = most = 0

        async def slow(call: TakenCall) -> FakeAnswer:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return await echo(call)

        async with gateway(Behaviour(slow)) as rig:
            rig.serve(function(websocket=True, max_instances=4))
            async with client(rig) as socket:
                await asyncio.gather(_send(socket, 300), _expect(socket, 300))
            assert most == 1

    async def _send(socket: ClientConnection, count: int) -> None:
        for number in range(count):
            await socket.send(str(number))

    async def _expect(socket: ClientConnection, count: int) -> None:
        assert [await socket.recv() for _ in range(count)] == [str(number) for number in range(count)]

    run(main())


def _socket(rig: Rig) -> Any:
    return next(iter(rig.dispatch.sockets.values()), None)


def test_the_function_decides_who_may_connect_and_by_which_subprotocol() -> None:
    async def picky(call: TakenCall) -> FakeAnswer:
        if b"a=no" in call.meta:
            return FakeAnswer(b'"you may not"', status=403)
        return FakeAnswer(b"", block=b"Sec-WebSocket-Protocol: v2\r\n")

    async def main() -> None:
        async with gateway(Behaviour(picky)) as rig:
            rig.serve(function(websocket=True), function("plain"))
            with pytest.raises(InvalidStatus) as refused:
                await client(rig, "/function/hello?a=no")
            assert (refused.value.response.status_code, refused.value.response.body) == (403, b'"you may not"')
            with pytest.raises(InvalidStatus) as ignored:
                await client(rig, "/function/plain")
            assert ignored.value.response.status_code == 200, "not a WebSocket's function: the upgrade is ignored"
            async with client(rig, subprotocols=["v1", "v2"]) as socket:
                assert socket.subprotocol == "v2"
            async with client(rig, subprotocols=["v1"]) as socket:
                assert socket.subprotocol is None, "what the client did not offer is not chosen"

    run(main())


def test_a_token_is_asked_for_and_asked_again_for_each_message() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True, auth="token"))
            with pytest.raises(InvalidStatus) as refused:
                await client(rig)
            assert refused.value.response.status_code == 401
            async with client(rig, additional_headers={"authorization": TOKEN}) as socket:
                await socket.send("in")
                assert await socket.recv() == "in"
                rig.catalog.replace(Catalog(revision=2, functions=rig.catalog.functions.packed(), tokens=()))
                await socket.send("out")
                assert json.loads(await socket.recv())["error"]["code"] == "unauthorized"
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1008
            assert [said(call)[0] for call in taken(rig)] == ["CONNECT", "MESSAGE"], "not even the end is told without a right"
            assert not any(b"authorization" in call.meta for call in taken(rig)), "the function does not see the token"

    run(main())


def test_each_piece_of_a_stream_is_a_message_and_an_error_does_not_end_the_connection() -> None:
    async def streaming(call: TakenCall) -> FakeAnswer:
        if call.body == b"die":
            raise Crash(11)
        if call.body != b"count":
            return await echo(call)
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, b"content-type: text/plain\r\n", b"1")
        await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"2")
        await call.instance.send(frames.END, 0, 0, 0, call.seq)
        return FakeAnswer(streamed=True)

    async def main() -> None:
        async with gateway(Behaviour(streaming)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                await socket.send("count")
                assert [await socket.recv(), await socket.recv()] == ["1", "2"]
                await socket.send("die")
                assert json.loads(await socket.recv())["error"]["code"] == "function_crashed"
                await socket.send("alive")
                assert await socket.recv() == "alive"

    run(main())


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x82\0\0\0\0\xc3\x28", 1007),  # text that is no UTF-8
        (b"\x81\xff\0\0\0\0\0\x20\0\0\0\0\0\0", 1009),  # two megabytes are announced
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x80\x80\0\0\0\0", 1002),  # the end of a message that never began
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in pieces
    ],
)
def test_what_is_no_websocket_ends_with_the_right_code(sent: bytes, code: int) -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(UPGRADE)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.write(sent)
            last = await asyncio.wait_for(reader.read(), 10)
            assert last[:1] == b"\x88" and int.from_bytes(last[2:4], "big") == code
            writer.close()
            await until(lambda: [said(call)[0] for call in taken(rig)] == ["CONNECT", "DISCONNECT"])

    run(main())


def test_pieces_of_a_message_are_one_call() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                await socket.send(["a", "b", "c"])
                assert await socket.recv() == "abc"

    run(main())


def test_a_client_that_does_not_wait_for_the_answer_is_cut() -> None:
    """What it sends behind its request might be anybody's next request."""

    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            answer = await rig.raw(UPGRADE + b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r\n")
            assert b" 101 " not in answer
            await until(lambda: not rig.site.connections)

    run(main())


def test_a_bad_handshake_is_answered() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            for wrong in (UPGRADE.replace(b"version: 13", b"version: 8"), UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short")):
                answer = await rig.raw(wrong.replace(b"connection: upgrade", b"connection: upgrade, close"))
                assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 426 ")), answer

    run(main())


def test_a_client_that_leaves_is_told_of_with_1006_and_its_call_runs_on() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def waits(call: TakenCall) -> FakeAnswer:
            if call.body:
                await go.wait()
            return await echo(call)

        async with gateway(Behaviour(waits)) as rig:
            rig.serve(function(websocket=True, max_instances=2))
            socket = await client(rig)
            await socket.send("wait")
            await until(lambda: any(call.body for call in taken(rig)))
            socket.transport.abort()
            await until(lambda: not rig.site.connections)
            go.set()
            await until(lambda: said(taken(rig)[-1])[0] == "DISCONNECT" and not rig.fleet.busy)
            assert said(taken(rig)[-1])[5] == "1006"
            assert not rig.dispatch.sockets

    run(main())


def test_whoever_is_silent_is_pinged_and_goes_when_no_pong_comes() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo), websocket_idle_seconds=0.2) as rig:
            rig.serve(function(websocket=True))
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            async with client(rig) as polite:
                writer.write(UPGRADE)
                await reader.readuntil(b"\r\n\r\n")
                last = await asyncio.wait_for(reader.read(), 10)
                assert last[:2] == b"\x89\x00" and b"\x88\x06\x03\xe9idle" in last, "a ping, then 1001"
                writer.close()
                await polite.send("still here")
                assert await polite.recv() == "still here"

    run(main())


def test_posting_to_a_connection() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                await until(lambda: rig.dispatch.sockets)
                path = f"/api/v1/connections/{_socket(rig).id}"
                assert (await rig.request("POST", path, BEARER, b"news"))[0] == 200
                assert await socket.recv() == "news"
                assert (await rig.request("POST", path, BEARER + "content-type: application/octet-stream\r\n", b"raw"))[0] == 200
                assert await socket.recv() == b"raw"
                status, _, body = await rig.request("GET", path, BEARER)
                assert (status, json.loads(body)["source_ip"]) == (200, "127.0.0.1")
                assert (await rig.request("POST", path, "", b"x"))[0] == 401
                assert (await rig.request("POST", path, BEARER, b"x" * (1024 * 1024 + 1)))[0] == 413
                assert (await rig.request("PUT", path, BEARER, b"x"))[0] == 405
                assert (await rig.request("GET", "/api/v1/connections/nobody", BEARER))[0] == 404
                assert (await rig.request("DELETE", path, BEARER))[0] == 204
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1000

    run(main())


def test_limits_of_the_function_hold_for_its_messages() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True, limits=Limits(calls_per_day=2)))
            async with client(rig) as socket:
                await socket.send("in")
                assert await socket.recv() == "in"
                await socket.send("over")
                assert json.loads(await socket.recv())["error"]["code"] == "quota_exceeded"

    run(main())


def test_a_stopping_gateway_says_goodbye() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                await until(lambda: rig.dispatch.sockets)
                rig.site.stop()
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1001
            await until(lambda: not rig.site.connections)

    run(main())


def test_a_client_that_does_not_read_holds_nobody_up_and_fills_no_memory() -> None:
    """Its pings are not read any more, posts to it are refused, and once it has left the instance that streamed to it serves others."""

    async def main() -> None:
        async def endless(call: TakenCall) -> FakeAnswer:
            if call.body != b"stream":
                return await echo(call)
            await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, b"", b"first")
            for _ in range(400):
                await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"x" * 60_000)
            await call.instance.send(frames.END, 0, 0, 0, call.seq)
            return FakeAnswer(streamed=True)

        async with gateway(Behaviour(endless), write_buffer_bytes_max=65_536) as rig:
            rig.serve(function(websocket=True, max_instances=1))
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"\x81\x86\0\0\0\0stream")
            await until(lambda: _socket(rig) is not None and _socket(rig).write_paused)
            buffered = _socket(rig)._transport.get_write_buffer_size()
            for _ in range(2000):
                writer.write(b"\x89\xfd" + b"\0" * 4 + b"p" * 125)
            path = f"/api/v1/connections/{_socket(rig).id}"
            status, headers, _ = await rig.request("POST", path, BEARER, b"news")
            assert (status, "retry-after" in headers) == (503, True)
            assert _socket(rig)._transport.get_write_buffer_size() == buffered, "not one pong, not one post more"
            writer.transport.abort()
            await until(lambda: not rig.dispatch.sockets)
            await until(lambda: not rig.fleet.busy, 10)
            async with client(rig) as other:
                await other.send("served")
                assert await other.recv() == "served"

    run(main())


def test_a_stream_that_breaks_says_so() -> None:
    async def breaks(call: TakenCall) -> FakeAnswer:
        if not call.body:
            return await echo(call)
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, b"", b"half")
        await call.instance.send(frames.END, frames.ERROR, 0, 0, call.seq, b"", b"{}")
        return FakeAnswer(streamed=True)

    async def main() -> None:
        async with gateway(Behaviour(breaks)) as rig:
            rig.serve(function(websocket=True))
            async with client(rig) as socket:
                await socket.send("go")
                assert await socket.recv() == "half"
                assert json.loads(await socket.recv())["error"]["code"] == "function_error"

    run(main())
