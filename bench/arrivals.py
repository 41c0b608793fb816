"""Open-loop load: calls that come when they come, whether or not the last one was answered. Each is timed from when it was due.

A driver that waits for answers before it sends leaves out the calls that would have waited longest (coordinated omission); this one
does not: a call that is sent late because the driver was late counts from its due time too. One thread and one epoll; it parses
nothing while it runs, and says what it cost. Used by sustained.py, crowd.py, density.py and neighbour.py.
"""

import ctypes
import gc
import os
import random
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.load import Reply, body_length
from bench.outcome import quantile

Address = tuple[str, int]
CONNECTIONS_MAX = 6000  # a backlog beyond this waits in the driver, and its time runs
LEAD_SECONDS = 0.02  # from setting the clock to the first arrival
PR_SET_TIMERSLACK = 29
NICE = -10


class Arrival(NamedTuple):
    """A call: seconds after the start at which it is due, its bytes, and whom it is for."""

    due: float
    raw: bytes
    address: Address


def poisson(per_second: float, seconds: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process within [0, seconds), in order. The same seed gives the same times."""
    dice, times, now = random.Random(seed), [], 0.0  # noqa: S311
    while (now := now + dice.expovariate(per_second)) < seconds:
        times.append(now)
    return times


@dataclass
class Driven:
    """What came of it. `replies[i]` answers arrival i, timed from its due time; None: no answer in time."""

    replies: list[Reply | None]
    late_ms: list[float]  # due → sent: the driver's own part in every time
    cpu_share: float  # of one core, the driver's
    begun_at: float  # epoch seconds of due time 0

    def driver(self) -> dict[str, float]:
        """The driver's cost, for the report: whether it was the bottleneck."""
        return {
            "cpu_percent_of_a_core": round(100 * self.cpu_share, 1),
            "late_ms_p50": round(quantile(self.late_ms, 0.5), 3),
            "late_ms_p99": round(quantile(self.late_ms, 0.99), 3),
        }


def drive(arrivals: Sequence[Arrival], *, connections: int = 32, drain_seconds: float = 30.0) -> Driven:
    """Send each arrival when it is due, and wait up to `drain_seconds` after the last one for the answers still missing."""
    loop, before = _Loop(arrivals), os.getpriority(os.PRIO_PROCESS, 0)
    try:
        for address in dict.fromkeys(arrival.address for arrival in arrivals):
            loop.open(address, connections)
        gc.collect()
        gc.disable()
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # 1 µs instead of 50
        with suppress(PermissionError):  # The instrument comes first where it may: its own lateness would be taken for the platform's.
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        return loop.run(drain_seconds)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
        gc.enable()
        loop.close()


@dataclass
class _Line:
    """One keep-alive connection and the arrival it carries (-1: free)."""

    socket: socket.socket
    address: Address
    number: int = -1
    data: bytes = b""


@dataclass
class _Loop:
    arrivals: Sequence[Arrival]
    epoll: select.epoll = field(default_factory=select.epoll)
    lines: dict[int, _Line] = field(default_factory=dict)
    free: dict[Address, list[_Line]] = field(default_factory=dict)
    busy: int = 0

    def open(self, address: Address, count: int) -> None:
        """Connections made before the clock runs."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < (wanted := min(hard, CONNECTIONS_MAX + 512)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        self.free.setdefault(address, []).extend([self._connect(address) for _ in range(count)])

    def run(self, drain_seconds: float) -> Driven:
        total = len(self.arrivals)
        ends: list[tuple[bytes, float] | None] = [None] * total
        late = [0.0] * total
        cpu = time.process_time()
        begun = time.perf_counter() + LEAD_SECONDS
        begun_at = time.time() + LEAD_SECONDS
        last = begun + (self.arrivals[-1].due if total else 0.0) + drain_seconds
        sent = 0
        while sent < total or self.busy:
            now = time.perf_counter()
            if now > last:
                break
            while sent < total and begun + self.arrivals[sent].due <= now and self._send(sent):
                now = time.perf_counter()
                late[sent] = (now - begun - self.arrivals[sent].due) * 1000
                sent += 1
            due = begun + self.arrivals[sent].due if sent < total else last
            self._receive(max(0.0, due - time.perf_counter()) if due > now else 0.05, begun, ends)
        share = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - begun)
        return Driven([_reply(end, self.arrivals[i].due) for i, end in enumerate(ends)], late, share, begun_at)

    def _send(self, number: int) -> bool:
        """False: every connection is busy and no more may be opened."""
        arrival = self.arrivals[number]
        free = self.free[arrival.address]
        if not free and len(self.lines) >= CONNECTIONS_MAX:
            return False
        line = free.pop() if free else self._connect(arrival.address)
        line.number, line.data = number, b""
        self.busy += 1
        try:
            line.socket.sendall(arrival.raw)
        except OSError:
            self._drop(line)
        return True

    def _receive(self, seconds: float, begun: float, ends: list[tuple[bytes, float] | None]) -> None:
        """Wait for answers, to the microsecond (epoll's own waiting counts in milliseconds), and take those that came."""
        if not select.select([self.epoll], [], [], seconds)[0]:
            return
        for descriptor, _ in self.epoll.poll(0):
            line = self.lines[descriptor]
            try:
                block = line.socket.recv(65536)
            except OSError:
                block = b""
            if not block:
                self._drop(line)
                continue
            line.data += block
            end = line.data.find(b"\r\n\r\n")
            if end >= 0 and len(line.data) >= end + 4 + body_length(line.data[:end]) and line.number >= 0:
                ends[line.number] = (line.data, time.perf_counter() - begun)
                line.number = -1
                self.busy -= 1
                self.free[line.address].append(line)

    def _connect(self, address: Address) -> _Line:
        made = socket.create_connection(address, timeout=10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = self.lines[made.fileno()] = _Line(made, address)
        self.epoll.register(made, select.EPOLLIN)
        return line

    def _drop(self, line: _Line) -> None:
        """The server left, perhaps with a call: that one has no answer."""
        self.busy -= line.number >= 0
        if line in self.free[line.address]:
            self.free[line.address].remove(line)
        self.epoll.unregister(line.socket)
        del self.lines[line.socket.fileno()]
        line.socket.close()

    def close(self) -> None:
        for line in self.lines.values():
            line.socket.close()
        self.epoll.close()


def _reply(end: tuple[bytes, float] | None, due: float) -> Reply | None:
    if end is None:
        return None
    data, at = end
    head, _, body = data.partition(b"\r\n\r\n")
    return Reply(int(head[9:12]), head.decode("latin-1"), body, (at - due) * 1000)


def failures(driven: Driven) -> str:
    """How the calls that failed did: ` (503: 12, function error: 3, no answer: 1)`; empty without any."""
    counts = Counter(_how(one) for one in driven.replies if one is None or not one.good)
    return f" ({', '.join(f'{how}: {count}' for how, count in sorted(counts.items()))})" if counts else ""


def _how(reply: Reply | None) -> str:
    if reply is None:
        return "no answer"
    return str(reply.status) if reply.status >= 400 else "function error"


def split(driven: Driven, numbers: Sequence[int] | None = None) -> tuple[list[Reply], int]:
    """The good answers (of these arrivals only, if given), and how many others there were: refused, failed or missing."""
    chosen = driven.replies if numbers is None else [driven.replies[number] for number in numbers]
    good = [reply for reply in chosen if reply is not None and reply.good]
    return good, len(chosen) - len(good)
