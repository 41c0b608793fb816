"""Calls that another gateway is asked to serve: what it has not read is served here, what it has read is never sent again."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dayfly.gateway.exchange import Request, Sink
from dayfly.gateway.neighbour import FREE_MAX, Neighbour
from tests.gateway.rig import Rig, function, gateway, until

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-there: yes\r\n\r\nhi"
Conduct = Callable[[socket.socket], None]


class Away:
    """A dispatcher to whom everything is the neighbour's."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self.neighbour = Neighbour(1, str(path), str(path) + ".move")
        self._rig = rig

    def open(self, request: Request) -> Sink:
        return self.neighbour.open(request, self._rig.dispatch)


def with_neighbour(tmp_path: Path, conduct: Conduct | None, then: Callable[[Rig, Away], Any]) -> None:
    """`conduct` is what the neighbour does with each connection, in a thread of its own; None: nobody listens."""

    async def main() -> None:
        path, loop = tmp_path / "1.sock", asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(path))
            if conduct is not None:
                door.listen(FREE_MAX)

                def serve() -> None:
                    while True:
                        try:
                            client, _ = door.accept()
                        except OSError:
                            return
                        with client:
                            conduct(client)

                serving = loop.run_in_executor(None, serve)
            async with gateway() as rig:
                rig.serve(function())
                away = Away(rig, path)
                rig.site.dispatcher = away
                await then(rig, away)
            door.shutdown(socket.SHUT_RDWR) if conduct is not None else None
            if conduct is not None:
                await serving

    uvloop.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("body", [b"", b"x" * 1000, b"x" * 60_000])
def test_a_call_that_nobody_took_is_served_here(tmp_path, body):
    async def then(rig: Rig, away: Away) -> None:
        status, headers, _ = await rig.request("POST", "/function/hello", body=body)
        assert status == 200 and "x-there" not in headers
        assert not away.neighbour.is_up

    with_neighbour(tmp_path, None, then)


def test_a_call_that_was_not_read_is_served_here(tmp_path):
    def dies_at_once(client: socket.socket) -> None:
        client.recv(1, socket.MSG_PEEK)  # it has come, and lies there unread when this end closes

    async def then(rig: Rig, away: Away) -> None:
        status, headers, _ = await rig.request("POST", "/function/hello", body=b"x" * 1000)
        assert status == 200 and "x-there" not in headers
        assert len(rig.behaviour.instances[-1].calls) == 1

    with_neighbour(tmp_path, dies_at_once, then)


def test_a_call_that_was_read_is_never_sent_again(tmp_path):
    def reads_and_dies(client: socket.socket) -> None:
        while not client.recv(65536).endswith(b"end"):
            pass

    async def then(rig: Rig, away: Away) -> None:
        status, _, body = await rig.request("POST", "/function/hello", body=b"the end")
        assert (status, json.loads(body)["error"]["code"]) == (502, "gateway_lost")
        assert not rig.behaviour.instances, "nobody was started for it here"

    with_neighbour(tmp_path, reads_and_dies, then)


def test_an_answer_that_breaks_off_is_cut_for_the_caller_too(tmp_path):
    def half(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    async def then(rig: Rig, away: Away) -> None:
        raw = await rig.raw(b"GET /function/hello HTTP/1.1\r\nhost: h\r\n\r\n")
        assert raw.endswith(b"half") and b"content-length: 100" in raw

    with_neighbour(tmp_path, half, then)


def test_connections_are_used_again_one_call_after_the_other(tmp_path):
    connections: list[int] = []

    def answers(client: socket.socket) -> None:
        connections.append(0)
        while client.recv(65536):
            connections[-1] += 1
            client.sendall(ANSWER)

    async def then(rig: Rig, away: Away) -> None:
        for _ in range(5):
            status, headers, body = await rig.request("GET", "/function/hello")
            assert (status, headers["x-there"], body) == (200, "yes", b"hi")
        assert connections == [5]
        away.neighbour.tick(float("inf"))  # unused for long: closed from this side
        await until(lambda: "free=0" in repr(away.neighbour))

    with_neighbour(tmp_path, answers, then)
