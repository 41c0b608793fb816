"""WebSockets of ASGI applications through a whole gateway with fake instances: a connection is one call; and what neither end may do."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from dayfly.core.model.function import Catalog
from dayfly.core.model.limits import Limits
from dayfly.runtime import frames
from dayfly.runtime.messages import Incoming, farewell, farewell_in, message
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, TakenCall
from tests.gateway.rig import BEARER, Rig, function, gateway, until
from tests.gateway.test_websocket import UPGRADE

TOKEN = BEARER.partition(": ")[2].strip()
BLOCK = b"sec-websocket-protocol: v2\r\nsec-websocket-accept: mine\r\nx-a: 1\r\ncontent-length: 3\r\n"


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


def application(**config: Any) -> Any:
    return function(**({"handler": "web:app", "websocket": True, "concurrency": 8, "max_instances": 1} | config))


def client(rig: Rig, path: str = "/function/hello/x?a=b", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{rig.port}{path}", compression=None, **options)


class Spoken:
    """A fake application's end of its connection."""

    def __init__(self, call: TakenCall) -> None:
        assert call.stream is not None
        self.call = call
        self.way = call.stream
        self._incoming = Incoming(1 << 30)

    async def accept(self, block: bytes = b"") -> None:
        await self.call.instance.send(frames.HEAD, 0, 101, 0, self.call.seq, block)

    async def receive(self) -> tuple[int, bytes] | None:
        """The next message; None at the end."""
        while (found := self._incoming.next()) is None:
            data = await asyncio.get_running_loop().sock_recv(self.way, 65536)
            if not data:
                return None
            self._incoming.feed(data)
        return found

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.way, data)

    async def end(self, flags: int = 0) -> FakeAnswer:
        self.way.close()
        await self.call.instance.send(frames.END, flags, 0, 0, self.call.seq, b"", b'{"errorType":"E"}' if flags else b"")
        return FakeAnswer(streamed=True)


async def echo(call: TakenCall) -> FakeAnswer:
    spoken = Spoken(call)
    await spoken.accept(BLOCK)
    while (found := await spoken.receive()) is not None and found[0] != frames.CLOSE:
        if found[1] == b"fail":
            return await spoken.end(frames.ERROR)
        if found[1] == b"die":
            raise Crash(11)
        await spoken.say(message(*found))
    heard.append(farewell_in(found[1]) if found else None)
    return await spoken.end()


heard: list[tuple[int, str] | None] = []


async def ends_with(socket: ClientConnection, code: int, reason: str = "") -> None:
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.recv()
    assert (socket.close_code, socket.close_reason) == (code, reason)


def outcomes(rig: Rig) -> list[str]:
    return [name for it in rig.ledger.report() for name, count in it.outcomes.items() for _ in range(count)]


def test_a_connection_is_one_call_and_messages_pass_as_they_are() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(application())
            heard.clear()
            async with client(rig, subprotocols=[Subprotocol("v1"), Subprotocol("v2")], additional_headers={"x-b": "2"}) as socket:
                assert socket.response is not None
                headers = socket.response.headers
                assert (socket.subprotocol, headers["x-a"], "content-length" in headers) == ("v2", "1", False)
                for said in ("one", "", "zwei ü", b"\x00\xff", b"text as bytes", b"", "x" * 500_000):
                    await socket.send(said)
                    assert await socket.recv() == said
                await socket.send(["a", "b"])
                assert await socket.recv() == "ab"
                await socket.close(4000, "done")
            await until(lambda: not rig.site.connections and not rig.fleet.busy)
            (call,) = rig.behaviour.instances[0].calls
            assert (call.kind, call.meta.split(b"\n")[:3], heard) == (frames.WEBSOCKET, [b"GET", b"/x", b"a=b"], [(4000, "done")])
            assert {b"x-b: 2", b":root: /function/hello", b"sec-websocket-protocol: v1, v2"} <= set(call.meta.split(b"\n"))
            assert headers["x-call-id"] == call.call_id
            before = os.listdir("/proc/self/fd")
            async with client(rig) as socket:
                await socket.send("again")
                assert await socket.recv() == "again"
            await until(lambda: not rig.site.connections and not rig.fleet.busy)
            assert len(os.listdir("/proc/self/fd")) == len(before), "nothing of a connection is left"

    run(main())


@pytest.mark.parametrize(("block", "offered", "chosen"), [(BLOCK, ["v1"], None), (b"", ["v1"], None), (BLOCK, [], None)])
def test_a_subprotocol_that_the_client_did_not_offer_is_not_chosen(block: bytes, offered: list[str], chosen: str | None) -> None:
    async def accepts(call: TakenCall) -> FakeAnswer:
        spoken = Spoken(call)
        await spoken.accept(block)
        return await spoken.end()

    async def main() -> None:
        async with gateway(Behaviour(accepts)) as rig:
            rig.serve(application())
            async with client(rig, subprotocols=[Subprotocol(it) for it in offered]) as socket:
                assert socket.subprotocol == chosen
                await ends_with(socket, 1000)

    run(main())


def test_what_is_no_handshake_reaches_no_application() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(application(limits=Limits(concurrency=1)))
            for wrong in (b"version: 13", b"version: 8"), (b"dGhlIHNhbXBsZSBub25jZQ==", b"short"):
                answer = await rig.raw(UPGRADE.replace(*wrong).replace(b"connection: upgrade", b"connection: upgrade, close"))
                assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 426 ")), answer
            assert not rig.behaviour.instances
            with_body = UPGRADE.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\nhi").replace(b"upgrade\r\n", b"upgrade, close\r\n", 1)
            rig.behaviour.handler = http
            assert (await rig.raw(with_body)).startswith(b"HTTP/1.1 200 "), "a handshake has no body: that is a request"

    async def http(call: TakenCall) -> FakeAnswer:
        assert call.kind == frames.HTTP
        return FakeAnswer()

    run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_an_application_denies_with_any_answer(streamed: bool) -> None:
    async def denies(call: TakenCall) -> FakeAnswer:
        assert call.stream is not None
        call.stream.close()
        if not streamed:
            return FakeAnswer(b"no", status=403, block=b"x-why: because\r\n")
        await call.instance.send(frames.HEAD, 0, 403, 0, call.seq, b"x-why: because\r\n", b"n")
        await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", b"o")
        await call.instance.send(frames.END, 0, 0, 0, call.seq)
        return FakeAnswer(streamed=True)

    async def main() -> None:
        async with gateway(Behaviour(denies)) as rig:
            rig.serve(application())
            with pytest.raises(InvalidStatus) as denied:
                await client(rig)
            found = denied.value.response
            assert (found.status_code, found.body, found.headers["x-why"]) == (403, b"no", "because")

    run(main())


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (frames.MESSAGE.pack(9, 0), 1011, "function_bad_answer"),  # no kind of message
        (frames.MESSAGE.pack(frames.TEXT, 1 << 31), 1011, "function_bad_answer"),
        (message(frames.TEXT, b"\xc3\x28"), 1011, "function_bad_answer"),
        (frames.MESSAGE.pack(frames.CLOSE, 1) + b"x", 1011, "function_bad_answer"),
        (farewell(1005, ""), 1011, ""),  # nobody's to send
        (farewell(4000, "ü" * 100), 4000, "ü" * 61),  # 123 bytes
        (message(frames.TEXT, b"half")[:-1], 1000, ""),  # and then its end
    ],
)
def test_what_an_instance_may_not_say_ends_its_connection(said: bytes, code: int, reason: str) -> None:
    async def says(call: TakenCall) -> FakeAnswer:
        spoken = Spoken(call)
        await spoken.accept()
        await spoken.say(message(frames.TEXT, b"good") + said)
        return await spoken.end()

    async def main() -> None:
        async with gateway(Behaviour(says)) as rig:
            rig.serve(application())
            async with client(rig) as socket:
                assert await socket.recv() == "good"
                await ends_with(socket, code, reason)
            await until(lambda: not rig.fleet.busy and not rig.site.connections)

    run(main())


@pytest.mark.parametrize("frame", [frames.RESULT, frames.CHUNK, frames.HEAD, frames.MOVED])
def test_frames_that_have_no_place_behind_an_acceptance_never_reach_the_client(frame: int) -> None:
    async def says(call: TakenCall) -> FakeAnswer:
        spoken = Spoken(call)
        await spoken.accept()
        await call.instance.send(frame, 0, 200, 0, call.seq, b"x-evil: yes\r\n", b"HTTP/1.1 200 OK\r\n\r\n")
        if frame == frames.RESULT:
            return FakeAnswer(streamed=True)  # its way stays open
        await spoken.say(message(frames.TEXT, b"good"))
        return await spoken.end()

    async def main() -> None:
        async with gateway(Behaviour(says)) as rig:
            rig.serve(application())
            async with client(rig) as socket:
                if frame == frames.RESULT:
                    await ends_with(socket, 1011, "function_error")
                else:
                    assert await socket.recv() == "good"
                    await ends_with(socket, 1000)
            await until(lambda: not rig.fleet.busy and not rig.site.connections)

    run(main())


def test_the_end_of_an_application_is_the_end_even_where_something_keeps_its_way_open() -> None:
    async def ends(call: TakenCall) -> FakeAnswer:
        spoken = Spoken(call)
        await spoken.accept()
        await spoken.say(message(frames.TEXT, b"last words"))
        await call.instance.send(frames.END, 0, 0, 0, call.seq)
        kept.append(spoken.way)
        return FakeAnswer(streamed=True)

    kept: list[Any] = []

    async def main() -> None:
        async with gateway(Behaviour(ends)) as rig:
            rig.serve(application())
            async with client(rig) as socket:
                assert await socket.recv() == "last words"
                await ends_with(socket, 1000)

    run(main())


@pytest.mark.parametrize(("said", "reason"), [("fail", "function_error"), ("die", "function_crashed")])
def test_an_application_that_fails_or_dies_is_told_of_with_1011(said: str, reason: str) -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(application())
            async with client(rig) as socket:
                await socket.send(said)
                await ends_with(socket, 1011, reason)
            await until(lambda: not rig.fleet.busy and not rig.site.connections)
            assert outcomes(rig) == [reason]

    run(main())


def test_an_application_hears_of_a_client_that_left_before_it_was_accepted() -> None:
    async def waits(call: TakenCall) -> FakeAnswer:
        came.set()
        spoken = Spoken(call)
        ends.append(await spoken.receive())
        await spoken.accept()
        return await spoken.end()

    came, ends = asyncio.Event(), []  # type: ignore[var-annotated]

    async def main() -> None:
        async with gateway(Behaviour(waits)) as rig:
            rig.serve(application())
            _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(UPGRADE)
            await came.wait()
            writer.transport.abort()
            await until(lambda: ends == [None] and not rig.fleet.busy)
            assert outcomes(rig) == ["client_left"]

    run(main())


def test_a_connection_waits_for_an_instance_as_any_call_and_survives_one_that_dies_before_it_began() -> None:
    async def dies(call: TakenCall) -> FakeAnswer:
        rig_of.behaviour.handler = rig_of.provider.behaviour.handler = echo
        raise Crash(9)

    rig_of: Any = None

    async def main() -> None:
        nonlocal rig_of
        async with gateway(Behaviour(dies, marks=False)) as rig:
            rig_of = rig
            rig.serve(application(concurrency=1))
            async with client(rig) as socket:
                await socket.send("here")
                assert await socket.recv() == "here"
            assert len(rig.behaviour.instances) == 2

    run(main())


def test_a_token_that_is_revoked_ends_the_connection_at_the_next_message_or_ping() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo), websocket_idle_seconds=0.4) as rig:
            rig.serve(application(auth="token", concurrency=1, max_instances=2))
            with pytest.raises(InvalidStatus) as refused:
                await client(rig)
            assert refused.value.response.status_code == 401
            headers = {"authorization": TOKEN}
            async with client(rig, additional_headers=headers) as talks, client(rig, additional_headers=headers) as silent:
                await talks.send("in")
                assert await talks.recv() == "in"
                rig.catalog.replace(Catalog(revision=2, functions=rig.catalog.functions.packed(), tokens=()))
                await talks.send("out")
                await ends_with(talks, 1008, "unauthorized")
                await ends_with(silent, 1008, "unauthorized")
            assert not any(b"authorization" in call.meta for it in rig.behaviour.instances for call in it.calls)

    run(main())


def test_limits_of_the_function_hold_for_its_connections() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(application(limits=Limits(concurrency=1, body_bytes_max=10)))
            async with client(rig) as socket:
                await socket.send("x" * 10)
                assert await socket.recv() == "x" * 10
                with pytest.raises(InvalidStatus) as refused:
                    await client(rig)
                assert (refused.value.response.status_code, "retry-after" in refused.value.response.headers) == (429, True)
                await socket.send("x" * 11)
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1009
            await until(lambda: not rig.fleet.busy)
            async with client(rig) as again:
                await again.send("room")
                assert await again.recv() == "room"

    run(main())


def test_a_connection_is_closed_before_its_calls_deadline_and_by_a_stopping_gateway() -> None:
    async def main() -> None:
        async with gateway(Behaviour(echo)) as rig:
            rig.serve(application(timeout_seconds=1.0))
            heard.clear()
            async with client(rig) as socket:
                await ends_with(socket, 1001, "function_timeout")
            async with client(rig) as socket:
                await until(lambda: len(rig.site.connections) == 1 and rig.fleet.busy)
                rig.site.stop()
                await ends_with(socket, 1001, "the platform is stopping")
            await until(lambda: not rig.fleet.busy)
            assert [code for code, _ in filter(None, heard)] == [1001, 1001]

    run(main())


def test_nobody_is_read_while_the_other_does_not_read() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slow(call: TakenCall) -> FakeAnswer:
            spoken = Spoken(call)
            await spoken.accept()
            await go.wait()
            count = 0
            while (found := await spoken.receive()) is not None and found[1] != b"last":
                count += 1
            for _ in range(count):
                await spoken.say(message(frames.BINARY, bytes(60_000)))
            return await spoken.end()

        async with gateway(Behaviour(slow), write_buffer_bytes_max=65_536) as rig:
            rig.serve(application())
            async with client(rig) as socket:
                sending = asyncio.get_running_loop().create_task(_send(socket, 400))
                await until(lambda: any(it._way.is_full for it in sessions(rig)))
                (session,) = sessions(rig)
                assert len(session._way._rest) < 1_000_000, "one read and what it held"
                go.set()
                await sending
                socket.transport.pause_reading()
                await until(lambda: session.write_paused)
                assert session._transport.get_write_buffer_size() < 400_000
                socket.transport.resume_reading()
                for _ in range(400):
                    assert len(await socket.recv()) == 60_000
                await ends_with(socket, 1000)

    async def _send(socket: ClientConnection, count: int) -> None:
        for _ in range(count):
            await socket.send(bytes(60_000))
        await socket.send("last")

    run(main())


def sessions(rig: Rig) -> list[Any]:
    return [it for it in rig.site.connections if hasattr(it, "_way")]


def test_a_flood_of_small_messages_leaves_the_loop_to_others() -> None:
    """Thirteen thousand messages fit one read, and take the loop much longer than its turn."""

    async def floods(call: TakenCall) -> FakeAnswer:
        spoken = Spoken(call)
        await spoken.accept()
        await spoken.say(message(frames.TEXT, b"") * 20_000)
        return await spoken.end()

    async def main() -> None:
        async with gateway(Behaviour(floods)) as rig:
            rig.serve(application())
            async with client(rig, max_queue=None) as socket:
                await until(lambda: any(it._way._resting for it in sessions(rig)))
                count = 0
                with pytest.raises(ConnectionClosed):
                    while True:
                        assert await socket.recv() == ""
                        count += 1
                assert (count, socket.close_code) == (20_000, 1000), "and none is lost"

    run(main())
