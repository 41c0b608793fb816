"""What the PostgreSQL queue answers without changing anything: lanes, items, pages, counters. Only queue_postgres.py calls this."""

import heapq
from collections.abc import Sequence
from typing import Any

from dayfly.store.durable_postgres import Tx
from dayfly.store.queue import STATES, Item, Page
from dayfly.store.queue_rules import item_of

SEARCHES_AT_ONCE = 64

# A loose scan of the index: from the first entry of each (lane, rank) straight to the next one's, however many lie between.
_LANES = """
WITH RECURSIVE found AS (
    (SELECT lane, rank, due FROM queue_items WHERE state = 0 AND place = 0 ORDER BY lane, rank, due LIMIT 1)
    UNION ALL
    SELECT n.lane, n.rank, n.due FROM found f CROSS JOIN LATERAL (
        SELECT lane, rank, due FROM queue_items WHERE state = 0 AND place = 0 AND (lane, rank) > (f.lane, f.rank)
        ORDER BY lane, rank, due LIMIT 1
    ) n
)
SELECT lane, min(due) FROM found GROUP BY lane
"""
_COLUMNS = (
    "i.seq, i.id, i.lane, {body}, i.accepted_at, i.due, i.expires, 9 - i.rank, i.grp, i.dedup, i.dedup_until, i.tag, i.state, i.epoch,"
    " i.attempt, i.reason, {result}, i.settled_at, i.keep_until, i.cancelling FROM queue_items i "
)
_WHOLE = (
    "SELECT "
    + _COLUMNS.format(body="coalesce(b.body, '')", result="coalesce(r.result, '')")
    + "LEFT JOIN queue_bodies b ON b.seq = i.seq LEFT JOIN queue_results r ON r.seq = i.seq WHERE i.id = ANY(%s::text[])"
)
_BARE = "SELECT " + _COLUMNS.format(body="''::bytea", result="''::bytea") + "WHERE i.seq = ANY(%s::bigint[])"
_ATTEMPTS = "SELECT seq, record FROM queue_attempts WHERE seq = ANY(%s::bigint[]) ORDER BY seq, n"
_COUNTS = """
SELECT lane, sum(waiting)::bigint, sum(leased)::bigint, sum(done)::bigint, sum(dead)::bigint FROM queue_counts WHERE {where} GROUP BY lane
HAVING sum(waiting) <> 0 OR sum(leased) <> 0 OR sum(done) <> 0 OR sum(dead) <> 0
"""
_SEARCH = """
SELECT x.accepted_at, x.id, x.seq FROM unnest(%(names)s::text[], %(states)s::smallint[]) w (name, state) CROSS JOIN LATERAL (
    SELECT accepted_at, id, seq FROM queue_items i WHERE {where} AND i.state = w.state {before}
    AND (i.accepted_at, i.id) >= (%(oldest)s, %(oldest_id)s) ORDER BY i.accepted_at DESC, i.id DESC LIMIT %(limit)s
) x ORDER BY x.accepted_at DESC, x.id DESC LIMIT %(limit)s
"""
_LAST = "\U0010ffff"  # sorts behind whatever a name goes on with


def lanes(tx: Tx) -> dict[str, float]:
    """Lane → earliest due time of what may be leased."""
    return dict(tx.execute(_LANES).fetchall())


def items(tx: Tx, ids: Sequence[str]) -> dict[str, Item]:
    """Items by id, whole."""
    return {item.id: item for item in _read(tx, tx.execute(_WHOLE, (list(ids),)).fetchall())}


def counts(tx: Tx, names: Sequence[str], prefixes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Lane → state → number, for the lanes meant; for all when nothing is named."""
    where = ["lane = ANY(%s::text[])", *(["lane >= %s AND lane < %s"] * len(prefixes))] if names or prefixes else ["TRUE"]
    values = [list(names), *(text for prefix in prefixes for text in (prefix, prefix + _LAST))] if names or prefixes else []
    rows = tx.execute(_COUNTS.format(where=" OR ".join(where)), values).fetchall()
    return {lane: dict(zip(STATES, numbers, strict=True)) for lane, *numbers in rows}


def listing(tx: Tx, page: Page) -> list[Item]:
    """One page: the newest of every (lane, state) that has any, or of every state of the tag, merged. Each round of searches reads
    only what is newer than the oldest that the ones before it left in the page."""
    states = [code for code, state in enumerate(STATES) if not page.states or state in page.states]
    wanted = counts(tx, page.lanes, page.lane_prefixes)
    if page.tag:
        searches, where = [(page.tag, code) for code in states], "i.tag = w.name AND i.tag <> '' AND i.lane = ANY(%(lanes)s::text[])"
    else:
        searches = [(lane, code) for lane, numbers in wanted.items() for code in states if numbers[STATES[code]]]
        where = "i.lane = w.name"
    before = "AND (i.accepted_at, i.id) < (%(before)s, %(before_id)s)" if page.before else ""
    statement = _SEARCH.format(where=where, before=before)
    newest: list[tuple[float, str, int]] = []
    for start in range(0, len(searches), SEARCHES_AT_ONCE):
        part = searches[start : start + SEARCHES_AT_ONCE]
        oldest = newest[-1][:2] if newest and len(newest) == page.limit else (float("-inf"), "")
        named = {"names": [name for name, _ in part], "states": [code for _, code in part], "limit": page.limit, "lanes": list(wanted)}
        bounds = {
            "before": (page.before or (0.0, ""))[0],
            "before_id": (page.before or (0.0, ""))[1],
            "oldest": oldest[0],
            "oldest_id": oldest[1],
        }
        newest = heapq.nlargest(page.limit, newest + tx.execute(statement, named | bounds).fetchall())
    found = _read(tx, tx.execute(_BARE, ([seq for *_, seq in newest],)).fetchall())
    return sorted(found, key=lambda item: (item.accepted_at, item.id), reverse=True)


def _read(tx: Tx, rows: Sequence[tuple[Any, ...]]) -> list[Item]:
    attempts: dict[int, list[bytes]] = {}
    for seq, record in tx.execute(_ATTEMPTS, ([row[0] for row in rows],)):
        attempts.setdefault(seq, []).append(record)
    return [item_of(row, attempts.get(row[0], [])) for row in rows]
