"""A fake place for instances: same port, same sockets and frames as the real one, no process. Latency, crashes and hangs on demand.

For tests of anything that talks to instances (the gateway's own, and users' of dayfly.testing). It passes tests/provider/, the contract
suite of `Provider`, like provider/local.py does. Handlers are coroutines, so an asyncio test drives everything on one loop.
"""

import asyncio
import fcntl
import mmap
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dayfly.core.wire.node import Accepted, Exited, Start
from dayfly.runtime import frames

Exit = tuple[str, int]  # (reason, code) of core/wire/node.py Exited


@dataclass
class TakenCall:
    """A call as a fake instance sees it."""

    kind: int
    seq: int
    call_id: str
    meta: bytes
    body: bytes
    instance: "FakeInstance"
    stream: socket.socket | None = None  # where a body comes from that is still on its way; the handler's to close


@dataclass(frozen=True)
class FakeAnswer:
    """What a fake handler returns; a `None` instead means: never answer."""

    body: bytes = b"null"
    status: int = 200
    block: bytes = b"content-type: application/json\r\n"
    flags: int = 0
    exec_us: int = 10
    streamed: bool = False  # the handler has sent its frames itself


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


class Crash(Exception):
    """Raised by a fake handler: the instance dies now, as if by this signal."""

    def __init__(self, code: int = 9, reason: str = "signal") -> None:
        self.code = code
        self.reason = reason


Handler = Callable[[TakenCall], Awaitable[FakeAnswer | None]]


async def echo(call: TakenCall) -> FakeAnswer:
    """Answers with the body it was sent."""
    return FakeAnswer(call.body or b"null")


@dataclass
class Behaviour:
    """How instances behave that are started from now on."""

    handler: Handler = echo
    start_seconds: float = 0.0
    init_error: dict[str, Any] | None = None
    refuse: str = ""
    marks: bool = True  # whether calls are marked in the progress page
    ready: Callable[[Start], dict[str, Any]] = lambda _: {"init_us": 100}  # what each says of itself in READY
    instances: list["FakeInstance"] = field(default_factory=list)  # every one ever started


class FakeProvider:
    """A `Provider` whose instances are tasks of this loop."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.connected = True
        self.alive: dict[str, FakeInstance] = {}
        self.weights: dict[str, int] = {}  # of those alive that were given one
        self.on_accepted: Callable[[Accepted], None] = lambda _: None
        self.on_exited: Callable[[Exited], None] = lambda _: None
        self.on_lost: Callable[[], None] = lambda: None

    def start(self, start: Start, descriptors: list[int]) -> bool:
        if not self.connected:
            return False
        if self.behaviour.refuse:
            refused = Exited(start.instance, "refused", detail=self.behaviour.refuse)
            asyncio.get_running_loop().call_soon(self.on_exited, refused)
            return True
        instance = FakeInstance(self, start, [os.dup(fd) for fd in descriptors])
        self.alive[start.instance] = instance
        self.behaviour.instances.append(instance)
        instance.task = asyncio.get_running_loop().create_task(instance.live(self.behaviour))
        return True

    def kill(self, instance: str) -> None:
        if (found := self.alive.get(instance)) is not None:
            found.end("signal", 9)

    def weigh(self, weights: dict[str, int]) -> None:
        self.weights |= {name: weight for name, weight in weights.items() if name in self.alive}

    def lose(self) -> None:
        """The place dies with all its instances: no `on_exited` for any of them."""
        for instance in list(self.alive.values()):
            instance.close()
        self.alive.clear()
        self.on_lost()

    def close(self) -> None:
        self.connected = False
        for instance in list(self.alive.values()):
            instance.close()
        self.alive.clear()


class FakeInstance:
    """One instance: pulls from the shared socket like runtime/agent.py does."""

    def __init__(self, place: FakeProvider, start: Start, descriptors: list[int]) -> None:
        self.start = start
        self.calls: list[TakenCall] = []
        self.boot: dict[str, Any] = {}  # what BOOT said, once it was read
        self.closed = False
        self.task: asyncio.Task[None] | None = None
        self._place = place
        self._requests = socket.socket(fileno=descriptors[0])  # stays blocking, as instances share it: hence MSG_DONTWAIT
        self._answers = socket.socket(fileno=descriptors[1])
        self._answers.setblocking(False)
        self._page = mmap.mmap(descriptors[2], frames.PROGRESS_BYTES)
        os.close(descriptors[2])
        self.output = descriptors[3]
        self._others = descriptors[4:]

    async def live(self, behaviour: Behaviour) -> None:
        loop = asyncio.get_running_loop()
        try:
            head = await loop.sock_recv(self._answers, frames.CONTROL.size)
            _, size, _ = frames.CONTROL.unpack(head)
            self.boot = msgspec.json.decode(await loop.sock_recv(self._answers, size))
            self._place.on_accepted(Accepted(self.start.instance, pid=1, walls=("fake",)))
            if behaviour.start_seconds:
                await asyncio.sleep(behaviour.start_seconds)
            if behaviour.init_error is not None:
                await self.send(frames.FAILED, 0, 0, 0, 0, msgspec.json.encode(behaviour.init_error))
                self.end("exit", 1)
                return
            await self.send(frames.READY, 0, 0, 0, 0, msgspec.json.encode(behaviour.ready(self.start)))
            if self.start.role != "instance":
                await asyncio.Event().wait()  # a template serves no call
            while await self._one(behaviour):
                pass
            await self.send(frames.RETIRED)
            self.end("exit", 0)
        except Crash as crash:
            self.end(crash.reason, crash.code)
        except OSError:
            self.end("signal", 9)

    async def _one(self, behaviour: Behaviour) -> bool:
        packet, rights = await self._take()
        if not packet:
            return False
        kind, flags, id_size, meta_size, seq, deadline_ns = frames.REQUEST.unpack_from(packet)
        if kind == frames.RETIRE:
            return False
        if time.monotonic_ns() > deadline_ns:
            return True
        at = frames.REQUEST.size
        call_id, meta, body = packet[at : at + id_size], packet[at + id_size : at + id_size + meta_size], packet[at + id_size + meta_size :]
        if flags & frames.BODY_IN_FD:
            with os.fdopen(rights[0], "rb") as file:
                file.seek(0)
                body = file.read()
        if behaviour.marks:
            self._page[: frames.SLOT.size] = frames.SLOT.pack(seq, time.monotonic_ns())
        stream = socket.socket(fileno=rights[0]) if flags & frames.BODY_IN_STREAM else None
        if stream is not None:
            stream.setblocking(False)
        call = TakenCall(kind, seq, call_id.decode(), meta, body, self, stream)
        self.calls.append(call)
        answer = await behaviour.handler(call)
        if answer is None:
            await asyncio.Event().wait()
        assert answer is not None
        self._page[: frames.SLOT.size] = frames.SLOT.pack(0, 0)
        if not answer.streamed:
            await self.send(frames.RESULT, answer.flags, answer.status, answer.exec_us, seq, answer.block, answer.body)
        return not flags & frames.LAST

    async def _take(self) -> tuple[bytes, list[int]]:
        """The next message; waits for the socket to be readable and lets others be faster."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet, ancillary, _, _ = self._requests.recvmsg(frames.MESSAGE_BYTES_MAX, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
                return packet, [int.from_bytes(data[:4], sys.byteorder) for _, _, data in ancillary]
            except BlockingIOError:
                readable = loop.create_future()
                fd = fcntl.fcntl(self._requests.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)  # many fakes share one description
                loop.add_reader(fd, _wake, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(fd)
                    os.close(fd)

    async def send(self, kind: int, flags: int = 0, status: int = 0, exec_us: int = 0, seq: int = 0, *payload: bytes) -> None:
        """Write one answer frame; `payload` is meta, then body, each may be missing."""
        meta, body = (*payload, b"", b"")[:2]
        frame = frames.ANSWER.pack(kind, flags, status, len(meta), len(body), exec_us, seq) + meta + body
        await asyncio.get_running_loop().sock_sendall(self._answers, frame)

    async def next_move(self) -> tuple[int, socket.socket]:
        """Wait until the gateway offers a stream a socket of its own (frames.MOVE): the call's number, and the socket."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._answers, frames.CONTROL.size, 1)
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._answers, _wake, readable)
                await readable
                loop.remove_reader(self._answers)
                continue
            kind, _, seq = frames.CONTROL.unpack(data)
            if kind == frames.MOVE:
                way = socket.socket(fileno=fds[0])
                way.setblocking(False)
                return seq, way

    async def send_raw(self, data: bytes) -> None:
        """Write whatever bytes, for hostile tests."""
        await asyncio.get_running_loop().sock_sendall(self._answers, data)

    def end(self, reason: str, code: int) -> None:
        """This instance is over; tell as the node would."""
        if self.closed:
            return
        self.close()
        self._place.alive.pop(self.start.instance, None)
        exited = Exited(self.start.instance, reason, code)  # type: ignore[arg-type]
        asyncio.get_running_loop().call_soon(self._place.on_exited, exited)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.task is not None and self.task is not asyncio.current_task():
                self.task.cancel()
            self._requests.close()
            self._answers.close()
            for fd in (self.output, *self._others):
                os.close(fd)
