"""Keys and values in PostgreSQL. A key's lock is held from before its version is read until the commit."""

from collections.abc import Sequence

from dayfly.store.durable_postgres import DurableServer, Tx, lock
from dayfly.store.kv import LIST_MAX, NEVER, Entry, Write, Written, bounded, check, deleted, written
from dayfly.store.server import Server

_LIVE = "(expires IS NULL OR expires > %s)"
_VERSIONS = f"SELECT key, version FROM kv_entries WHERE key = ANY(%s::text[]) AND {_LIVE}"  # noqa: S608 (our own text)
_ENTRIES = f"SELECT key, value, version, coalesce(expires, 'infinity') FROM kv_entries WHERE {_LIVE} AND "  # noqa: S608
_PUT = (
    "INSERT INTO kv_entries (key, value, version, expires) SELECT * FROM unnest(%s::text[], %s::bytea[], %s::bigint[], %s::float8[])"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = excluded.expires"
)
# Numbers taken while the keys are locked: for one key, a later write has the higher ones, whoever else takes some between.
_NUMBERS = "SELECT nextval('kv_version') FROM generate_series(1, %s)"
_SWEEP = (
    "DELETE FROM kv_entries WHERE key IN (SELECT key FROM kv_entries WHERE expires IS NOT NULL AND expires <= %s"
    " ORDER BY expires LIMIT %s FOR UPDATE SKIP LOCKED)"
)
_LAST = "\U0010ffff"  # sorts behind whatever a key goes on with


class PostgresKV:
    """The `KV` in that database."""

    def __init__(self, server: Server) -> None:
        self._server = DurableServer(server)

    def get(self, keys: Sequence[str], now: float) -> list[Entry | None]:
        check(keys)
        rows = self._server.run(lambda tx: tx.execute(_ENTRIES + "key = ANY(%s::text[])", (now, list(keys))).fetchall())
        found = {row[0]: _entry(row) for row in rows}
        return [found.get(key) for key in keys]

    def put(self, writes: Sequence[Write], now: float) -> list[Written]:
        keys = [write.key for write in writes]
        check(keys, [write.value for write in writes])

        def verb(tx: Tx) -> list[Written]:
            lock(tx, *(("kv", key) for key in keys))
            versions = dict(tx.execute(_VERSIONS, (keys, now)).fetchall())
            numbers = sorted(number for (number,) in tx.execute(_NUMBERS, (len(writes),)))
            answers, rows = written(writes, versions, numbers)
            if rows:
                expires = [None if write.expires == NEVER else write.expires for _, write in rows.values()]
                values = [write.value for _, write in rows.values()]
                tx.execute(_PUT, [list(rows), values, [version for version, _ in rows.values()], expires])
            return answers

        return self._server.run(verb) if writes else []

    def delete(self, keys: Sequence[tuple[str, int | None]], now: float) -> list[bool]:
        names = [key for key, _ in keys]
        check(names)

        def verb(tx: Tx) -> list[bool]:
            lock(tx, *(("kv", key) for key in names))
            answers = deleted(keys, dict(tx.execute(_VERSIONS, (names, now)).fetchall()))
            gone = [key for (key, _), effective in zip(keys, answers, strict=True) if effective]
            tx.execute("DELETE FROM kv_entries WHERE key = ANY(%s::text[])", (gone,))
            return answers

        return self._server.run(verb) if keys else []

    def sweep(self, now: float, limit: int) -> int:
        return self._server.run(lambda tx: tx.execute(_SWEEP, (now, max(0, limit))).rowcount)

    def list(self, prefix: str, now: float, *, after: str = "", limit: int) -> list[Entry]:
        values = (now, prefix, prefix + _LAST, after, max(0, min(limit, LIST_MAX)))
        where = "key >= %s AND key < %s AND key > %s ORDER BY key LIMIT %s"
        rows = self._server.run(lambda tx: tx.execute(_ENTRIES + where, values).fetchall())
        return bounded([_entry(row) for row in rows])

    def close(self) -> None:
        self._server.close()


def _entry(row: tuple[str, bytes, int, float]) -> Entry:
    key, value, version, expires = row
    return Entry(key=key, value=value, version=version, expires=expires)
