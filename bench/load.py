"""Load and latency drivers: wrk where it is there, an epoll loop of ours otherwise, and one whole call at a time.

The caller prepares the request once; nothing here parses more of an answer than its status and length.
"""

import gc
import json
import select
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.outcome import Run, quantile

ANSWER_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Request:
    """An HTTP request, prepared."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def raw(self, host: str) -> bytes:
        """Its bytes, for a keep-alive connection."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if self.body or self.method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass
class Reply:
    """An answer: status, header lines in lower case, body, and how long it took."""

    status: int
    head: str
    body: bytes
    milliseconds: float

    @property
    def good(self) -> bool:
        """Whether the handler answered: a direct call that fails says 200 with a header, as Lambda's does."""
        return self.status < 400 and not self.header("x-amz-function-error")

    def header(self, name: str) -> str:
        """A header's value, '' without one."""
        return next((line.split(":", 1)[1].strip() for line in self.head.split("\r\n")[1:] if line.lower().startswith(f"{name}:")), "")


class Client:
    """One keep-alive connection that makes whole calls and says how long each took, to the last byte."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.socket = socket.create_connection(address, timeout=ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, raw: bytes) -> Reply:
        """Send and receive one call. Raises ConnectionError when the server leaves, TimeoutError when it does not answer."""
        begun = time.perf_counter_ns()
        self.socket.sendall(raw)
        data = self.socket.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0 or len(data) < end + 4 + body_length(data[:end]):
            block = self.socket.recv(65536)
            if not block:
                raise ConnectionError(f"the server left after {data[:200]!r}")
            data += block
        elapsed = (time.perf_counter_ns() - begun) / 1e6
        return Reply(int(data[9:12]), data[:end].decode("latin-1"), data[end + 4 :], elapsed)

    def close(self) -> None:
        self.socket.close()


def body_length(head: bytes) -> int:
    """Content-Length of a header block; 0 without one (the drivers need servers that send one)."""
    position = head.lower().find(b"\r\ncontent-length:")
    return 0 if position < 0 else int(head[position + 17 :].split(b"\r\n", 1)[0])


def spaced_calls(client: Client, requests: list[bytes], pause_seconds: float) -> tuple[list[Reply], int]:
    """One call after another, with idle time before each. Returns the good answers and the number of others."""
    replies, errors = [], 0
    gc.collect()
    gc.disable()
    try:
        for raw in requests:
            time.sleep(pause_seconds)  # the thing that is measured: a call that comes after silence
            reply = client.call(raw)
            if reply.good:
                replies.append(reply)
            else:
                errors += 1
    finally:
        gc.enable()
    return replies, errors


def wrk_there() -> bool:
    """Whether wrk is installed; without it the slower driver of our own makes the load, and the report says so."""
    return shutil.which("wrk") is not None


def closed_loop(address: tuple[str, int], request: Request, connections: int, seconds: float) -> tuple[Run, int]:
    """`connections` callers, each sending its next call when it has its answer. Returns the run (value: calls/s) and the calls made."""
    drive = _wrk if wrk_there() else _own
    return drive(address, request, connections, seconds)


SCRIPT = """
wrk.method = {method}
wrk.body = {body}
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  local shape = '\\nRESULT {{"calls": %d, "us": %d, "p50": %.1f, "p99": %.1f, "errors": %d}}\\n'
  io.write(string.format(shape, summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def _lua(text: str) -> str:
    return '"' + "".join(c if c.isalnum() or c in " -_/.:,;=?&{}[]+*" else f"\\{ord(c):03d}" for c in text) + '"'


def _wrk(address: tuple[str, int], request: Request, connections: int, seconds: float) -> tuple[Run, int]:
    headers = "\n".join(f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in request.headers.items())
    body = _lua(request.body.decode("latin-1")) if request.body else "nil"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(method=_lua(request.method), body=body, headers=headers))
        script.flush()
        url = f"http://{address[0]}:{address[1]}{request.path}"
        options = [
            f"-t{min(2, connections)}",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout=10s",
            "-s",
            script.name,
        ]
        done = subprocess.run(["wrk", *options, url], capture_output=True, text=True, timeout=seconds + 60)
    said = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if said is None:
        raise RuntimeError(f"wrk said: {done.stdout}{done.stderr}")
    figures = json.loads(said.removeprefix("RESULT "))
    rate = figures["calls"] * 1e6 / figures["us"]
    return Run(rate, figures["p50"] / 1000, figures["p99"] / 1000, figures["errors"]), figures["calls"]


class _Caller:
    """One connection of our own load driver."""

    __slots__ = ("begun", "data", "socket")

    def __init__(self, address: tuple[str, int], raw: bytes) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(raw)

    def send(self, raw: bytes) -> None:
        self.data = b""
        self.begun = time.perf_counter_ns()
        self.socket.sendall(raw)

    def receive(self) -> int:
        """0 while the answer is incomplete, else its status; -1 when the server left."""
        block = self.socket.recv(65536)
        self.data += block
        end = self.data.find(b"\r\n\r\n")
        if end >= 0 and len(self.data) >= end + 4 + body_length(self.data[:end]):
            return int(self.data[9:12])
        return 0 if block else -1


def _own(address: tuple[str, int], request: Request, connections: int, seconds: float) -> tuple[Run, int]:
    raw = request.raw(f"{address[0]}:{address[1]}")
    callers = {caller.socket.fileno(): caller for caller in (_Caller(address, raw) for _ in range(connections))}
    epoll = select.epoll()
    for descriptor in callers:
        epoll.register(descriptor, select.EPOLLIN)
    samples: list[float] = []
    errors, begun = 0, time.monotonic()
    while callers and time.monotonic() < begun + seconds:
        for descriptor, _ in epoll.poll(1.0):
            caller = callers[descriptor]
            status = caller.receive()
            if status == 0:
                continue
            samples.append((time.perf_counter_ns() - caller.begun) / 1e6)
            errors += not 200 <= status < 400
            if status > 0:
                caller.send(raw)
            else:
                epoll.unregister(descriptor)
                callers.pop(descriptor).socket.close()
    elapsed = time.monotonic() - begun
    for caller in callers.values():
        caller.socket.close()
    epoll.close()
    return Run(len(samples) / elapsed, quantile(samples, 0.5), quantile(samples, 0.99), errors), len(samples)


def save_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_text(text)
    temporary.replace(path)
