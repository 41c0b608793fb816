"""A whole gateway on one loop with fake instances: real HTTP port, real sockets and frames, no control and no node."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dayfly.core.decide import access
from dayfly.core.model.function import Alias, Catalog, Function, FunctionConfig, Packed, Token, Version
from dayfly.core.model.settings import Settings
from dayfly.core.wire.link import ToControl
from dayfly.core.wire.packed import pack
from dayfly.gateway.asynchronous import Door
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.dispatch import Dispatch
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.leased import Runner
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.server import Connection
from dayfly.gateway.site import Site
from dayfly.testing.provider import Behaviour, FakeProvider

SECRET = "s" * 43
TOKEN = access.token_text("abcdefgh", SECRET)
BEARER = f"authorization: Bearer {TOKEN}\r\n"


def function(name: str = "hello", number: int = 1, *, secrets: dict[str, bytes] | None = None, **config: Any) -> Function:
    """A function with one version, live."""
    config = {"auth": "none", "runtime": "python3.11", "timeout_seconds": 5.0} | config
    version = Version(namespace="default", function=name, number=number, config=FunctionConfig(**config), code_digest="0" * 64)
    alias = Alias(name="live", weights=((number, 1.0),))
    return Function(namespace="default", name=name, aliases=(alias,), versions=(version,), secrets=secrets or {})


def packed(*functions: Function) -> tuple[Packed, ...]:
    """As a snapshot has them."""
    return tuple(Packed(it.namespace, it.name, pack(it)) for it in functions)


class Rig:
    """The gateway's parts, and a client."""

    def __init__(self, behaviour: Behaviour, settings: Settings) -> None:
        self.behaviour = behaviour
        self.settings = settings
        self.provider = FakeProvider(behaviour)
        self.ledger = Ledger(settings)
        self.catalog = CatalogMirror()
        self.fleet = Fleet(settings, self.provider, self.ledger, "gtest")
        self.said: list[ToControl] = []
        self.is_linked = False
        self.door = Door(settings, self.say)
        self.runner = Runner(settings, self.catalog, self.fleet, self.say, self.provider.kill)
        self.site = Site(settings)
        self.dispatch = self.site.dispatcher = Dispatch(
            settings, self.catalog, self.fleet, self.ledger, Forwarder(settings, "/nonexistent/api.sock"), self.door
        )
        self.port = 0

    def say(self, message: ToControl) -> bool:
        """What control would hear, if there were one (`is_linked`)."""
        if self.is_linked:
            self.said.append(message)
        return self.is_linked

    def serve(self, *functions: Function) -> None:
        """Make these the catalog."""
        token = Token(id="abcdefgh", digest=access.digest(SECRET), namespaces=("default",), verbs=("invoke",))
        self.catalog.replace(Catalog(revision=1, functions=packed(*functions), tokens=(token,)))
        self.fleet.functions_changed(self.catalog.names, None)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a new connection, read everything until the gateway closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    async def request(self, method: str, target: str, headers: str = "", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """One request on its own connection: (status, headers in lower case, body with chunks joined)."""
        length = f"content-length: {len(body)}\r\n" if body or method in ("POST", "PUT") else ""
        head = f"{method} {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}{length}\r\n"
        return parse(await self.raw(head.encode() + body))

    def check_conservation(self) -> None:
        """The first law, for every pool."""
        for entry in [*self.fleet._entries.values(), *self.fleet._leaving]:
            pool = entry.pool
            assert pool.submitted_count == len(pool.waiting) + len(pool.offered) + pool.answered_count, pool
        assert self.site.buffered == 0 or self.fleet.busy


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """One whole HTTP answer taken apart."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        body = dechunk(body)
    return int(lines[0].split()[1]), headers, body


def dechunk(data: bytes) -> bytes:
    """Join chunks; raises ValueError when the last one is missing."""
    out = []
    while True:
        size, _, data = data.partition(b"\r\n")
        if not size:
            raise ValueError("the stream was cut")
        length = int(size, 16)
        if length == 0:
            return b"".join(out)
        out.append(data[:length])
        data = data[length + 2 :]


@asynccontextmanager
async def gateway(behaviour: Behaviour | None = None, **settings: Any) -> AsyncIterator[Rig]:
    """A serving gateway; ends everything and checks the first law."""
    rig = Rig(behaviour or Behaviour(), Settings(**settings))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(rig.site), "127.0.0.1", 0)
    rig.port = server.sockets[0].getsockname()[1]
    stop = asyncio.Event()

    async def tick() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.01)
            rig.fleet.tick(rig.catalog.names)
            rig.site.tick()
            for part in (rig.door, rig.runner):
                part.tick(time.monotonic())

    ticking = asyncio.get_running_loop().create_task(tick())
    try:
        yield rig
        rig.check_conservation()
    finally:
        stop.set()
        await ticking
        server.close()
        for connection in (*rig.site.connections, *rig.site.turned_away):
            connection.abort()
        rig.provider.connected = False  # nothing starts any more while all ends
        rig.fleet.close()
        rig.provider.close()


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for a condition that another task of this loop makes true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
