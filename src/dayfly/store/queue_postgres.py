"""The queue in PostgreSQL: short statements by hand, one transaction per verb, several owners at once.

Leasing passes over rows that another owner is taking (SKIP LOCKED) and waits for nobody. Nobody waits in a circle: what touches a group or
a dedup key first takes the lock of its name; verbs that name ids lock their rows in the order of ids; counters come last, in the order of
lanes, in one of several rows per lane, so that two owners of one lane seldom meet there.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dayfly.store import queue_postgres_reading as reading
from dayfly.store import queue_postgres_sql as sql
from dayfly.store.durable_postgres import DurableServer, Tx, lock
from dayfly.store.queue import ATTEMPTS_KEPT, HANDED_SECONDS, LIST_MAX, RECLAIM_MAX, Item, Lease, NewItem, Page, Put, Settlement, State
from dayfly.store.queue_hints import Announcer
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
from dayfly.store.server import Server

_PARTS = ("queue_items", "queue_bodies", "queue_results", "queue_attempts")


class PostgresQueue:
    """The `Queue` in that database, on one connection. Several of them, anywhere, may work at once."""

    def __init__(self, server: Server) -> None:
        self._server = DurableServer(server)
        self._announcer = Announcer()

    def _hand_out(self, tx: Tx, statement: str, named: dict[str, Any]) -> list[Lease]:
        rows = tx.execute(statement, named).fetchall()
        tally = _Tally()
        for row in rows:
            tally.move(row[1], row[10], LEASED)
        if named["place"] is not None:
            tally.groups |= {(row[1], row[7]) for row in rows if row[7]}
        self._finish(tx, tally)
        return [
            Lease(
                id=id,
                lane=lane,
                epoch=epoch,
                attempt=attempt,
                body=body,
                accepted_at=accepted_at,
                expires=expires,
                group=group,
                priority=priority,
                tag=tag,
            )
            for id, lane, epoch, attempt, body, accepted_at, expires, group, priority, tag, _ in rows
        ]

    def _finish(self, tx: Tx, tally: "_Tally") -> None:
        """The end of every verb that changes something."""
        tally.write(tx)
        if tally.waiting:
            self._announcer.announce(tx)

    def together(self) -> None:
        """Each verb is its own: its locks are in order only by themselves, and several owners would wait for each other in a circle."""

    def put(self, items: Sequence[NewItem]) -> list[Put]:
        check(items)

        def verb(tx: Tx) -> list[Put]:
            tally = _Tally()
            lock(tx, *_locks(items))
            answers = _put(tx, items, tally)
            self._finish(tx, tally)
            return answers

        return self._server.run(verb) if items else []

    def lease(self, wanted: Sequence[tuple[str, int]], now: float, until: float, owner: str) -> list[Lease]:
        lanes = merged(wanted)
        named = {
            "lanes": list(lanes),
            "most": [*lanes.values()],
            "now": now,
            "until": until,
            "owner": owner,
            "attempts": 1,
            "place": None,
        }
        return self._server.run(lambda tx: self._hand_out(tx, sql.LEASE, named)) if lanes else []

    def lanes(self, now: float) -> dict[str, float]:
        return self._server.run(reading.lanes)

    def extend(self, leases: Sequence[tuple[str, int]], until: float) -> list[bool]:
        check_size(leases)

        def verb(tx: Tx) -> list[bool]:
            rows = _rows(tx, (id for id, _ in leases))
            held = [id in rows and rows[id].held(epoch) for id, epoch in leases]
            seqs = [rows[id].seq for (id, _), valid in zip(leases, held, strict=True) if valid]
            tx.execute("UPDATE queue_items SET lease_until = %s WHERE seq = ANY(%s::bigint[])", (until, seqs))
            return held

        return self._server.run(verb) if leases else []

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        check_settlements(settlements)

        def verb(tx: Tx) -> list[bool]:
            tally = _Tally()
            _lock_groups(tx, [told.id for told in settlements], [item for told in settlements for item in told.items])
            held, changes, items = ended(settlements, _rows(tx, (told.id for told in settlements)))
            _change(tx, changes, tally)
            _put(tx, items, tally)
            self._finish(tx, tally)
            return held

        return self._server.run(verb) if settlements else []

    def give_back(self, leases: Sequence[tuple[str, int]], now: float, due: float) -> list[bool]:
        check_size(leases)

        def verb(tx: Tx) -> list[bool]:
            tally = _Tally()
            _lock_groups(tx, [id for id, _ in leases])
            rows = _rows(tx, (id for id, _ in leases))
            held = [id in rows and rows[id].held(epoch) for id, epoch in leases]
            mine = {id for (id, _), valid in zip(leases, held, strict=True) if valid}
            _change(tx, [returned(rows[id], now, due) for id in mine], tally)
            self._finish(tx, tally)
            return held

        return self._server.run(verb) if leases else []

    def reclaim(self, now: float, owner: str = "") -> list[Lease]:
        named = {"now": now, "limit": RECLAIM_MAX, "until": now + HANDED_SECONDS, "owner": owner, "attempts": 0, "place": None}
        return self._server.run(lambda tx: self._hand_out(tx, sql.FOREIGN if owner else sql.ENDED, named))

    def expire(self, now: float, limit: int, owner: str = "") -> list[Lease]:
        def verb(tx: Tx) -> list[Lease]:
            found = tx.execute(
                "SELECT seq, lane, grp FROM queue_items WHERE state = 0 AND expires <= %s ORDER BY expires LIMIT %s", (now, limit)
            ).fetchall()
            lock(tx, *((lane, group) for _, lane, group in found if group))
            named = {"seqs": [seq for seq, *_ in found], "now": now, "until": now + HANDED_SECONDS, "owner": owner, "attempts": 0}
            return self._hand_out(tx, sql.EXPIRED, named | {"place": ASIDE}) if found else []

        return self._server.run(verb)

    def cancel(self, ids: Sequence[str], now: float, keep_until: float = 0.0) -> list[str]:
        check_size(ids)

        def verb(tx: Tx) -> list[str]:
            tally = _Tally()
            _lock_groups(tx, ids)
            rows = _rows(tx, ids)
            until = kept_until(now, keep_until)
            _change(tx, [cancelled(row, now, until) for row in rows.values() if row.state == WAITING], tally)
            leased = [row.seq for row in rows.values() if row.state == LEASED]
            tx.execute("UPDATE queue_items SET cancelling = TRUE, keep_until = %s WHERE seq = ANY(%s::bigint[])", (until, leased))
            self._finish(tx, tally)
            words = ("cancelled", "cancelling", "settled", "settled")
            return [words[rows[id].state] if id in rows else "unknown" for id in ids]

        return self._server.run(verb) if ids else []

    def redrive(self, ids: Sequence[str], now: float, expires: float) -> list[bool]:
        check_size(ids)

        def verb(tx: Tx) -> list[bool]:
            tally = _Tally()
            _lock_groups(tx, ids)
            dead = {id: row for id, row in _rows(tx, ids).items() if row.state == DEAD}
            _change(tx, [Change(row=row, state=WAITING, attempt=0, due=now) for row in dead.values()], tally)
            seqs = [row.seq for row in dead.values()]
            tx.execute("UPDATE queue_items SET expires = %s WHERE seq = ANY(%s::bigint[])", (expires, seqs))
            tx.execute("DELETE FROM queue_results WHERE seq = ANY(%s::bigint[])", (seqs,))
            self._finish(tx, tally)
            return [id in dead for id in ids]

        return self._server.run(verb) if ids else []

    def purge(self, ids: Sequence[str]) -> list[bool]:
        check_size(ids)

        def verb(tx: Tx) -> list[bool]:
            tally = _Tally()
            _lock_groups(tx, ids)
            gone = {id: row for id, row in _rows(tx, ids).items() if row.state != LEASED}
            _delete(tx, gone.values(), tally)
            self._finish(tx, tally)
            return [id in gone for id in ids]

        return self._server.run(verb) if ids else []

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        check_size(ids)
        found = self._server.run(lambda tx: reading.items(tx, ids)) if ids else {}
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
        return self._server.run(lambda tx: reading.listing(tx, page))

    def counts(self, lane_prefixes: Sequence[str] = ()) -> dict[str, dict[str, int]]:
        return self._server.run(lambda tx: reading.counts(tx, (), lane_prefixes))

    def forget(self, now: float, limit: int) -> int:
        def verb(tx: Tx) -> int:
            tally = _Tally()
            kept = "state > 1 AND keep_until <= %s ORDER BY keep_until LIMIT %s FOR UPDATE SKIP LOCKED"
            rows = [Row(*row) for row in tx.execute(sql.ROWS + kept, (now, limit))]
            _delete(tx, rows, tally)
            keys = tx.execute(
                "DELETE FROM queue_dedups WHERE (lane, key) IN (SELECT lane, key FROM queue_dedups WHERE until <= %s LIMIT %s"
                " FOR UPDATE SKIP LOCKED)",
                (now, limit),
            ).rowcount
            self._finish(tx, tally)
            tx.execute("DELETE FROM queue_counts WHERE waiting = 0 AND leased = 0 AND done = 0 AND dead = 0")
            return len(rows) + keys

        return self._server.run(verb)

    def tidy(self) -> bool:
        return False  # autovacuum does it

    def close(self) -> None:
        self._server.close()


class _Tally:
    """What a verb has to do at its end: counters of lanes, groups touched."""

    def __init__(self) -> None:
        self.lanes: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.groups: set[tuple[str, str]] = set()
        self.waiting = False

    def move(self, lane: Any, old: int | None, new: int | None) -> None:
        if old is not None:
            self.lanes[lane][old] -= 1
        if new is not None:
            self.lanes[lane][new] += 1
        self.waiting = self.waiting or new == WAITING

    def write(self, tx: Tx) -> None:
        if self.groups:
            columns = _columns(sorted(self.groups))
            tx.execute(sql.ALL_BEHIND, columns)
            tx.execute(sql.FIRST_FREE, columns)
        moved = [(lane, *delta) for lane, delta in sorted(self.lanes.items()) if any(delta)]
        if moved:
            tx.execute(sql.COUNT, _columns(moved))


def _put(tx: Tx, items: Sequence[NewItem], tally: _Tally) -> list[Put]:
    """Insert what is new. The caller holds the locks of the items' groups and keys."""
    if not items:
        return []
    known = {id for (id,) in tx.execute("SELECT id FROM queue_items WHERE id = ANY(%s::text[])", ([item.id for item in items],))}
    keys = [(item.lane, item.dedup) for item in items if item.dedup]
    holders = {(lane, key): (id, until) for lane, key, id, until in tx.execute(sql.HOLDERS, _columns(keys, 2))} if keys else {}
    told = admitted(items, known, holders)
    rows = [
        (
            i.id,
            i.lane,
            BEHIND if i.group else FREE,
            RANK_MAX - i.priority,
            i.due,
            i.expires,
            i.accepted_at,
            i.group,
            i.tag,
            i.dedup,
            i.dedup_until,
        )
        for i in told.items
    ]
    seqs = dict(tx.execute(sql.INSERT, _columns(rows, 11)).fetchall())
    bodies = [(seqs[item.id], item.body) for item in told.items if item.body and item.id in seqs]
    if bodies:
        tx.execute(sql.BODIES, _columns(bodies))
    if told.keys:
        tx.execute(sql.HOLD, _columns([(*key, *holder) for key, holder in told.keys.items()]))
    for item in told.items:
        if item.id in seqs:
            tally.move(item.lane, None, WAITING)
            if item.group:
                tally.groups.add((item.lane, item.group))
    lost = {item.id for item in told.items if item.id not in seqs}  # put by another one a moment ago
    return [Put(id=put.id, duplicate=put.duplicate or put.id in lost) for put in told.answers]


def _locks(items: Iterable[NewItem]) -> list[tuple[str, ...]]:
    """Names to lock before items are put: their groups and dedup keys."""
    groups = [(item.lane, item.group) for item in items if item.group]
    return [*groups, *((item.lane, "", item.dedup) for item in items if item.dedup)]


def _lock_groups(tx: Tx, ids: Sequence[str], items: Sequence[NewItem] = ()) -> None:
    """Lock the groups of `ids`, and what `items` need, before any row is: neither lane nor group of an item ever changes."""
    found = tx.execute("SELECT lane, grp FROM queue_items WHERE id = ANY(%s::text[]) AND grp <> ''", (list(ids),)).fetchall()
    lock(tx, *found, *_locks(items))


def _rows(tx: Tx, ids: Iterable[str]) -> dict[str, Row]:
    found = tx.execute(sql.ROWS + "id = ANY(%s::text[]) ORDER BY id FOR UPDATE", (sorted(set(ids)),))
    return {row[1]: Row(*row) for row in found}


def _change(tx: Tx, changes: Sequence[Change], tally: _Tally) -> None:
    """Write changes: rows, records and results."""
    if not changes:
        return
    rows, records = [], []
    for change in changes:
        row = change.row
        number = row.records + bool(change.record)
        place = BEHIND if change.state == WAITING and row.group else FREE
        told = (change.due, change.reason, change.settled_at, change.keep_until, number)
        rows.append((row.seq, change.state, place, change.attempt, *told))
        if change.record:
            records.append((row.seq, number, change.record))
        tally.move(row.lane, row.state, change.state)
        if row.group:
            tally.groups.add((str(row.lane), row.group))
    tx.execute(sql.CHANGE, _columns(rows))
    if records:
        tx.execute(sql.RECORDS, _columns(records))
    dropped = [(seq, number - ATTEMPTS_KEPT) for seq, number, _ in records if number > ATTEMPTS_KEPT]
    if dropped:
        tx.execute(sql.DROPPED, _columns(dropped))
    results = [(change.row.seq, change.result) for change in changes if change.result]
    if results:
        tx.execute(sql.RESULTS, _columns(results))


def _delete(tx: Tx, rows: Iterable[Row], tally: _Tally) -> None:
    rows = list(rows)
    for part in _PARTS if rows else ():
        tx.execute(f"DELETE FROM {part} WHERE seq = ANY(%s::bigint[])", ([row.seq for row in rows],))  # noqa: S608 (our own names)
    for row in rows:
        tally.move(row.lane, row.state, None)
        if row.group and row.state == WAITING:
            tally.groups.add((str(row.lane), row.group))


def _columns(rows: Sequence[tuple[Any, ...]], width: int = 0) -> list[list[Any]]:
    """Rows as one list per column, for unnest; `width` when there may be none."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]
