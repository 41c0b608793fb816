"""What is fuzzed with coverage as the guide: what is silent and reads bytes of strangers. Each target is a property of any bytes whatever.

A target raises AssertionError, or an exception that its reader does not document, for bytes that must be kept (found.py). Used by search.py
(atheris) and test_search.py.
"""

import asyncio
import contextlib
import socket
import string
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import h11
import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire import backup, bundle, dns, durable, egress, link, node, trace
from dayfly.core.wire.lines import Lines
from dayfly.core.wire.prefer import wait_preferred
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.reply import checked_block
from dayfly.runtime import frames
from dayfly.runtime.answers import frame
from dayfly.runtime.messages import Incoming, farewell, farewell_in, message
from tests.http.bare import converse
from tests.http.case import PROBE
from tests.http.test_fuzz import ALLOWED, ANY, NASTY, _alike, as_h11_reads_it, final

SETTINGS = Settings()
LOOP = asyncio.new_event_loop()


class Target(NamedTuple):
    """`check` is given any bytes; `seeds` are good ones to begin with; `words` are what its language is made of."""

    check: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The bytes behind the first three, whole and in pieces: the three say where they are cut."""
    raw = data[3:]
    marks = sorted({0, len(raw), *(at * len(raw) // 256 for at in data[:3])})
    return raw, [raw[a:b] for a, b in pairwise(marks)]


def check_http(data: bytes) -> None:
    """Pieces of any size mean the same, and so do reads that repeat themselves; whatever is refused is the last; another parser finds the
    same requests in what is passed on."""
    raw, pieces = cut(data)
    if not raw:
        return  # no transport has an empty read
    sent, dispatcher = converse([raw])
    answers = final(sent)
    statuses = [status for status, _ in answers]
    assert set(statuses) <= ALLOWED and all(status == 200 for status in statuses[:-1]), statuses
    assert len(statuses) <= raw.count(b"HTTP/") + 1, "more answers than requests, and one refusal"
    assert meaning(pieces) == meaning([raw])
    assert meaning([raw] * 3) == meaning([raw * 3])
    read = as_h11_reads_it(raw)
    for ours in dispatcher.seen:
        try:
            theirs = next(read, None)
        except h11.RemoteProtocolError:
            break
        if theirs is None:
            break
        assert _alike(ours, theirs), (ours, theirs)


def meaning(pieces: list[bytes]) -> tuple[list[bytes], int]:
    """What was served, and how many answers there were: 501 is told from 400 only where the whole line is in one read (parse_refusal)."""
    answers = final(converse(pieces)[0])
    return [body for status, body in answers if status == 200], len(answers)


def check_messages(data: bytes) -> None:
    """A WebSocket's messages are the same in any pieces, and say themselves again."""
    raw, pieces = cut(data)
    whole, broken = heard([raw])
    assert (whole, broken) == heard(pieces)
    again = b"".join(message(kind, body) for kind, body in whole)
    assert raw.startswith(again)
    for kind, body in whole:
        if kind == frames.CLOSE and len(body) >= frames.CLOSE_CODE.size:
            code, reason = farewell_in(body)
            assert farewell_in(farewell(code, reason)[frames.MESSAGE.size :]) == (code, reason)


def heard(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
    """The messages in these pieces, and whether they ended in nonsense."""
    incoming, found = Incoming(1000), []
    try:
        for piece in pieces:
            incoming.feed(piece)
            while (one := incoming.next()) is not None:
                found.append(one)
    except ValueError:
        return found, True
    return found, False


class Heard:
    """Who hears of an instance."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, ...]] = []
        self.reason = ""

    def on_frame(self, channel: Channel, frame: Frame) -> None:
        self.frames.append((frame.kind, frame.flags, frame.status, frame.exec_us, frame.seq, hash(frame.meta), hash(bytes(frame.body))))

    def on_output(self, channel: Channel, data: bytes) -> None:
        """It has no pipe here."""

    def on_end(self, channel: Channel, reason: str) -> None:
        self.reason = reason


async def instance_says(pieces: list[bytes]) -> tuple[list[tuple[int, ...]], str]:
    """The frames that a gateway takes from an instance's socket, and why it ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        heard_of = Heard()
        channel = Channel("i", heard_of, None, 0.0)
        channel._socket = ours
        for piece in pieces:
            theirs.sendall(piece)
            channel._readable()
            if heard_of.reason:
                break
        return heard_of.frames, heard_of.reason


def check_frames(data: bytes) -> None:
    """What an instance says is the same in any pieces, and ends at the first length that may not be."""
    raw, pieces = cut(data)
    whole = LOOP.run_until_complete(instance_says([raw] if raw else []))
    assert whole == LOOP.run_until_complete(instance_says(pieces))
    assert whole[1] in ("", "garbage") and len(whole[0]) <= len(raw) // frames.ANSWER.size


def check_dns(data: bytes) -> None:
    """A question that is understood is asked in our words and is the same; what answers it names no address twice as long as it may."""
    try:
        asked = dns.question(data)
    except ValueError:
        return
    assert set(asked.name) <= set(string.ascii_lowercase + string.digits + "-_.") and len(asked.name) < 256
    assert dns.question(dns.query(asked, 7)) == asked
    if dns.answers(data, asked, 7):
        try:
            found = dns.addresses(data, asked)
        except ValueError:
            return
        assert len(found) <= dns.RECORDS_MAX and all(0 <= ttl <= 0xFFFFFFFF for _, ttl in found)


def check_packets(data: bytes) -> None:
    """Messages between our own processes: understood or refused, and what is understood is said again the same."""
    readers: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes] | None]] = [
        (egress.parsed_request, lambda it: egress.request(*it)),
        (egress.parsed_traffic, egress.traffic),
        (node.decode_to_node, node.encode),
        (node.decode_from_node, node.encode),
        (link.decode_to_gateway, lambda it: link.encode(it)[link.LENGTH_BYTES :]),
        (link.decode_to_control, lambda it: link.encode(it)[link.LENGTH_BYTES :]),
    ]
    read, write = readers[data[0] % len(readers)] if data else readers[0]
    try:
        found = read(data[1:])
    except (ValueError, msgspec.MsgspecError):
        return
    if write is not None:
        assert read(write(found)) == found


def check_archives(data: bytes) -> None:
    """Where a zip says that its directory is: within the file, or refused."""
    try:
        offset, size = bundle.directory_span(data, len(data), 1000)
        assert 0 <= offset <= offset + size <= len(data)
        assert bundle.count_entries(data[offset : offset + size], 1000) <= 1000
    except Refusal:
        pass
    with contextlib.suppress(backup.BadBackup):
        assert 0 <= backup.directory_bytes(data, len(data)) <= len(data)


def check_headers(data: bytes) -> None:
    """Headers that callers and functions say things with: read, left alone, or refused; a function's block splits no answer."""
    wait = wait_preferred(data)
    assert wait is None or 0 <= wait < 1e10
    durable.prefers_async(data)
    name, _, value = data.partition(b":")
    try:
        said = durable.wishes([(name, value)], 1e9, SETTINGS)
        assert said.due < 1e9 + SETTINGS.async_delay_seconds_max + 1
    except Refusal as refusal:
        assert refusal.kind.code in ("bad_request", "chain_too_deep"), refusal
    assert 0 <= durable.retry_after([(name, value)]) < 1e10
    block = checked_block(data)
    if block is not None:
        assert b"\n" not in block.replace(b"\r\n", b"") and b"\0" not in block and b"\r\n\r\n" not in b"\r\n" + block
        assert not any(line.lower().startswith((b"content-length:", b"transfer-encoding:")) for line in block.split(b"\r\n"))


def check_texts(data: bytes) -> None:
    """Lines of a map are the same in any pieces; a trace is one or says which line is not."""
    raw, pieces = cut(data)
    assert lines_of([raw]) == lines_of(pieces)
    with contextlib.suppress(trace.BadTrace):
        trace.parse_trace(raw.decode("utf-8", "replace").splitlines(keepends=True), trace.Defaults())


def lines_of(pieces: list[bytes]) -> tuple[list[bytes], str]:
    """The values, and the code of what ended them."""
    lines, found = Lines(50), []
    try:
        for piece in pieces:
            found.extend(lines.feed(piece))
        return found + lines.rest(), ""
    except Refusal as refusal:
        return found, refusal.kind.code


def check_planted(data: bytes) -> None:
    """A defect that must be found: whoever searches can be trusted only as far as that."""
    depth = 0
    if data[:1] == b"f":
        depth = 1
    if depth == 1 and data[1:2] == b"o":
        depth = 2
    if depth == 2 and data[2:3] == b"u":
        depth = 3
    if depth == 3 and data[3:4] == b"n":
        depth = 4
    assert not (depth == 4 and data[4:5] == b"d"), "found"


ASKED = dns.query(dns.Question("a.test", dns.A, b"\1a\4test\0\0\1\0\1"), 7)
TARGETS = {
    "http": Target(check_http, [b"\x20\x80\xc0" + raw + PROBE for raw in ANY], NASTY),
    "messages": Target(
        check_messages,
        [b"\0\x40\x80" + message(frames.TEXT, b"hello") + message(frames.BINARY, b"\xff") + farewell(1000, "bye")],
        [message(frames.TEXT, b""), message(frames.BINARY, b""), farewell(1000, "")],
    ),
    "frames": Target(
        check_frames,
        [b"\x20\x80\xc0" + frame(frames.RESULT, 1, b"body", meta=b"a: b\r\n") + frame(frames.LOG, 0, b"line") + frame(frames.END, 7)],
        [frames.ANSWER.pack(frames.RESULT, 0, 200, 0, 0, 0, 1), b"\0\0\1\0", b"\xff\xff\xff\xff", b"\xe4\x00\x60\x00"],
    ),
    "dns": Target(
        check_dns,
        [ASKED, ASKED[:2] + b"\x81\x80\0\1\0\1" + ASKED[8:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x01\2\3\4"],
        [b"\xc0\x0c", b"\0\1\0\1", b"\0\5\0\1", b"\0\x1c\0\1", b"\1a", b"\0\7\x81\x80\0\1\0\1\0\0\0\0"],
    ),
    "packets": Target(
        check_packets,
        [
            b"\0" + egress.request(egress.OPEN_STEERED, 5, "list", ("a.test:443",)),
            b"\1" + egress.traffic(egress.Traffic(1, 2, 3, 4, 5)),
            b"\2" + node.encode(node.Kill("i")),
            b"\3" + node.encode(node.Exited("i", "exit", 1)),
            b"\4" + link.encode(link.FunctionRemoved(1, "default", "hello"))[link.LENGTH_BYTES :],
            b"\5" + link.encode(link.Hello("g", 1))[link.LENGTH_BYTES :],
        ],
        [b'{"type":"start"', b'"instance":"', b"\xa4type", b"\x93", b"\xa8function", b"\xa8snapshot"],
    ),
    "archives": Target(
        check_archives,
        [b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes(4) + b"\1\0\1\0" + (46).to_bytes(4, "little") + bytes(6)],
        [b"PK\5\6", b"PK\1\2", b"PK\6\6", b"PK\6\7", b"\xff\xff\xff\xff"],
    ),
    "headers": Target(
        check_headers,
        [b"wait=1.5, respond-async", b"x-dayfly-delay:1", b"x-dayfly-not-before:2026-05-01T08:00:00Z", b"content-type: a/b\r\nx: y\r\n"],
        [b"x-dayfly-deadline:", b"x-dayfly-lineage:", b"x-callback-url:http://", b"idempotency-key:", b"retry-after:", b"wait=", b"\r\n"],
    ),
    "texts": Target(
        check_texts,
        [b'\x20\x80\xc0{"a":1}\n[2]\n\n"x"', b"\0\0\0time,function\n1,a\n", b"\0\0\0time,function,duration_ms\n1,a,5\n"],
        [b"time,function\n", b"HashApp,HashFunction,1,1440\n", b"\n", b'"', b"1e9", b"\\u0000"],
    ),
}
PLANTED = {"planted": Target(check_planted, [b"x"], [b"y"])}
