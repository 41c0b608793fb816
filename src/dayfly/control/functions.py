"""What can be done to deployed functions besides deploying: look at them, point aliases, roll back, remove.

Each change is one transaction followed by one publication to the gateways, under the function's lock (control/deploy.py). Names
have been checked by the face; whether the bearer may, too.
"""

import time
from collections.abc import Callable, Mapping

import msgspec
import sqlalchemy as sa

from dayfly.control.catalog import Catalog, load_function
from dayfly.control.deploy import Deployer, url_of
from dayfly.control.statistics import Sums
from dayfly.control.usage import Usage, today
from dayfly.control.vault import Vault
from dayfly.control.worker import Store
from dayfly.core.decide import rollout
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Alias, Function, Version
from dayfly.core.model.names import LIVE
from dayfly.core.model.records import FunctionStatistics
from dayfly.store import access, functions
from dayfly.store.usage import UsageDay


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One function in a list."""

    namespace: str
    name: str
    url: str
    live: Alias
    version: Version  # the one that gets most of live's calls
    created_at: float


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one function."""

    summary: Summary
    versions: tuple[Version, ...]
    aliases: tuple[Alias, ...]
    statistics: FunctionStatistics
    usage_today: UsageDay
    walls: tuple[str, ...]  # around its instances on this machine
    missing: tuple[str, ...]  # those that could not be had, each as "name: why"


class Functions:
    """Verbs on functions that exist. Raises Refusal function_not_found, version_not_found, bad_request or conflict."""

    def __init__(self, store: Store, vault: Vault, catalog: Catalog, deployer: Deployer, seen: tuple[Sums, Usage]) -> None:
        self._store, self._vault, self._catalog, self._deployer = store, vault, catalog, deployer
        self._sums, self._usage = seen

    async def list(self, namespaces: tuple[str, ...]) -> list[Summary]:
        """Summaries, sorted by namespace and name."""
        return await self._store(_summaries, namespaces)

    async def describe(self, namespace: str, name: str) -> Description:
        """Everything about one function."""
        summary, versions, aliases = await self._store(_described, namespace, name)
        day = today(time.time())
        used = await self._usage.between(day, day, (namespace,), name)
        walls, missing = await self._deployer.walls(summary.version.config)
        return Description(
            summary=summary,
            versions=tuple(versions),
            aliases=tuple(aliases),
            statistics=self._sums.of(namespace, name),
            usage_today=used[0] if used else UsageDay(day=day, namespace=namespace, function=name),
            walls=walls,
            missing=missing,
        )

    async def rollback(self, namespace: str, name: str, to: int | None) -> Alias:
        """Point `live` at the version before, or at `to`; the alias as it is now."""
        return await self._change(namespace, name, lambda tx: _rollback(tx, namespace, name, to))

    async def put_alias(self, namespace: str, name: str, alias: str, weights: Mapping[int, float]) -> Alias:
        """Make or move an alias over one or two kept versions."""
        return await self._change(namespace, name, lambda tx: _put_alias(tx, namespace, name, alias, weights))

    async def drop_alias(self, namespace: str, name: str, alias: str) -> None:
        """Remove an alias; `live` stays as long as the function."""
        if alias == LIVE:
            raise Refusal("conflict", "The alias 'live' cannot be removed; remove the function instead.")
        await self._change(namespace, name, lambda tx: _drop_alias(tx, namespace, name, alias))

    async def remove(self, namespace: str, name: str) -> None:
        """Remove a function with its versions and aliases. Logs and usage stay."""
        async with self._deployer.changing(namespace, name), self._catalog.claiming:
            if not await self._store(functions.drop_function, namespace, name):
                raise _unknown(name)
            self._catalog.remove(namespace, name)
        self._deployer.schedules.wake()
        await self._catalog.wait_applied()

    async def _change(self, namespace: str, name: str, change: Callable[[sa.Connection], Alias]) -> Alias:
        async with self._deployer.changing(namespace, name), self._catalog.claiming:
            alias, function = await self._store(self._changed, namespace, name, change)
            self._catalog.put(function)
        self._deployer.schedules.wake()
        await self._catalog.wait_applied()
        return alias

    def _changed(self, tx: sa.Connection, namespace: str, name: str, change: Callable[[sa.Connection], Alias]) -> tuple[Alias, Function]:
        if functions.created_at(tx, namespace, name) is None:
            raise _unknown(name)
        alias = change(tx)
        function = load_function(tx, self._vault, namespace, name)
        assert function is not None
        self._deployer.agree(tx, function)  # the version that live goes to may have routes that others took meanwhile
        return alias, function


def _rollback(tx: sa.Connection, namespace: str, name: str, to: int | None) -> Alias:
    kept, live = _numbers(tx, namespace, name), _live(functions.aliases_of(tx, namespace, name), name)
    target, keep = rollout.rollback(live, functions.moves_of(tx, namespace, name), kept, to)
    functions.pop_moves(tx, namespace, name, keep)
    return _move_live(tx, namespace, name, rollout.whole(LIVE, target))


def _put_alias(tx: sa.Connection, namespace: str, name: str, alias: str, weights: Mapping[int, float]) -> Alias:
    checked = rollout.checked_alias(alias, weights, _numbers(tx, namespace, name))
    if alias == LIVE:
        return _move_live(tx, namespace, name, checked)
    functions.put_alias(tx, namespace, name, checked)
    return checked


def _drop_alias(tx: sa.Connection, namespace: str, name: str, alias: str) -> Alias:
    if not functions.drop_alias(tx, namespace, name, alias):
        raise Refusal("not_found", f"{name} has no alias {alias!r}.")
    return Alias(name=alias, weights=())


def _move_live(tx: sa.Connection, namespace: str, name: str, live: Alias) -> Alias:
    """Point `live` somewhere and remember it, unless most calls go where they went before."""
    functions.put_alias(tx, namespace, name, live)
    number, moves = rollout.primary(live), functions.moves_of(tx, namespace, name)
    if not moves or moves[-1] != number:
        functions.push_move(tx, namespace, name, number, time.time())
    return live


def _numbers(tx: sa.Connection, namespace: str, name: str) -> set[int]:
    return {version.number for version in functions.versions_of(tx, namespace, name)}


def _live(aliases: list[Alias], name: str) -> Alias:
    live = rollout.live_of(aliases)
    if live is None:
        raise Refusal("version_not_found", f"{name} has no live version.")
    return live


def _described(tx: sa.Connection, namespace: str, name: str) -> tuple[Summary, list[Version], list[Alias]]:
    created = functions.created_at(tx, namespace, name)
    if created is None:
        raise _unknown(name)
    versions, aliases = functions.versions_of(tx, namespace, name), functions.aliases_of(tx, namespace, name)
    live = _live(aliases, name)
    number = rollout.primary(live)
    summary = Summary(
        namespace=namespace,
        name=name,
        url=url_of(namespace, name),
        live=live,
        version=next(version for version in versions if version.number == number),
        created_at=created,
    )
    return summary, versions, aliases


def _summaries(tx: sa.Connection, namespaces: tuple[str, ...]) -> list[Summary]:
    if not access.has_namespace(tx, namespaces[0]):
        raise Refusal("not_found", f"There is no namespace {namespaces[0]!r}.")
    return [_described(tx, namespace, name)[0] for namespace in namespaces for name in functions.names(tx, namespace)]


def _unknown(name: str) -> Refusal:
    return Refusal("function_not_found", f"There is no function {name!r} in this namespace.")
