"""stream-100m: a hundred megabytes down as a streamed answer, and up as a body; how fast, and what the gateway's memory grows by.

Both by a web application; down also by a generator, and up also with bodies of six megabytes, which the gateway keeps until they are whole.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Any

from bench.contenders import SUBJECTS, baselines_python, cpu_us_per_call
from bench.load import Request, body_length
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds, reset_peak, status_number
from bench.servers import Starlette
from tests.e2e.harness import Platform

MB = 1_000_000
SIZE, SMALL_SIZE = 100 * MB, 6 * MB
PIECE = 256 * 1024
RUNS = 3
WAIT_SECONDS_MAX = 60.0
DOWN, UP, SMALL, GENERATOR = "dayfly", "up", "up, 6 MB bodies", "down, a generator"

Address = tuple[str, int]


def hundred_megabytes(quick: bool) -> Outcome:
    """MB a second down; also up. Notes say what the gateway's memory grew by at most."""
    times = 3 if quick else 20
    notes: dict[str, str] = {}
    other = Starlette("direct") if baselines_python() else None
    with Platform() as platform:
        try:
            more: dict[str, Any] = {"min_instances": 1, "memory_mb": 512, "timeout_seconds": 120}
            platform.put("streamed", {"app.py": (SUBJECTS / "streamed_app.py").read_text()}, handler="app:app", **more)
            platform.put("generator", (SUBJECTS / "streamed.py").read_text(), **more)
            bearer = {"Authorization": f"Bearer {platform.token}"}
            ours = Peer(platform.address, "/function/streamed", bearer, [platform.pid], platform.roles()["gateway"])
            generator = Peer(platform.address, "/function/generator", bearer, [platform.pid], platform.roles()["gateway"])
            for peer in (ours, generator):
                peer.down(1 * MB)  # an instance is there
            measures: dict[str, Callable[[int], Run]] = {
                DOWN: lambda _: _run(ours, ours.down, (SIZE, times), (DOWN, notes)),
                UP: lambda _: _run(ours, ours.up, (SIZE, times), (UP, notes)),
                SMALL: lambda _: _run(ours, ours.up, (SMALL_SIZE, 3 * times), (SMALL, notes)),
                GENERATOR: lambda _: _run(generator, generator.down, (SIZE, times), (GENERATOR, notes)),
            }
            also = tuple(name for name in measures if name != DOWN)
            if other is not None:
                other.start()
                theirs = Peer(other.address, "/stream", {}, other.roots(), other.roots()[0])
                measures[f"{other.name}, down"] = lambda _: _run(theirs, theirs.down, (SIZE, times))
                measures[f"{other.name}, up"] = lambda _: _run(theirs, theirs.up, (SIZE, times))
            series = alternate(measures, RUNS)
        finally:
            if other is not None:
                other.stop()
    method = (
        f"{SIZE // MB} MB at a time, {times} times a run, a connection each, in the handler's pieces of 64 KiB; value: MB/s of payload; "
        "p50 and p99: ms of a transfer; CPU per transfer; memory: peak − before of the gateway's resident set"
    )
    return Outcome(series, method, {"notes": notes}, also, {f"{Starlette.name}, up": also[0]})


class Peer:
    """Somebody who streams: where, with which headers, whose CPU counts, whose memory."""

    def __init__(self, address: Address, path: str, headers: dict[str, str], roots: list[int], server: int) -> None:
        self.address = address
        self.path = path
        self.headers = headers
        self.roots = roots
        self.server = server

    def down(self, size: int) -> tuple[int, float]:
        """Receive so many bytes. Returns status and seconds; status 0: there were fewer."""
        raw = Request("GET", f"{self.path}?bytes={size}", self.headers | {"Connection": "close"}).raw("127.0.0.1")
        begun, received, head, buffer = time.perf_counter(), 0, b"", bytearray(PIECE)
        with socket.create_connection(self.address, timeout=WAIT_SECONDS_MAX) as one:
            one.sendall(raw)
            while count := one.recv_into(buffer):
                head = head or bytes(buffer[:count])
                received += count
        return (int(head[9:12]) if received >= size else 0), time.perf_counter() - begun

    def up(self, size: int) -> tuple[int, float]:
        """Send so many, and read the answer, which may come before all is sent. Returns status and seconds; status 0: none came."""
        kind = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        raw = Request("POST", self.path, self.headers | kind).raw("127.0.0.1").replace(b"Content-Length: 0\r\n", b"")
        begun, left, piece, said = time.perf_counter(), size, memoryview(b"x" * PIECE), b""
        with socket.create_connection(self.address, timeout=WAIT_SECONDS_MAX) as one:
            one.sendall(raw)
            one.setblocking(False)
            over = False
            while not over:
                readable, writable, _ = select.select([one], [one] if left else [], [], WAIT_SECONDS_MAX)
                over = not readable and not writable
                try:
                    if readable:
                        block = one.recv(65_536)
                        said += block
                        over = not block or whole(said)
                    if writable and not over:
                        left -= one.send(piece[: min(left, PIECE)])
                except BlockingIOError:
                    continue
                except ConnectionError:
                    left = 0  # it does not want the rest; what it said before may still be read
                    over = not readable
            return status_of(said), time.perf_counter() - begun


def status_of(said: bytes) -> int:
    """Of an answer's beginning; 0 of none."""
    return int(said[9:12]) if len(said) >= 12 else 0


def whole(said: bytes) -> bool:
    """Whether it is an answer to its end; a chunked one ends with an empty chunk."""
    end = said.find(b"\r\n\r\n")
    if end < 0:
        return False
    if b"transfer-encoding: chunked" in said[:end].lower():
        return said.endswith(b"0\r\n\r\n")
    return len(said) >= end + 4 + body_length(said[:end])


def _run(
    peer: Peer, transfer: Callable[[int], tuple[int, float]], what: tuple[int, int], said: tuple[str, dict[str, str]] | None = None
) -> Run:
    size, times = what
    before, cpu = reset_peak(peer.server), cpu_seconds(peer.roots)
    ends = [transfer(size) for _ in range(times)]
    if said is not None:
        name, notes = said
        grown = f"{(status_number(peer.server, 'VmHWM') * 1024 - before) / MB:.1f}" if before else "unknown"
        key = f"gateway's memory above before, at most, MB, {'down' if name == DOWN else name}"
        notes[key] = f"{notes[key]}, {grown}" if key in notes else grown
    seconds = sorted(took for _, took in ends)
    errors = sum(status != 200 for status, _ in ends)
    rate = size * times / MB / sum(seconds)
    return Run(rate, seconds[len(seconds) // 2] * 1000, seconds[-1] * 1000, errors, cpu_us_per_call(peer.roots, cpu, times))
