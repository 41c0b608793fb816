"""A deploy from bundle to serving version: unpack, check, build, prove, activate. Callers see nothing before the last step.

Every step either leaves what a later deploy or the sweep tidies up (a tree by digest that nobody names, a version number that
nobody gets) or is one transaction. So wherever control is killed, the old version serves. Deploys of one function wait for each
other; a deploy that was accepted runs to its end also when the client leaves. Parses nothing that a user wrote but TOML tables.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import sqlalchemy as sa
import structlog

from dayfly.control import build, bundle, due, provisioned
from dayfly.control.catalog import Catalog, load_function, open_secrets
from dayfly.control.events import Deployed, Event, Output, Stage, failed
from dayfly.control.folders import CODE, LAYER, Folders, Key
from dayfly.control.link import LinkServer
from dayfly.control.node_client import NodeClient
from dayfly.control.schedules import Schedules
from dayfly.control.vault import Vault
from dayfly.control.worker import Store
from dayfly.core.decide import retain, rollout
from dayfly.core.decide.isolate import WALLS
from dayfly.core.manifest.function import Surroundings, checked_config
from dayfly.core.model.egress import reach
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function, FunctionConfig, Version
from dayfly.core.model.names import LIVE
from dayfly.core.model.settings import Settings
from dayfly.core.wire.link import Proved
from dayfly.core.wire.node import SECRET_BYTES_MAX, pack_secrets
from dayfly.store import access, functions

MANIFEST = "dayfly.toml"
PROVE_SLACK_SECONDS = 10.0  # beyond the user's init: the start itself, on a machine that is busy starting others
LOG_CHARACTERS_MAX = 16 * 1024
USER_ERROR_KEYS = ("errorType", "errorMessage", "stackTrace")

log = structlog.get_logger()
Emit = Callable[[Event], None]
Agree = Callable[[sa.Connection, Function], None]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to deploy: a zip on disk, and config keys that win over its dayfly.toml."""

    namespace: str
    name: str
    bundle: Path
    overrides: dict[str, object]
    default_runtime: str


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A checked order: what the new version would be, but for its number."""

    config: FunctionConfig
    code_digest: str
    layer_digest: str
    requirements: str


class Deployer:
    """Carries out orders. One instance for all of control."""

    def __init__(self, settings: Settings, store: Store, vault: Vault, catalog: Catalog, folders: Folders) -> None:
        self._settings, self._store, self._vault = settings, store, vault
        self._catalog, self._folders = catalog, folders
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}  # with how many use or await it
        self.node: NodeClient
        self.builder: build.Builder
        self.link: LinkServer
        self.schedules: Schedules

    def introduce(self, node: NodeClient, builder: build.Builder, link: LinkServer, schedules: Schedules) -> None:
        """The hands that reach other processes, and who must know what is live."""
        self.node, self.builder, self.link, self.schedules = node, builder, link, schedules

    @asynccontextmanager
    async def changing(self, namespace: str, name: str) -> AsyncIterator[None]:
        """Whoever changes a function (deploy, rollback, alias, removal) does it alone."""
        key = (namespace, name)
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)

    async def run(self, order: Order, emit: Emit) -> Event:
        """One deploy: tells what happens through `emit` and returns how it ended. Raises nothing but defects."""
        try:
            with self._folders.holding() as held:
                return await self._deploy(order, _Clock(emit), held)
        except Refusal as refusal:
            log.info("deploy_failed", function=order.name, namespace=order.namespace, code=refusal.kind.code)
            return failed(refusal)

    async def _deploy(self, order: Order, clock: "_Clock", held: set[Key]) -> Deployed:
        clock.stage("unpack", "")
        prepared, unpacked = await self._prepare(order)
        code = (CODE, prepared.code_digest)
        await self._folders.hold(held, code)
        await self._folders.settle(unpacked.folder, code)
        async with self.changing(order.namespace, order.name):
            present = await self._store(_same_as_live, order.namespace, order.name, prepared)
            if present is not None:
                return _deployed(order, present, prepared.config, clock, missing=await self._missing(prepared.config))
            self._catalog.routes.check(
                order.namespace, order.name, prepared.config.route
            )  # early; what counts is `agree`, within `activate`
            await self._store(self.schedules.check, order.namespace, order.name, prepared.config.schedule)
            await self._build(prepared, clock, held)
            number = await self._store(functions.reserve_number, order.namespace, order.name)
            version = _version(order, prepared, number)
            proved = await self._prove(version, clock)
            clock.stage("activate", f"version {number}")
            async with self._catalog.claiming:
                function = await self._store(activate, version, self._vault, self._settings.versions_kept, self.agree)
                self._catalog.put(function)
        self.schedules.wake()
        await self._catalog.wait_applied()
        log.info("deployed", function=order.name, namespace=order.namespace, version=number)
        return _deployed(order, number, prepared.config, clock, proved=proved, missing=proved.missing)

    def agree(self, tx: sa.Connection, function: Function) -> None:
        """In the transaction that makes `function` as it is: its routes and schedules become those of what is live. Raises Refusal conflict
        when another has one of them."""
        self._catalog.check(function)
        self.schedules.declare(tx, function)

    async def _prepare(self, order: Order) -> tuple[Prepared, bundle.Unpacked]:
        """Unpack into a temporary folder and check everything that can be checked without starting anything."""
        limits = (self._settings.bundle_entries_max, self._settings.bundle_unpacked_bytes_max)
        unpacked = await asyncio.to_thread(bundle.unpack, order.bundle, self._folders.roots[CODE], *limits)
        try:
            facts = await self.node.facts()
            table = await asyncio.to_thread(build.read_table, unpacked.folder, MANIFEST)
            secrets = await self._store(_checked_namespace, order.namespace)
            around = Surroundings(
                runtimes=tuple(facts.runtimes),
                default_runtime=order.default_runtime,
                secrets=secrets,
                files=unpacked.files,
                reach=reach(self._settings),
            )
            config = checked_config(table, order.overrides, around)
            provisioned.check(config, time.time())
            await asyncio.to_thread(due.check_all, config.schedule, time.time(), self._settings.schedule_period_seconds_min)
            await self._check_secret_size(order.namespace, config)
            text = await asyncio.to_thread(build.read_requirements, unpacked.folder)
            layer = await asyncio.to_thread(build.digest_of, text, config.runtime)
        except BaseException:
            await asyncio.to_thread(bundle.discard, unpacked.folder)
            raise
        return Prepared(config=config, code_digest=unpacked.digest, layer_digest=layer, requirements=text), unpacked

    async def _check_secret_size(self, namespace: str, config: FunctionConfig) -> None:
        if config.secrets:
            values = await self._store(open_secrets, self._vault, namespace, set(config.secrets))
            check_packed(values, "this function asks for")

    async def _build(self, prepared: Prepared, clock: "_Clock", held: set[Key]) -> None:
        if not prepared.layer_digest:
            return
        there = await self._folders.hold(held, (LAYER, prepared.layer_digest))
        clock.stage("build", "nothing: the same pins were installed before" if there else "")
        await self.builder.ensure(
            prepared.layer_digest, prepared.requirements, prepared.config.runtime, lambda text: clock.emit(Output(text=text))
        )

    async def _missing(self, config: FunctionConfig) -> tuple[str, ...]:
        return missing_walls(config, (await self.node.facts()).features)

    async def walls(self, config: FunctionConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those that stand around instances with this config, and those that do not, each as "name: why". Nobody knows while the node is
        away: then all are among the latter."""
        try:
            missing = await self._missing(config)
        except Refusal as refusal:
            missing = tuple(f"{wall}: {refusal.detail}" for wall in WALLS)
        return standing(missing), missing

    async def _prove(self, version: Version, clock: "_Clock") -> Proved:
        """Start one instance of the version; raise Refusal init_failed (the user's code) or start_failed (ours)."""
        clock.stage("prove", f"{version.config.runtime}, {version.config.memory_mb} MB")
        function = await self._store(load_function, self._vault, version.namespace, version.function, version)
        assert function is not None
        proved = await self.link.prove(function, version.number, self._settings.init_timeout_seconds + PROVE_SLACK_SECONDS)
        if proved.ok:
            # An instance that is ready before the node has said what it is made of proves nothing about walls.
            return proved if proved.missing else msgspec.structs.replace(proved, missing=await self._missing(version.config))
        error = proved.error
        said = f"{error.get('errorType', 'Error')}: {error.get('errorMessage', 'no message')}"
        if error.get("errorType") == "Sandbox.Failure":
            raise Refusal(str(error.get("code", "start_failed")), f"The new version could not be started. {said}")
        log_tail = proved.log[-LOG_CHARACTERS_MAX:]
        raise Refusal(
            "init_failed",
            f"The new version does not start. {said}",
            extra={key: error[key] for key in USER_ERROR_KEYS if key in error} | {"log": log_tail},
        )


class _Clock:
    """Names the stages to the client and measures them."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", time.monotonic()

    def stage(self, name: str, message: str) -> None:
        """The stage before ends, this one begins."""
        self.stop()
        self._stage = name
        self.emit(Stage(stage=name, message=message))

    def stop(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = round(now - self._since, 4)
        self._stage, self._since = "", now
        return self.seconds


def activate(tx: sa.Connection, version: Version, vault: Vault, kept: int, agree: Agree) -> Function:
    """Keep a proved version, point `live` at it, forget what retention allows; the function as gateways must know it. What `agree` refuses
    did not happen."""
    namespace, name = version.namespace, version.function
    functions.add_version(tx, version)
    functions.put_alias(tx, namespace, name, rollout.whole(LIVE, version.number))
    functions.push_move(tx, namespace, name, version.number, version.created_at)
    numbers = [it.number for it in functions.versions_of(tx, namespace, name)]
    dropped = retain.versions_to_drop(numbers, functions.aliases_of(tx, namespace, name), kept)
    functions.drop_versions(tx, namespace, name, dropped)
    function = load_function(tx, vault, namespace, name)
    assert function is not None
    agree(tx, function)
    return function


def check_packed(values: dict[str, bytes], which: str) -> None:
    """Raise Refusal bad_config when the secrets do not fit into what carries them into the sandbox."""
    size = len(pack_secrets(values))
    if size > SECRET_BYTES_MAX:
        raise Refusal("bad_config", f"The secrets {which} take {size} bytes together; at most {SECRET_BYTES_MAX} fit.")


def _checked_namespace(tx: sa.Connection, namespace: str) -> tuple[str, ...]:
    """Names of the namespace's secrets. Raises Refusal not_found when there is no such namespace."""
    if not access.has_namespace(tx, namespace):
        raise Refusal("not_found", f"There is no namespace {namespace!r}; `dayfly namespace create` makes one.")
    return tuple(name for name, _ in access.secret_names(tx, namespace))


def _same_as_live(tx: sa.Connection, namespace: str, name: str, prepared: Prepared) -> int | None:
    """The number of the version that `live` alone points at, when it is what was ordered; else None."""
    live = rollout.live_of(functions.aliases_of(tx, namespace, name))
    if live is None or len(live.weights) != 1:
        return None
    number = live.weights[0][0]
    present = next(it for it in functions.versions_of(tx, namespace, name) if it.number == number)
    wanted = (prepared.config, prepared.code_digest, prepared.layer_digest)
    return number if (present.config, present.code_digest, present.layer_digest) == wanted else None


def _version(order: Order, prepared: Prepared, number: int) -> Version:
    return Version(
        namespace=order.namespace,
        function=order.name,
        number=number,
        config=prepared.config,
        code_digest=prepared.code_digest,
        layer_digest=prepared.layer_digest,
        created_at=time.time(),
    )


def missing_walls(config: FunctionConfig, features: Mapping[str, bool | str]) -> tuple[str, ...]:
    """What an instance would lack on this machine, told without starting one."""
    seen = dict(features) | ({"egress": features.get("egress_internet", True)} if config.egress != "none" else {})
    return tuple(f"{wall}: {seen[wall]}" for wall in WALLS if isinstance(seen.get(wall), str))


def standing(missing: tuple[str, ...]) -> tuple[str, ...]:
    """The walls that are not among the missing ones."""
    return tuple(wall for wall in WALLS if not any(text.startswith(f"{wall}:") for text in missing))


def _deployed(
    order: Order, number: int, config: FunctionConfig, clock: _Clock, *, missing: tuple[str, ...], proved: Proved | None = None
) -> Deployed:
    """The last word. Without `proved` the version was there before."""
    return Deployed(
        version=number,
        unchanged=proved is None,
        url=url_of(order.namespace, order.name),
        routes=tuple(route.text for route in config.route),
        init_ms=round(proved.init_us / 1000, 3) if proved else None,
        start_ms=round(proved.start_us / 1000, 3) if proved else None,
        walls=standing(missing),
        missing=missing,
        warnings=warnings_of(config, proved) if proved else (),
        seconds=clock.stop(),
    )


def warnings_of(config: FunctionConfig, proved: Proved) -> tuple[str, ...]:
    """What the proof showed that its owner should hear of, as sentences."""
    if config.concurrency > 1 and not proved.is_async:
        return (f"concurrency is {config.concurrency}, but the handler is not `async def`: calls in one instance run one after the other.",)
    return ()


def url_of(namespace: str, name: str) -> str:
    """Where a function is called: /function/NAME, with its namespace unless that is the default."""
    return f"/function/{name}" if namespace == "default" else f"/function/{name}.{namespace}"
