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
from collections.abc import Callable

import structlog
import uvloop

from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.dispatch import Dispatch
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.link import Link
from dayfly.gateway.memory import MemoryWatch
from dayfly.gateway.processors import Processors
from dayfly.gateway.scaling import Scaling
from dayfly.gateway.server import Connection
from dayfly.gateway.site import Site
from dayfly.provider.local import LocalProvider

log = structlog.get_logger()

TICK_SECONDS = 0.05
BACKLOG = 4096
SNAPSHOT_WAIT_SECONDS = 10.0
LOOK_SECONDS = 0.01  # how often who leaves looks whether the last call is answered
IDLE_GRACE_SECONDS = 2.0  # a successor is there: connections without a request are closed when nothing came for so long
LEAVE_SECONDS_MAX = 960.0  # and after this, a little more than the longest call, whatever is left is cut


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None], listener: socket.socket) -> None:
    """Serve until SIGTERM or until the lifeline ends."""
    uvloop.run(_serve(settings, layout, lifeline, ready, listener))


async def _serve(settings: Settings, layout: Layout, lifeline: int, ready: Callable[[], None], listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stop, leave = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, leave.set)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    os.set_blocking(lifeline, False)
    loop.add_reader(lifeline, _orphaned, lifeline, stop)

    name = f"g{os.getpid():x}"
    ledger, catalog = Ledger(settings), CatalogMirror()
    provider = LocalProvider(layout.node_socket)
    fleet = Fleet(settings, provider, ledger, name)
    site = Site(settings)
    site.dispatcher = Dispatch(settings, catalog, fleet, ledger, Forwarder(settings, layout.api_socket))
    link = Link(layout.link_socket, name, (catalog, fleet, ledger, site))

    async with asyncio.TaskGroup() as group:
        watches = (MemoryWatch(fleet, settings.memory_available_bytes_min), Scaling(fleet, provider, Processors()))
        clock = _tick(fleet, catalog, site, watches)
        tasks = [group.create_task(work) for work in (provider.run(), link.run(), clock)]
        try:
            # Serving before the first snapshot would answer 404 for functions that exist; without control, serve anyway and say 503.
            await asyncio.wait_for(link.ready.wait(), SNAPSHOT_WAIT_SECONDS)
        except TimeoutError:
            log.warning("serving_without_catalog")
        server = await loop.create_server(lambda: Connection(site), sock=listener, backlog=BACKLOG)
        gc.collect()
        gc.freeze()
        ready()
        log.info("gateway_serving", functions=len(catalog.functions))
        await _either(stop, leave)
        server.close()
        if leave.is_set():
            await _leave(settings, fleet, site, stop)
        else:
            await _drain(settings, fleet, site)
        await link.flush_and_drain()
        fleet.close()
        for task in tasks:
            task.cancel()


async def _tick(fleet: Fleet, catalog: CatalogMirror, site: Site, watches: tuple[MemoryWatch, Scaling]) -> None:
    """The gateway's clock. One sweep for all deadlines instead of a timer a call."""
    while True:
        await asyncio.sleep(TICK_SECONDS)
        fleet.tick(catalog.names)
        for watch in watches:
            watch.tick(time.monotonic())
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


async def _drain(settings: Settings, fleet: Fleet, site: Site) -> None:
    """Finish what was accepted, within a bound."""
    site.stop()
    fleet.stopping = True
    until = time.monotonic() + settings.drain_timeout_seconds
    # Two counts that nobody announces, looked at for one bounded moment.
    while (fleet.busy or site.connections) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    _cut(fleet, site)


async def _leave(settings: Settings, fleet: Fleet, site: Site, stop: asyncio.Event) -> None:
    """A successor takes what is new: answer what comes on the connections that are here, as ever, until none is left. What has no end of
    its own (logs that are followed) has drain_timeout_seconds, as has everything once SIGTERM has come, too."""
    site.leave_politely()
    begun = time.monotonic()
    until, ends_at = begun + LEAVE_SECONDS_MAX, begun + settings.drain_timeout_seconds
    while site.connections or fleet.busy:
        now = time.monotonic()
        if stop.is_set():
            until = min(until, now + settings.drain_timeout_seconds)
        if now >= until or (now >= ends_at and not fleet.busy and not site.receiving):
            break
        if now - begun >= min(IDLE_GRACE_SECONDS, settings.drain_timeout_seconds):
            site.close_idle()
        await asyncio.sleep(LOOK_SECONDS)
    _cut(fleet, site)


def _cut(fleet: Fleet, site: Site) -> None:
    """What is not answered by now never is."""
    if left := fleet.busy:
        log.warning("calls_cut_at_shutdown", calls=left)
    for connection in list(site.connections):
        connection.abort()
