"""Bring a database to this release's schema at control's start, or refuse it untouched. Never guesses, never goes back.

A new file is made from store/schema.py in one transaction, which spares the common case Alembic's 30 MB and 200 ms; a test
proves that the migrations lead to the same schema. An older file is migrated step by step by Alembic, all steps in one
transaction. A database written by a newer release is refused before anything is changed. On PostgreSQL the same; there several may begin at
once, and the transaction's lock (store/server.py) lets one make the tables and the others find them.
"""

import sqlite3
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import DEFAULT_NAMESPACE
from dayfly.store import schema
from dayfly.store.database import Database

if TYPE_CHECKING:
    from dayfly.store.server import Server

REVISIONS: tuple[str, ...] = ("0001", "0002", "0003")  # oldest first; each is a file in store/migrations/versions
HEAD = REVISIONS[-1]
_WAL_AT, _WAL = 18, 2  # SQLite's file format, 1.3.3: the write version
MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(where: "Path | Server", now: float) -> Database:
    """Open (or make) the database there with the newest schema. Raises Refusal data_unusable or storage_full."""
    if isinstance(where, Path):
        refuse_foreign(where)
    database = Database(where)
    try:
        with database.transaction() as tx:
            prepare(tx, where, now)
        database.renew()
    except BaseException:
        database.close()
        raise
    return database


def refuse_foreign(path: Path) -> None:
    """Opening a database turns its journal to WAL, which writes to it. Ours has that already (a backup of ours may not); whatever has
    not is looked at first without touching it. Raises Refusal data_unusable; a damaged file is found out by opening it."""
    with suppress(OSError, sqlite3.DatabaseError):
        with path.open("rb") as file:
            head = file.read(_WAL_AT + 1)
        if len(head) <= _WAL_AT or head[_WAL_AT] == _WAL:
            return
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if names and "alembic_version" not in names:
            raise Refusal("data_unusable", f"{path} is a database, but not one of Dayfly's.")


def prepare(tx: sa.Connection, where: object, now: float) -> None:
    """The work of `open_database` inside one transaction, so that a crash leaves the database as it was. `where`: for messages."""
    tables = sa.inspect(tx).get_table_names()
    if not tables:
        schema.metadata.create_all(tx)
        _stamp(tx)
        seed(tx, now)
        return
    found = _revision(tx, where, tables)
    if found == HEAD:
        return
    if found not in REVISIONS:
        raise Refusal(
            "data_unusable",
            f"{where} has schema {found!r}, which this release does not know (newest: {HEAD}); a newer Dayfly wrote it.",
        )
    upgrade(tx)


def seed(tx: sa.Connection, now: float) -> None:
    """What every database holds from the beginning: its identity and the default namespace."""
    tx.execute(sa.insert(schema.meta), [{"key": "installation_id", "value": str(uuid.uuid4())}])
    tx.execute(sa.insert(schema.namespaces), [{"name": DEFAULT_NAMESPACE, "created_at": now}])


def upgrade(tx: sa.Connection, to: str = "head") -> None:
    """Run the missing migrations on this connection. Imports Alembic, which nothing else does."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = tx
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a step may rewrite a large table
    command.upgrade(config, to)


def installation_id(tx: sa.Connection) -> str:
    """The identity made with the database; it never changes."""
    return str(tx.execute(sa.select(schema.meta.c.value).where(schema.meta.c.key == "installation_id")).scalar_one())


def _revision(tx: sa.Connection, where: object, tables: list[str]) -> str:
    # Others use Alembic, too, and number their steps as we do: a table that we had from the beginning must be there as well.
    if "alembic_version" not in tables or schema.namespaces.name not in tables:
        raise Refusal("data_unusable", f"{where} is a database, but not one of Dayfly's.")
    return str(tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "none")


def _stamp(tx: sa.Connection) -> None:
    """What Alembic's own table looks like after an upgrade to HEAD."""
    tx.exec_driver_sql(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    tx.execute(sa.text("INSERT INTO alembic_version (version_num) VALUES (:head)"), {"head": HEAD})
