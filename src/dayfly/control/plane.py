"""Control, whole: its parts introduced to each other, its long-lived tasks, its order of starting and ending.

The faces (api/) get one of these and call its parts' verbs; they never reach into the store. Nothing here decides.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog

from dayfly.control.access import Access, ensure_admin
from dayfly.control.build import Builder
from dayfly.control.callbacks import Callbacks
from dayfly.control.calls import Calls
from dayfly.control.catalog import Catalog, load_all
from dayfly.control.deploy import Deployer, Order
from dayfly.control.durable import Durable
from dayfly.control.events import LAST, Event, Output, failed
from dayfly.control.firing import Firing
from dayfly.control.folders import Folders
from dayfly.control.functions import Functions
from dayfly.control.link import LinkServer
from dayfly.control.logs import Logs
from dayfly.control.map_results import Results
from dayfly.control.maps import Maps
from dayfly.control.node_client import NodeClient
from dayfly.control.schedules import Schedules
from dayfly.control.settling import Settler
from dayfly.control.spill import Spill
from dayfly.control.statistics import Sums
from dayfly.control.usage import FLUSH_SECONDS, Usage
from dayfly.control.vault import Vault
from dayfly.control.worker import Store
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.store import access, schedules
from dayfly.store.blobs import Blobs
from dayfly.store.durable import open_kv, open_queue
from dayfly.store.migrate import installation_id, open_database
from dayfly.store.places import open_logs, server_of

SWEEP_SECONDS = 60.0
OVER_SECONDS = 86_400.0  # how long a schedule with `at` is shown when it has fired
FLOORS_SECONDS = 1.0  # how late a window of provisioned instances may begin or end
COUNT_SECONDS = 10.0  # how often the number of calls that wait is counted again
QUOTAS_SECONDS = 1.0  # how old a gateway's knowledge of what others used may be
DEPLOYS_MAX = 8  # at once; each may hold a bundle and a build
EVENTS_MAX = 10_000  # not yet read by the client; beyond it installer output is left out
ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 (a file's name)

log = structlog.get_logger()


class Control:
    """The control plane. `open` then `start`; `close` at the end, also when `start` failed."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self.settings, self.layout = settings, layout
        self.started_at = time.time()
        self.default_runtime = f"python{sys.version_info.major}.{sys.version_info.minor}"
        server = server_of(Path(layout.database_url))
        self.store = Store(open_database(server or Path(layout.database), time.time()))
        self.vault = Vault(Path(layout.secret_key))
        self.logs = Logs(open_logs(server or Path(layout.log_database)), settings.log_store_bytes_max)
        self.usage = Usage(self.store)
        self.catalog, self.sums, self.node = Catalog(self.usage), Sums(), NodeClient(layout.node_socket)
        self.link = LinkServer(self.catalog, self.usage, self.logs, self.sums)
        self.durable, spill = Durable(open_queue(server or Path(layout.durable_database))), Spill(Blobs(Path(layout.blobs)))
        self.calls = self.link.calls = Calls(settings, self.catalog, self.durable, spill, Settler(settings, self.catalog, spill))
        self._kv = open_kv(server or Path(layout.durable_database))  # used in the thread of `durable`
        self.maps = Maps(settings, self.catalog, self.durable, self._kv, self.calls, spill)
        self.results = Results(self.maps, self.durable, spill)
        self.callbacks = Callbacks(settings, self.vault)
        self.calls.leasing.callback = self.callbacks.run
        self.folders = Folders(layout, self.store)
        self.builder = Builder(self.node, self.folders, settings.build_timeout_seconds)
        self.deployer = Deployer(settings, self.store, self.vault, self.catalog, self.folders)
        self.schedules = Schedules(settings, self.store, self.calls)
        self.deployer.introduce(self.node, self.builder, self.link, self.schedules)
        self.functions = Functions(self.store, self.vault, self.catalog, self.deployer, (self.sums, self.usage))
        self.access = Access(self.store, self.vault, self.catalog, self.usage)
        self.installation_id = ""
        self._deploys: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Control {self.catalog!r} {self.link!r} {self.usage!r} {self.logs!r} {len(self._deploys)} deploys>"

    @property
    def deploys_running(self) -> int:
        """Deploys that have not ended."""
        return len(self._deploys)

    @property
    def closing(self) -> asyncio.Event:
        """Set when control begins to end: open-ended answers (logs --follow) end then."""
        return self._closing

    async def start(self) -> None:
        """Fill the catalog, make the first token, listen for gateways, begin the housekeeping."""
        await self.store(ensure_admin, Path(self.layout.control) / ADMIN_TOKEN_FILE)
        self.installation_id = await self.store(installation_id)
        tokens, limits = await self.store(access.all_tokens), await self.store(access.all_limits)
        self.catalog.fill((await self.store(load_all, self.vault)).values(), tokens, limits)
        await self.usage.load(time.time())
        await asyncio.to_thread(self.folders.clean_start)
        await self.calls.count()
        await self.maps.start()
        await self.link.start(self.layout.link_socket)
        self._tasks = [
            *self.calls.leasing.start(),
            asyncio.create_task(self.logs.run()),
            asyncio.create_task(Firing(self.settings, self.store, self.calls, self.schedules).run()),
            asyncio.create_task(self._forever(FLUSH_SECONDS, self.usage.flush)),
            asyncio.create_task(self._forever(SWEEP_SECONDS, self._tidy)),
            asyncio.create_task(self._forever(FLOORS_SECONDS, self._open_windows)),
            asyncio.create_task(self._forever(QUOTAS_SECONDS, self._tell_used)),
            asyncio.create_task(self._forever(COUNT_SECONDS, self.calls.count)),
        ]

    async def close(self) -> None:
        """Deploys are broken off (the old versions serve), links ended, what was counted and logged is written."""
        self._closing.set()
        for task in (*self._deploys, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._deploys, *self._tasks, return_exceptions=True)
        await self.builder.close()
        await self.maps.close()
        await self.calls.leasing.close()
        await self.link.close()
        await self.callbacks.close()
        await self.durable.close()
        self._kv.close()
        await self.logs.drain()
        try:
            await self.usage.flush()
        except Refusal as error:
            log.error("usage_lost", detail=error.detail)
        self.logs.close()
        self.store.close()

    def deploy(self, order: Order) -> AsyncIterator[Event]:
        """Begin a deploy and give its events; it runs on when nobody listens, and removes `order.bundle` at its end.

        Raises Refusal overloaded when too many run.
        """
        if len(self._deploys) >= DEPLOYS_MAX:
            order.bundle.unlink(missing_ok=True)
            raise Refusal("overloaded", f"{DEPLOYS_MAX} deploys are running.", retry_after_seconds=5.0)
        events: asyncio.Queue[Event] = asyncio.Queue()
        task = asyncio.create_task(self._deploy(order, events))
        self._deploys.add(task)
        task.add_done_callback(self._deploys.discard)
        return _until_last(events)

    async def _deploy(self, order: Order, events: asyncio.Queue[Event]) -> None:
        def emit(event: Event) -> None:
            if events.qsize() < EVENTS_MAX or not isinstance(event, Output):
                events.put_nowait(event)

        last: Event = failed(Refusal("shutting_down", "Control is ending; deploy again."))
        try:
            last = await self.deployer.run(order, emit)
        except Exception as error:
            last = failed(defect("deploy_defect", error))
        finally:
            await asyncio.shield(asyncio.to_thread(order.bundle.unlink, missing_ok=True))
            emit(last)

    async def _tidy(self) -> None:
        """old logs, folders nobody names, numbers of functions that are gone, schedules that are over, room in files."""
        now = time.time()
        await self.store(schedules.forget, now - OVER_SECONDS)
        await self.logs.forget(now - self.settings.log_retention_days * 86_400, self.settings.log_records_max)
        await self.folders.sweep(now, time.monotonic())
        await self.store.tidy()
        self.sums.keep(self.catalog.functions)

    async def _open_windows(self) -> None:
        """provisioned instances: windows that begin or end."""
        self.catalog.open_windows(time.time())

    async def _tell_used(self) -> None:
        """quotas: what was used today."""
        self.catalog.tell_used(time.time())

    async def _forever(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work` again and again; a full disk is said and survived."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Refusal as error:
                log.error("housekeeping_failed", code=error.kind.code, detail=error.detail)
            except Exception as error:
                defect("housekeeping_defect", error)


def defect(event: str, error: BaseException) -> Refusal:
    """A defect of ours: logged with its traceback under an incident id, which the Refusal carries to the caller."""
    import secrets

    incident = secrets.token_hex(6)
    log.error(event, incident=incident, exc_info=error)
    return Refusal("internal", f"Something is wrong in Dayfly itself (incident {incident}).", extra={"incident": incident})


async def _until_last(events: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    while True:
        event = await events.get()
        yield event
        if isinstance(event, LAST):
            return
