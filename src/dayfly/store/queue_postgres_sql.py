"""The statements of queue_postgres.py, by hand. Rows come in as one array per column (unnest), so that a batch is one statement.

Each condition of a partial index is repeated word for word where it is to serve.
"""

# ruff: noqa: S608 (statements are put together from constants of this file; values are bound)

SHARDS = 8  # rows of counters per lane

ROWS = "SELECT seq, id, lane, state, place, epoch, attempt, records, grp, cancelling, keep_until FROM queue_items WHERE "
TAKEN = """
, taken AS (
    UPDATE queue_items i SET state = 1, epoch = epoch + 1, attempt = attempt + %(attempts)s, owner = %(owner)s, lease_until = %(until)s,
        place = coalesce(%(place)s, place)
    FROM picked p WHERE i.seq = p.seq
    RETURNING p.ord, p.was, i.*
)
SELECT t.id, t.lane, t.epoch, t.attempt, coalesce(b.body, ''), t.accepted_at, t.expires, t.grp, 9 - t.rank, t.tag, t.was
FROM taken t LEFT JOIN queue_bodies b ON b.seq = t.seq ORDER BY """
# The limits stop the loops as soon as they have enough, so that no more rows are locked than are taken.
LEASE = (
    """
WITH picked AS MATERIALIZED (
    SELECT w.ord, x.seq, 0 AS was
    FROM unnest(%(lanes)s::text[], %(most)s::bigint[]) WITH ORDINALITY w (lane, most, ord) CROSS JOIN LATERAL (
        SELECT y.seq FROM generate_series(0, 9) r CROSS JOIN LATERAL (
            SELECT seq FROM queue_items
            WHERE lane = w.lane AND rank = r AND state = 0 AND place = 0 AND due <= %(now)s AND expires > %(now)s
            ORDER BY due, seq LIMIT w.most FOR UPDATE SKIP LOCKED
        ) y LIMIT w.most
    ) x
)"""
    + TAKEN
    + "t.ord, t.rank, t.due, t.seq"
)
AGAIN = "WITH picked AS MATERIALIZED (SELECT 0 AS ord, seq, {was} AS was FROM queue_items WHERE {where} FOR UPDATE SKIP LOCKED)" + TAKEN
ENDED = AGAIN.format(was=1, where="state = 1 AND lease_until <= %(now)s ORDER BY lease_until LIMIT %(limit)s") + "t.seq"
FOREIGN = AGAIN.format(was=1, where="state = 1 AND owner <> %(owner)s ORDER BY lease_until LIMIT %(limit)s") + "t.seq"
EXPIRED = AGAIN.format(was=0, where="seq = ANY(%(seqs)s::bigint[]) AND state = 0 AND expires <= %(now)s") + "t.expires, t.seq"
INSERT = """
INSERT INTO queue_items (id, lane, place, rank, due, expires, accepted_at, grp, tag, dedup, dedup_until)
SELECT id, lane, place, rank, due, expires, accepted_at, grp, tag, dedup, dedup_until FROM unnest(
    %s::text[], %s::text[], %s::smallint[], %s::smallint[], %s::float8[], %s::float8[], %s::float8[], %s::text[], %s::text[], %s::text[],
    %s::float8[]
) WITH ORDINALITY n (id, lane, place, rank, due, expires, accepted_at, grp, tag, dedup, dedup_until, ord) ORDER BY ord
ON CONFLICT (id) DO NOTHING RETURNING id, seq
"""
BODIES = "INSERT INTO queue_bodies (seq, body) SELECT * FROM unnest(%s::bigint[], %s::bytea[])"
HOLDERS = "SELECT d.lane, d.key, d.id, d.until FROM queue_dedups d JOIN unnest(%s::text[], %s::text[]) n (lane, key) USING (lane, key)"
HOLD = """
INSERT INTO queue_dedups (lane, key, id, until) SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::float8[])
ON CONFLICT (lane, key) DO UPDATE SET id = excluded.id, until = excluded.until
"""
CHANGE = """
UPDATE queue_items i SET state = c.state, place = c.place, attempt = c.attempt, due = coalesce(c.due, i.due), reason = c.reason,
    settled_at = c.settled_at, keep_until = c.keep_until, records = c.records, owner = '', lease_until = 0, cancelling = FALSE
FROM unnest(%s::bigint[], %s::smallint[], %s::smallint[], %s::int[], %s::float8[], %s::text[], %s::float8[], %s::float8[], %s::int[])
    c (seq, state, place, attempt, due, reason, settled_at, keep_until, records) WHERE i.seq = c.seq
"""
RECORDS = "INSERT INTO queue_attempts (seq, n, record) SELECT * FROM unnest(%s::bigint[], %s::int[], %s::bytea[])"
DROPPED = "DELETE FROM queue_attempts a USING unnest(%s::bigint[], %s::int[]) d (seq, n) WHERE a.seq = d.seq AND a.n <= d.n"
RESULTS = "INSERT INTO queue_results (seq, result) SELECT * FROM unnest(%s::bigint[], %s::bytea[])"
COUNT = f"""
INSERT INTO queue_counts AS c (lane, shard, waiting, leased, done, dead)
SELECT lane, pg_backend_pid() %% {SHARDS}, w, l, d, x
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) n (lane, w, l, d, x) ORDER BY lane COLLATE "C"
ON CONFLICT (lane, shard) DO UPDATE SET waiting = c.waiting + excluded.waiting, leased = c.leased + excluded.leased,
    done = c.done + excluded.done, dead = c.dead + excluded.dead
"""
ALL_BEHIND = """
UPDATE queue_items i SET place = 1 FROM unnest(%s::text[], %s::text[]) g (lane, grp)
WHERE i.lane = g.lane AND i.grp = g.grp AND i.grp <> '' AND i.state < 2 AND i.state = 0 AND i.place = 0
"""
FIRST_FREE = """
UPDATE queue_items SET place = 0 WHERE seq IN (
    SELECT (SELECT seq FROM queue_items WHERE lane = g.lane AND grp = g.grp AND grp <> '' AND state < 2 AND state = 0 AND place = 1
            ORDER BY seq LIMIT 1)
    FROM unnest(%s::text[], %s::text[]) g (lane, grp)
    WHERE NOT EXISTS (SELECT 1 FROM queue_items WHERE lane = g.lane AND grp = g.grp AND grp <> '' AND state < 2 AND state = 1 AND place = 0)
)
"""
