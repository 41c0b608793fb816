"""The queue in SQLite: short statements by hand, one transaction per verb, counters and groups kept right inside it.

Rows are read first and written by their number, so that what changes is decided in queue_rules.py, alike for both databases. Bodies,
results and records lie in tables of their own: a change of state rewrites a short row.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dayfly.store import queue_sqlite_reading as reading
from dayfly.store.durable_sqlite import DurableFile, listed
from dayfly.store.queue import ATTEMPTS_KEPT, HANDED_SECONDS, LIST_MAX, RECLAIM_MAX, Item, Lease, NewItem, Page, Put, Settlement, State
from dayfly.store.queue_rules import (
    ASIDE,
    BEHIND,
    DEAD,
    FREE,
    LEASED,
    RANK_MAX,
    WAITING,
    Change,
    Row,
    admitted,
    cancelled,
    check,
    check_settlements,
    check_size,
    ended,
    kept_until,
    merged,
    returned,
)

_ROWS = "SELECT seq, id, lane, state, place, epoch, attempt, records, grp, cancelling, keep_until FROM queue_items WHERE "
_BY_ID = _ROWS + "id IN (SELECT value FROM json_each(?))"  # noqa: S608 (here and below: constants of ours; values are bound)
_KNOWN = "SELECT id FROM queue_items WHERE id IN (SELECT value FROM json_each(?))"
_LEASE = (
    "SELECT i.seq, i.id, l.name, i.epoch, i.attempt, coalesce(b.body, x''), i.accepted_at, i.expires, i.grp, 9 - i.rank,"
    " i.tag, i.lane, i.state"
    " FROM queue_items i {index} JOIN queue_lanes l ON l.id = i.lane LEFT JOIN queue_bodies b ON b.seq = i.seq WHERE "
)
_READY = (
    _LEASE.format(index="INDEXED BY ix_items_ready")
    + "i.lane = ? AND i.rank = ? AND i.state = 0 AND i.place = 0 AND i.due <= ? AND i.expires > ? ORDER BY i.due, i.seq LIMIT ?"
)
_NEXT_RANK = (
    "SELECT rank FROM queue_items INDEXED BY ix_items_ready WHERE lane = ? AND rank > ? AND state = 0 AND place = 0 ORDER BY rank LIMIT 1"
)
_ENDED = _LEASE.format(index="INDEXED BY ix_items_leased") + "i.state = 1 AND i.lease_until <= ? ORDER BY i.lease_until LIMIT ?"
_FOREIGN = _LEASE.format(index="INDEXED BY ix_items_leased") + "i.state = 1 AND i.owner != ? LIMIT ?"
_EXPIRED = _LEASE.format(index="INDEXED BY ix_items_expires") + "i.state = 0 AND i.expires <= ? ORDER BY i.expires LIMIT ?"
_TAKE = (
    "UPDATE queue_items SET state = 1, epoch = epoch + 1, attempt = attempt + ?, owner = ?, lease_until = ?, place = coalesce(?, place)"
    " WHERE seq IN (SELECT value FROM json_each(?))"
)
_INSERT = (
    "INSERT INTO queue_items (seq, id, lane, place, rank, due, expires, accepted_at, grp, tag, dedup, dedup_until)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
)
_CHANGE = (
    "UPDATE queue_items SET state = ?, place = ?, attempt = ?, due = coalesce(?, due), reason = ?, settled_at = ?, keep_until = ?,"
    " records = ?, owner = '', lease_until = 0, cancelling = 0 WHERE seq = ?"
)
_IN_GROUP = "queue_items INDEXED BY ix_items_group WHERE lane = ?1 AND grp = ?2 AND grp != ''"
_ALL_BEHIND = "UPDATE " + _IN_GROUP.replace("WHERE", "SET place = 1 WHERE") + " AND state = 0 AND place = 0"
_FIRST_FREE = (
    f"UPDATE queue_items SET place = 0 WHERE seq = (SELECT seq FROM {_IN_GROUP} AND state = 0 AND place = 1 ORDER BY seq LIMIT 1)"  # noqa: S608
    f" AND NOT EXISTS (SELECT 1 FROM {_IN_GROUP} AND state = 1 AND place = 0)"
)
_FORGOTTEN = (
    _ROWS.replace("queue_items", "queue_items INDEXED BY ix_items_kept") + "state > 1 AND keep_until <= ? ORDER BY keep_until LIMIT ?"
)
_PARTS = ("queue_items", "queue_bodies", "queue_results", "queue_attempts")


class SqliteQueue:
    """The `Queue` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = DurableFile(path)

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._file.transaction():
            yield

    def put(self, items: Sequence[NewItem]) -> list[Put]:
        check(items)
        with self._file.transaction() as db:
            return _put(db, items)

    def lease(self, wanted: Sequence[tuple[str, int]], now: float, until: float, owner: str) -> list[Lease]:
        lanes = merged(wanted)
        with self._file.transaction() as db:
            rows = [row for lane, most in lanes.items() for row in _ready(db, lane, most, now)]
            return _hand_out(db, rows, attempts=1, owner=owner, until=until)

    def lanes(self, now: float) -> dict[str, float]:
        with self._file.reading() as db:
            return reading.lanes(db)

    def extend(self, leases: Sequence[tuple[str, int]], until: float) -> list[bool]:
        check_size(leases)
        with self._file.transaction() as db:
            rows = _rows(db, (id for id, _ in leases))
            held = [id in rows and rows[id].held(epoch) for id, epoch in leases]
            seqs = [rows[id].seq for (id, _), valid in zip(leases, held, strict=True) if valid]
            db.execute("UPDATE queue_items SET lease_until = ? WHERE seq IN (SELECT value FROM json_each(?))", (until, listed(seqs)))
            return held

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        check_settlements(settlements)
        with self._file.transaction() as db:
            held, changes, items = ended(settlements, _rows(db, (told.id for told in settlements)))
            _change(db, changes)
            if items:
                _put(db, items)
            return held

    def give_back(self, leases: Sequence[tuple[str, int]], now: float, due: float) -> list[bool]:
        check_size(leases)
        with self._file.transaction() as db:
            rows = _rows(db, (id for id, _ in leases))
            held = [rows[id].held(epoch) if id in rows else False for id, epoch in leases]
            mine = {id for (id, _), valid in zip(leases, held, strict=True) if valid}
            _change(db, [returned(rows[id], now, due) for id in mine])
            return held

    def reclaim(self, now: float, owner: str = "") -> list[Lease]:
        with self._file.transaction() as db:
            rows = db.execute(_FOREIGN if owner else _ENDED, (owner or now, RECLAIM_MAX)).fetchall()
            return _hand_out(db, rows, attempts=0, owner=owner, until=now + HANDED_SECONDS)

    def expire(self, now: float, limit: int, owner: str = "") -> list[Lease]:
        with self._file.transaction() as db:
            rows = db.execute(_EXPIRED, (now, limit)).fetchall()
            return _hand_out(db, rows, attempts=0, owner=owner, until=now + HANDED_SECONDS, place=ASIDE)

    def cancel(self, ids: Sequence[str], now: float, keep_until: float = 0.0) -> list[str]:
        check_size(ids)
        with self._file.transaction() as db:
            rows = _rows(db, ids)
            until = kept_until(now, keep_until)
            waiting = [row for row in rows.values() if row.state == WAITING]
            leased = [row.seq for row in rows.values() if row.state == LEASED]
            _change(db, [cancelled(row, now, until) for row in waiting])
            db.execute(
                "UPDATE queue_items SET cancelling = 1, keep_until = ? WHERE seq IN (SELECT value FROM json_each(?))",
                (until, listed(leased)),
            )
            words = ("cancelled", "cancelling", "settled", "settled")
            return [words[rows[id].state] if id in rows else "unknown" for id in ids]

    def redrive(self, ids: Sequence[str], now: float, expires: float) -> list[bool]:
        check_size(ids)
        with self._file.transaction() as db:
            dead = {id: row for id, row in _rows(db, ids).items() if row.state == DEAD}
            _change(db, [Change(row=row, state=WAITING, attempt=0, due=now) for row in dead.values()])
            seqs = listed([row.seq for row in dead.values()])
            db.execute("UPDATE queue_items SET expires = ? WHERE seq IN (SELECT value FROM json_each(?))", (expires, seqs))
            db.execute("DELETE FROM queue_results WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))
            return [id in dead for id in ids]

    def purge(self, ids: Sequence[str]) -> list[bool]:
        check_size(ids)
        with self._file.transaction() as db:
            gone = {id: row for id, row in _rows(db, ids).items() if row.state != LEASED}
            _delete(db, list(gone.values()))
            return [id in gone for id in ids]

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        check_size(ids)
        with self._file.reading() as db:
            found = reading.items(db, ids)
        return [found.get(id) for id in ids]

    def list(
        self,
        *,
        lanes: Sequence[str] = (),
        lane_prefixes: Sequence[str] = (),
        states: Sequence[State] = (),
        tag: str = "",
        before: tuple[float, str] | None = None,
        limit: int,
    ) -> list[Item]:
        page = Page(tuple(lanes), tuple(lane_prefixes), tuple(states), tag, before, max(0, min(limit, LIST_MAX)))
        with self._file.reading() as db:
            return reading.listing(db, page)

    def counts(self, lane_prefixes: Sequence[str] = ()) -> dict[str, dict[str, int]]:
        with self._file.reading() as db:
            return reading.counts(db, lane_prefixes)

    def forget(self, now: float, limit: int) -> int:
        with self._file.transaction() as db:
            rows = [Row(*row) for row in db.execute(_FORGOTTEN, (now, limit))]
            _delete(db, rows)
            keys = db.execute("SELECT lane, key FROM queue_dedups WHERE until <= ? LIMIT ?", (now, limit)).fetchall()
            db.executemany("DELETE FROM queue_dedups WHERE lane = ? AND key = ?", keys)
            return len(rows) + len(keys)

    def tidy(self) -> bool:
        return self._file.tidy()

    def close(self) -> None:
        self._file.close()


def _put(db: sqlite3.Connection, items: Sequence[NewItem]) -> list[Put]:
    known = {id for (id,) in db.execute(_KNOWN, (listed([item.id for item in items]),))}
    told = admitted(items, known, _holders(db, items))
    last = db.execute("SELECT coalesce(max(seq), 0) FROM queue_items").fetchone()[0]
    lanes: dict[str, int] = {}
    rows, bodies = [], []
    added: defaultdict[int, int] = defaultdict(int)
    for seq, item in enumerate(told.items, last + 1):
        lane = lanes.get(item.lane) or lanes.setdefault(item.lane, _lane(db, item.lane))
        place = BEHIND if item.group else FREE
        row = (seq, item.id, lane, place, RANK_MAX - item.priority, item.due, item.expires, item.accepted_at)
        rows.append((*row, item.group, item.tag, item.dedup, item.dedup_until))
        if item.body:
            bodies.append((seq, item.body))
        added[lane] += 1
    db.executemany(_INSERT, rows)
    db.executemany("INSERT INTO queue_bodies (seq, body) VALUES (?, ?)", bodies)
    db.executemany("INSERT OR REPLACE INTO queue_dedups (lane, key, id, until) VALUES (?,?,?,?)", ((*k, *v) for k, v in told.keys.items()))
    db.executemany("UPDATE queue_lanes SET waiting = waiting + ? WHERE id = ?", ((number, lane) for lane, number in added.items()))
    _regroup(db, {(lanes[item.lane], item.group) for item in told.items if item.group})
    return told.answers


def _holders(db: sqlite3.Connection, items: Sequence[NewItem]) -> dict[tuple[str, str], tuple[str, float]]:
    """Who holds the dedup keys that the items bring, and until when."""
    found = {}
    for key in {(item.lane, item.dedup) for item in items if item.dedup}:
        row = db.execute("SELECT id, until FROM queue_dedups WHERE lane = ? AND key = ?", key).fetchone()
        if row:
            found[key] = row
    return found


def _lane(db: sqlite3.Connection, name: str) -> int:
    found = db.execute("SELECT id FROM queue_lanes WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else int(db.execute("INSERT INTO queue_lanes (name) VALUES (?)", (name,)).lastrowid or 0)


def _ready(db: sqlite3.Connection, name: str, most: int, now: float) -> list[tuple[Any, ...]]:
    """The first `most` leasable items of a lane: one search per priority that is there, none of those not yet due."""
    found = db.execute("SELECT id FROM queue_lanes WHERE name = ?", (name,)).fetchone()
    rows: list[tuple[Any, ...]] = []
    rank = -1
    while found and len(rows) < most:
        after = db.execute(_NEXT_RANK, (found[0], rank)).fetchone()
        if after is None:
            break
        rank = after[0]
        rows += db.execute(_READY, (found[0], rank, now, now, most - len(rows))).fetchall()
    return rows


def _hand_out(
    db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], *, attempts: int, owner: str, until: float, place: int | None = None
) -> list[Lease]:
    """Lease `rows` (of _LEASE) under new epochs."""
    db.execute(_TAKE, (attempts, owner, until, place, listed([row[0] for row in rows])))
    _count(db, ((row[11], row[12], LEASED) for row in rows))
    if place is not None:
        _regroup(db, {(row[11], row[8]) for row in rows if row[8]})
    return [
        Lease(
            id=row[1],
            lane=row[2],
            epoch=row[3] + 1,
            attempt=row[4] + attempts,
            body=row[5],
            accepted_at=row[6],
            expires=row[7],
            group=row[8],
            priority=row[9],
            tag=row[10],
        )
        for row in rows
    ]


def _rows(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, Row]:
    return {row[1]: Row(*row) for row in db.execute(_BY_ID, (listed(list(ids)),))}


def _change(db: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Write changes: rows, records, results, counters and the groups that they touch."""
    rows, records, results, dropped = [], [], [], []
    for change in changes:
        row = change.row
        number = row.records + bool(change.record)
        place = BEHIND if change.state == WAITING and row.group else FREE
        told = (change.state, place, change.attempt, change.due, change.reason, change.settled_at, change.keep_until)
        rows.append((*told, number, row.seq))
        if change.record:
            records.append((row.seq, number, change.record))
            if number > ATTEMPTS_KEPT:
                dropped.append((row.seq, number - ATTEMPTS_KEPT))
        if change.result:
            results.append((row.seq, change.result))
    db.executemany(_CHANGE, rows)
    db.executemany("INSERT INTO queue_attempts (seq, n, record) VALUES (?,?,?)", records)
    db.executemany("DELETE FROM queue_attempts WHERE seq = ? AND n <= ?", dropped)
    db.executemany("INSERT INTO queue_results (seq, result) VALUES (?,?)", results)
    _count(db, ((change.row.lane, change.row.state, change.state) for change in changes))
    _regroup(db, {(change.row.lane, change.row.group) for change in changes if change.row.group})


def _delete(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    seqs = listed([row.seq for row in rows])
    for part in _PARTS:
        db.execute(f"DELETE FROM {part} WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))  # noqa: S608 (our own names)
    _count(db, ((row.lane, row.state, None) for row in rows))
    lanes = listed(list({row.lane for row in rows}))
    empty = "waiting = 0 AND leased = 0 AND done = 0 AND dead = 0"
    db.execute(f"DELETE FROM queue_lanes WHERE id IN (SELECT value FROM json_each(?)) AND {empty}", (lanes,))  # noqa: S608
    _regroup(db, {(row.lane, row.group) for row in rows if row.group and row.state == WAITING})


def _count(db: sqlite3.Connection, moves: Iterable[tuple[Any, int, int | None]]) -> None:
    """Move the counters of lanes: (lane, from state, to state or None)."""
    deltas: defaultdict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for lane, old, new in moves:
        if old != new:
            deltas[lane][old] -= 1
            if new is not None:
                deltas[lane][new] += 1
    db.executemany(
        "UPDATE queue_lanes SET waiting = waiting + ?, leased = leased + ?, done = done + ?, dead = dead + ? WHERE id = ?",
        ((*delta, lane) for lane, delta in deltas.items()),
    )


def _regroup(db: sqlite3.Connection, groups: Iterable[tuple[Any, str]]) -> None:
    """Of every group touched, the first accepted that waits is free, if none is leased; all others are behind it."""
    for group in groups:
        db.execute(_ALL_BEHIND, group)
        db.execute(_FIRST_FREE, group)
