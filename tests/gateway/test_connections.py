"""What happens to connections, not requests: one peer's many, clients that close half, bodies that stall, answers without content."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

from dayfly.core.model.settings import Settings
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.site import TURNED_AWAY_MAX, network_of
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, until
from tests.http.answers import split
from tests.http.case import HOST, PROBE, chunked, get, post

GET = get()


def run(coroutine: Any) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


class Gate:
    """A handler that answers when told to, and counts who came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.calls: list[TakenCall] = []

    async def __call__(self, call: TakenCall) -> FakeAnswer:
        self.calls.append(call)
        await self.open.wait()
        return FakeAnswer(call.body or b"null")


async def connect(rig: Rig, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", rig.port, local_addr=(source, 0))


async def rest(reader: asyncio.StreamReader) -> list[int]:
    """The statuses of everything that still comes."""
    return [answer.status for answer in split(await asyncio.wait_for(reader.read(), 10))]


# ---- one peer's many connections ------------------------------------------------------------------------------------------------------


def test_one_address_has_its_share_of_connections_and_no_more() -> None:
    async def main() -> None:
        async with gateway(connections_per_peer_max=2) as rig:
            rig.serve(function())
            held = [await connect(rig, "127.0.0.2") for _ in range(2)]
            await until(lambda: len(rig.site.connections) == 2)
            reader, _ = await connect(rig, "127.0.0.2")
            assert await rest(reader) == [429]
            for source in ("127.0.0.3", "127.0.0.1", "127.0.0.1", "127.0.0.1"):  # others, and whoever is on this machine itself
                reader, writer = await connect(rig, source)
                writer.write(GET)
                assert (await reader.readuntil(b"null")).startswith(b"HTTP/1.1 200")
            held[0][1].close()
            await until(lambda: rig.site.peers["127.0.0.2"] == 1)
            reader, writer = await connect(rig, "127.0.0.2")
            writer.write(PROBE)
            assert await rest(reader) == [200]

    run(main())


def test_who_is_refused_a_connection_reads_why_although_a_request_was_under_way() -> None:
    async def main() -> None:
        async with gateway(connections_per_peer_max=1) as rig:
            _, first = await connect(rig, "127.0.0.2")
            await until(lambda: rig.site.connections)
            many = [await connect(rig, "127.0.0.2") for _ in range(TURNED_AWAY_MAX)]
            for _, writer in many:
                writer.write(post(b"content-length: 200000\r\n", bytes(200_000)))
            for reader, writer in many:
                assert await rest(reader) == [429]
                writer.close()
            await until(lambda: not rig.site.turned_away)
            first.close()
            await until(lambda: not rig.site.peers)

    run(main())


def test_a_trusted_proxy_has_as_many_connections_as_it_likes() -> None:
    async def main() -> None:
        async with gateway(connections_per_peer_max=1, trusted_proxies="127.0.0.2") as rig:
            rig.serve(function())
            for _ in range(3):
                reader, writer = await connect(rig, "127.0.0.2")
                writer.write(GET)
                assert (await reader.readuntil(b"null")).startswith(b"HTTP/1.1 200")
            assert not rig.site.peers

    run(main())


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(peer: str, network: str) -> None:
    assert network_of(peer) == network


# ---- half-closed --------------------------------------------------------------------------------------------------------------------


def test_a_client_that_has_closed_its_sending_side_is_answered_when_its_call_runs_however_long() -> None:
    async def main() -> None:
        gate = Gate()
        async with gateway(Behaviour(gate), half_closed_seconds=0.02) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(GET)
            await until(lambda: gate.calls)
            writer.write_eof()
            connection = next(iter(rig.site.connections))
            await until(lambda: connection._ended)
            armed = connection.deadline
            await until(lambda: connection.deadline > armed)  # its time was up once, and it was kept
            gate.open.set()
            assert await rest(reader) == [200]

    run(main())


def test_a_client_that_has_closed_its_sending_side_leaves_the_queue_after_a_moment() -> None:
    async def main() -> None:
        gate = Gate()
        async with gateway(Behaviour(gate), half_closed_seconds=0.02) as rig:
            rig.serve(function(max_instances=1))
            first, prober = await connect(rig)
            prober.write(PROBE)
            await until(lambda: gate.calls)
            waiting, leaver = await connect(rig)
            leaver.write(GET)
            await until(lambda: rig.fleet.busy == 2)
            leaver.write_eof()
            assert await rest(waiting) == []
            await until(lambda: rig.fleet.busy == 1)
            gate.open.set()
            assert await rest(first) == [200]
            assert len(gate.calls) == 1

    run(main())


def test_a_stream_to_a_client_that_has_closed_its_sending_side_goes_on_while_it_moves() -> None:
    """The clock is turned by hand: a stream is asked whether it moved each time the client's time is up."""
    steps: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(call: TakenCall) -> FakeAnswer:
        await call.instance.send(frames.HEAD, 0, 200, 0, call.seq)
        while piece := await steps.get():
            await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", piece)
        return FakeAnswer(streamed=True)

    async def main() -> None:
        async with gateway(Behaviour(handler), half_closed_seconds=600) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(GET)
            writer.write_eof()
            await reader.readuntil(b"\r\n\r\n")
            connection = next(iter(rig.site.connections))
            await until(lambda: connection._ended)
            for _ in range(3):
                steps.put_nowait(b"x")
                assert await reader.readuntil(b"x\r\n") == b"1\r\nx\r\n"
                connection.timed_out()
            connection.timed_out()
            assert await asyncio.wait_for(reader.read(), 10) == b""  # cut: a stream that is whole has a last chunk
            steps.put_nowait(b"")

    run(main())


def test_half_closed_seconds_of_zero_take_a_client_at_its_word() -> None:
    async def main() -> None:
        gate = Gate()
        async with gateway(Behaviour(gate), half_closed_seconds=0) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(GET)
            await until(lambda: gate.calls)
            writer.write_eof()
            assert await rest(reader) == []
            gate.open.set()
            await until(lambda: not rig.fleet.busy)

    run(main())


def test_bytes_behind_the_last_request_do_not_cost_the_client_its_answer() -> None:
    """Found by the fuzzer: a socket that is closed with unread bytes resets the connection, and the answer on its way is lost."""

    async def main() -> None:
        gate = Gate()
        async with gateway(Behaviour(gate)) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(PROBE)
            await until(lambda: gate.calls)
            connection = next(iter(rig.site.connections))
            writer.write(GET * 100_000)
            await until(lambda: not connection._reading)  # what comes now stays in the kernel
            gate.open.set()
            assert await rest(reader) == [200]
            writer.transport.abort()

    run(main())


# ---- time ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [post(b"content-length: 5\r\n", b"he"), chunked(b"5\r\nhe"), b"GET /function/hello HTTP/1.1\r\nho"])
def test_half_a_request_behind_a_long_call_times_out_once_that_is_answered(half: bytes) -> None:
    """Its deadline had passed while it was not its turn, and nothing set another: a stalled body held its connection for good."""

    async def main() -> None:
        gate = Gate()
        limits = {"header_timeout_seconds": 0.1, "body_timeout_seconds": 0.1, "idle_timeout_seconds": 600.0}
        async with gateway(Behaviour(gate), **limits) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(GET + half)
            await until(lambda: gate.calls)
            connection = next(iter(rig.site.connections))
            connection.timed_out()  # as the clock would
            gate.open.set()
            assert await rest(reader) == [200, 408]

    run(main())


# ---- answers without content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 205, 304])
def test_a_stream_with_a_status_that_has_no_content_sends_none(status: int) -> None:
    """Chunks behind such a head were the client's next answer: a function could speak for another one on the same connection."""
    forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"

    async def stream(call: TakenCall) -> FakeAnswer:
        await call.instance.send(frames.HEAD, 0, status, 0, call.seq)
        await call.instance.send(frames.CHUNK, 0, 0, 0, call.seq, b"", forged)
        await call.instance.send(frames.END, 0, 0, 0, call.seq)
        return FakeAnswer(streamed=True)

    async def whole(call: TakenCall) -> FakeAnswer:
        return FakeAnswer(forged, status=status)

    async def main(handler: Any) -> None:
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function())
            reader, writer = await connect(rig)
            writer.write(GET + b"GET /healthz HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n")
            assert await rest(reader) == [status, 200]

    run(main(stream))
    run(main(whole))


# ---- a defect of ours ---------------------------------------------------------------------------------------------------------------


def test_a_defect_in_the_gateway_is_500_and_no_fault_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """httptools reports whatever its callbacks raise as an error of the parser."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    async def main() -> None:
        async with gateway() as rig:
            rig.serve(function())
            with monkeypatch.context() as patch:
                patch.setattr(rig.catalog, "function", broken)
                reader, writer = await connect(rig)
                writer.write(GET)
                assert await rest(reader) == [500]
            assert (await rig.request("GET", "/function/hello"))[0] == 200

    run(main())


# ---- control ------------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def control(rig: Rig, path: str, answer: bytes) -> AsyncIterator[list[bytes]]:
    """A control that answers everything with these bytes; yields what it was sent."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"0\r\n\r\n") if b"chunked" in head else b""
        seen.append(head + body)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    rig.dispatch._forwarder = Forwarder(Settings(), path)
    try:
        yield seen
    finally:
        server.close()


def test_head_of_a_control_address_has_its_length_and_keeps_the_connection(tmp_path: Any) -> None:
    async def main() -> None:
        async with gateway() as rig, control(rig, str(tmp_path / "c"), b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"):
            reader, writer = await connect(rig)
            writer.write(
                b"HEAD /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET /healthz HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n"
            )
            answers = split(await asyncio.wait_for(reader.read(), 10), heads=(0,))
            assert [answer.status for answer in answers] == [200, 200]
            assert answers[0].headers["content-length"] == "1000"

    run(main())


def test_control_is_sent_what_the_client_meant_and_nothing_of_this_hop(tmp_path: Any) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nkeep-alive: x\r\nconnection: x-hop\r\n\r\nok"
        async with gateway() as rig, control(rig, str(tmp_path / "c"), answer) as seen:
            reader, writer = await connect(rig)
            head = (
                b"POST http://t/api/v1/x?y HTTP/1.1\r\nconnection: close, x-hop\r\nx-hop: 1\r\nproxy-authorization: a\r\nte: trailers\r\n"
            )
            writer.write(head + HOST + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n")
            assert await rest(reader) == [200]
            expected = b"POST /api/v1/x?y HTTP/1.1\r\nconnection: close\r\nhost: t\r\nx-forwarded-for: 127.0.0.1\r\n"
            assert seen == [expected + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]

    run(main())
