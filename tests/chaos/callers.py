"""Callers that tell the judge what became of every call: keep-alive lines, light load on both doors, and one call on its own.

Raw sockets, so that a second answer, or one that nobody asked for, is seen: whatever a line holds beyond its answer is a fault.
"""

import select
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Self

from tests.chaos.judge import GRACE_SECONDS, TIMEOUT_SECONDS, Judge

PATIENCE_SECONDS = TIMEOUT_SECONDS + GRACE_SECONDS


def request(judge: Judge, name: str, call: str, *, direct: bool = False, pause: float = 0, way: str = "", pad: int = 0) -> bytes:
    """The bytes of one call, of either door. `pad` more bytes of body."""
    if direct:
        wish = f', "way": "{way}"' if way else ""
        body = f'{{"sent": "{call}", "pause": {pause}{wish}, "pad": "{"x" * pad}"}}'.encode()
        target = f"/api/v1/functions/{name}/invoke"
        headers = f"authorization: Bearer {judge.platform.token}\r\ncontent-type: application/json\r\n"
    else:
        body, headers = b"x" * pad, ""
        target = f"/function/{name}?sent={call}&pause={pause}" + (f"&way={way}" if way else "")
    head = f"POST {target} HTTP/1.1\r\nhost: test\r\nx-call-id: {call}\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Answers:
    """Takes HTTP answers out of bytes as they come. Answers of these tests have a Content-Length."""

    def __init__(self) -> None:
        self.data = b""

    def take(self) -> tuple[int, dict[str, str], bytes] | None:
        """The next whole one: (status, headers in lower case, body)."""
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return None
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers.get("content-length", 0))
        if len(rest) < size:
            return None
        self.data = rest[size:]
        return int(lines[0].split()[1]), headers, rest[:size]


class Line:
    """One keep-alive connection that makes one call after another; it is made again when it breaks."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.socket: socket.socket | None = None

    def call(self, name: str, *, excused: bool = False, **wishes: object) -> str:
        """Make one call and tell the judge. Returns its id."""
        call = self.judge.ask()
        if excused:
            self.judge.excused.add(call)
        data = request(self.judge, name, call, **wishes)  # type: ignore[arg-type]
        try:
            line = self._ready()
        except OSError as error:
            self.judge.tell(call, "unsent", type(error).__name__)
            return call
        try:
            line.sendall(data)
            self._receive(line, call)
        except OSError as error:
            self.judge.tell(call, "cut", type(error).__name__)
            self.close()
        return call

    def _ready(self) -> socket.socket:
        """A connection on which nothing waits: what came unasked is a fault, an end of it is not."""
        if self.socket is not None and select.select([self.socket], [], [], 0)[0]:
            with suppress(OSError):
                if unasked := self.socket.recv(65536):
                    self.judge.fault(f"an answer that nobody asked for: {unasked[:300]!r}")
            self.close()
        if self.socket is None:
            self.socket = socket.create_connection(self.judge.platform.address, timeout=PATIENCE_SECONDS)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket

    def _receive(self, line: socket.socket, call: str) -> None:
        answers = Answers()
        while (answer := answers.take()) is None:
            block = line.recv(65536)
            if not block:
                raise ConnectionResetError("closed")
            answers.data += block
        if answers.data:
            self.judge.fault(f"{call} was answered twice: {answers.data[:300]!r}")
        self.judge.heard(call, *answer)
        if answer[1].get("connection") == "close":
            self.close()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def once(judge: Judge, name: str) -> bool:
    """One call on a connection of its own: whether it was answered well."""
    line = Line(judge)
    try:
        return judge.told[line.call(name)].verdict == "answered"
    finally:
        line.close()


class Load:
    """`with Load(judge, names):` threads that call until the body ends, each through both doors in turn."""

    def __init__(self, judge: Judge, names: Sequence[str], *, threads: int = 6, seed: int = 0, pause_max: float = 0.01) -> None:
        self.judge = judge
        self._over = threading.Event()
        arguments = [(names, Random(f"{seed} {number}"), pause_max) for number in range(threads)]
        self._running = [threading.Thread(target=self._run, args=these, daemon=True) for these in arguments]

    def __enter__(self) -> Self:
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._running:
            thread.join(PATIENCE_SECONDS + 5)
            assert not thread.is_alive(), f"a call neither was answered nor did its connection fail; {self.judge}"

    def wait_answers(self, more: int = 20) -> None:
        """Until so many more good answers have come."""
        goal = self.judge.answered + more
        self.judge.wait(f"{more} more good answers", lambda: self.judge.answered >= goal)

    def _run(self, names: Sequence[str], dice: Random, pause_max: float) -> None:
        line = Line(self.judge)
        while not self._over.is_set():
            pause = round(dice.random() * pause_max, 4) if dice.random() < 0.3 else 0
            call = line.call(dice.choice(names), direct=dice.random() < 0.5, pause=pause)
            if self.judge.told[call].verdict != "answered":
                self._over.wait(0.01)  # the port may be without anybody for a moment, or has said when to come again
        line.close()
