"""Plays the gateway and the node for one instance: real descriptors, a forked interpreter, the real agent. No sandbox.

    with Driver(code={"handler.py": "..."}) as instance:
        instance.boot()
        assert instance.invoke({"a": 1}).json() == …

Every wait has a deadline; `close` ends the process and closes every descriptor, also when a test fails.
"""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dayfly.runtime import frames

SOURCE = Path(__file__).resolve().parents[2] / "src"
PATIENCE_SECONDS = 20.0

# What the node's zygote does, in small: import everything, then serve. The program's own file and folder are not on sys.path.
PROGRAM = """
import os, sys
os.environ.clear()
sys.path.insert(0, {source!r})
from dayfly.runtime import agent
{rehearse}
sys.path.remove({source!r})
os.chdir({task!r})
agent.serve({requests}, {answers}, {progress}, task_root={task!r}, layer_root={layer!r})
"""


@dataclass
class Frame:
    """One frame as it came from the instance."""

    kind: int
    flags: int
    status: int
    exec_us: int
    seq: int
    meta: bytes
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def failed(self) -> bool:
        return bool(self.flags & frames.ERROR)

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [tuple(line.split(": ", 1)) for line in self.meta.decode().split("\r\n") if line]  # type: ignore[misc]


@dataclass
class Answer(Frame):
    """A whole answer, and the LOG frames of its call that came before it."""

    logs: list[Frame] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(log.body.decode() for log in self.logs)


def interpreters() -> list[str]:
    """This interpreter, and the other supported ones that pyenv has."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for folder in sorted(Path.home().glob(".pyenv/versions/3.1[123].*")):
        found.setdefault(".".join(folder.name.split(".")[:2]), str(folder / "bin/python"))
    return [found[name] for name in sorted(found)]


def http_head(method: str = "GET", path: str = "/", query: str = "", headers: list[tuple[str, str]] | None = None) -> bytes:
    lines = [method, path, query, "192.0.2.7", "http", *(f"{name}: {value}" for name, value in headers or [("host", "fn.example:8080")])]
    return "\n".join(lines).encode()


class Driver:
    """One instance and the gateway's ends of its descriptors."""

    def __init__(
        self,
        code: dict[str, str],
        *,
        python: str = sys.executable,
        layer: dict[str, str] | None = None,
        as_init: bool = False,
        rehearsed: bool = True,
        shared: tuple[socket.socket, socket.socket] | None = None,
        **boot: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dayfly-runtime-")
        self.task, self.layer = f"{self._folder.name}/task", f"{self._folder.name}/layer"
        self._write(self.task, code)
        if layer:
            self._write(self.layer, layer)
        self.seq = 0
        self.frames: deque[Frame] = deque()  # read, and not asked for yet
        self.seen: list[Frame] = []  # all of them
        self._rest = bytearray()
        if shared:  # with another instance of the same version
            self.requests, requests = (end.dup() for end in shared)
        else:
            self.requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.answers, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        progress = os.memfd_create("progress")
        os.ftruncate(progress, frames.PROGRESS_BYTES)
        self._progress = progress
        self._output, output = os.pipe()
        handed = os.dup(progress)
        program = PROGRAM.format(
            rehearse="agent.rehearse()" if rehearsed else "",
            source=str(SOURCE),
            task=self.task,
            layer=self.layer,
            requests=requests.fileno(),
            answers=answers.fileno(),
            progress=handed,
        )
        command = [python, "-I", "-S", "-B", "-c", program]
        if as_init:
            command = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(requests.fileno(), answers.fileno(), handed),
            start_new_session=True,
        )
        os.close(output)
        os.close(handed)
        self.receiver = requests  # a gateway keeps it: calls that nobody has taken outlive an instance
        answers.close()
        self._boot = {
            "namespace": "default",
            "function": "hello",
            "version": 3,
            "instance": "i-1",
            "handler": "handler.handler",
            "memory_mb": 128,
            "timeout_seconds": 30,
            "concurrency": 1,
            "env": {},
            "secrets": [],
        } | boot

    @staticmethod
    def _write(root: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    # ---- the gateway's side ---------------------------------------------------------------------------------------------------

    def boot(self) -> Frame:
        """Send BOOT and wait for READY or FAILED; what was logged before is in `seen`."""
        body = json.dumps(self._boot).encode()
        self.answers.sendall(frames.CONTROL.pack(frames.BOOT, len(body), 0) + body)
        return self.wait_for(lambda frame: frame.kind in (frames.READY, frames.FAILED))

    def send(
        self,
        kind: int,
        body: bytes = b"",
        meta: bytes = b"",
        *,
        seconds: float = 30.0,
        call_id: str = "",
        fd: bool = False,
        last: bool = False,
    ) -> int:
        """Put one call into the requests socket; returns its number. `fd`: the body rides as a memfd. `last`: leave after it."""
        self.seq += 1
        identifier = (call_id or f"call-{self.seq}").encode()
        deadline = max(0, time.monotonic_ns() + int(seconds * 1e9))
        flags = (frames.BODY_IN_FD if fd else 0) | (frames.LAST if last else 0)
        head = frames.REQUEST.pack(kind, flags, len(identifier), len(meta), self.seq, deadline) + identifier + meta
        if not fd:
            self.requests.sendall(head + body)
            return self.seq
        memory = os.memfd_create("body")
        try:
            view = memoryview(body)
            while view:
                view = view[os.write(memory, view) :]
            self.requests.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memory]))])
        finally:
            os.close(memory)
        return self.seq

    def send_streamed(self, meta: bytes, *, seconds: float = 30.0, kind: int = frames.HTTP) -> tuple[int, socket.socket]:
        """A call whose body is still on its way: its number, and where the body is to be written. Closing that without `end_body`
        breaks it off, as gateway/upload.py has it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if kind == frames.HTTP:
            theirs.send(b"!")
        self.seq += 1
        identifier = f"call-{self.seq}".encode()
        deadline = time.monotonic_ns() + int(seconds * 1e9)
        head = frames.REQUEST.pack(kind, frames.BODY_IN_STREAM, len(identifier), len(meta), self.seq, deadline)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]))]
            self.requests.sendmsg([head, identifier, meta], rights)
        return self.seq, ours

    def move(self, seq: int) -> socket.socket:
        """Offer the instance a socket for the rest of a stream; returns our end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]))]
            self.answers.sendmsg([frames.CONTROL.pack(frames.MOVE, 0, seq)], rights)
        ours.settimeout(PATIENCE_SECONDS)
        return ours

    def invoke(self, event: Any = None, **options: Any) -> Answer:
        """A direct call with a JSON event, and its whole answer."""
        return self.answer(self.send(frames.DIRECT, json.dumps(event).encode(), **options))

    def request(self, head: bytes = b"", body: bytes = b"", **options: Any) -> Answer:
        """An HTTP call, and its whole answer."""
        return self.answer(self.send(frames.HTTP, body, head or http_head(), **options))

    def answer(self, seq: int) -> Answer:
        """Wait for the RESULT of a call; with the LOG frames of the same call that came before."""
        result = self._known(seq, frames.RESULT) or self.wait_for(lambda frame: frame.seq == seq and frame.kind == frames.RESULT)
        return Answer(**vars(result), logs=[f for f in self.seen if f.kind == frames.LOG and f.seq == seq])

    def stream(self, seq: int) -> list[Frame]:
        """Wait for the END of a streamed call; its HEAD, CHUNK and END frames in order."""
        if self._known(seq, frames.END) is None:
            self.wait_for(lambda frame: frame.seq == seq and frame.kind == frames.END)
        return [f for f in self.seen if f.seq == seq and f.kind in (frames.HEAD, frames.CHUNK, frames.END)]

    def stream_through(self, seq: int) -> bytes:
        """A streamed answer's bytes, all in frames."""
        return b"".join(frame.body for frame in self.stream(seq) if frame.kind != frames.END)

    def _known(self, seq: int, kind: int) -> Frame | None:
        return next((frame for frame in self.seen if frame.seq == seq and frame.kind == kind), None)

    def cancel(self, seq: int) -> None:
        self.answers.sendall(frames.CONTROL.pack(frames.CANCEL, 0, seq))

    def retire(self) -> None:
        self.requests.sendall(frames.REQUEST.pack(frames.RETIRE, 0, 0, 0, 0, 0))

    def wait_for(self, wanted: Any) -> Frame:
        """Read frames until one is wanted. Fails at end of file and when patience ends."""
        while True:
            while self.frames:
                frame = self.frames.popleft()
                self.seen.append(frame)
                if wanted(frame):
                    return frame
            self._read(time.monotonic() + PATIENCE_SECONDS)

    def _read(self, deadline: float) -> None:
        readable, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"nothing came within {PATIENCE_SECONDS} s; output: {self.output()!r}"
        data = self.answers.recv(1 << 20)
        assert data, f"the instance has gone; output: {self.output()!r}; frames: {self.seen[-3:]}"
        self._rest += data
        at, size = 0, frames.ANSWER.size
        while len(self._rest) - at >= size:
            kind, flags, status, meta, body, exec_us, seq = frames.ANSWER.unpack_from(self._rest, at)
            assert kind in range(frames.READY, frames.MOVED + 1), "garbage"
            if len(self._rest) - at < size + meta + body:
                break
            start = at + size
            data = bytes(self._rest[start : start + meta + body])
            self.frames.append(Frame(kind, flags, status, exec_us, seq, data[:meta], data[meta:]))
            at = start + meta + body
        del self._rest[:at]

    def slots(self) -> list[int]:
        """Sequence numbers in the progress page."""
        page = os.pread(self._progress, frames.PROGRESS_BYTES, 0)
        return [seq for at in range(frames.SLOTS_MAX) if (seq := frames.SLOT.unpack_from(page, at * frames.SLOT.size)[0])]

    def wait_idle(self) -> None:
        """Until the progress page is empty: a slot is cleared just after its answer is out."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.slots():
            assert time.monotonic() < deadline, f"still in the page: {self.slots()}"

    # ---- the node's side ------------------------------------------------------------------------------------------------------

    def output(self) -> bytes:
        """What was written to descriptors 1 and 2 so far."""
        data = b""
        while select.select([self._output], [], [], 0)[0]:
            piece = os.read(self._output, 65536)
            if not piece:
                break
            data += piece
        return data

    def wait_output(self, wanted: bytes) -> bytes:
        """Read descriptors 1 and 2 until `wanted` was written."""
        data, deadline = b"", time.monotonic() + PATIENCE_SECONDS
        while wanted not in data:
            assert select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))[0], data
            piece = os.read(self._output, 65536)
            assert piece, data
            data += piece
        return data

    def wait_exit(self) -> int:
        """The process's exit status; negative for a signal."""
        return self.process.wait(PATIENCE_SECONDS)

    def cpu_seconds(self) -> float:
        """CPU time of the instance so far (it must still be running)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for end in (self.requests, self.receiver, self.answers):
            end.close()
        for fd in (self._progress, self._output):
            os.close(fd)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def children_cpu() -> float:
    """CPU seconds of all children of this process that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
