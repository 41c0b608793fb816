"""Log records in a SQLite file of their own, because their volume must not slow down a deploy. The verbs are those of logs.py.

synchronous=NORMAL: nothing in it that cannot be lost.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store import room
from dayfly.store.database import refusal_for
from dayfly.store.logs import DELETE_STEP, READ_MAX, LogQuery, doomed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, namespace TEXT NOT NULL, function TEXT NOT NULL,
    version INTEGER NOT NULL, instance TEXT NOT NULL, call_id TEXT NOT NULL, stream TEXT NOT NULL, level INTEGER NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS ix_logs_function ON logs (namespace, function, id);
CREATE INDEX IF NOT EXISTS ix_logs_call ON logs (call_id) WHERE call_id != '';
CREATE INDEX IF NOT EXISTS ix_logs_at ON logs (at);
"""
FORMAT = 1  # PRAGMA user_version; another number is refused

_INSERT = "INSERT INTO logs (at, namespace, function, version, instance, call_id, stream, level, text) VALUES (?,?,?,?,?,?,?,?,?)"
_COLUMNS = "id, at, namespace, function, version, instance, call_id, stream, level, text"


class SqliteLogs:
    """The open log file."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._prepare()

    def append(self, records: Sequence[LogRecord]) -> None:
        rows = [msgspec.structs.astuple(record) for record in records]
        with self._transaction():
            self._db.executemany(_INSERT, rows)

    def read(self, query: LogQuery) -> list[tuple[int, LogRecord]]:
        where, values = _conditions(query)
        limit = max(0, min(query.limit, READ_MAX))
        order = "ASC" if query.after else "DESC"
        statement = f"SELECT {_COLUMNS} FROM logs WHERE {where} ORDER BY id {order} LIMIT ?"  # noqa: S608 (values are bound)
        with self._translated():
            rows = self._db.execute(statement, [*values, limit]).fetchall()
        if not query.after:
            rows.reverse()
        return [(row[0], LogRecord(*row[1:])) for row in rows]

    def last_id(self) -> int:
        with self._translated():
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'logs'").fetchone()
        return int(row[0]) if row else 0

    def forget(self, before: float, keep: int) -> int:
        gone = 0
        for condition, value in (("at < ?", before), ("id <= ?", self.last_id() - keep)):
            statement = f"DELETE FROM logs WHERE id IN (SELECT id FROM logs WHERE {condition} LIMIT {DELETE_STEP})"  # noqa: S608
            with self._transaction():
                gone += self._db.execute(statement, (value,)).rowcount
        return gone

    def shrink(self, bytes_max: int) -> int:
        """The file does not get smaller by it at once: what is free in it is written to again."""
        with self._translated():
            pages, free, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
            used = (pages - free) * size
            if used <= bytes_max:
                return 0
            oldest, newest = self._db.execute("SELECT min(id), max(id) FROM logs").fetchone()
        if oldest is None:
            return 0
        with self._transaction():
            return self._db.execute("DELETE FROM logs WHERE id <= ?", (doomed(oldest, newest, used, bytes_max),)).rowcount

    def tidy(self) -> bool:
        with self._translated():
            return room.give_back(self._db, self.path)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise refusal_for(error, self.path) or error from error

    def _prepare(self) -> None:
        room.choose(self._db)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA cache_size=-2048")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise Refusal("data_unusable", f"{self.path} has log format {found}; this release knows {FORMAT}.")
        self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
        room.rewrite(self._db)


def _conditions(query: LogQuery) -> tuple[str, list[object]]:
    marks = ",".join("?" * len(query.namespaces))
    parts, values = [f"namespace IN ({marks})"], list[object](query.namespaces)
    for condition, value in (
        ("function = ?", query.function),
        ("call_id = ?", query.call_id),
        ("at >= ?", query.since),
        ("id > ?", query.after),
    ):
        if value:
            parts.append(condition)
            values.append(value)
    return " AND ".join(parts), values
