"""Functions, versions and aliases as rows. Short verbs on an open transaction; what may be done is decided elsewhere.

Every verb takes the connection that `Database.transaction()` yields. Called by control only.
"""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from dayfly.core.model.function import Alias, FunctionConfig, Version
from dayfly.store.database import upsert
from dayfly.store.schema import aliases, functions, moves, numbers, versions

ROWS_AT_ONCE = 500  # in memory, of those that may be ten thousands

_encode = msgspec.json.Encoder(order="deterministic").encode
_config = msgspec.json.Decoder(FunctionConfig).decode


def names(tx: sa.Connection, namespace: str) -> list[str]:
    """Functions of a namespace, sorted."""
    query = sa.select(functions.c.name).where(functions.c.namespace == namespace)
    return sorted(tx.execute(query).scalars())  # by code point: servers sort by their locale


def all_names(tx: sa.Connection) -> list[tuple[str, str]]:
    """(namespace, name) of every function, sorted."""
    query = sa.select(functions.c.namespace, functions.c.name)
    return sorted((str(row.namespace), str(row.name)) for row in tx.execute(query))


def created_at(tx: sa.Connection, namespace: str, name: str) -> float | None:
    """When the function was first deployed (epoch seconds); None when there is no such function."""
    query = sa.select(functions.c.created_at).where(functions.c.namespace == namespace, functions.c.name == name)
    found = tx.execute(query).scalar()
    return None if found is None else float(found)


def reserve_number(tx: sa.Connection, namespace: str, function: str) -> int:
    """The next version number of this name, which nobody gets again, also when the deploy fails or the function is removed."""
    taken = upsert(tx, numbers).values(namespace=namespace, function=function, next=2)
    statement = taken.on_conflict_do_update(
        index_elements=[numbers.c.namespace, numbers.c.function], set_={"next": numbers.c.next + 1}
    ).returning(numbers.c.next)
    return int(tx.execute(statement).scalar_one()) - 1


def add_version(tx: sa.Connection, version: Version) -> None:
    """Keep a version, and its function when it is the first."""
    first = upsert(tx, functions).values(namespace=version.namespace, name=version.function, created_at=version.created_at)
    tx.execute(first.on_conflict_do_nothing())
    tx.execute(
        sa.insert(versions).values(
            namespace=version.namespace,
            function=version.function,
            number=version.number,
            config=_encode(version.config).decode(),
            code_digest=version.code_digest,
            layer_digest=version.layer_digest,
            created_at=version.created_at,
        )
    )


def versions_of(tx: sa.Connection, namespace: str, function: str) -> list[Version]:
    """Every kept version, oldest first; empty when there is no such function."""
    query = sa.select(versions).where(versions.c.namespace == namespace, versions.c.function == function)
    return [
        Version(
            namespace=namespace,
            function=function,
            number=row.number,
            config=_config(row.config),
            code_digest=row.code_digest,
            layer_digest=row.layer_digest,
            created_at=row.created_at,
        )
        for row in tx.execute(query.order_by(versions.c.number))
    ]


def aliases_of(tx: sa.Connection, namespace: str, function: str) -> list[Alias]:
    """Every alias with its one or two (number, weight) pairs, sorted by name, then number."""
    query = sa.select(aliases).where(aliases.c.namespace == namespace, aliases.c.function == function)
    found: dict[str, list[tuple[int, float]]] = {}
    for row in tx.execute(query.order_by(aliases.c.number)):
        found.setdefault(row.alias, []).append((row.number, row.weight))
    return [Alias(name=name, weights=tuple(found[name])) for name in sorted(found)]


def put_alias(tx: sa.Connection, namespace: str, function: str, alias: Alias) -> None:
    """Point an alias somewhere, whether it was there or not. The versions must be kept ones (foreign key)."""
    drop_alias(tx, namespace, function, alias.name)
    rows = [
        {"namespace": namespace, "function": function, "alias": alias.name, "number": number, "weight": weight}
        for number, weight in alias.weights
    ]
    tx.execute(sa.insert(aliases), rows)


def drop_alias(tx: sa.Connection, namespace: str, function: str, alias: str) -> bool:
    """Remove an alias; False when there was none."""
    where = (aliases.c.namespace == namespace, aliases.c.function == function, aliases.c.alias == alias)
    return tx.execute(sa.delete(aliases).where(*where)).rowcount > 0


def push_move(tx: sa.Connection, namespace: str, function: str, number: int, at: float) -> None:
    """Remember that `live` now points at `number`."""
    tx.execute(sa.insert(moves).values(namespace=namespace, function=function, number=number, at=at))


def moves_of(tx: sa.Connection, namespace: str, function: str) -> list[int]:
    """What `live` pointed at, oldest first; versions that are no longer kept are left out."""
    query = sa.select(moves.c.number).where(moves.c.namespace == namespace, moves.c.function == function)
    return [int(number) for number in tx.execute(query.order_by(moves.c.id)).scalars()]


def pop_moves(tx: sa.Connection, namespace: str, function: str, keep: int) -> None:
    """Forget all but the `keep` oldest moves."""
    where = (moves.c.namespace == namespace, moves.c.function == function)
    oldest = sa.select(moves.c.id).where(*where).order_by(moves.c.id).limit(keep)
    tx.execute(sa.delete(moves).where(*where, moves.c.id.not_in(oldest)))


def drop_versions(tx: sa.Connection, namespace: str, function: str, gone: Iterable[int]) -> None:
    """Forget versions by number; aliases and moves that named them go with them."""
    where = (versions.c.namespace == namespace, versions.c.function == function)
    tx.execute(sa.delete(versions).where(*where, versions.c.number.in_(list(gone))))


def drop_function(tx: sa.Connection, namespace: str, name: str) -> bool:
    """Remove a function with its versions and aliases; False when there was none."""
    statement = sa.delete(functions).where(functions.c.namespace == namespace, functions.c.name == name)
    return tx.execute(statement).rowcount > 0


def referenced(tx: sa.Connection) -> tuple[set[str], set[str]]:
    """(code digests, layer digests) that kept versions name."""
    codes, layers = (
        set(tx.execute(sa.select(column).distinct().execution_options(yield_per=ROWS_AT_ONCE)).scalars())
        for column in (versions.c.code_digest, versions.c.layer_digest)
    )
    return codes, layers - {""}
