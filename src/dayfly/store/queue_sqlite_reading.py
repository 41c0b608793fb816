"""What the SQLite queue answers without changing anything: lanes, items, pages of a list, counters. Only queue_sqlite.py calls this."""

import heapq
import sqlite3
from collections.abc import Sequence
from typing import Any

from dayfly.store.durable_sqlite import listed
from dayfly.store.queue import STATES, Item, Page
from dayfly.store.queue_rules import item_of

# A loose scan of the index: from the first entry of each (lane, rank) straight to the next one's, however many lie between.
_LANES = """
WITH RECURSIVE found (seq) AS (
    SELECT (SELECT seq FROM queue_items INDEXED BY ix_items_ready WHERE state = 0 AND place = 0 ORDER BY lane, rank, due LIMIT 1)
    UNION ALL
    SELECT coalesce(
        (SELECT seq FROM queue_items INDEXED BY ix_items_ready WHERE lane = i.lane AND rank > i.rank AND state = 0 AND place = 0
         ORDER BY rank, due LIMIT 1),
        (SELECT seq FROM queue_items INDEXED BY ix_items_ready WHERE lane > i.lane AND state = 0 AND place = 0
         ORDER BY lane, rank, due LIMIT 1))
    FROM found JOIN queue_items i ON i.seq = found.seq
)
SELECT l.name, min(i.due) FROM found JOIN queue_items i ON i.seq = found.seq JOIN queue_lanes l ON l.id = i.lane GROUP BY l.id
"""
_ITEMS = """
SELECT i.seq, i.id, l.name, {body}, i.accepted_at, i.due, i.expires, 9 - i.rank, i.grp, i.dedup, i.dedup_until, i.tag, i.state, i.epoch,
       i.attempt, i.reason, {result}, i.settled_at, i.keep_until, i.cancelling
FROM queue_items i JOIN queue_lanes l ON l.id = i.lane {joins} WHERE {where}
"""
_WHOLE = _ITEMS.format(
    body="coalesce(b.body, x'')",
    result="coalesce(r.result, x'')",
    joins="LEFT JOIN queue_bodies b ON b.seq = i.seq LEFT JOIN queue_results r ON r.seq = i.seq",
    where="i.id IN (SELECT value FROM json_each(?))",
)
_ATTEMPTS = "SELECT seq, record FROM queue_attempts WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq, n"
_NO_BYTES = "x''"
_LAST = "\U0010ffff"  # sorts behind whatever a name goes on with


def lanes(db: sqlite3.Connection) -> dict[str, float]:
    """Lane → earliest due time of what may be leased."""
    return dict(db.execute(_LANES).fetchall())


def items(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Item]:
    """Items by id, whole."""
    return {item.id: item for item in _read(db, db.execute(_WHOLE, (listed(ids),)).fetchall())}


def counts(db: sqlite3.Connection, prefixes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Lane → state → number."""
    return {name: dict(zip(STATES, numbers, strict=True)) for _, name, *numbers in _lanes(db, (), prefixes)}


def listing(db: sqlite3.Connection, page: Page) -> list[Item]:
    """One page: the newest of every (lane, state) that has any, or of every state of the tag, merged."""
    states = [code for code, state in enumerate(STATES) if not page.states or state in page.states]
    wanted = _lanes(db, page.lanes, page.lane_prefixes)
    if page.tag:
        meant = listed([lane for lane, *_ in wanted])
        where = "tag = ? AND state = ? AND tag != '' AND lane IN (SELECT value FROM json_each(?))"
        newest = _newest(db, "ix_items_tag", where, [(page.tag, code, meant) for code in states], page)
    else:
        full = [(lane, code) for lane, _, *numbers in wanted for code in states if numbers[code]]
        newest = _newest(db, "ix_items_listed", "lane = ? AND state = ?", full, page)
    statement = _ITEMS.format(body=_NO_BYTES, result=_NO_BYTES, joins="", where="i.seq IN (SELECT value FROM json_each(?))")
    found = _read(db, db.execute(statement, (listed([seq for *_, seq in newest]),)).fetchall())
    return sorted(found, key=lambda item: (item.accepted_at, item.id), reverse=True)


def _newest(
    db: sqlite3.Connection, index: str, where: str, searches: Sequence[tuple[object, ...]], page: Page
) -> list[tuple[float, str, int]]:
    """The newest of many searches. Each one reads only what is newer than the oldest that the ones before it left in the page."""
    before = " AND (accepted_at, id) < (?, ?)" if page.before else ""
    statement = (
        f"SELECT accepted_at, id, seq FROM queue_items INDEXED BY {index} WHERE {where}{before} AND (accepted_at, id) >= (?, ?)"  # noqa: S608
        " ORDER BY accepted_at DESC, id DESC LIMIT ?"
    )
    newest: list[tuple[float, str, int]] = []
    for values in searches:
        oldest = newest[-1][:2] if newest and len(newest) == page.limit else (float("-inf"), "")
        found = db.execute(statement, (*values, *(page.before or ()), *oldest, page.limit)).fetchall()
        newest = heapq.nlargest(page.limit, newest + found)
    return newest


def _lanes(db: sqlite3.Connection, names: Sequence[str], prefixes: Sequence[str]) -> list[tuple[int, str, int, int, int, int]]:
    """(id, name, four counters) of the lanes meant; of all when nothing is named."""
    columns = "SELECT id, name, waiting, leased, done, dead FROM queue_lanes"
    if not names and not prefixes:
        return db.execute(columns).fetchall()
    found = db.execute(f"{columns} WHERE name IN (SELECT value FROM json_each(?))", (listed(names),)).fetchall()  # noqa: S608
    for prefix in prefixes:
        found += db.execute(f"{columns} WHERE name >= ? AND name < ?", (prefix, prefix + _LAST)).fetchall()
    return list(dict.fromkeys(found))


def _read(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> list[Item]:
    attempts: dict[object, list[bytes]] = {}
    for seq, record in db.execute(_ATTEMPTS, (listed([row[0] for row in rows]),)):
        attempts.setdefault(seq, []).append(record)
    return [item_of(row, attempts.get(row[0], [])) for row in rows]
