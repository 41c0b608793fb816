"""A control plane over real files and sockets, with a fake gateway and a fake node beside it; for tests of control and its API."""

import asyncio
import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from dayfly.control.bundle import discard
from dayfly.control.deploy import Order
from dayfly.control.events import Event
from dayfly.control.plane import Control
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from tests.control.fakes import FakeGateway, FakeNode, Judge, proves_everything

TEST_SECONDS = 60.0
HELLO = {"hello.py": "def handler(event, context):\n    return 1\n"}


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine with a deadline."""
    asyncio.run(asyncio.wait_for(work, TEST_SECONDS))


@contextmanager
def folders() -> Iterator[Layout]:
    """A fresh data directory with a run directory in it (short: socket paths are), removed afterwards, read-only trees and all."""
    data = Path(tempfile.mkdtemp(prefix="dayfly-control-"))
    layout = Layout(data=str(data), run=str(data / "run"))
    for path in (layout.control, layout.code, layout.layers, layout.builds, layout.control_sockets):
        Path(path).mkdir(parents=True)
    try:
        yield layout
    finally:
        discard(data)
        shutil.rmtree(data, ignore_errors=True)


class World:
    """What a test has in its hands."""

    def __init__(self, control: Control, gateway: FakeGateway, node: FakeNode) -> None:
        self.control, self.gateway, self.node = control, gateway, node

    async def deploy(self, files: dict[str, str] | None = None, name: str = "hello", **overrides: Any) -> list[Event]:
        """Deploy and wait for the last event."""
        return [event async for event in self.control.deploy(order(self.control.layout, files, name, **overrides))]

    def live(self, name: str = "hello", namespace: str = "default") -> tuple[tuple[int, float], ...]:
        """What the gateway believes `live` to be."""
        aliases = self.gateway.functions[(namespace, name)].aliases
        return next(alias.weights for alias in aliases if alias.name == "live")


def order(layout: Layout, files: dict[str, str] | None = None, name: str = "hello", **overrides: Any) -> Order:
    """An order over a zip that was just uploaded."""
    namespace = overrides.pop("namespace", "default")
    fd, path = tempfile.mkstemp(suffix=".zip", dir=layout.builds)
    os.write(fd, zipped(HELLO if files is None else files))
    os.close(fd)
    return Order(namespace=namespace, name=name, bundle=Path(path), overrides=overrides, default_runtime="python3.11")


def zipped(files: dict[str, str]) -> bytes:
    """A zip as a friendly packer makes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@asynccontextmanager
async def world(layout: Layout, judge: Judge = proves_everything, **settings: Any) -> AsyncIterator[World]:
    """Control, started, with one gateway and a node."""
    control = Control(Settings(data=layout.data, run=layout.run, **settings), layout)
    try:
        async with FakeNode(layout.node_socket, layout.builds) as node:
            await control.start()
            async with FakeGateway(layout.link_socket, judge=judge) as gateway:
                yield World(control, gateway, node)
    finally:
        await control.close()
