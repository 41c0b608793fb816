"""One process of the load driver: keeps a rate, whatever the answers do, or keeps so many calls in the air. `python -m bench.caller`.

Reads a Plan as a line of JSON, connects, writes "ready", reads when to begin (CLOCK_MONOTONIC), and at last writes a Tally. With a rate,
a call is timed from when it was *due*, so neither a slow server nor a slow driver can hide one (coordinated omission). Nothing but the
standard library and msgspec: it must be cheap. Started by bench/callers.py only.
"""

import ctypes
import gc
import os
import random
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

import msgspec

from bench.arrivals import NICE, PR_SET_TIMERSLACK
from bench.tally import Histogram, Tally

CYCLE = 20_000  # calls after which the drawn order repeats
POLL_SECONDS_MAX = 0.05
CONNECT_SECONDS_MAX = 10.0


class Call(msgspec.Struct, frozen=True):
    """A kind of call: what its times are kept under, its bytes, and how often it is drawn beside the others."""

    label: str
    raw: bytes
    weight: float = 1.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does. `per_second` 0: every connection sends its next call when it has its answer."""

    address: tuple[str, int]
    calls: tuple[Call, ...]
    connections: int
    seconds: float
    per_second: float = 0.0
    offset_seconds: float = 0.0  # of its first call: processes take turns
    seed: int = 1
    drain_seconds: float = 10.0


class _Line:
    """A connection, and the call it carries (-1: none)."""

    __slots__ = ("data", "due", "kind", "socket")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.kind = -1
        self.data = b""
        self.due = 0.0


class Caller:
    """Carries out one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.times = [self.tally.times.setdefault(call.label, Histogram()) for call in plan.calls]
        self.raws = [call.raw for call in plan.calls]
        self.late = self.tally.late.add
        self.epoll = select.epoll()
        self.lines: dict[int, _Line] = {}
        self.free: deque[_Line] = deque()
        self.begun = self.last_good = 0.0
        dice = random.Random(plan.seed)  # noqa: S311
        self.order = dice.choices(range(len(plan.calls)), [call.weight for call in plan.calls], k=CYCLE)
        self.sent = 0
        self.busy = 0

    def connect(self) -> None:
        """All connections, before the clock runs. Raises OSError."""
        for _ in range(self.plan.connections):
            self.free.append(self._open())

    def run(self, begin_at: float) -> Tally:
        """From `begin_at` (time.monotonic) until every call is answered or `drain_seconds` after the last was due."""
        plan, cpu = self.plan, time.process_time()
        self.begun = begin_at
        time.sleep(max(0.0, begin_at - time.monotonic()))
        end = begin_at + plan.seconds
        if plan.per_second:
            self._keep_rate(round(plan.seconds * plan.per_second), end + plan.drain_seconds)
        else:
            self._keep_busy(end)
        self.tally.seconds = max(plan.seconds, self.last_good - begin_at)  # good answers that came late were not made in the plan's time
        self.tally.cpu_seconds = time.process_time() - cpu
        return self.tally

    def close(self) -> None:
        for line in self.lines.values():
            line.socket.close()
        self.epoll.close()

    def _keep_rate(self, total: int, last: float) -> None:
        gap, begun = 1 / self.plan.per_second, self.begun + self.plan.offset_seconds
        while self.sent < total or self.busy:
            now = time.monotonic()
            if now > last:
                break
            while self.sent < total and (due := begun + self.sent * gap) <= now and self._send(due):
                now = time.monotonic()
            wait = begun + self.sent * gap - now if self.sent < total else POLL_SECONDS_MAX
            # All connections are busy: the next call goes when one is answered, and its time runs.
            self._receive(min(wait, POLL_SECONDS_MAX) if wait > 0 else POLL_SECONDS_MAX)
        for _ in range(self.busy + total - self.sent):
            self.tally.failure("no answer", time.monotonic() - self.begun)

    def _keep_busy(self, end: float) -> None:
        while (now := time.monotonic()) < end:
            while (self.free or len(self.lines) < self.plan.connections) and self._send(now):
                now = time.monotonic()
            self._receive(min(POLL_SECONDS_MAX, end - now))

    def _send(self, due: float) -> bool:
        """False: every connection is busy and no more may be opened."""
        if not self.free and len(self.lines) >= self.plan.connections:
            return False
        kind = self.order[self.sent % CYCLE]
        self.sent += 1
        try:
            line = self.free.popleft() if self.free else self._open()
        except OSError:
            self.tally.failure("no connection", time.monotonic() - self.begun)
            return self.plan.per_second > 0  # a closed loop breathes before it tries again
        line.kind, line.due, line.data = kind, due, b""
        self.busy += 1
        self.late(int((time.monotonic() - due) * 1e6))
        try:
            line.socket.sendall(self.raws[kind])
        except OSError:
            self._drop(line)
        return True

    def _receive(self, seconds: float) -> None:
        """Wait (for a call that is due, to the microsecond: epoll's own waiting counts in milliseconds), and take what came."""
        if self.plan.per_second and not select.select([self.epoll], [], [], seconds)[0]:
            return
        for descriptor, _ in self.epoll.poll(0 if self.plan.per_second else seconds):
            line = self.lines[descriptor]
            try:
                block = line.socket.recv(262_144)
            except OSError:
                block = b""
            if not block:
                self._drop(line)
                continue
            line.data = data = line.data + block if line.data else block
            end = data.find(b"\r\n\r\n")
            if end >= 0 and line.kind >= 0 and len(data) >= end + 4 + length_of(data, end):
                self._answered(line, data, end)

    def _answered(self, line: _Line, data: bytes, end: int) -> None:
        now, status = time.monotonic(), data[9:12]
        if status < b"400" and data.find(b"x-amz-function-error", 0, end) < 0:
            self.times[line.kind].add(int((now - line.due) * 1e6))
            self.last_good = now
        else:
            head = data[:end].lower()
            self.tally.failure(status.decode() if status >= b"400" else "function error", now - self.begun)
            self.tally.unadvised += status in (b"429", b"503") and b"\r\nretry-after:" not in head
        line.kind, line.data = -1, b""
        self.busy -= 1
        if data.find(b"\r\nconnection: close", 0, end) >= 0:
            self._drop(line)  # the server said that nothing more is answered here (RFC 9112 §9.6)
        else:
            self.free.append(line)

    def _open(self) -> _Line:
        made = socket.create_connection(self.plan.address, timeout=CONNECT_SECONDS_MAX)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)  # a socket with a timeout asks poll(2) before each call
        line = self.lines[made.fileno()] = _Line(made)
        self.epoll.register(made, select.EPOLLIN)
        return line

    def _drop(self, line: _Line) -> None:
        """The server left. An idle connection it may close; a call that it had is lost."""
        if line.kind >= 0:
            self.busy -= 1
            self.tally.failure("closed", time.monotonic() - self.begun)
        with suppress(ValueError):
            self.free.remove(line)
        self.epoll.unregister(line.socket)
        del self.lines[line.socket.fileno()]
        line.socket.close()


def length_of(data: bytes, end: int) -> int:
    """Content-Length of the head that ends there; 0 without one."""
    at = data.find(b"\r\ncontent-length:", 0, end)
    if at < 0:
        at = data[:end].lower().find(b"\r\ncontent-length:")
    return 0 if at < 0 else int(data[at + 17 : data.find(b"\r\n", at + 17)])


def main() -> None:
    caller = Caller(msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan))
    caller.connect()
    print("ready", flush=True)
    begin_at = float(sys.stdin.buffer.readline() or b"nan")
    if begin_at != begin_at:  # the parent has left
        return
    gc.collect()
    gc.disable()
    if caller.plan.per_second:
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # 1 µs instead of 50
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
    sys.stdout.buffer.write(msgspec.json.encode(caller.run(begin_at)) + b"\n")


if __name__ == "__main__":
    main()
