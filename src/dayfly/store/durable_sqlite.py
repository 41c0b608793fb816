"""The file that queue, log and key-value rows share (`durable.db`): opening, schema steps, transactions, and SQLite's errors in our words.

Plain sqlite3: these are the hot statements, and an expression layer was measured 4 to 8 times slower (facts/dataplane.md). It is not
the catalog's file, so that a million waiting calls do not slow a deploy. A connection belongs to one thread, control's writer.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.store import room
from dayfly.store.database import refusal_for

APPLICATION_ID = 0x44464C59  # "DFLY", in the file's head: other databases are refused untouched
CACHE_KB = 16_384
CHECKPOINT_PAGES = 2_000  # 8 MB of WAL, then its pages go to the file; more would make opening after a crash slower

# What makes a file of schema n one of n + 1. A step that was released is never edited; a new file takes them all.
_FIRST = """
CREATE TABLE queue_lanes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    waiting INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE queue_items (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, lane INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, place INTEGER NOT NULL DEFAULT 0,
    rank INTEGER NOT NULL, due REAL NOT NULL, expires REAL NOT NULL, accepted_at REAL NOT NULL, epoch INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, records INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
    lease_until REAL NOT NULL DEFAULT 0,
    grp TEXT NOT NULL, tag TEXT NOT NULL, dedup TEXT NOT NULL, dedup_until REAL NOT NULL, reason TEXT NOT NULL DEFAULT '',
    settled_at REAL NOT NULL DEFAULT 0, keep_until REAL NOT NULL DEFAULT 0, cancelling INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX ix_items_id ON queue_items (id);
CREATE INDEX ix_items_ready ON queue_items (lane, rank, due) WHERE state = 0 AND place = 0;
CREATE INDEX ix_items_listed ON queue_items (lane, state, accepted_at, id);
CREATE INDEX ix_items_tag ON queue_items (tag, state, accepted_at, id) WHERE tag != '';
CREATE INDEX ix_items_group ON queue_items (lane, grp, state, place) WHERE grp != '';
CREATE INDEX ix_items_expires ON queue_items (expires) WHERE state = 0;
CREATE INDEX ix_items_leased ON queue_items (lease_until) WHERE state = 1;
CREATE INDEX ix_items_kept ON queue_items (keep_until) WHERE state > 1;
CREATE TABLE queue_bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE queue_results (seq INTEGER PRIMARY KEY, result BLOB NOT NULL);
CREATE TABLE queue_attempts (seq INTEGER NOT NULL, n INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (seq, n)) WITHOUT ROWID;
CREATE TABLE queue_dedups (
    lane TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (lane, key)
) WITHOUT ROWID;
CREATE INDEX ix_dedups_until ON queue_dedups (until);
CREATE TABLE log_streams (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE TABLE log_events (stream INTEGER NOT NULL, position INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX ix_log_events ON log_events (stream, position);
CREATE TABLE log_cursors (
    stream INTEGER NOT NULL, subscriber TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (stream, subscriber)
) WITHOUT ROWID;
CREATE TABLE kv_entries (key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, version INTEGER NOT NULL, expires REAL);
CREATE INDEX ix_kv_expires ON kv_entries (expires) WHERE expires IS NOT NULL;
CREATE TABLE kv_version (last INTEGER NOT NULL);
INSERT INTO kv_version VALUES (0);
"""
STEPS: tuple[str, ...] = (_FIRST,)


class DurableFile:
    """One connection to the file at `path`, which is made if it is not there. Raises Refusal storage_full or data_unusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = False  # a transaction
        with self._translated():
            _refuse_foreign(path)
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256)
            try:
                self._prepare()
            except BaseException:
                self.db.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end: of the outermost, where they stand in each other."""
        if self._open:
            yield self.db
            return
        with self._translated():
            self._begin("BEGIN IMMEDIATE")
            self._open = True
            try:
                yield self.db
                self.commit()
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
            finally:
                self._open = False

    def commit(self) -> None:
        """The moment from which a transaction is durable."""
        self.db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Several statements that see one state."""
        if self._open:
            yield self.db
            return
        with self._translated():
            self._begin("BEGIN")
            try:
                yield self.db
            finally:
                if self.db.in_transaction:
                    self.db.execute("COMMIT")

    def tidy(self) -> bool:
        """One step of giving free room back; whether there is more to do."""
        with self._translated():
            return room.give_back(self.db, self.path)

    def close(self) -> None:
        self.db.close()

    def _begin(self, statement: str) -> None:
        if self.db.in_transaction:  # its rollback failed too: the disk had its say in between
            self.db.execute("ROLLBACK")
        self.db.execute(statement)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise refusal_for(error, self.path) or error from error

    def _prepare(self) -> None:
        room.choose(self.db)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"cache_size=-{CACHE_KB}", f"wal_autocheckpoint={CHECKPOINT_PAGES}"):
            self.db.execute(f"PRAGMA {pragma}")
        if self._format() == len(STEPS):
            return
        with self.transaction():  # another process may have been first
            found = self._format()
            if found > len(STEPS):
                raise Refusal("data_unusable", f"{self.path} has schema {found}; this release knows {len(STEPS)}: a newer Dayfly wrote it.")
            upgrade(self.db, found, len(STEPS))

    def _format(self) -> int:
        return int(self.db.execute("PRAGMA user_version").fetchone()[0])


def upgrade(db: sqlite3.Connection, found: int, to: int) -> None:
    """Take the steps from schema `found` to `to`, inside the caller's transaction."""
    for step in STEPS[found:to]:
        for statement in step.split(";\n"):
            db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={to}")


def listed(values: Sequence[object]) -> str:
    """Values as one parameter, for `IN (SELECT value FROM json_each(?))`."""
    return msgspec.json.encode(values).decode()


def _refuse_foreign(path: Path) -> None:
    """Look before touching: turning a journal to WAL writes to the file."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            return
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise Refusal("data_unusable", f"{path} is a database, but not one of Dayfly's durable ones.")
