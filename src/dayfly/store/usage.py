"""What was used, per function and day. Only adds; never rounds (core/decide/meter.py has done that before)."""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from dayfly.store.database import upsert
from dayfly.store.schema import garbage, usage_day

SUMS = ("calls", "errors", "cold", "exec_us", "billed_ms", "mb_ms", "bytes_in", "bytes_out")


class UsageDay(msgspec.Struct, kw_only=True):
    """One function's day, UTC. Times in µs and ms, `mb_ms` in MB·ms, `day` as YYYY-MM-DD."""

    day: str
    namespace: str
    function: str
    calls: int = 0
    errors: int = 0
    cold: int = 0
    exec_us: int = 0
    billed_ms: int = 0
    mb_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


def add(tx: sa.Connection, days: Iterable[UsageDay]) -> None:
    """Add each of `days` to what is kept of its function and day."""
    rows = [msgspec.structs.asdict(day) for day in days]
    if not rows:
        return
    statement = upsert(tx, usage_day)
    sums = {name: usage_day.c[name] + statement.excluded[name] for name in SUMS}
    tx.execute(statement.on_conflict_do_update(index_elements=["day", "namespace", "function"], set_=sums), rows)


def between(tx: sa.Connection, first: str, last: str, namespaces: Iterable[str], function: str = "") -> list[UsageDay]:
    """Days from `first` to `last`, both included, sorted by day, namespace, function; `function` "" means all."""
    query = sa.select(usage_day).where(usage_day.c.day.between(first, last), usage_day.c.namespace.in_(list(namespaces)))
    if function:
        query = query.where(usage_day.c.function == function)
    found = [UsageDay(**row) for row in tx.execute(query).mappings()]
    return sorted(found, key=lambda it: (it.day, it.namespace, it.function))  # by code point: servers sort by their locale


def of_day(tx: sa.Connection, day: str) -> list[UsageDay]:
    """Everything of one day."""
    return [UsageDay(**row) for row in tx.execute(sa.select(usage_day).where(usage_day.c.day == day)).mappings()]


def marked_garbage(tx: sa.Connection) -> dict[tuple[str, str], float]:
    """(kind, digest) → since when nobody names that folder."""
    return {(row.kind, row.digest): float(row.since) for row in tx.execute(sa.select(garbage))}


def mark_garbage(tx: sa.Connection, found: Iterable[tuple[str, str]], now: float) -> None:
    """Set what is unreferenced: new entries since `now`, entries not in `found` are forgotten."""
    wanted, known = set(found), set(marked_garbage(tx))
    for kind, digest in known - wanted:
        tx.execute(sa.delete(garbage).where(garbage.c.kind == kind, garbage.c.digest == digest))
    rows = [{"kind": kind, "digest": digest, "since": now} for kind, digest in sorted(wanted - known)]
    if rows:
        tx.execute(sa.insert(garbage), rows)
