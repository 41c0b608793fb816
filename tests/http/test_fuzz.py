"""The protocol against generated input: pieces of any size make the same requests; broken bytes are refused, by us at least as early as by
another parser (h11), and never make an answer too many, a crash or a silence. What was found here stands in the corpus.

DAYFLY_FUZZ_EXAMPLES=100000 searches for as long as you like; the figure below is for every day.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.gateway.rig import Rig, function, gateway
from tests.http.answers import split
from tests.http.bare import converse
from tests.http.case import PROBE, chunked, get, post
from tests.http.corpus import CASES

EXAMPLES = int(os.environ.get("DAYFLY_FUZZ_EXAMPLES", "300"))
bounded = hypothesis_settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

# ---- requests, and what can be done to them ------------------------------------------------------------------------------------------

GOOD = [case.raw for case in CASES.values() if case.kept and case.whole and case.answers == (200,) and len(case.raw) < 5000]
ANY = [case.raw for case in CASES.values() if case.raw and len(case.raw) < 5000]
NASTY = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"f", b"\r\n\r\n", b"0\r\n\r\n", b"\x0b",
         b"\x7f", b"\xff", b"#", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n",
         b"connection: upgrade\r\nupgrade: h2c\r\n",
         b"expect: 100-continue\r\n", b"host: u\r\n", b"GET / HTTP/1.1\r\n", b" HTTP/1.0", b"HEAD /", b"chunked", PROBE]  # fmt: skip

bodies = st.binary(max_size=40)
LINES = [b"x-a: 1\r\n", b"X-B:2\r\n", b"cookie: a=b\r\n", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n"]
headers = st.lists(st.sampled_from(LINES), max_size=3).map(b"".join)


@st.composite
def chunk_bodies(draw: Any) -> bytes:
    """A chunked body with extensions and trailers."""
    parts = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    extension = draw(st.sampled_from([b"", b";a", b';a="b"', b";a=b;c"]))
    trailer = draw(st.sampled_from([b"", b"x-t: 1\r\n", b"host: v\r\n"]))
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


requests = st.one_of(
    st.sampled_from(GOOD),
    st.builds(lambda h: get(headers=h), headers),
    st.builds(lambda h, b: post(h + b"content-length: %d\r\n" % len(b), b), headers, bodies),
    st.builds(lambda h, b: chunked(b, h), headers, chunk_bodies()),
)
pipelines = st.lists(requests, min_size=1, max_size=20).map(b"".join)


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    return [raw[a:b] for a, b in pairwise(marks) if a < b]


cuts = st.lists(st.integers(0, 1 << 16), max_size=30)


@st.composite
def broken(draw: Any) -> bytes:
    """Requests of the corpus, one behind the other, with a few bytes changed, added, taken away or said twice."""
    raw = bytearray(b"".join(draw(st.lists(st.one_of(st.sampled_from(ANY), requests), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        size = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["insert", "replace", "delete", "double", "flip"]))
        if kind == "insert":
            raw[at:at] = draw(st.sampled_from(NASTY))
        elif kind == "replace":
            raw[at : at + size] = draw(st.sampled_from(NASTY))
        elif kind == "delete":
            del raw[at : at + size]
        elif kind == "double":
            raw[at:at] = raw[at : at + size]
        elif at < len(raw):
            raw[at] = draw(st.integers(0, 255))
    return bytes(raw)


def final(sent: bytes) -> list[tuple[int, bytes]]:
    """Statuses and bodies without interim answers and without the clock."""
    return [(answer.status, answer.body) for answer in split(sent, heads=heads_of(sent)) if answer.status >= 200]


def heads_of(sent: bytes) -> tuple[int, ...]:
    """Which answers are to HEAD, told by what comes where their body would be: the next answer, or nothing."""
    found: list[int] = []
    number = 0
    while sent:
        head, _, sent = sent.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status < 200:
            continue
        if sent[:5] == b"HTTP/" or not sent:
            found.append(number)
        else:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            sent = sent[length:]
        number += 1
    return tuple(found)


# ---- properties ---------------------------------------------------------------------------------------------------------------------


@bounded
@given(pipelines, cuts, cuts)
def test_pieces_of_any_size_make_the_same_answers_whenever_they_are_given(raw: bytes, one: list[int], two: list[int]) -> None:
    expected = final(converse([raw])[0])
    assert all(status == 200 for status, _ in expected)
    assert final(converse(pieces_of(raw, one))[0]) == expected
    assert final(converse(pieces_of(raw, two), at_once=False)[0]) == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.raw) < 1000])
def test_a_case_of_the_corpus_byte_by_byte_is_the_same_case(name: str) -> None:
    """Refused ones, too, whichever read they come in: but an unknown method is told from garbage only when its line is in one read."""
    raw = CASES[name].raw + PROBE
    expected = final(converse([raw])[0])
    by_byte = final(converse([bytes([byte]) for byte in raw])[0])
    assert [status for status, _ in by_byte] in ([status for status, _ in expected], [400 if s == 501 else s for s, _ in expected])


ALLOWED = {200, 400, 405, 413, 414, 431, 501, 505}


@bounded
@given(broken(), cuts, st.booleans())
def test_broken_bytes_are_refused_in_order_and_the_connection_ends(raw: bytes, pieces: list[int], at_once: bool) -> None:
    sent, dispatcher = converse(pieces_of(raw, pieces), at_once=at_once)
    statuses = [status for status, _ in final(sent)]
    event(f"statuses {sorted(set(statuses))}")
    assert set(statuses) <= ALLOWED
    assert all(status == 200 for status in statuses[:-1])  # whatever is refused is the last
    assert len(statuses) <= raw.count(b"HTTP/") + 1  # never more answers than requests, and one refusal
    assert len(dispatcher.seen) >= statuses.count(200)


def as_h11_reads_it(raw: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(method, target, body) of every request that another parser finds in these bytes, until it finds no more."""
    while raw:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(raw)
        request, body = None, b""
        while True:
            found = connection.next_event()
            if found is h11.NEED_DATA or found is h11.PAUSED:
                return
            if isinstance(found, h11.Request):
                request = found
            elif isinstance(found, h11.Data):
                body += found.data
            elif isinstance(found, h11.EndOfMessage):
                break
            else:
                return
        assert request is not None
        yield bytes(request.method), bytes(request.target), body
        raw = connection.trailing_data[0]


@bounded
@given(broken())
def test_another_parser_finds_the_same_requests_in_what_we_pass_on(raw: bytes) -> None:
    """Requests are smuggled where two parsers part ways about where one ends. h11 may stop earlier, it may not read otherwise."""
    _, dispatcher = converse([raw])
    read = as_h11_reads_it(raw)
    for ours in dispatcher.seen:
        try:
            theirs = next(read, None)
        except h11.RemoteProtocolError:
            break
        if theirs is None:
            break
        assert _alike(ours, theirs)


def _alike(ours: tuple[bytes, bytes, bytes], theirs: tuple[bytes, bytes, bytes]) -> bool:
    """An absolute target has become a path with us."""
    return ours[0] == theirs[0] and ours[2] == theirs[2] and (theirs[1].endswith(ours[1]) or ours[1] in (b"/", b"*") or b"?" in ours[1])


# ---- the same over real sockets --------------------------------------------------------------------------------------------------------


async def _spoken(rig: Rig, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def test_broken_bytes_at_the_real_port_are_answered_or_cut_and_the_next_caller_is_served() -> None:
    def search(runner: asyncio.Runner, rig: Rig) -> Callable[[], None]:
        @hypothesis_settings(max_examples=max(30, EXAMPLES // 5), deadline=None, suppress_health_check=list(HealthCheck))
        @given(broken(), cuts)
        def check(raw: bytes, pieces: list[int]) -> None:
            sent = runner.run(_spoken(rig, pieces_of(raw, pieces)))
            assert {status for status, _ in final(sent)} <= ALLOWED | {404, 503}  # control, whose all other addresses are, is not there
            assert runner.run(rig.request("GET", "/function/hello"))[0] == 200

        return check

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        place = gateway(half_closed_seconds=20)
        rig = runner.run(place.__aenter__())
        try:
            rig.serve(function())
            search(runner, rig)()
        finally:
            runner.run(place.__aexit__(None, None, None))
