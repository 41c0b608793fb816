"""Streamed answers: generators and async generators, both kinds of call, cancelled, broken, and read slowly."""

import select
import time
from pathlib import Path

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import PATIENCE_SECONDS, Driver, Frame, http_head

KINDS = ("def", "async def")


def shape(found: list[Frame]) -> list[int]:
    return [frame.kind for frame in found]


def body(found: list[Frame]) -> bytes:
    return b"".join(frame.body for frame in found if frame.kind != frames.END)


@pytest.mark.parametrize("keyword", KINDS)
def test_a_generator_streams_with_head_chunks_and_end(every: Start, keyword: str) -> None:
    """A first dict is the prelude of an HTTP answer; text and bytes follow as they come, empty ones are left out."""
    code = (
        f"{keyword} handler(event, context):\n"
        "    if event.get('rawPath') == '/prelude':\n"
        "        yield {'statusCode': 201, 'headers': {'X-A': 'b', 'content-length': '5'}, 'cookies': ['c=d']}\n"
        "    yield 'one ä'\n    yield ''\n    yield b'two'\n    print('between')\n    yield bytearray(b'three')\n"
    )
    instance = every(code)
    instance.boot()
    found = instance.stream(instance.send(frames.HTTP, meta=http_head(path="/prelude")))
    assert shape(found) == [frames.HEAD, frames.CHUNK, frames.CHUNK, frames.CHUNK, frames.END]
    assert found[0].status == 201 and found[0].body == b""
    assert found[0].headers == [("content-type", "text/plain; charset=utf-8"), ("x-a", "b"), ("set-cookie", "c=d")]
    assert body(found) == "one ätwothree".encode() and not found[-1].failed
    for kind, meta in ((frames.HTTP, http_head()), (frames.DIRECT, b"")):
        found = instance.stream(instance.send(kind, b"{}" if kind == frames.DIRECT else b"", meta))
        assert shape(found) == [frames.HEAD, frames.CHUNK, frames.CHUNK, frames.END]
        assert found[0].status == 200 and found[0].headers == [("content-type", "text/plain; charset=utf-8")]
        assert body(found) == "one ätwothree".encode()
    assert "between" in [frame.body.decode() for frame in instance.seen if frame.kind == frames.LOG]


@pytest.mark.parametrize("keyword", KINDS)
def test_bytes_first_make_an_octet_stream_and_nothing_at_all_an_empty_answer(start: Start, keyword: str) -> None:
    instance = start(f"{keyword} handler(event, context):\n    if event['rawPath'] == '/b': yield b'x'\n")
    instance.boot()
    found = instance.stream(instance.send(frames.HTTP, meta=http_head(path="/b")))
    assert found[0].headers == [("content-type", "application/octet-stream")]
    found = instance.stream(instance.send(frames.HTTP, meta=http_head()))
    assert shape(found) == [frames.HEAD, frames.END] and found[0].status == 200 and body(found) == b""


@pytest.mark.parametrize("keyword", KINDS)
def test_large_chunks_are_cut(start: Start, keyword: str) -> None:
    instance = start(f"{keyword} handler(event, context):\n    yield b'ab' * 100_000\n    yield b'cd' * 100_000\n")
    instance.boot()
    found = instance.stream(instance.send(frames.DIRECT))
    assert body(found) == b"ab" * 100_000 + b"cd" * 100_000
    assert max(len(frame.body) for frame in found) == frames.CHUNK_BYTES_MAX


@pytest.mark.parametrize("keyword", KINDS)
@pytest.mark.parametrize(
    ("first", "error_type"),
    [
        ("{'body': 'x'}", "Runtime.BadAnswer"),
        ("{}", "Runtime.BadAnswer"),
        ("{'statusCode': 7}", "Runtime.BadAnswer"),
        ("5", "Runtime.BadAnswer"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_stream_that_fails_before_it_begins_is_an_ordinary_error(start: Start, keyword: str, first: str, error_type: str) -> None:
    instance = start(f"{keyword} handler(event, context):\n    yield {first}\n")
    instance.boot()
    answer = instance.request()
    assert answer.failed and answer.status == 502 and answer.json()["errorType"] == error_type
    assert not [frame for frame in instance.seen if frame.kind in (frames.HEAD, frames.END)]


@pytest.mark.parametrize("keyword", KINDS)
@pytest.mark.parametrize(("then", "error_type"), [("raise KeyError('k')", "KeyError"), ("yield 5", "Runtime.BadAnswer")])
def test_a_stream_that_breaks_ends_with_the_error(every: Start, keyword: str, then: str, error_type: str) -> None:
    instance = every(f"{keyword} handler(event, context):\n    yield 'x'\n    {then}\n")
    instance.boot()
    for _ in range(2):
        found = instance.stream(instance.send(frames.HTTP, meta=http_head()))
        assert shape(found) == [frames.HEAD, frames.END] and found[-1].failed
        assert found[-1].json()["errorType"] == error_type


ENDLESS = """
import asyncio
{keyword} handler(event, context):
    try:
        while True:
            yield b'x' * 1000
            {pause}
    finally:
        print('closed')
"""


@pytest.mark.parametrize(("keyword", "pause"), [("def", ""), ("async def", ""), ("async def", "await asyncio.sleep(3600)")])
def test_a_cancelled_stream_closes_its_generator_and_ends(every: Start, keyword: str, pause: str) -> None:
    """Also one that waits for an hour between two chunks, when it is async. The instance then takes the next call."""
    instance = every(ENDLESS.format(keyword=keyword, pause=pause))
    instance.boot()
    for _ in range(2):
        seq = instance.send(frames.DIRECT)
        instance.wait_for(lambda frame: frame.kind == frames.HEAD)
        instance.cancel(seq + 1000)  # of another call: ignored
        instance.cancel(seq)
        found = instance.stream(seq)
        assert not found[-1].failed
        assert "closed" in [frame.body.decode() for frame in instance.seen if frame.kind == frames.LOG and frame.seq == seq]
    assert instance.process.poll() is None


def fills_up(instance: Driver) -> None:
    """Wait until the instance has filled the socket, that is, until the bytes that wait in it stop growing."""
    import array
    import fcntl
    import termios

    size, same, deadline = array.array("i", [-1]), 0, time.monotonic() + PATIENCE_SECONDS
    while same < 5:
        before = size[0]
        select.select([], [], [], 0.02)
        fcntl.ioctl(instance.answers, termios.FIONREAD, size)
        same = same + 1 if size[0] == before and before > 0 else 0
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("keyword", "concurrency"), [("def", 1), ("async def", 1), ("async def", 8)])
def test_a_gateway_that_does_not_read_stops_the_stream_and_costs_no_memory(start: Start, keyword: str, concurrency: int) -> None:
    """Hundreds of megabytes are offered; what is held stays small. Reading again, nothing is lost or mixed up."""
    code = f"{keyword} handler(event, context):\n    for number in range(500):\n        yield bytes([event['n']]) * 60_000\n"
    instance = start(code, concurrency=concurrency)
    instance.boot()
    seqs = [instance.send(frames.DIRECT, b'{"n": %d}' % number) for number in range(concurrency)]
    fills_up(instance)
    rss = int(Path(f"/proc/{instance.process.pid}/statm").read_text().split()[1]) * 4096
    assert rss < 60_000_000
    for number, seq in enumerate(seqs):
        found = instance.stream(seq)
        assert body(found) == bytes([number]) * 60_000 * 500
        instance.seen.clear() if concurrency == 1 else None


def test_a_cancelled_stream_that_is_stuck_in_the_socket_ends_when_the_gateway_reads(start: Start) -> None:
    instance = start(ENDLESS.format(keyword="async def", pause="await asyncio.sleep(0)"))
    instance.boot()
    seq = instance.send(frames.DIRECT)
    fills_up(instance)
    instance.cancel(seq)
    assert not instance.stream(seq)[-1].failed


def test_a_generator_that_refuses_to_close_is_an_error_and_the_instance_goes_on(start: Start) -> None:
    code = (
        "def handler(event, context):\n    if event == 1: return 1\n    return stubborn()\n"
        "def stubborn():\n    while True:\n        try: yield 'x'\n        except GeneratorExit: pass\n"
    )
    instance = start(code)
    instance.boot()
    seq = instance.send(frames.DIRECT)
    instance.wait_for(lambda frame: frame.kind == frames.HEAD)
    instance.cancel(seq)
    end = instance.stream(seq)[-1]
    assert end.failed and "ignored GeneratorExit" in end.json()["errorMessage"]
    assert instance.invoke(1).json() == 1


def test_sys_exit_in_a_stream_ends_it_and_the_instance(start: Start) -> None:
    instance = start("import sys\ndef handler(event, context):\n    yield 'x'\n    sys.exit(4)\n")
    instance.boot()
    end = instance.stream(instance.send(frames.DIRECT))[-1]
    assert end.flags == frames.ERROR | frames.EXITING and end.json()["errorType"] == "Runtime.ExitError"
    assert instance.wait_exit() == 4
