"""Every schema that was ever released, on both databases: brought forward with what it holds, and used by the code that knew only it.

`released/schema_NNNN.py` is store/schema.py as it was with revision NNNN. A new revision needs its own copy:
`cp src/dayfly/store/schema.py tests/store/released/schema_NNNN.py`; a test here says when it is missing.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.schema import CreateTable

from dayfly.core.model.function import Alias, Token
from dayfly.store import access, functions, migrate, schema, usage
from dayfly.store.database import Database
from dayfly.store.server import Server
from tests.postgres import Server as PostgreSQL

CONFIG = '{"handler":"a.b","runtime":"python3.11","memory_mb":128}'
# One row of every table there ever was, as the release that made the table would have written it.
ROWS: dict[str, dict[str, object]] = {
    "meta": {"key": "k", "value": "v"},
    "namespaces": {"name": "team", "created_at": 1.5},
    "namespace_limits": {"namespace": "team", "limits": '{"concurrency":3}'},
    "numbers": {"namespace": "team", "function": "f", "next": 4},
    "functions": {"namespace": "team", "name": "f", "created_at": 2.5},
    "versions": {
        "namespace": "team",
        "function": "f",
        "number": 3,
        "config": CONFIG,
        "code_digest": "c" * 64,
        "layer_digest": "",
        "created_at": 3.5,
    },
    "aliases": {"namespace": "team", "function": "f", "alias": "live", "number": 3, "weight": 1.0},
    "moves": {"id": 1, "namespace": "team", "function": "f", "number": 3, "at": 3.5},
    "secrets": {"namespace": "team", "name": "S", "sealed": b"\0\xff", "updated_at": 1.0},
    "tokens": {"id": "i", "digest": b"d" * 32, "name": "n", "namespaces": '["*"]', "verbs": '["read"]', "created_at": 1.0},
    "usage_day": {
        "day": "2026-01-02",
        "namespace": "team",
        "function": "f",
        "calls": 2**40,
        "errors": 1,
        "cold": 1,
        "exec_us": 1,
        "billed_ms": 1,
        "mb_ms": 2**50,
        "bytes_in": 1,
        "bytes_out": 1,
    },
    "schedules": {
        "namespace": "team",
        "name": "daily",
        "function": "f",
        "schedule": '{"name":"daily","rate":"1 day"}',
        "declared": 1,
        "paused": 0,
        "anchor": 1.0,
        "dice": 0.5,
        "decided": 2.0,
        "next_at": None,
        "revision": 2**40,
        "created_at": 1.5,
        "updated_at": 1.5,
        "last_due": None,
        "last_call": "",
        "fired": 2**40,
        "skipped": 0,
        "missed": 0,
    },
    "garbage": {"kind": "code", "digest": "c" * 64, "since": 9.0},
}


def released(revision: str) -> sa.MetaData:
    """The tables as the release with this revision knew them."""
    module = importlib.import_module(f"tests.store.released.schema_{revision}")
    metadata: sa.MetaData = module.metadata
    return metadata


def at_revision(where: Path | Server, revision: str) -> None:
    """A database as that release left it, with a row in every table."""
    database = Database(where)
    with database.transaction() as tx:
        migrate.upgrade(tx, revision)
        migrate.seed(tx, 1.0)
        for table in released(revision).sorted_tables:
            tx.execute(sa.insert(table), [ROWS[table.name]])
    database.close()


def test_every_revision_has_its_copy_of_the_schema_and_the_newest_is_the_present_one() -> None:
    copies = sorted(path.stem.removeprefix("schema_") for path in Path(__file__).parent.glob("released/schema_*.py"))
    assert tuple(copies) == migrate.REVISIONS, "see the top of this file"
    for table in schema.metadata.sorted_tables:
        copy = released(migrate.HEAD).tables[table.name]
        assert str(CreateTable(copy)) == str(CreateTable(table)), f"{table.name} changed: that needs a new revision"


@pytest.mark.parametrize("revision", migrate.REVISIONS)
def test_a_database_of_any_release_is_brought_forward_with_all_that_it_holds(where: Path | Server, revision: str) -> None:
    at_revision(where, revision)
    database = migrate.open_database(where, 2.0)
    with database.transaction() as tx:
        assert compare_metadata(MigrationContext.configure(tx), schema.metadata) == []
        for table in released(revision).sorted_tables:
            rows = [dict(row) for row in tx.execute(sa.select(table)).mappings()]
            assert ROWS[table.name] in rows, table.name
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default", "team"]
        assert [it.number for it in functions.versions_of(tx, "team", "f")] == [3]
        assert functions.aliases_of(tx, "team", "f") == [Alias(name="live", weights=((3, 1.0),))]
        assert functions.reserve_number(tx, "team", "f") == 4
        assert access.sealed_secrets(tx, "team", {"S"}) == {"S": b"\0\xff"}
        assert access.all_tokens(tx) == [Token(id="i", digest=b"d" * 32, namespaces=("*",), verbs=("read",), name="n", created_at=1.0)]
        assert usage.of_day(tx, "2026-01-02")[0].mb_ms == 2**50
        assert usage.marked_garbage(tx) == {("code", "c" * 64): 9.0}
    database.close()


@pytest.mark.parametrize("revision", migrate.REVISIONS)
def test_statements_of_any_release_work_on_the_newest_schema(where: Path | Server, revision: str) -> None:
    """What an older control says while a newer one has migrated: insert, read, change and delete rows of the tables it knows."""
    database = migrate.open_database(where, 1.0)
    tables = released(revision).sorted_tables
    with database.transaction() as tx:
        for table in tables:
            row = ROWS[table.name]
            assert set(row) == set(table.columns.keys()), f"{table.name}: the row must be whole, as that release wrote it"
            tx.execute(sa.insert(table), [row])
            key = sa.and_(*(column == row[column.name] for column in table.primary_key))
            assert dict(tx.execute(sa.select(table).where(key)).mappings().one()) == row
            plain = next((column for column in table.columns if not column.primary_key and not column.foreign_keys), None)
            if plain is not None:
                assert tx.execute(sa.update(table).where(key).values({plain.name: row[plain.name]})).rowcount == 1
    with database.transaction() as tx:
        for table in reversed(tables):
            key = sa.and_(*(column == ROWS[table.name][column.name] for column in table.primary_key))
            assert tx.execute(sa.delete(table).where(key)).rowcount == 1, table.name
    database.close()


def test_on_a_server_migrations_lead_to_what_a_new_database_is(postgres: str, postgres_server: PostgreSQL) -> None:
    """Compared by pg_dump, which sees more than Alembic: sequences, defaults, names of constraints."""
    other = postgres_server.make("t_migrated")
    try:
        migrate.open_database(Server(postgres), 1.0).close()
        database = Database(Server(other))
        with database.transaction() as tx:
            migrate.upgrade(tx)
        database.close()
        name = postgres.partition("@/")[2].partition("?")[0]
        new, old = (postgres_server.dumped_schema(it).replace(it, "X") for it in (name, "t_migrated"))
        assert "CREATE TABLE" in new and sorted(new.splitlines()) == sorted(old.splitlines())
    finally:
        postgres_server.drop("t_migrated")


BEGIN = """
import sys
from dayfly.store.migrate import installation_id, open_database
from dayfly.store.server import Server
server = Server(sys.argv[1])
print("prepared", flush=True)
sys.stdin.readline()
database = open_database(server, 1.0)
with database.transaction() as tx:
    print(installation_id(tx), flush=True)
database.close()
"""


@pytest.mark.parametrize("before", ["nothing", *migrate.REVISIONS])
def test_several_that_begin_at_once_on_a_server_agree(postgres: str, before: str) -> None:
    """One makes or migrates the tables, the others wait for it and find them."""
    if before != "nothing":
        at_revision(Server(postgres), before)
    command = [sys.executable, "-c", BEGIN, postgres]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for process in several:
            assert process.stdout is not None and process.stdout.readline() == "prepared\n"
        for process in several:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in several]
        assert all(process.returncode == 0 for process in several) and len(set(said)) == 1 and said[0].strip(), said
    finally:
        for process in several:
            process.kill()
            process.wait()
    database = migrate.open_database(Server(postgres), 1.0)
    with database.transaction() as tx:
        assert compare_metadata(MigrationContext.configure(tx), schema.metadata) == []
    database.close()
