"""The line to control: catalog in, usage, logs and statistics out. Broken lines are made again; calls never wait for it.

Called by gateway/main.py, which gives it a task of its own. What control says is applied between two awaits, so that no call ever sees
half a change.
"""

import asyncio
import time
from typing import Protocol

import msgspec
import structlog

from dayfly.core.model.records import GatewayStatistics
from dayfly.core.wire.link import (
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    Applied,
    FunctionChanged,
    FunctionRemoved,
    Hello,
    LimitsChanged,
    Logs,
    Prove,
    Proved,
    Snapshot,
    Statistics,
    ToControl,
    ToGateway,
    TokensChanged,
    Usage,
    UsedToday,
    decode_to_gateway,
    encode,
)
from dayfly.core.wire.node import Accepted
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.channel import Channel
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.site import Site

log = structlog.get_logger()

RECONNECT_SECONDS = 0.1
FLUSH_SECONDS = 0.1
STATISTICS_SECONDS = 1.0
LOG_BATCH = 1000
OUTGOING_BYTES_MAX = 8 * 1024 * 1024  # unread by control beyond this: it is stuck, keep records here instead


class Listener(Protocol):
    """Who else speaks with control over this line: asynchronous calls (gateway/asynchronous.py, leased.py)."""

    def linked(self) -> None:
        """There is a control that has just been told Hello."""

    def take(self, message: ToGateway) -> None:
        """What it said, if it is not about the catalog."""


class Link:
    """One gateway's connection to control."""

    def __init__(self, path: str, hello: Hello, parts: tuple[CatalogMirror, Fleet, Ledger, Site]) -> None:
        self._path = path
        self._hello = hello
        self._catalog, self._fleet, self._ledger, self._site = parts
        self._writer: asyncio.StreamWriter | None = None
        self._statistics_at = 0.0
        self.ready = asyncio.Event()  # set when the first snapshot has arrived
        self.listeners: list[Listener] = []

    async def run(self) -> None:
        """Connect, listen, connect again; ends only by cancellation."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=1024 * 1024)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._writer = writer
            try:
                self.say(self._hello)
                self._ledger.tell_all()  # maybe to a control that knows nothing
                for listener in self.listeners:
                    listener.linked()
                async with asyncio.TaskGroup() as group:
                    flushing = group.create_task(self._flush_forever())
                    await self._listen(reader)
                    flushing.cancel()
            except* (OSError, asyncio.IncompleteReadError, msgspec.DecodeError, ValueError) as group_error:
                log.warning("control_link_lost", error=repr(group_error.exceptions[0]))
            finally:
                self._writer = None
                writer.close()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
            if size > MESSAGE_BYTES_MAX:
                raise ValueError(f"link message of {size} bytes")
            self._take(decode_to_gateway(await reader.readexactly(size)))

    def _take(self, message: ToGateway) -> None:
        if isinstance(message, Snapshot):
            different = self._catalog.replace(message.catalog)
            self._fleet.limits.replace(message.catalog.limits, self._catalog.functions)
            self._fleet.limits_changed()
            self._fleet.functions_changed(self._catalog.names, None)
            self._ledger.forget(self._catalog.functions)
            for key in different:
                self._fleet.warm(self._catalog.functions[key])
            self.ready.set()
        elif isinstance(message, FunctionChanged):
            function = message.function
            self._catalog.set_function(message.revision, function)
            self._fleet.functions_changed(self._catalog.names, (function.namespace, function.name))
            self._fleet.warm(function)
        elif isinstance(message, FunctionRemoved):
            self._catalog.remove_function(message.revision, message.namespace, message.name)
            self._fleet.functions_changed(self._catalog.names, (message.namespace, message.name))
            self._ledger.forget_function(message.namespace, message.name)
            self._fleet.limits.remove_function(message.namespace, message.name)
        elif isinstance(message, TokensChanged):
            self._catalog.set_tokens(message.revision, message.tokens)
        elif isinstance(message, LimitsChanged):
            self._catalog.revision = message.revision
            self._fleet.limits.set_namespace(message.namespace, message.limits)
            self._fleet.limits_changed(message.namespace)
        elif isinstance(message, UsedToday):
            self._fleet.limits.told(message.day, message.consumed)
            return
        elif isinstance(message, Prove):
            self._prove(message)
            return
        else:
            for listener in self.listeners:
                listener.take(message)
            return
        self.say(Applied(self._catalog.revision))

    def _prove(self, message: Prove) -> None:
        version = next((it for it in message.function.versions if it.number == message.number), None)
        if version is None:
            error: dict[str, object] = {
                "errorType": "Sandbox.Failure",
                "errorMessage": "The version to prove is not in the message.",
            }
            self.say(Proved(message.request, False, error=error))
            return

        def prover(channel: Channel | None, error: dict[str, object]) -> None:
            walls = channel.accepted if channel is not None else None
            self.say(
                Proved(
                    message.request,
                    ok=not error,
                    init_us=channel.init_us if channel is not None else 0,
                    start_us=channel.start_us if channel is not None else 0,
                    error=error,
                    log=channel.tail.decode("utf-8", "replace") if channel is not None else "",
                    walls=walls.walls if isinstance(walls, Accepted) else (),
                    missing=walls.missing if isinstance(walls, Accepted) else (),
                    is_async=channel is None or channel.is_async,
                )
            )

        self._fleet.prove(message.function, version, prover)

    # ---- outwards --------------------------------------------------------------------------------------------------------------

    def say(self, message: ToControl) -> bool:
        """Send now; False when there is nobody to hear it."""
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(encode(message))
        return True

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Send what has gathered, unless control does not read what it was sent before."""
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > OUTGOING_BYTES_MAX:
            return
        if self._ledger.usage:
            self.say(Usage(self._ledger.take_usage()))
        while self._ledger.logs or self._ledger.logs_dropped:
            lines, dropped = self._ledger.take_logs(LOG_BATCH)
            self.say(Logs(lines, dropped))
        now = time.monotonic()
        if now - self._statistics_at >= STATISTICS_SECONDS:
            self._statistics_at = now
            numbers = self._fleet.observe()
            self.say(
                Statistics(
                    GatewayStatistics(
                        gateway=self._hello.gateway,
                        at=time.time(),
                        connections=len(self._site.connections),
                        requests=self._site.requests,
                        cpu_pressure=self._ledger.cpu_pressure,
                        functions=numbers,
                    )
                )
            )

    async def flush_and_drain(self) -> None:
        """At shutdown: the last records, all the way into control's socket."""
        self.flush()
        if self._writer is not None:
            await self._writer.drain()
