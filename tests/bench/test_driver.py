"""The load driver counts every call once and times it from when it was due, whatever the server does; its histograms keep what they say."""

import random
import socketserver
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pytest

from bench.caller import Call, Caller, Plan, length_of
from bench.callers import call_all, shares
from bench.outcome import quantile
from bench.tally import Histogram, Tally, bucket_of, upper_edge

ANSWERS = {
    "/ok": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "/told": b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "/untold": b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
    "/failed": b"HTTP/1.1 200 OK\r\nx-amz-function-error: Unhandled\r\ncontent-length: 2\r\n\r\n{}",
    "/last": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",  # and the server leaves
}


class Speaker(socketserver.StreamRequestHandler):
    """Answers by path, one request after another; /gone and /last end the connection without and with an answer."""

    def handle(self) -> None:
        try:
            while head := self.rfile.readline():
                while self.rfile.readline() not in (b"\r\n", b""):
                    pass
                path = head.split()[1].decode()
                if path in ANSWERS:
                    self.wfile.write(ANSWERS[path])
                if path in ("/gone", "/last"):
                    return
        except ConnectionError:
            return  # the driver has all that it wanted


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Speaker)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join(10)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def raw(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\n\r\n".encode()


def plan(server: Server, *paths: str, calls: int = 20, **changed: object) -> Plan:
    """So many calls at a thousand a second, drawn from `paths`, each under its path."""
    fields: dict[str, object] = {"connections": 2, "seconds": calls / 1000, "per_second": 1000.0, "drain_seconds": 60.0} | changed
    address = ("127.0.0.1", server.server_address[1])
    return Plan(address=address, calls=tuple(Call(path, raw(path)) for path in paths), **fields)


def driven(wanted: Plan, begin_at: float | None = None) -> Tally:
    caller = Caller(wanted)
    caller.connect()
    try:
        return caller.run(time.monotonic() if begin_at is None else begin_at)
    finally:
        caller.close()


def test_buckets_leave_no_gap_and_each_is_narrow() -> None:
    edge = -1
    for bucket in range(3000):
        assert bucket_of(edge + 1) == bucket == bucket_of(upper_edge(bucket))
        assert upper_edge(bucket) - edge <= max(1, upper_edge(bucket) / 128)
        edge = upper_edge(bucket)


def test_a_histogram_says_what_a_list_of_all_times_says_within_a_hundredth() -> None:
    dice = random.Random(3)
    times = [int(dice.lognormvariate(7, 2)) for _ in range(20_000)]
    halves = [Histogram(), Histogram()]
    for number, one in enumerate(times):
        halves[number % 2].add(one)
    merged = Histogram()
    for half in halves:
        merged.merge(half)
    assert merged.count == len(times)
    assert merged.mean_ms == pytest.approx(sum(times) / len(times) / 1000)
    for share in (0.01, 0.5, 0.99, 0.9999, 1.0):
        assert merged.quantile_ms(share) == pytest.approx(quantile([one / 1000 for one in times], share), rel=0.01, abs=0.001)
    assert Histogram().quantile_ms(0.5) == 0.0


def test_parts_of_a_plan_take_turns_and_keep_the_rate_together() -> None:
    whole = Plan(address=("127.0.0.1", 1), calls=(Call("a", b""),), connections=7, seconds=2.0, per_second=300.0)
    parts = shares(whole, 3)
    assert sum(part.connections for part in parts) == 7
    dues = sorted(part.offset_seconds + number / part.per_second for part in parts for number in range(200))
    assert dues == pytest.approx([number / 300 for number in range(600)])
    assert len({part.seed for part in parts}) == 3


def test_every_call_is_counted_once_by_how_it_ended(server: Server) -> None:
    paths = ("/ok", "/told", "/untold", "/failed", "/gone", "/last")
    tally = driven(plan(server, *paths, calls=300))
    assert tally.calls == 300
    assert set(tally.bad) == {"429", "503", "function error", "closed"}
    assert tally.unadvised == tally.bad["503"], "a refusal without Retry-After is remembered"
    assert tally.times["/ok"].count and tally.times["/last"].count
    assert 0 <= tally.failed_from <= tally.failed_until
    assert tally.failures().startswith(
        f" (429: {tally.bad['429']}, 503: {tally.bad['503']}, closed: {tally.bad['closed']}, function error: "
    )


def test_a_connection_that_is_closed_between_calls_is_made_again_and_no_call_is_lost(server: Server) -> None:
    """A client may find out only by sending: with a pause as long as this the driver has seen it before."""
    tally = driven(plan(server, "/last", calls=5, connections=1, per_second=10.0, seconds=0.5))
    assert tally.calls == 5
    assert set(tally.bad) <= {"closed"}, "never a call without an end"


def test_calls_behind_a_late_driver_are_timed_from_when_they_were_due(server: Server) -> None:
    late = 0.25
    tally = driven(plan(server, "/ok", calls=10), begin_at=time.monotonic() - late)
    assert tally.good == 10
    assert tally.times["/ok"].quantile_ms(0.01) >= (late - 0.01) * 1000, "the last was due 10 ms after the first"
    assert tally.late.count == 10
    assert tally.late.quantile_ms(0.01) >= (late - 0.01) * 1000


def test_calls_that_nobody_answers_are_counted_too(server: Server) -> None:
    tally = driven(plan(server, "/silent", calls=10, drain_seconds=0.05))
    assert (tally.good, tally.bad) == (0, {"no answer": 10})


def test_without_a_rate_the_next_call_goes_when_the_last_is_answered(server: Server) -> None:
    tally = driven(plan(server, "/ok", seconds=1.0, per_second=0.0))
    assert tally.good > 2, "two connections, more than one call each"
    assert not tally.bad


def test_several_processes_are_one_driver(server: Server) -> None:
    tally = call_all(plan(server, "/ok", "/told", calls=40, connections=4), 2)
    assert tally.calls == 40
    assert set(tally.bad) == {"429"}
    assert tally.cpu_seconds > 0
    assert tally.run(errors=0).errors == 0


def test_a_driver_that_cannot_connect_says_so(server: Server) -> None:
    wanted = plan(server, "/ok")
    server.shutdown()
    server.server_close()
    with pytest.raises(RuntimeError, match="could not connect"):
        call_all(wanted)


def test_content_length_is_found_in_either_case_and_is_none_without() -> None:
    for head, length in (
        (b"HTTP/1.1 200 OK\r\ncontent-length: 12", 12),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nA: b", 7),
        (b"HTTP/1.1 204 N", 0),
    ):
        data = head + b"\r\n\r\n"
        assert length_of(data, data.find(b"\r\n\r\n")) == length
