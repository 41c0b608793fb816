"""One SQLite file or PostgreSQL database, transactions by context manager, and errors in our own words. Decides nothing, retries nothing.

A `Database` has one connection and is used from one thread (control's worker), so there is one writer and no lock of ours.
Verbs live in the modules beside this one and take the connection that `transaction()` yields. Every transaction has the write lock from
its first statement: on SQLite it begins IMMEDIATE and can fail only there or at commit, on PostgreSQL it takes an advisory lock
(store/server.py says why), and the next one connects again where the server had gone.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from dayfly.core.model.errors import Refusal
from dayfly.store import room
from dayfly.store.trouble import Doubtful

if TYPE_CHECKING:
    from dayfly.store.server import Server

BUSY_TIMEOUT_MS = 5_000
CACHE_KB = 512  # the kernel has the file in its cache, too

Synchronous = Literal["FULL", "NORMAL"]


class Database:
    """An open database. `close()` when done; afterwards nothing may be called. `where`: a file or a server, as text fit for a person."""

    def __init__(self, where: "Path | Server", synchronous: Synchronous = "FULL", *, serial: bool = True) -> None:
        """`serial`: on a server, whether transactions take the lock; those that see to their order themselves need not."""
        self.where = where
        self._engine = _engine(where, synchronous) if isinstance(where, Path) else where.engine(serial=serial)

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing: commits at the end, rolls back on any exception. Raises Refusal storage_full or data_unusable; of the latter
        Unreachable when the server is away, Doubtful when it went away during the commit."""
        with translated(self.where), self._engine.connect() as connection:
            transaction = connection.begin()
            try:
                yield connection
            except BaseException:
                with suppress(sa.exc.DBAPIError):  # a broken connection has rolled back by itself; the first error says more
                    transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise Doubtful(self.where) from error
                raise

    def tidy(self) -> bool:
        """Give room that is free in a file back to the disk, one bounded step; whether there is more to do. A server does so by itself."""
        if not isinstance(self.where, Path):
            return False
        with translated(self.where):
            return room.give_back(self._file(), self.where)

    def renew(self) -> None:
        """Once, after the schema was found right: a small file of an older release learns to give room back."""
        if isinstance(self.where, Path):
            with translated(self.where):
                room.rewrite(self._file())

    def _file(self) -> sqlite3.Connection:
        connection = self._engine.raw_connection().driver_connection  # the one there is
        assert isinstance(connection, sqlite3.Connection)
        return connection

    def close(self) -> None:
        self._engine.dispose()


def upsert(tx: sa.Connection, table: sa.Table) -> Any:
    """An INSERT into `table` that may be told what to do on a conflict; both databases say it the same way, SQLAlchemy does not."""
    if tx.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


@contextmanager
def translated(where: "Path | Server") -> Iterator[None]:
    """Give a database's complaints about disk, permissions, damage and absence our names, with the cause chained."""
    try:
        yield
    except Exception as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error  # where a driver is used directly, it is its own
        refusal = refusal_for(cause, where) if isinstance(where, Path) else where.refusal(cause)
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
        room.choose(connection)
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
