"""What gateways must know, as it stands: functions with their secrets' values, tokens, limits, and a revision that grows.

Filled from the store at start and after every committed change; whoever changes the store publishes here, on the event loop,
right after its transaction. Listeners (control/link.py) get each change once, in order. Never reads the store by itself.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec
import sqlalchemy as sa

from dayfly.control.provisioned import Floors
from dayfly.control.quotas import NAMESPACE, consumed, is_daily
from dayfly.control.usage import Usage
from dayfly.control.vault import Vault
from dayfly.core.decide.quota import day_of
from dayfly.core.decide.rollout import live_config
from dayfly.core.decide.routes import Routes, routes_of
from dayfly.core.model.function import Catalog as Whole
from dayfly.core.model.function import Function, Token, Version
from dayfly.core.model.limits import Limits
from dayfly.core.wire.link import FunctionChanged, FunctionRemoved, LimitsChanged, Snapshot, ToGateway, TokensChanged, UsedToday
from dayfly.core.wire.packed import Functions
from dayfly.store import access, functions

Listener = Callable[[ToGateway], None]
APPLIED_SECONDS_MAX = 2.0


class Catalog:
    """The present state and its listeners. All methods are immediate and belong to the event loop."""

    def __init__(self, usage: Usage) -> None:
        self.revision = 0
        self.limits: dict[str, Limits] = {}  # of namespaces
        self._usage = usage
        self._told = UsedToday(-1, [])
        self.functions = Functions()
        self._daily: set[tuple[str, str]] = set()  # those with a quota
        self._windowed: set[tuple[str, str]] = set()  # those with windows of provisioned instances
        self.limited: set[tuple[str, str]] = set()  # those whose live version has limits
        self.tokens: dict[str, Token] = {}
        self.routes = Routes()
        self.claiming = asyncio.Lock()  # held from a transaction that may claim routes (`check`) until its `put`
        self._listeners: dict[Listener, int] = {}  # the revision each has confirmed
        self._floors = Floors()
        self._late: set[Listener] = set()  # those that confirmed too late the last time
        self._confirmed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Catalog revision {self.revision}: {len(self.functions)} functions, {len(self._listeners)} listeners>"

    def fill(self, all_functions: Iterable[Function], tokens: list[Token], limits: dict[str, Limits]) -> None:
        """The state at start; nobody listens yet."""
        self.limits = limits
        for function in all_functions:
            self._keep(self._floored(function, time.time()))
        self.tokens = {token.id: token for token in tokens}

    def _keep(self, function: Function) -> None:
        key = (function.namespace, function.name)
        self.routes.put(function, self.functions.get(key))
        self.functions[key] = function
        for those, belongs in (
            (self._daily, is_daily(function)),
            (self._windowed, any(version.config.provisioned for version in function.versions)),
            (self.limited, live_config(function).limits.any),
        ):
            those.add(key) if belongs else those.discard(key)

    def check(self, function: Function) -> None:
        """Raises Refusal conflict when a route of `function`, as it would be, is another's. Called in the transaction that makes it so."""
        self.routes.check(function.namespace, function.name, routes_of(function))

    def put(self, function: Function) -> None:
        """A function is new or different."""
        function = self._floored(function, time.time())
        self._keep(function)
        if is_daily(function):
            self._tell_of(function.namespace, function.name)
        self.revision += 1
        self._tell(FunctionChanged(self.revision, function))

    def open_windows(self, now: float) -> None:
        """Publish every function of which a window of provisioned instances began or ended. `now`: epoch seconds."""
        for key in tuple(self._windowed):
            function = self.functions[key]
            if self._floored(function, now) is not function:
                self.put(function)

    def _floored(self, function: Function, now: float) -> Function:
        floors = self._floors.of(function.versions, now)
        return function if floors == function.floors else msgspec.structs.replace(function, floors=floors)

    def remove(self, namespace: str, name: str) -> None:
        """A function is gone. Nothing happens when it was not there."""
        key = (namespace, name)
        function = self.functions.pop(key, None)
        if function is not None:
            self.routes.remove(function)
            for those in (self._daily, self._windowed, self.limited):
                those.discard(key)
            self.revision += 1
            self._tell(FunctionRemoved(self.revision, namespace, name))

    def set_tokens(self, tokens: list[Token]) -> None:
        """The tokens are these."""
        self.tokens = {token.id: token for token in tokens}
        self.revision += 1
        self._tell(TokensChanged(self.revision, tuple(tokens)))

    def set_limits(self, namespace: str, limits: Limits) -> None:
        """A namespace has these limits, or none."""
        self.limits = {name: it for name, it in (self.limits | {namespace: limits}).items() if it.any}
        self._tell_of(namespace, NAMESPACE)
        self.revision += 1
        self._tell(LimitsChanged(self.revision, namespace, limits))

    def used(self, now: float) -> UsedToday:
        """What was used today of what has a quota."""
        day = day_of(now)
        if not self._daily and not any(limits.daily for limits in self.limits.values()):
            return UsedToday(day, [])
        return UsedToday(day, consumed(self._usage.used_on(day), self._daily, self.limits))

    def tell_used(self, now: float) -> None:
        """Say what was used today when gateways have not heard it yet. `now`: epoch seconds."""
        used = self.used(now)
        known = set(self._told.consumed) if used.day == self._told.day else set()
        self._told = used
        if fresh := [it for it in used.consumed if it not in known]:
            self._tell(UsedToday(used.day, fresh))

    def _tell_of(self, namespace: str, function: str) -> None:
        """Before a change that may bring it a quota: whoever had none so far has not counted."""
        used = self.used(time.time())
        self._tell(UsedToday(used.day, [it for it in used.consumed if (it.namespace, it.function) == (namespace, function)]))

    def listen(self, listener: Listener) -> tuple[UsedToday, Snapshot]:
        """The whole state, after which `listener` gets every change. Usage first: nobody may decide by quotas without it."""
        self._listeners[listener] = -1
        tokens = tuple(self.tokens.values())
        whole = Whole(revision=self.revision, functions=self.functions.packed(), tokens=tokens, limits=self.limits)
        return self.used(time.time()), Snapshot(whole)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.pop(listener, None)
        self._late.discard(listener)
        self._confirmed.set()

    def applied(self, listener: Listener, revision: int) -> None:
        """A gateway says that it decides by this revision."""
        if listener in self._listeners:
            self._listeners[listener] = revision
            self._late.discard(listener)
            self._confirmed.set()

    async def wait_applied(self) -> None:
        """Until every gateway decides by the present state, so that what a caller was told holds for its next call at any of them.

        A gateway that hangs is waited for once, for two seconds, and then not again before it answers."""
        wanted = self.revision
        try:
            async with asyncio.timeout(APPLIED_SECONDS_MAX):
                while self._behind(wanted):
                    self._confirmed.clear()
                    await self._confirmed.wait()
        except TimeoutError:
            self._late |= self._behind(wanted)

    def _behind(self, revision: int) -> set[Listener]:
        return {listener for listener, known in self._listeners.items() if known < revision} - self._late

    def _tell(self, change: ToGateway) -> None:
        for listener in tuple(self._listeners):
            listener(change)


def load_function(tx: sa.Connection, vault: Vault, namespace: str, name: str, extra: Version | None = None) -> Function | None:
    """A function as gateways need it: the kept versions, then `extra` (one being proved), and their secrets.

    None when there is no such function and no `extra`. Raises Refusal data_unusable when a secret cannot be opened.
    """
    aliases = functions.aliases_of(tx, namespace, name)
    versions = functions.versions_of(tx, namespace, name)
    if extra is not None:
        versions.append(extra)
    if not versions:
        return None
    return Function(
        namespace=namespace,
        name=name,
        aliases=tuple(aliases),
        versions=tuple(versions),
        secrets=open_secrets(tx, vault, namespace, {secret for version in versions for secret in version.config.secrets}),
    )


def open_secrets(tx: sa.Connection, vault: Vault, namespace: str, wanted: set[str]) -> dict[str, bytes]:
    """Name → value of those of `wanted` that exist."""
    if not wanted:
        return {}
    sealed = access.sealed_secrets(tx, namespace, wanted)
    return {name: vault.unseal(namespace, name, value) for name, value in sealed.items()}


def load_all(tx: sa.Connection, vault: Vault) -> Functions:
    """Every function that has a version to run."""
    found = Functions()
    for key in functions.all_names(tx):
        if (function := load_function(tx, vault, *key)) is not None:
            found[key] = function
    return found
