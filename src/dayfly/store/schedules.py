"""Schedules as rows. Short verbs on an open transaction; what is due and what is fired is decided in core/decide/schedule.py.

Whoever changes a row says which revision it read: of two control processes that had the same due time in hand, one moves the mark.
Called by control/schedules.py.
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from dayfly.core.model.schedule import Kept, Schedule
from dayfly.store.schema import schedules

_encode = msgspec.json.Encoder(order="deterministic").encode
_schedule = msgspec.json.Decoder(Schedule).decode
_KEY = (schedules.c.namespace, schedules.c.name)


def get(tx: sa.Connection, namespace: str, name: str) -> Kept | None:
    """One schedule; None when there is none."""
    row = tx.execute(sa.select(schedules).where(schedules.c.namespace == namespace, schedules.c.name == name)).first()
    return None if row is None else _kept(row)


def of(tx: sa.Connection, namespaces: Sequence[str], function: str = "") -> list[Kept]:
    """Those of some namespaces (and of one function), sorted."""
    query = sa.select(schedules).where(schedules.c.namespace.in_(list(namespaces)))
    if function:
        query = query.where(schedules.c.function == function)
    return [_kept(row) for row in tx.execute(query.order_by(*_KEY))]


def count(tx: sa.Connection, namespace: str) -> int:
    """How many a namespace has."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(schedules).where(schedules.c.namespace == namespace)).scalar_one())


def due(tx: sa.Connection, now: float, limit: int) -> list[Kept]:
    """Those whose time has come, the longest waiting first."""
    query = sa.select(schedules).where(schedules.c.next_at <= now).order_by(schedules.c.next_at, *_KEY).limit(limit)
    return [_kept(row) for row in tx.execute(query)]


def next_at(tx: sa.Connection) -> float | None:
    """When the first one comes; None when none will."""
    found = tx.execute(sa.select(sa.func.min(schedules.c.next_at))).scalar()
    return None if found is None else float(found)


def rouse(tx: sa.Connection, decided_after: float, now: float) -> int:
    """Let those be looked at now whose mark lies beyond: the clock was put back. How many there were."""
    where = (schedules.c.decided > decided_after, schedules.c.next_at.is_not(None))
    return tx.execute(sa.update(schedules).where(*where).values(next_at=now, revision=schedules.c.revision + 1)).rowcount


def put(tx: sa.Connection, kept: Kept) -> None:
    """Make a schedule, or replace what is there under its name."""
    drop(tx, kept.namespace, kept.name)
    tx.execute(sa.insert(schedules).values(**_row(kept)))


def change(tx: sa.Connection, kept: Kept) -> bool:
    """Write what is known of a schedule under the next revision, unless somebody changed it since it was read (then False)."""
    same = (schedules.c.revision == kept.revision, schedules.c.created_at == kept.created_at)
    where = (*_is(kept.namespace, kept.name), *same)
    values = _row(kept) | {"revision": kept.revision + 1}
    return tx.execute(sa.update(schedules).where(*where).values(**values)).rowcount > 0


def drop(tx: sa.Connection, namespace: str, name: str) -> bool:
    """Remove a schedule; False when there was none."""
    return tx.execute(sa.delete(schedules).where(*_is(namespace, name))).rowcount > 0


def forget(tx: sa.Connection, before: float) -> int:
    """Remove those that were put through the API, are on, will never come again and were last touched before; how many went."""
    over = (schedules.c.declared == 0, schedules.c.paused == 0, schedules.c.next_at.is_(None), schedules.c.updated_at < before)
    found = [_kept(row) for row in tx.execute(sa.select(schedules).where(*over))]
    return sum(drop(tx, it.namespace, it.name) for it in found if it.schedule.at and it.is_on)


def _is(namespace: str, name: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return schedules.c.namespace == namespace, schedules.c.name == name


def _row(kept: Kept) -> dict[str, object]:
    values = {field: getattr(kept, field) for field in Kept.__struct_fields__}
    return values | {
        "name": kept.name,
        "schedule": _encode(kept.schedule).decode(),
        "declared": int(kept.declared),
        "paused": int(kept.paused),
    }


def _kept(row: sa.Row[tuple[object, ...]]) -> Kept:
    values = dict(row._mapping)
    del values["name"]
    values |= {"schedule": _schedule(row.schedule), "declared": bool(row.declared), "paused": bool(row.paused)}
    return Kept(**values)
