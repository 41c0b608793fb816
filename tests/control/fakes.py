"""A gateway that speaks the link and a node that speaks node messages: what control needs beside it, small and real sockets.

Only for tests of control and its API. Both answer at once, record what they were told, and can be told to misbehave.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from dayfly.core.model.function import Function
from dayfly.core.wire import link, node
from dayfly.core.wire.packed import Functions

WAIT_SECONDS = 10.0
M = TypeVar("M")
Judge = Callable[[link.Prove], "link.Proved | None"]


def proves_everything(prove: link.Prove) -> link.Proved:
    return link.Proved(prove.request, True, init_us=1234, start_us=2345, walls=("pidns",), missing=("cgroup",))


class FakeGateway:
    """One link to control. `told` holds every message in order; `catalog` what a real gateway would know."""

    def __init__(self, path: str, name: str = "g1", pid: int = 1, judge: Judge = proves_everything) -> None:
        self.path, self.name, self.pid, self.judge = path, name, pid, judge
        self.told: list[Any] = []
        self.functions: dict[tuple[str, str], Function] = {}
        self.tokens: tuple[Any, ...] = ()
        self.limits: dict[str, Any] = {}
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "FakeGateway":
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        self.send(link.Hello(self.name, self.pid))
        self._task = asyncio.create_task(self._listen())
        await self.wait_told(link.Snapshot)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def send(self, message: Any) -> None:
        self.writer.write(link.encode(message))

    async def wait_told(self, kind: type[M], count: int = 1) -> M:
        """The `count`-th message of a kind."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(found := [it for it in self.told if isinstance(it, kind)]) < count:
                self._moved.clear()
                await self._moved.wait()
        return found[count - 1]

    async def _listen(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # control may leave; tests kill it
            while True:
                size = int.from_bytes(await self.reader.readexactly(link.LENGTH_BYTES), "big")
                message = link.decode_to_gateway(await self.reader.readexactly(size))
                self._apply(message)
                if not isinstance(message, link.Prove | link.UsedToday | link.Accepted | link.Run | link.CancelRun | link.Heard):
                    self.send(link.Applied(message.catalog.revision if isinstance(message, link.Snapshot) else message.revision))
                self.told.append(message)
                self._moved.set()

    def _apply(self, message: Any) -> None:
        match message:
            case link.Snapshot(catalog):
                self.functions = dict(Functions(catalog.functions))
                self.tokens, self.limits = catalog.tokens, dict(catalog.limits)
            case link.FunctionChanged(_, function):
                self.functions[(function.namespace, function.name)] = function
            case link.FunctionRemoved(_, namespace, name):
                self.functions.pop((namespace, name))
            case link.TokensChanged(_, tokens):
                self.tokens = tokens
            case link.LimitsChanged(_, namespace, limits):
                self.limits[namespace] = limits
            case link.Prove():
                answer = self.judge(message)
                if answer is not None:
                    self.send(answer)


class FakeNode:
    """The node's socket. A build writes `files` into DATA/builds/LAYER/out and `output` into the pipe."""

    def __init__(self, path: str, builds: str) -> None:
        self.path, self.builds = path, Path(builds)
        self.runtimes = {"python3.11": "/usr/bin/python3.11", f"python3.{sys.version_info.minor}": sys.executable}
        self.files = {"package/__init__.py": "VALUE = 1\n"}
        self.output = "Resolved 1 package\nInstalled 1 package\n"
        self.ok = True
        self.built: list[str] = []
        self.hold: Awaitable[object] | None = None  # a build waits for it
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "FakeNode":
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.bind(self.path)
        self.sock.listen(8)
        self._spawn(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sock.close()
        Path(self.path).unlink(missing_ok=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self.sock)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        connection.setblocking(False)
        loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
            loop.remove_reader(connection)
            packet, descriptors, _, _ = socket.recv_fds(connection, node.MESSAGE_BYTES_MAX, 4)
            if not packet:
                return
            message = node.decode_to_node(packet)
            if isinstance(message, node.Ask):
                answer: Any = node.Facts(runtimes=self.runtimes, features={"pidns": True, "cgroup": "not here"})
            else:
                assert isinstance(message, node.Build)
                answer = await self._build(message, descriptors[0])
            connection.send(node.encode(answer))
        finally:
            loop.remove_reader(connection)
            connection.close()

    async def _build(self, message: node.Build, pipe: int) -> node.Built:
        self.built.append(message.layer)
        try:
            os.write(pipe, self.output.encode())
            if self.hold is not None:
                await self.hold
            for name, text in self.files.items():
                target = self.builds / message.layer / "out" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        finally:
            os.close(pipe)
        return node.Built(layer=message.layer, ok=self.ok, detail="" if self.ok else "no such package")
