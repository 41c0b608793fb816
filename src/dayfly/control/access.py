"""Tokens, namespaces and secrets: made, listed, removed; gateways are told in the same breath.

A token's secret half and a secret's value pass through here and are kept by nobody: the store has a digest of the one and a
sealed form of the other. Scopes were asked by the face before any of these verbs is called.
"""

import asyncio
import secrets as dice
import time
from pathlib import Path

import sqlalchemy as sa

from dayfly.control.catalog import Catalog, load_function, open_secrets
from dayfly.control.deploy import check_packed
from dayfly.control.quotas import whole
from dayfly.control.usage import Usage
from dayfly.control.vault import Vault, write_private
from dayfly.control.worker import Store
from dayfly.core.decide.access import ALL_NAMESPACES, VERBS, allowed, checked_scopes, digest, token_text
from dayfly.core.decide.quota import day_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function, Token
from dayfly.core.model.limits import NO_LIMITS, Consumed, Limits
from dayfly.core.model.names import DEFAULT_NAMESPACE, SECRET_NAME, checked_name
from dayfly.core.wire.node import SECRET_BYTES_MAX
from dayfly.store import access, functions

TOKENS_MAX = 10_000
SECRET_VALUE_BYTES_MAX = SECRET_BYTES_MAX - 512  # one secret alone fits beside its name
SECRETS_PER_NAMESPACE_MAX = 1_000


class Access:
    """Verbs on what surrounds functions. Raises Refusal with the code that docs/api.md names."""

    def __init__(self, store: Store, vault: Vault, catalog: Catalog, usage: Usage) -> None:
        self._store, self._vault, self._catalog, self._usage = store, vault, catalog, usage
        self._changing_secrets = asyncio.Lock()

    async def make_token(self, name: str, namespaces: tuple[str, ...], verbs: tuple[str, ...]) -> tuple[Token, str]:
        """A new token and its text, which nobody can find out afterwards."""
        checked_scopes(namespaces, verbs)
        for namespace in namespaces:
            if namespace != ALL_NAMESPACES:
                checked_name(namespace, "namespace")
        token, text = new_token(checked_name(name, "token"), namespaces, verbs)
        self._catalog.set_tokens(await self._store(_add_token, token))
        await self._catalog.wait_applied()
        return token, text

    async def drop_token(self, token_id: str) -> None:
        """Remove a token; the last one that may administer everything stays."""
        self._catalog.set_tokens(await self._store(_drop_token, token_id))
        await self._catalog.wait_applied()

    async def namespaces(self) -> list[str]:
        """All of them, sorted."""
        return await self._store(access.namespace_names)

    async def make_namespace(self, name: str) -> None:
        """A new, empty namespace."""
        if not await self._store(access.add_namespace, checked_name(name, "namespace"), time.time()):
            raise Refusal("conflict", f"The namespace {name!r} exists.")

    async def drop_namespace(self, name: str) -> None:
        """Remove an empty namespace."""
        await self._store(_drop_namespace, name)
        if name in self._catalog.limits:
            self._catalog.set_limits(name, NO_LIMITS)
            await self._catalog.wait_applied()

    def limits(self, namespace: str) -> tuple[Limits, Consumed]:
        """A namespace's limits and what all its functions used today. One that is not there has none of both."""
        return self._catalog.limits.get(namespace, NO_LIMITS), whole(self._usage.used_on(day_of(time.time())), namespace)

    async def put_limits(self, namespace: str, limits: Limits) -> None:
        """Replace a namespace's limits; calls that are inside are finished whatever they say."""
        await self._store(_put_limits, namespace, limits)
        self._catalog.set_limits(namespace, limits)
        await self._catalog.wait_applied()

    async def secrets(self, namespace: str) -> list[tuple[str, float]]:
        """(name, changed at); never a value."""
        return await self._store(access.secret_names, namespace)

    async def put_secret(self, namespace: str, name: str, value: bytes) -> None:
        """Make or replace a secret; functions that use it get it with their next instances, their present ones drain."""
        if not SECRET_NAME.fullmatch(name):
            raise Refusal("bad_name", f"{name!r} is not a valid secret name.")
        if not 0 < len(value) <= SECRET_VALUE_BYTES_MAX:
            raise Refusal("bad_request", f"A secret holds 1 to {SECRET_VALUE_BYTES_MAX} bytes; this one has {len(value)}.")
        async with self._changing_secrets:
            changed = await self._store(self._put, namespace, name, value)
            for function in changed:
                self._catalog.put(function)
        await self._catalog.wait_applied()

    async def drop_secret(self, namespace: str, name: str) -> None:
        """Remove a secret that no version in use asks for."""
        await self._store(_drop_secret, namespace, name)

    def _put(self, tx: sa.Connection, namespace: str, name: str, value: bytes) -> list[Function]:
        if not access.has_namespace(tx, namespace):
            raise Refusal("not_found", f"There is no namespace {namespace!r}.")
        if len(access.secret_names(tx, namespace)) >= SECRETS_PER_NAMESPACE_MAX:
            raise Refusal("conflict", f"A namespace holds at most {SECRETS_PER_NAMESPACE_MAX} secrets.")
        access.put_secret(tx, namespace, name, self._vault.seal(namespace, name, value), time.time())
        changed = []
        for function_name in functions.names(tx, namespace):
            function = load_function(tx, self._vault, namespace, function_name)
            if function is not None and name in function.secrets:
                for version in function.versions:
                    values = open_secrets(tx, self._vault, namespace, set(version.config.secrets))
                    check_packed(values, f"that {function_name} asks for")
                changed.append(function)
        return changed


def new_token(name: str, namespaces: tuple[str, ...], verbs: tuple[str, ...]) -> tuple[Token, str]:
    """A token with a fresh id and 256 bits of secret, and its text."""
    token_id, secret = dice.token_hex(6), dice.token_hex(32)
    token = Token(id=token_id, digest=digest(secret), namespaces=namespaces, verbs=verbs, name=name, created_at=round(time.time(), 3))
    return token, token_text(token_id, secret)


def ensure_admin(tx: sa.Connection, file: Path) -> None:
    """On the very first start, make a token that may do everything and write its text to `file` (mode 0600).

    The file comes before the commit: when control is killed in between, the next start makes another token and file.
    """
    if access.all_tokens(tx):
        return
    token, text = new_token("admin", (ALL_NAMESPACES,), ("admin",))
    write_private(file, text.encode() + b"\n")
    access.add_token(tx, token)


def _add_token(tx: sa.Connection, token: Token) -> list[Token]:
    if len(access.all_tokens(tx)) >= TOKENS_MAX:
        raise Refusal("conflict", f"There are {TOKENS_MAX} tokens; remove some first.")
    access.add_token(tx, token)
    return access.all_tokens(tx)


def _drop_token(tx: sa.Connection, token_id: str) -> list[Token]:
    if not access.drop_token(tx, token_id):
        raise Refusal("not_found", f"There is no token {token_id[:40]!r}.")
    left = access.all_tokens(tx)
    if not any(allowed(token, VERBS[-1], ALL_NAMESPACES) for token in left):
        raise Refusal("conflict", "This is the last token that may administer the platform; make another one first.")
    return left


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _drop_namespace(tx: sa.Connection, name: str) -> None:
    if name == DEFAULT_NAMESPACE:
        raise Refusal("conflict", "The namespace 'default' always exists.")
    in_functions, in_secrets = access.namespace_contents(tx, name)
    if in_functions or in_secrets:
        raise Refusal(
            "conflict", f"The namespace {name!r} still holds {_counted(in_functions, 'function')} and {_counted(in_secrets, 'secret')}."
        )
    if not access.drop_namespace(tx, name):
        raise Refusal("not_found", f"There is no namespace {name!r}.")


def _put_limits(tx: sa.Connection, namespace: str, limits: Limits) -> None:
    if not access.has_namespace(tx, namespace):
        raise Refusal("not_found", f"There is no namespace {namespace!r}.")
    access.put_limits(tx, namespace, limits)


def _drop_secret(tx: sa.Connection, namespace: str, name: str) -> None:
    users = []
    for function in functions.names(tx, namespace):
        named = {number for alias in functions.aliases_of(tx, namespace, function) for number, _ in alias.weights}
        versions = functions.versions_of(tx, namespace, function)
        users += [function] if any(name in it.config.secrets for it in versions if it.number in named) else []
    if users:
        raise Refusal("conflict", f"The secret {name!r} is used by {', '.join(users[:5])}; deploy without it first.")
    if not access.drop_secret(tx, namespace, name):
        raise Refusal("not_found", f"There is no secret {name!r} in this namespace.")
