"""What a call and a connection leave behind ends with them: nothing of the gateway's waits for the garbage collector.

It would run in the middle of other calls, and longer the more of them there were.
"""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from httptools import HttpRequestParser

from dayfly.core.model.call import Call
from dayfly.gateway.exchange import Request
from dayfly.gateway.reply import Reply
from dayfly.gateway.server import Connection
from dayfly.testing.provider import Behaviour
from tests.gateway.rig import BEARER, Rig, function, gateway, until
from tests.gateway.test_calls import run


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """What it finds is kept, and only we ask."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def ours() -> list[str]:
    """Of what only the collector would have found: what is made for each connection and call."""
    gc.garbage.clear()
    gc.collect()
    return [type(it).__name__ for it in gc.garbage if isinstance(it, (Connection, Request, Reply, Call, HttpRequestParser))]


async def settled(rig: Rig) -> None:
    """No call is in work, and no client is here."""
    await until(lambda: not rig.fleet.busy and not rig.site.connections)


@pytest.mark.parametrize("target", ["/function/hello", "/api/v1/functions/hello/invoke"])
def test_answered_calls_leave_nothing(target: str) -> None:
    async def main() -> None:
        async with gateway(Behaviour()) as rig:
            rig.serve(function())
            await rig.request("POST", target, BEARER, b"{}")  # makes what stays
            await settled(rig)
            ours()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            for _ in range(20):
                writer.write(f"POST {target} HTTP/1.1\r\nhost: test\r\n{BEARER}content-length: 2\r\n\r\n{{}}".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in head
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            assert ours() == []
            writer.close()

    run(main())


def test_connections_that_end_leave_nothing() -> None:
    """In order, in the middle of a head, and while their call runs."""

    async def main() -> None:
        async with gateway(Behaviour()) as rig:
            rig.serve(function())
            await rig.request("POST", "/function/hello")
            await settled(rig)
            ours()
            for raw in (b"POST /function/hello HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}", b"GET / HT"):
                for _ in range(5):
                    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                    writer.write(raw)
                    await until(lambda: rig.site.connections)
                    writer.close()
            for _ in range(5):
                assert (await rig.request("POST", "/function/hello"))[0] == 200
            await settled(rig)
            assert ours() == []

    run(main())
