"""The control role: open the store, listen, serve its HTTP face, end in order. Called by api/main.py, which brings the face.

Order: store and migrations first (a data directory that cannot be used is refused before a socket exists), then the sockets,
then `ready`. It ends on SIGTERM, and when the supervisor is gone (end-of-file on the lifeline). On SIGUSR1 a successor waits for the store:
requests and deploys that run are finished first, the sockets' names go away, so that gateways wait for the next, and then it ends. It also
ends, to be started again and read the store anew, when a database server went away in the middle of a commit.
"""

import asyncio
import encodings.idna  # noqa: F401  # uvloop needs it at the first connection, when this user may not read the interpreter's folder
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop

from dayfly.control.link import private_listener
from dayfly.control.plane import Control
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings

KEEP_ALIVE_SECONDS = 75
SETTLE_SECONDS_MAX = 30.0  # what running requests and deploys get before a successor; then deploys are broken off
LOOK_SECONDS = 0.02
NICE = 5  # calls come first: where the processors are busy, control would otherwise make gateways wait each time it wakes
LAST_ACCEPT_SECONDS = 0.1  # who had connected before the sockets' names went away is accepted and read
REQUESTS_END_SECONDS = 3  # what running requests get at the end; the supervisor's patience is longer

Face = Callable[[Control], Any]  # an ASGI application over a Control

log = structlog.get_logger()


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None], face: Face) -> None:
    """Be control until told to end. Raises Refusal data_unusable or storage_full when it cannot begin."""
    os.umask(0o077)  # whatever is meant for others gets its mode explicitly
    os.nice(NICE)
    uvloop.run(_run(settings, layout, lifeline, ready, face))


async def _run(settings: Settings, layout: Layout, lifeline: int, ready: Callable[[], None], face: Face) -> None:
    ending, relieved = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, relieved.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_reader(lifeline, _lifeline_moved, lifeline, ending)
    control = Control(settings, layout)
    try:
        await control.start()
        server = _Server(_config(face(control)))
        serving = asyncio.create_task(server.serve([private_listener(layout.api_socket)]))
        ready()
        log.info("control_ready", functions=len(control.catalog.functions))
        waiting, relief = asyncio.create_task(ending.wait()), asyncio.create_task(relieved.wait())
        doubt = asyncio.create_task(control.store.doubtful.wait())
        await asyncio.wait((serving, waiting, relief, doubt), return_when=asyncio.FIRST_COMPLETED)
        if doubt.done():
            log.error("control_renews", reason="a commit was not confirmed: the store is read again")
        control.closing.set()
        if relieved.is_set() and not serving.done():
            settling = asyncio.create_task(_settle(control, server))
            await asyncio.wait((serving, waiting, settling), return_when=asyncio.FIRST_COMPLETED)
            settling.cancel()
        waiting.cancel()
        relief.cancel()
        doubt.cancel()
        server.should_exit = True
        await serving
    finally:
        loop.remove_reader(lifeline)
        await control.close()
        log.info("control_ended")


async def _settle(control: Control, server: uvicorn.Server) -> None:
    """Serve on until nothing runs, within a bound; then let nobody else connect, and read those that had."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_SECONDS_MAX
    # Two counts that nobody announces, looked at for one bounded moment.
    while (control.deploys_running or server.server_state.tasks) and loop.time() < until:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    for path in (control.layout.api_socket, control.layout.link_socket):
        await asyncio.to_thread(Path(path).unlink, missing_ok=True)
    await asyncio.sleep(LAST_ACCEPT_SECONDS)


def _lifeline_moved(lifeline: int, ending: asyncio.Event) -> None:
    """Only an end of file ends us; the supervisor may have written a byte before."""
    if not os.read(lifeline, 64):
        ending.set()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are ours, and they are set before it runs."""

    def capture_signals(self) -> Any:
        """Leave the process's handlers alone."""
        import contextlib

        return contextlib.nullcontext()


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=REQUESTS_END_SECONDS,
    )
