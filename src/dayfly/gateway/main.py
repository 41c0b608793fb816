"""The gateway role: makes the parts, introduces them, and ends them in order. Started by app.py in a process of its own.

Never root: the app has dropped privileges before `run` is called. TaskGroup owns every task; SIGTERM or the supervisor's end (lifeline)
drains: no new calls, accepted ones finish within drain_timeout_seconds. SIGUSR1 says that a successor serves the same listening socket
(or will): each connection gets one more answer, which says that it is the last, and calls have the time that is theirs anyway.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog
import uvloop

from dayfly.core.decide.gateways import gateways_of
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.wire.link import Hello
from dayfly.gateway.accept import Acceptor
from dayfly.gateway.asynchronous import Door
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.dispatch import Dispatch
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.leased import Runner
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.link import Link
from dayfly.gateway.memory import MemoryWatch
from dayfly.gateway.processors import Processors
from dayfly.gateway.scaling import Scaling
from dayfly.gateway.server import Connection
from dayfly.gateway.several import Several
from dayfly.gateway.site import Site
from dayfly.provider.local import LocalProvider

log = structlog.get_logger()

TICK_SECONDS = 0.05
BACKLOG = 4096
SNAPSHOT_WAIT_SECONDS = 10.0
LOOK_SECONDS = 0.01  # how often who leaves looks whether the last call is answered
IDLE_GRACE_SECONDS = 2.0  # a successor is there: connections without a request are closed when nothing came for so long
HEARD_SECONDS = 1.5
LEAVE_SECONDS_MAX = 960.0  # and after this, a little more than the longest call, whatever is left is cut


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None], listener: socket.socket, slot: int) -> None:
    """Serve until SIGTERM or until the lifeline ends."""
    uvloop.run(_serve(settings, layout, lifeline, ready, listener, slot))


async def _serve(settings: Settings, layout: Layout, lifeline: int, ready: Callable[[], None], listener: socket.socket, slot: int) -> None:
    loop = asyncio.get_running_loop()
    stop, leave = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, leave.set)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    os.set_blocking(lifeline, False)
    loop.add_reader(lifeline, _orphaned, lifeline, stop)

    count = gateways_of(settings.gateways, len(os.sched_getaffinity(0)))
    settings = _part(settings, count)
    name = f"g{os.getpid():x}"
    ledger, catalog = Ledger(settings), CatalogMirror()
    provider = LocalProvider(layout.node_socket)
    several = Several(settings, layout, slot, count) if count > 1 else None
    fleet = several.fleet(provider, ledger, name) if several else Fleet(settings, provider, ledger, name)
    site = Site(settings)
    link = Link(layout.link_socket, Hello(name, os.getpid(), slot, count), (catalog, fleet, ledger, site))
    door, runner = Door(settings, link.say), Runner(settings, catalog, fleet, link.say, provider.kill)
    link.listeners += [door, runner]
    dispatch = Dispatch(settings, catalog, fleet, ledger, Forwarder(settings, layout.api_socket), door)
    site.dispatcher = several.dispatcher(site, catalog, dispatch) if several else dispatch

    async with asyncio.TaskGroup() as group:
        memory = MemoryWatch(fleet, settings.memory_available_bytes_min)
        watches: list[Watch] = [memory, Scaling(fleet, provider, Processors()), door, runner, *([several] if several else [])]
        clock = _tick(fleet, catalog, site, watches)
        tasks = [group.create_task(work) for work in (provider.run(), link.run(), clock, *(several.tasks() if several else ()))]
        try:
            # Serving before the first snapshot would answer 404 for functions that exist; without control, serve anyway and say 503.
            await asyncio.wait_for(link.ready.wait(), SNAPSHOT_WAIT_SECONDS)
        except TimeoutError:
            log.warning("serving_without_catalog")
        server: Acceptor | asyncio.Server
        if several:
            await several.look()
            server = several.accept(listener)
        else:
            server = await loop.create_server(lambda: Connection(site), sock=listener, backlog=BACKLOG)
        gc.collect()
        gc.freeze()
        ready()
        log.info("gateway_serving", functions=len(catalog.functions))
        await _either(stop, leave)
        server.close()
        sites = [site, several.inner] if several else [site]
        if several:
            several.leave(has_successor=leave.is_set())
        runner.stop()
        if leave.is_set():
            await _leave(settings, fleet, sites, stop)
        else:
            await _drain(settings, fleet, sites)
        runner.flush()
        await link.flush_and_drain()
        await _heard(runner)
        fleet.close()
        for task in tasks:
            task.cancel()


def _part(settings: Settings, gateways: int) -> Settings:
    """What is the machine's and not counted in common: each gateway has its part."""
    fresh = settings.starts_fresh_max or 2 * (os.cpu_count() or 1)
    return msgspec.structs.replace(
        settings, buffered_bytes_max=settings.buffered_bytes_max // gateways, starts_fresh_max=max(1, fresh // gateways)
    )


class Watch(Protocol):
    """Something that the clock drives."""

    def tick(self, now: float) -> None: ...


async def _tick(fleet: Fleet, catalog: CatalogMirror, site: Site, watches: Sequence[Watch]) -> None:
    """The gateway's clock. One sweep for all deadlines instead of a timer a call."""
    while True:
        await asyncio.sleep(TICK_SECONDS)
        fleet.tick(catalog.names)
        now = time.monotonic()
        for watch in watches:
            watch.tick(now)
        site.tick()


def _orphaned(lifeline: int, stop: asyncio.Event) -> None:
    """The supervisor is gone."""
    asyncio.get_running_loop().remove_reader(lifeline)
    stop.set()


async def _either(*events: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


async def _heard(runner: Runner) -> None:
    """A moment for control to write down how the last asynchronous calls ended; it may be starting just now."""
    until = time.monotonic() + HEARD_SECONDS
    while runner.unheard and time.monotonic() < until:  # noqa: ASYNC110 (a count that nobody announces)
        await asyncio.sleep(LOOK_SECONDS)


async def _drain(settings: Settings, fleet: Fleet, sites: list[Site]) -> None:
    """Finish what was accepted, within a bound."""
    sites[0].stop()
    fleet.stopping = True
    until = time.monotonic() + settings.drain_timeout_seconds
    # Two counts that nobody announces, looked at for one bounded moment.
    while (fleet.busy or any(site.connections for site in sites)) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    _cut(fleet, sites)


async def _leave(settings: Settings, fleet: Fleet, sites: list[Site], stop: asyncio.Event) -> None:
    """A successor takes what is new: answer what comes on the connections that are here, as ever, until none is left. What has no end of
    its own (logs that are followed) has drain_timeout_seconds, as has everything once SIGTERM has come, too."""
    for site in sites:
        site.leave_politely()
    begun = time.monotonic()
    until, ends_at = begun + LEAVE_SECONDS_MAX, begun + settings.drain_timeout_seconds
    while fleet.busy or any(site.connections for site in sites):
        now = time.monotonic()
        if stop.is_set():
            until = min(until, now + settings.drain_timeout_seconds)
        if now >= until or (now >= ends_at and not fleet.busy and not any(site.receiving for site in sites)):
            break
        if now - begun >= min(IDLE_GRACE_SECONDS, settings.drain_timeout_seconds):
            for site in sites:
                site.close_idle()
        await asyncio.sleep(LOOK_SECONDS)
    _cut(fleet, sites)


def _cut(fleet: Fleet, sites: list[Site]) -> None:
    """What is not answered by now never is."""
    if left := fleet.busy:
        log.warning("calls_cut_at_shutdown", calls=left)
    for connection in [connection for site in sites for connection in site.connections]:
        connection.abort()
