"""A head that comes again is not parsed again, and nobody can tell: not the client, not the function, not whoever would smuggle."""

import asyncio

import pytest
import uvloop

from dayfly.core.model.function import Catalog
from dayfly.gateway.again import HEAD_BYTES_MAX, MISSES_MAX
from dayfly.testing.provider import TakenCall
from tests.gateway.rig import BEARER, Rig, function, gateway, packed
from tests.http.answers import Answer, Broken, split
from tests.http.case import chunked, get, post
from tests.http.corpus import CASES
from tests.http.test_conformance import calls_of

KEPT = [name for name, case in CASES.items() if case.kept and case.whole]
SAID = ("content-type", "connection", "allow", "content-length")


def sized(body: bytes) -> bytes:
    """A POST whose head is the same for every body of this length."""
    return post(b"content-length: %d\r\n" % len(body), body)


AGAIN = sized(b"body")


class Client:
    """One connection, on which each piece of bytes is one read of the gateway's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, rig: Rig) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", rig.port))

    async def ask(self, raw: bytes, answers: int = 1, heads: tuple[int, ...] = ()) -> list[Answer]:
        """Send it, and wait for so many answers."""
        self._writer.write(raw)
        received = b""
        while True:
            more = await asyncio.wait_for(self._reader.read(1 << 20), 10)
            assert more, received
            received += more
            try:
                found = split(received, heads)
            except Broken:
                continue
            if len(found) >= answers:
                return found

    def send(self, raw: bytes) -> None:
        self._writer.write(raw)

    def close(self) -> None:
        self._writer.close()


def deaf(rig: Rig) -> None:
    """From now on nothing can be parsed on the connections that are here."""
    for connection in rig.site.connections:
        connection._parser = None


def remembered(rig: Rig) -> bool:
    """Whether the one connection that is here knows its last head."""
    (connection,) = rig.site.connections
    return connection._last_head.size > 0


def seen(calls: list[TakenCall]) -> list[tuple[bytes, bytes]]:
    return [(call.meta, call.body) for call in calls]


def run(scenario):
    async def main():
        async with gateway(half_closed_seconds=20) as rig:
            rig.serve(function(), function("private", auth="token"))
            client = await Client.to(rig)
            try:
                await scenario(rig, client)
            finally:
                client.close()

    return uvloop.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("name", KEPT)
def test_what_the_corpus_says_holds_for_a_request_that_comes_twice(name):
    case = CASES[name]

    async def scenario(rig, client):
        rounds = [await client.ask(case.raw, len(case.answers), case.heads) for _ in range(3)]
        for again in rounds:
            assert tuple(answer.status for answer in again) == case.answers
            for before, now in zip(rounds[0], again, strict=True):
                assert [now.headers.get(line) for line in SAID] == [before.headers.get(line) for line in SAID]
        calls = seen(calls_of(rig))
        assert calls == 3 * calls[: len(calls) // 3]

    run(scenario)


def test_the_same_head_with_another_body_is_served_without_the_parser():
    async def scenario(rig, client):
        await client.ask(AGAIN)
        deaf(rig)
        for body in (b"ydob", b"\r\n\r\n", b"GET "):
            assert (await client.ask(sized(body)))[0].status == 200
        assert [call.body for call in calls_of(rig)] == [b"body", b"ydob", b"\r\n\r\n", b"GET "]

    run(scenario)


def test_a_request_hidden_in_a_repeated_body_stays_a_body():
    async def scenario(rig, client):
        inner = get(b"/function/private")
        await client.ask(sized(b"x" * len(inner)))
        assert [answer.status for answer in await client.ask(sized(inner))] == [200]
        assert calls_of(rig)[-1].body == inner and len(calls_of(rig)) == 2

    run(scenario)


@pytest.mark.parametrize("cut", [1, len(AGAIN) - 4, len(AGAIN) - 1])
def test_a_head_that_comes_again_in_two_reads_is_parsed(cut):
    async def scenario(rig, client):
        await client.ask(AGAIN)
        client.send(AGAIN[:cut])
        connection = next(iter(rig.site.connections))
        async with asyncio.timeout(10):
            while not connection.receiving:
                await asyncio.sleep(0)
        assert (await client.ask(AGAIN[cut:]))[0].status == 200
        assert (await client.ask(AGAIN))[0].status == 200
        assert [call.body for call in calls_of(rig)] == 3 * [b"body"]

    run(scenario)


def test_more_than_the_same_request_in_one_read_is_parsed():
    async def scenario(rig, client):
        await client.ask(AGAIN)
        assert len(await client.ask(AGAIN + get(b"/function/private"), 2)) == 2
        assert [answer.status for answer in await client.ask(AGAIN + AGAIN, 2)] == [200, 200]
        assert (await client.ask(b"\r\n" + AGAIN))[0].status == 200
        assert len(calls_of(rig)) == 5

    run(scenario)


NOT_KEPT_IN_MIND = {
    "chunked": chunked(b"4\r\nbody\r\n0\r\n\r\n"),
    "waits for 100": post(b"expect: 100-continue\r\ncontent-length: 4\r\n", b"body"),
    "an upgrade": get(headers=b"connection: upgrade\r\nupgrade: nothing\r\n"),
    "long": get(headers=b"x-long: " + b"x" * HEAD_BYTES_MAX + b"\r\n"),
    "refused": get(b"/function/hello#fragment"),
    "of HTTP/1.0": get(version=b"HTTP/1.0", headers=b"connection: keep-alive\r\n"),
}


@pytest.mark.parametrize("kind", NOT_KEPT_IN_MIND)
def test_what_leaves_the_parser_in_another_state_is_not_remembered(kind):
    async def scenario(rig, client):
        await client.ask(AGAIN)
        assert remembered(rig)
        await client.ask(NOT_KEPT_IN_MIND[kind])
        assert not remembered(rig)

    run(scenario)


def test_heads_that_always_differ_are_not_kept_any_more():
    async def scenario(rig, client):
        for number in range(MISSES_MAX):
            await client.ask(get(b"/function/hello?%d" % number))
            assert remembered(rig)
            if number == MISSES_MAX // 2:  # one that came again: the count begins anew
                await client.ask(get(b"/function/hello?%d" % number))
        for number in range(MISSES_MAX):
            await client.ask(get(b"/function/hello?more%d" % number))
        assert not remembered(rig)
        assert len(calls_of(rig)) == 2 * MISSES_MAX + 1

    run(scenario)


def test_a_token_that_was_revoked_meanwhile_opens_nothing():
    async def scenario(rig, client):
        asked = get(b"/function/private", headers=BEARER.encode())
        assert [(await client.ask(asked))[0].status for _ in range(2)] == [200, 200]
        rig.catalog.replace(Catalog(revision=2, functions=packed(function(), function("private", auth="token")), tokens=()))
        assert (await client.ask(asked))[0].status == 401

    run(scenario)


def test_a_defect_behind_a_repeated_head_is_answered_and_is_the_last():
    async def scenario(rig, client):
        await client.ask(AGAIN)
        rig.site.dispatcher = None
        answer = (await client.ask(AGAIN))[0]
        assert answer.status == 500 and answer.headers["connection"] == "close"

    run(scenario)
