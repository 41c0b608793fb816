"""store/server.py and database.py on a real PostgreSQL: absence, doubt, locks, full disks, foreign databases, what is told of each."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from dayfly.core.model.database import checked, has_password
from dayfly.core.model.errors import Refusal
from dayfly.store import access, functions, migrate, usage
from dayfly.store.database import Database
from dayfly.store.logs_postgresql import PostgresLogs
from dayfly.store.places import server_of
from dayfly.store.server import Server
from dayfly.store.trouble import Doubtful, Unreachable
from dayfly.store.usage import UsageDay
from tests.postgres import Server as PostgreSQL


@pytest.fixture
def database(postgres: str) -> Iterator[Database]:
    opened = migrate.open_database(Server(postgres), 1.0)
    yield opened
    opened.close()


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def test_a_server_that_is_away_is_said_and_the_next_transaction_after_its_return_succeeds(
    database: Database, postgres_server: PostgreSQL
) -> None:
    with database.transaction() as tx:
        access.add_namespace(tx, "before", 1.0)
    postgres_server.stop(crash=True)
    for _ in range(2):
        with pytest.raises(Unreachable, match="cannot be reached") as refusal, database.transaction():
            pass
        assert refusal.value.kind.code == "data_unusable" and postgres_server.password not in refusal.value.detail
    postgres_server.start()
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["before", "default"]


def test_a_connection_that_breaks_in_a_transaction_leaves_nothing_of_it(database: Database, postgres_server: PostgreSQL) -> None:
    with pytest.raises(Unreachable), database.transaction() as tx:
        access.add_namespace(tx, "half", 1.0)
        postgres_server.restart(crash=True)
        access.add_namespace(tx, "other half", 1.0)
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default"]


def test_a_connection_that_breaks_at_the_commit_leaves_a_doubt_that_is_said(database: Database, postgres_server: PostgreSQL) -> None:
    with pytest.raises(Doubtful, match="not known"), database.transaction() as tx:
        access.add_namespace(tx, "perhaps", 1.0)
        pid = tx.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        postgres_server.sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default"]


def test_transactions_of_two_controls_are_serial_from_their_first_statement(postgres: str, database: Database) -> None:
    other, order = Database(Server(postgres)), list[str]()

    def second() -> None:
        with other.transaction() as tx:
            order.append(f"second saw {access.namespace_names(tx)}")

    waiter = threading.Thread(target=second)
    with database.transaction() as tx:
        waiter.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not tx.exec_driver_sql(waiting).scalar():
            pass
        access.add_namespace(tx, "first", 1.0)
        order.append("first")
    waiter.join(30)
    other.close()
    assert order == ["first", "second saw ['default', 'first']"]


def test_a_lock_that_is_not_had_in_time_is_said(postgres: str, database: Database) -> None:
    impatient = Database(Server(postgres + "&options=-c%20lock_timeout%3D50"))
    with database.transaction(), pytest.raises(Unreachable, match="in time"), impatient.transaction():
        pass
    impatient.close()


def test_a_strangers_database_is_refused_also_when_they_use_alembic(postgres: str, postgres_server: PostgreSQL) -> None:
    postgres_server.sql("CREATE TABLE theirs (x int)", name_of(postgres))
    with pytest.raises(Refusal, match="not one of Dayfly's") as refusal:
        migrate.open_database(Server(postgres), 1.0)
    assert refusal.value.kind.code == "data_unusable"
    postgres_server.sql("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('0001')", name_of(postgres))
    with pytest.raises(Refusal, match="not one of Dayfly's"):
        migrate.open_database(Server(postgres), 1.0)
    assert postgres_server.sql("SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'",
                               name_of(postgres)) == "alembic_version,theirs"  # fmt: skip


def test_a_newer_schema_is_refused_and_left_alone(postgres: str, database: Database, postgres_server: PostgreSQL) -> None:
    postgres_server.sql("UPDATE alembic_version SET version_num = '9999'", name_of(postgres))
    with pytest.raises(Refusal, match="9999"):
        migrate.open_database(Server(postgres), 1.0)
    assert postgres_server.sql("SELECT version_num FROM alembic_version", name_of(postgres)) == "9999"


def test_a_database_that_may_not_be_written_is_said(postgres: str, database: Database, postgres_server: PostgreSQL) -> None:
    postgres_server.sql(f'ALTER DATABASE "{name_of(postgres)}" SET default_transaction_read_only = on')
    reader = Database(Server(postgres))
    with pytest.raises(Refusal, match="does not let us write"), reader.transaction() as tx:
        access.add_namespace(tx, "team", 1.0)
    reader.close()


def test_another_schema_of_a_shared_database_can_be_named(postgres: str, postgres_server: PostgreSQL) -> None:
    postgres_server.sql("CREATE TABLE theirs (x int); CREATE SCHEMA dayfly", name_of(postgres))
    database = migrate.open_database(Server(postgres + "&options=-c%20search_path%3Ddayfly"), 1.0)
    database.close()
    PostgresLogs(Server(postgres + "&options=-c%20search_path%3Ddayfly")).close()
    tables = postgres_server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'dayfly'", name_of(postgres))
    assert int(tables) >= 14


def test_names_are_sorted_by_code_point_whatever_the_servers_locale(postgres_server: PostgreSQL) -> None:
    postgres_server.sql("CREATE DATABASE t_sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' ENCODING 'UTF8'")
    try:
        assert postgres_server.sql("SELECT 'B' < 'a'", "t_sorted") == "f", "this locale sorts otherwise"
        database = migrate.open_database(Server(postgres_server.url("t_sorted")), 1.0)
        names = ["B", "a", "a-b", "aa", "b"]
        with database.transaction() as tx:
            for name in reversed(names):
                access.add_namespace(tx, name, 1.0)
                access.put_secret(tx, "default", name, b"x", 1.0)
            usage.add(tx, [UsageDay(day="2026-01-01", namespace="default", function=name) for name in names])
            assert access.namespace_names(tx) == sorted([*names, "default"])
            assert [name for name, _ in access.secret_names(tx, "default")] == names
            assert [it.function for it in usage.between(tx, "2026-01-01", "2026-01-01", ["default"])] == names
            assert functions.all_names(tx) == []
        database.close()
    finally:
        postgres_server.drop("t_sorted")


@pytest.mark.root
def test_a_full_disk_of_the_server_says_storage_full_and_keeps_what_it_had(postgres_server: PostgreSQL) -> None:
    """A tablespace of its own on a small disk: where the server's log is full, it ends itself, and that is another day."""
    with ExitStack() as undo:
        small = postgres_server.folder / "small"
        small.mkdir()
        undo.callback(small.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700,uid=postgres", "dayfly-test", str(small)], check=True)
        undo.callback(subprocess.run, ["umount", str(small)], check=True)
        postgres_server.sql(f"CREATE TABLESPACE small LOCATION '{small}'")
        undo.callback(postgres_server.sql, "DROP TABLESPACE IF EXISTS small")
        postgres_server.sql("CREATE DATABASE t_small TABLESPACE small")
        undo.callback(postgres_server.drop, "t_small")
        database = migrate.open_database(Server(postgres_server.url("t_small")), 1.0)
        undo.callback(database.close)
        with pytest.raises(Refusal) as refusal, database.transaction() as tx:
            for number in range(64):
                access.put_secret(tx, "default", f"S{number}", os.urandom(1_000_000), 1.0)
        assert refusal.value.kind.code == "storage_full"
        with database.transaction() as tx:
            assert access.secret_names(tx, "default") == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hush@h/d?nonsense=1",
        "postgresql://u:hush@h:hush/d",
        "postgresql://u:hu@hush@h/d",
        "postgresql://u:hush@[::1/d",
        "postgresql://u:hush%zz@h/d",
        "hush=hush hush",
    ],
)
def test_an_address_that_libpq_cannot_read_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Refusal) as refusal:
        Server(url)
    assert "hush" not in refusal.value.detail and refusal.value.__cause__ is None


def test_an_address_is_shown_without_its_password() -> None:
    for url in ("postgresql://u:hush@h:5433/d", "postgresql://u@h:5433/d?password=hush"):
        server = Server(url)
        assert str(server) == "postgresql://u@h:5433/d" and "hush" not in repr(server) and "hush" not in repr(server.engine())


@pytest.mark.parametrize(
    ("text", "right", "secret"),
    [
        ("", True, False),
        ("file:/etc/dayfly/database", True, False),
        ("postgresql://u@h/d", True, False),
        ("postgres://h", True, False),
        ("postgresql://u:p@h/d", True, True),
        ("postgresql://u:p@h1:1,h2:2/d?target_session_attrs=read-write", True, True),
        ("postgresql:///d?user=u&password=p", True, True),
        ("postgresql://u:p@[::1/d", True, True),
        ("file:relative", False, False),
        ("sqlite:///x", False, False),
        ("host=h password=p", False, False),
        ("postgresql://h/d\n", False, False),
        ("postgresql://" + "x" * 5000, False, False),
    ],
)
def test_what_the_setting_may_say(text: str, right: bool, secret: bool) -> None:
    if right:
        assert checked(text) == text and has_password(text) == secret
    else:
        with pytest.raises(ValueError, match="expected postgresql://") as error:
            checked(text)
        assert "x" * 100 not in str(error.value)


def test_the_file_of_an_address_is_read_bounded(tmp_path: Path) -> None:
    assert server_of(tmp_path / "missing") is None
    (tmp_path / "url").write_text("postgresql://u:p@h/d\n")
    assert str(server_of(tmp_path / "url")) == "postgresql://u@h/d"
    (tmp_path / "url").write_bytes(b"x" * 100_000)
    with pytest.raises(Refusal, match="no address"):
        server_of(tmp_path / "url")
    with pytest.raises(Refusal, match="cannot be read"):
        server_of(tmp_path)


def test_a_password_does_not_leave_with_an_error(postgres_server: PostgreSQL) -> None:
    wrong = postgres_server.url("postgres").replace(postgres_server.password, "hush-hush")
    with pytest.raises(Refusal, match="password authentication failed") as refusal:
        migrate.open_database(Server(wrong), 1.0)
    chain: BaseException | None = refusal.value
    while chain is not None:
        assert "hush-hush" not in str(chain) and "hush-hush" not in repr(chain)
        chain = chain.__cause__ or chain.__context__


def test_what_was_being_stored_is_not_in_an_error(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as error, database.transaction() as tx:
        access.put_secret(tx, "no such namespace", "S", b"the sealed value", 1.0)
    assert "sealed value" not in str(error.value)
