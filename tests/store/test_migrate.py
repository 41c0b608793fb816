"""store/migrate.py and database.py: schemas, foreign files, disks that say no. Real SQLite files."""

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dayfly.core.model.errors import Refusal
from dayfly.store import access, functions, migrate, room, schema
from dayfly.store.database import Database
from dayfly.store.logs_sqlite import SqliteLogs


def dump(path: Path) -> list[str]:
    """The schema as SQLite keeps it, white space aside."""
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return ["".join(row[0].split()).replace('"', "") for row in rows]


def test_the_migrations_lead_to_the_same_schema_as_a_new_file(tmp_path: Path) -> None:
    migrate.open_database(tmp_path / "new.db", 1.0).close()
    database = Database(tmp_path / "old.db")
    with database.transaction() as tx:
        migrate.upgrade(tx)
    with database.transaction() as tx:
        assert compare_metadata(MigrationContext.configure(tx), schema.metadata) == []
    database.close()
    assert dump(tmp_path / "old.db") == dump(tmp_path / "new.db")


def test_the_known_revisions_are_the_files_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == migrate.REVISIONS


def test_a_new_file_has_an_identity_the_default_namespace_and_keeps_both(tmp_path: Path) -> None:
    seen = set()
    for _ in range(2):
        database = migrate.open_database(tmp_path / "x.db", 1.0)
        with database.transaction() as tx:
            seen.add(migrate.installation_id(tx))
            assert access.namespace_names(tx) == ["default"]
        database.close()
    assert len(seen) == 1


def test_durability_and_foreign_keys_are_on(tmp_path: Path) -> None:
    database = migrate.open_database(tmp_path / "x.db", 1.0)
    with database.transaction() as tx:
        pragmas = [tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]
    database.close()
    assert pragmas == ["wal", 2, 1]


def test_a_file_of_a_newer_release_is_refused_and_not_a_byte_of_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    migrate.open_database(path, 1.0).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    before = path.read_bytes()
    with pytest.raises(Refusal) as refusal:
        migrate.open_database(path, 1.0)
    assert refusal.value.kind.code == "data_unusable" and "9999" in refusal.value.detail
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database at all, but a text of some length" * 10, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    for opening in (lambda: migrate.open_database(path, 1.0), lambda: SqliteLogs(path)):
        with pytest.raises(Refusal) as refusal:
            opening()
        assert refusal.value.kind.code == "data_unusable"
    assert path.read_bytes() == content


def test_a_strangers_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(Refusal) as refusal:
        migrate.open_database(tmp_path / "x.db", 1.0)
    assert refusal.value.kind.code == "data_unusable"


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        migrate.open_database(tmp_path / "nowhere" / "x.db", 1.0)
    assert refusal.value.kind.code == "data_unusable"


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = migrate.open_database(tmp_path / "x.db", 1.0)
    with pytest.raises(RuntimeError), database.transaction() as tx:
        access.add_namespace(tx, "half", 1.0)
        raise RuntimeError("in the middle")
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default"]
    database.close()


def test_a_full_database_says_storage_full_and_keeps_what_it_had(tmp_path: Path) -> None:
    database = migrate.open_database(tmp_path / "x.db", 1.0)
    with database.transaction() as tx:
        pages = tx.exec_driver_sql("PRAGMA page_count").scalar()
        tx.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(Refusal) as refusal, database.transaction() as tx:
        access.put_secret(tx, "default", "big", b"x" * 1_000_000, 1.0)
    assert refusal.value.kind.code == "storage_full"
    with database.transaction() as tx:
        assert access.secret_names(tx, "default") == []
        assert functions.all_names(tx) == []
    database.close()


@pytest.mark.root
@pytest.mark.parametrize("size", ["16k", "64k"])
def test_a_full_disk_at_the_first_start_says_storage_full(tmp_path: Path, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dayfly-test", str(tmp_path)], check=True)
    try:
        with pytest.raises(Refusal) as refusal:
            migrate.open_database(tmp_path / "x.db", 1.0)
        assert refusal.value.kind.code in ("storage_full", "data_unusable")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
def test_a_read_only_folder_is_said_and_unchanged(tmp_path: Path) -> None:
    migrate.open_database(tmp_path / "x.db", 1.0).close()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "dayfly-test", str(tmp_path)], check=True)
    try:
        migrate.open_database(tmp_path / "x.db", 1.0).close()
        names = sorted(os.listdir(tmp_path))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(Refusal) as refusal:
            migrate.open_database(tmp_path / "x.db", 1.0)
        assert refusal.value.kind.code == "data_unusable"
        assert sorted(os.listdir(tmp_path)) == names
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_database_gets_smaller_when_much_was_removed(tmp_path: Path) -> None:
    database = migrate.open_database(tmp_path / "x.db", 1.0)
    for number in range(40):
        with database.transaction() as tx:
            access.put_secret(tx, "default", f"S{number}", b"x" * 200_000, 1.0)
    with database.transaction() as tx:
        for number in range(40):
            access.drop_secret(tx, "default", f"S{number}")
    before = (tmp_path / "x.db").stat().st_size
    while database.tidy():
        pass
    assert (tmp_path / "x.db").stat().st_size < before / 2 and room.wal_bytes(tmp_path / "x.db") == 0
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default"]
    database.close()


def test_a_file_that_a_release_before_made_gives_room_back_from_now_on(tmp_path: Path) -> None:
    migrate.open_database(tmp_path / "x.db", 1.0).close()
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.executescript("PRAGMA auto_vacuum=0; PRAGMA journal_mode=DELETE; VACUUM; PRAGMA journal_mode=WAL")
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    database = migrate.open_database(tmp_path / "x.db", 1.0)
    with database.transaction() as tx:
        assert tx.exec_driver_sql("PRAGMA auto_vacuum").scalar() == room.INCREMENTAL
        assert access.namespace_names(tx) == ["default"]
    database.close()
