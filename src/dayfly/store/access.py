"""Namespaces, their limits, secrets (sealed) and tokens (digests) as rows. Short verbs on an open transaction; sees no plain secret."""

import json

import msgspec
import sqlalchemy as sa

from dayfly.core.model.function import Token
from dayfly.core.model.limits import Limits
from dayfly.store.database import upsert
from dayfly.store.schema import functions, namespace_limits, namespaces, secrets, tokens


def namespace_names(tx: sa.Connection) -> list[str]:
    """Every namespace, sorted."""
    return sorted(tx.execute(sa.select(namespaces.c.name)).scalars())  # by code point: servers sort by their locale


def has_namespace(tx: sa.Connection, name: str) -> bool:
    return tx.execute(sa.select(namespaces.c.name).where(namespaces.c.name == name)).first() is not None


def add_namespace(tx: sa.Connection, name: str, now: float) -> bool:
    """False when it was there already."""
    statement = upsert(tx, namespaces).values(name=name, created_at=now).on_conflict_do_nothing()
    return tx.execute(statement.returning(namespaces.c.name)).first() is not None


def namespace_contents(tx: sa.Connection, name: str) -> tuple[int, int]:
    """(functions, secrets) that live in a namespace."""
    in_functions = sa.select(sa.func.count()).select_from(functions).where(functions.c.namespace == name)
    in_secrets = sa.select(sa.func.count()).select_from(secrets).where(secrets.c.namespace == name)
    return int(tx.execute(in_functions).scalar_one()), int(tx.execute(in_secrets).scalar_one())


def drop_namespace(tx: sa.Connection, name: str) -> bool:
    """False when there was none. The caller has made sure that it is empty; foreign keys refuse otherwise."""
    return tx.execute(sa.delete(namespaces).where(namespaces.c.name == name)).rowcount > 0


def all_limits(tx: sa.Connection) -> dict[str, Limits]:
    """Limits of every namespace that has some."""
    rows = tx.execute(sa.select(namespace_limits))
    return {row.namespace: msgspec.json.decode(row.limits, type=Limits) for row in rows}


def put_limits(tx: sa.Connection, namespace: str, limits: Limits) -> None:
    """Set a namespace's limits; none at all removes them. The namespace must be there."""
    tx.execute(sa.delete(namespace_limits).where(namespace_limits.c.namespace == namespace))
    if limits.any:
        tx.execute(sa.insert(namespace_limits).values(namespace=namespace, limits=msgspec.json.encode(limits).decode()))


def secret_names(tx: sa.Connection, namespace: str) -> list[tuple[str, float]]:
    """(name, changed at) of a namespace's secrets, sorted."""
    query = sa.select(secrets.c.name, secrets.c.updated_at).where(secrets.c.namespace == namespace)
    return sorted((str(row.name), float(row.updated_at)) for row in tx.execute(query))


def sealed_secrets(tx: sa.Connection, namespace: str, wanted: set[str]) -> dict[str, bytes]:
    """Name → sealed value of those of `wanted` that exist."""
    query = sa.select(secrets.c.name, secrets.c.sealed).where(secrets.c.namespace == namespace, secrets.c.name.in_(wanted))
    return {str(row.name): bytes(row.sealed) for row in tx.execute(query)}


def count_secrets(tx: sa.Connection) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(secrets)).scalar_one())


def put_secret(tx: sa.Connection, namespace: str, name: str, sealed: bytes, now: float) -> None:
    """Make or replace a secret."""
    statement = upsert(tx, secrets).values(namespace=namespace, name=name, sealed=sealed, updated_at=now)
    tx.execute(
        statement.on_conflict_do_update(index_elements=[secrets.c.namespace, secrets.c.name], set_={"sealed": sealed, "updated_at": now})
    )


def drop_secret(tx: sa.Connection, namespace: str, name: str) -> bool:
    """False when there was none."""
    statement = sa.delete(secrets).where(secrets.c.namespace == namespace, secrets.c.name == name)
    return tx.execute(statement).rowcount > 0


def all_tokens(tx: sa.Connection) -> list[Token]:
    """Every token, oldest first."""
    return [
        Token(
            id=row.id,
            digest=bytes(row.digest),
            namespaces=tuple(json.loads(row.namespaces)),
            verbs=tuple(json.loads(row.verbs)),
            name=row.name,
            created_at=row.created_at,
        )
        for row in tx.execute(sa.select(tokens).order_by(tokens.c.created_at, tokens.c.id))
    ]


def add_token(tx: sa.Connection, token: Token) -> None:
    """Keep a token; its id must be new."""
    tx.execute(
        sa.insert(tokens).values(
            id=token.id,
            digest=token.digest,
            name=token.name,
            namespaces=json.dumps(token.namespaces),
            verbs=json.dumps(token.verbs),
            created_at=token.created_at,
        )
    )


def drop_token(tx: sa.Connection, token_id: str) -> bool:
    """False when there was none."""
    return tx.execute(sa.delete(tokens).where(tokens.c.id == token_id)).rowcount > 0
