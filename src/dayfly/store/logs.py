"""Log records in a SQLite file of their own: appended in batches, read by function, call and time, forgotten by age and count.

Plain sqlite3 with hand-written statements: this is the one store that takes thousands of rows a second, and it holds
nothing that cannot be lost (synchronous=NORMAL: a power cut may cost the last moments). Used from one thread.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store.database import refusal_for

READ_MAX = 10_000  # rows of one read; a reader goes on after the last id it has
DELETE_STEP = 20_000  # rows deleted in one transaction, so that appending never waits long

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


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which records: every given condition must hold. `since` is epoch seconds; `after` an id already seen."""

    namespaces: tuple[str, ...]
    function: str = ""
    call_id: str = ""
    since: float = 0.0
    after: int = 0
    limit: int = 1000


class LogStore:
    """The open log file. Raises Refusal storage_full or data_unusable when the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._prepare()
        except sqlite3.Error as error:
            raise refusal_for(error, path) or error from error

    def append(self, records: Sequence[LogRecord]) -> None:
        """Keep a batch, all or nothing."""
        rows = [msgspec.structs.astuple(record) for record in records]
        with self._transaction():
            self._db.executemany(_INSERT, rows)

    def read(self, query: LogQuery) -> list[tuple[int, LogRecord]]:
        """At most `limit` (and READ_MAX) records with their ids, oldest first: those after `after`, or the newest ones."""
        where, values = _conditions(query)
        limit = max(0, min(query.limit, READ_MAX))
        order = "ASC" if query.after else "DESC"
        statement = f"SELECT {_COLUMNS} FROM logs WHERE {where} ORDER BY id {order} LIMIT ?"  # noqa: S608 (values are bound)
        rows = self._db.execute(statement, [*values, limit]).fetchall()
        if not query.after:
            rows.reverse()
        return [(row[0], LogRecord(*row[1:])) for row in rows]

    def last_id(self) -> int:
        """The newest id ever given; 0 before the first."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'logs'").fetchone()
        return int(row[0]) if row else 0

    def forget(self, before: float, keep: int) -> int:
        """Delete one step of what is older than `before` (epoch seconds) or beyond the `keep` newest; how many went."""
        gone = 0
        for condition, value in (("at < ?", before), ("id <= ?", self.last_id() - keep)):
            statement = f"DELETE FROM logs WHERE id IN (SELECT id FROM logs WHERE {condition} LIMIT {DELETE_STEP})"  # noqa: S608
            with self._transaction():
                gone += self._db.execute(statement, (value,)).rowcount
        return gone

    def shrink(self, bytes_max: int) -> int:
        """Delete one step of the oldest records when all of them take more than `bytes_max`; how many went. The file does not get
        smaller by it: what is free in it is written to again."""
        pages, free, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        used = (pages - free) * size
        if used <= bytes_max:
            return 0
        oldest, newest = self._db.execute("SELECT min(id), max(id) FROM logs").fetchone()
        if oldest is None:
            return 0
        last = oldest + min(DELETE_STEP, int((newest - oldest) * (1 - bytes_max / used)) + 1)
        with self._transaction():
            return self._db.execute("DELETE FROM logs WHERE id <= ?", (last,)).rowcount

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise refusal_for(error, self.path) or error from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA cache_size=-2048")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise Refusal("data_unusable", f"{self.path} has log format {found}; this release knows {FORMAT}.")
        self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")


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
