"""One SQLite file with transactions by context manager, and its errors in our own words. Decides nothing, retries nothing.

A `Database` has one connection and is used from one thread (control's worker), so there is one writer and no lock of ours.
Verbs live in the modules beside this one and take the connection that `transaction()` yields. Every transaction begins
IMMEDIATE: it has the write lock from its first statement and can fail only there or at commit, never in between.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from dayfly.core.model.errors import Refusal

BUSY_TIMEOUT_MS = 5_000
CACHE_KB = 512  # the kernel has the file in its cache, too

Synchronous = Literal["FULL", "NORMAL"]


class Database:
    """An open database. `close()` when done; afterwards nothing may be called."""

    def __init__(self, path: Path, synchronous: Synchronous = "FULL") -> None:
        self.path = path
        self._engine = _engine(path, synchronous)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing: commits at the end, rolls back on any exception. Raises Refusal storage_full or data_unusable."""
        with translated(self.path), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Give SQLite's complaints about disk, permissions and damage our names, with the cause chained."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        refusal = refusal_for(error.orig, path)
        if refusal is None:
            raise
        raise refusal from error


def refusal_for(error: BaseException | None, path: Path) -> Refusal | None:
    """What to tell a person about `error`; None when it is a defect of ours rather than a state of the disk."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Refusal("storage_full", f"No space is left to write {path}.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return Refusal("data_unusable", f"{path} cannot be opened for writing: check the owner and mode of its folder.")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return Refusal("data_unusable", f"{path} is damaged or no Dayfly database; restore it from a backup.")
    if code == sqlite3.SQLITE_IOERR:
        return Refusal("data_unusable", f"Reading or writing {path} failed: {error}.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Refusal("data_unusable", f"{path} is locked by another process: is a second control running?")
    return None


def _engine(path: Path, synchronous: Synchronous) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        hide_parameters=True,  # errors are logged; what was being stored must not be
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin or commit behind our back
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA cache_size=-{CACHE_KB}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
