"""The control role: open the store, listen, serve its HTTP face, end in order. Called by api/main.py, which brings the face.

Order: store and migrations first (a data directory that cannot be used is refused before a socket exists), then the sockets,
then `ready`. It ends on SIGTERM, and when the supervisor is gone (end-of-file on the lifeline).
"""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import structlog
import uvicorn

from dayfly.control.link import private_listener
from dayfly.control.plane import Control
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings

KEEP_ALIVE_SECONDS = 75
REQUESTS_END_SECONDS = 3  # what running requests get at the end; the supervisor's patience is longer

Face = Callable[[Control], Any]  # an ASGI application over a Control

log = structlog.get_logger()


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None], face: Face) -> None:
    """Be control until told to end. Raises Refusal data_unusable or storage_full when it cannot begin."""
    os.umask(0o077)  # whatever is meant for others gets its mode explicitly
    asyncio.run(_run(settings, layout, lifeline, ready, face))


async def _run(settings: Settings, layout: Layout, lifeline: int, ready: Callable[[], None], face: Face) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
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
        waiting = asyncio.create_task(ending.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        control.closing.set()
        server.should_exit = True
        await serving
    finally:
        loop.remove_reader(lifeline)
        await control.close()
        log.info("control_ended")


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
