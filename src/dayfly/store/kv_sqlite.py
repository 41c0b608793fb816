"""Keys and values in SQLite: the same file as the queue, short statements by hand."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from dayfly.store.durable_sqlite import DurableFile, listed
from dayfly.store.kv import LIST_MAX, NEVER, Entry, Write, Written, bounded, check, deleted, written

_LIVE = "(expires IS NULL OR expires > ?)"
_VERSIONS = f"SELECT key, version FROM kv_entries WHERE key IN (SELECT value FROM json_each(?)) AND {_LIVE}"  # noqa: S608 (our own text)
_ENTRIES = f"SELECT key, value, version, coalesce(expires, 9e999) FROM kv_entries WHERE {_LIVE} AND "  # noqa: S608
_NAMED = _ENTRIES + "key IN (SELECT value FROM json_each(?))"  # noqa: S608
_PUT = (
    "INSERT INTO kv_entries (key, value, version, expires) VALUES (?,?,?,?)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version, expires = excluded.expires"
)
_SWEEP = (
    "DELETE FROM kv_entries WHERE key IN (SELECT key FROM kv_entries WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)"
)
_LAST = "\U0010ffff"  # sorts behind whatever a key goes on with


class SqliteKV:
    """The `KV` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = DurableFile(path)

    def get(self, keys: Sequence[str], now: float) -> list[Entry | None]:
        check(keys)
        with self._file.reading() as db:
            rows = db.execute(_NAMED, (now, listed(keys))).fetchall()
        found = {row[0]: _entry(row) for row in rows}
        return [found.get(key) for key in keys]

    def put(self, writes: Sequence[Write], now: float) -> list[Written]:
        check([write.key for write in writes], [write.value for write in writes])
        with self._file.transaction() as db:
            versions = dict(db.execute(_VERSIONS, (listed([write.key for write in writes]), now)).fetchall())
            last = db.execute("SELECT last FROM kv_version").fetchone()[0]
            answers, rows = written(writes, versions, count(last + 1))
            db.execute("UPDATE kv_version SET last = ?", (max([last, *(version for version, _ in rows.values())]),))
            db.executemany(
                _PUT,
                ((key, w.value, version, None if w.expires == NEVER else w.expires) for key, (version, w) in rows.items()),
            )
            return answers

    def delete(self, keys: Sequence[tuple[str, int | None]], now: float) -> list[bool]:
        check([key for key, _ in keys])
        with self._file.transaction() as db:
            versions = dict(db.execute(_VERSIONS, (listed([key for key, _ in keys]), now)).fetchall())
            answers = deleted(keys, versions)
            gone = [key for (key, _), effective in zip(keys, answers, strict=True) if effective]
            db.execute("DELETE FROM kv_entries WHERE key IN (SELECT value FROM json_each(?))", (listed(gone),))
            return answers

    def sweep(self, now: float, limit: int) -> int:
        with self._file.transaction() as db:
            return db.execute(_SWEEP, (now, max(0, limit))).rowcount

    def list(self, prefix: str, now: float, *, after: str = "", limit: int) -> list[Entry]:
        limit = max(0, min(limit, LIST_MAX))
        where = "key >= ? AND key < ? AND key > ? ORDER BY key LIMIT ?"
        with self._file.reading() as db:
            rows = db.execute(_ENTRIES + where, (now, prefix, prefix + _LAST, after, limit)).fetchall()
        return bounded([_entry(row) for row in rows])

    def close(self) -> None:
        self._file.close()


def _entry(row: tuple[str, bytes, int, float]) -> Entry:
    key, value, version, expires = row
    return Entry(key=key, value=value, version=version, expires=expires)
