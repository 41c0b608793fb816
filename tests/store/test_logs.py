"""store/logs.py, on both databases: batches in, questions out, forgetting by age, count and room."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store import room
from dayfly.store.logs import READ_MAX, LogQuery, LogStore
from dayfly.store.logs_postgresql import NUL_SHOWN, ROW_BYTES, PostgresLogs
from dayfly.store.logs_sqlite import SqliteLogs
from dayfly.store.places import open_logs
from dayfly.store.server import Server
from tests.postgres import Server as PostgreSQL


@pytest.fixture
def logs(where: Path | Server) -> Iterator[LogStore]:
    store = open_logs(where)
    yield store
    store.close()


def record(text: str, at: float = 1.0, function: str = "f", call: str = "", namespace: str = "default") -> LogRecord:
    return LogRecord(at, namespace, function, 1, "i-1", call, "stdout", 20, text)


def texts(store: LogStore, **conditions: object) -> list[str]:
    query = LogQuery(**({"namespaces": ("default",)} | conditions))  # type: ignore[arg-type]
    return [found.text for _, found in store.read(query)]


def test_records_are_found_by_function_call_time_and_namespace_oldest_first(logs: LogStore) -> None:
    logs.append([record("a"), record("b", 2.0, call="c1"), record("c", 3.0, "g"), record("d", 4.0, namespace="other")])
    assert texts(logs) == ["a", "b", "c"]
    assert texts(logs, function="f") == ["a", "b"]
    assert texts(logs, call_id="c1") == ["b"]
    assert texts(logs, since=2.0) == ["b", "c"]
    assert texts(logs, namespaces=("default", "other")) == ["a", "b", "c", "d"]
    assert texts(logs, namespaces=()) == []


def test_a_limit_gives_the_newest_and_a_follower_the_oldest_it_has_not_seen(logs: LogStore) -> None:
    logs.append([record(str(n)) for n in range(10)])
    assert texts(logs, limit=3) == ["7", "8", "9"]
    assert texts(logs, limit=3, after=2) == ["2", "3", "4"]
    assert texts(logs, limit=0) == []
    assert len(texts(logs, limit=READ_MAX * 10)) == 10


def test_text_is_data_whatever_it_holds(logs: LogStore) -> None:
    evil = "'; DROP TABLE logs; --\0\n\ufffd"
    logs.append([record(evil, function="f")])
    assert texts(logs) == [evil.replace("\0", NUL_SHOWN) if isinstance(logs, PostgresLogs) else evil]
    assert texts(logs, function="' OR 1=1 --") == []


def test_old_and_too_many_records_are_forgotten_and_ids_go_on(logs: LogStore) -> None:
    logs.append([record(str(n), at=float(n)) for n in range(10)])
    assert logs.forget(before=3.0, keep=100) == 3
    assert logs.forget(before=0.0, keep=2) == 5
    assert texts(logs) == ["8", "9"]
    assert logs.forget(before=100.0, keep=2) == 2
    logs.append([record("next")])
    assert logs.last_id() == 11


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    logs = SqliteLogs(tmp_path / "logs.db")
    logs._db.execute("PRAGMA max_page_count=20")
    with pytest.raises(Refusal) as refusal:
        logs.append([record("x" * 1000) for _ in range(1000)])
    assert refusal.value.kind.code == "storage_full"
    assert texts(logs) == []
    logs.append([record("small")])
    assert texts(logs) == ["small"]
    logs.close()


def test_a_batch_with_something_impossible_in_it_leaves_nothing_in_a_table(postgres: str) -> None:
    logs = PostgresLogs(Server(postgres))
    with pytest.raises(psycopg.DataError):
        logs.append([record("good"), record("bad", at="no number")])  # type: ignore[arg-type]
    assert texts(logs) == []
    logs.append([record("small")])
    assert texts(logs) == ["small"]
    logs.close()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    store = SqliteLogs(tmp_path / "logs.db")
    store._db.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(Refusal) as refusal:
        SqliteLogs(tmp_path / "logs.db")
    assert refusal.value.kind.code == "data_unusable"


def test_a_table_of_another_format_is_refused(postgres: str, postgres_server: PostgreSQL) -> None:
    PostgresLogs(Server(postgres)).close()
    postgres_server.sql("UPDATE log_state SET format = 99", postgres.partition("@/")[2].partition("?")[0])
    with pytest.raises(Refusal, match="99") as refusal:
        PostgresLogs(Server(postgres))
    assert refusal.value.kind.code == "data_unusable"


def test_the_bytes_that_a_table_counts_are_those_that_it_holds(postgres: str) -> None:
    logs = PostgresLogs(Server(postgres))
    logs.append([record("é" * 100, at=float(n), call=f"c{n}") for n in range(1000)])
    assert logs.forget(before=10.0, keep=500) == 10 + 490
    with logs._database.transaction() as tx:
        counted, texts_bytes = tx.exec_driver_sql("SELECT bytes, (SELECT sum(octet_length(text)) FROM logs) FROM log_state").one()
        on_disk = tx.exec_driver_sql("SELECT pg_total_relation_size('logs')").scalar_one()
    assert counted == texts_bytes + 500 * ROW_BYTES
    assert on_disk / 4 < counted < on_disk, "half of them were deleted and are not vacuumed; the estimate of a row is near"
    logs.close()


def test_of_two_who_append_at_once_a_reader_misses_none(postgres: str) -> None:
    """Ids are given in the order of commits: the second waits for the first, and who has read up to an id has read all below it."""
    first, second = PostgresLogs(Server(postgres)), PostgresLogs(Server(postgres))
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (second.append([record("second")]), done.set()))
    with first._database.transaction() as tx:
        tx.exec_driver_sql("UPDATE log_state SET bytes = bytes")
        waiter.start()
        while not tx.exec_driver_sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").scalar():
            tx.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        assert not done.is_set()
        tx.exec_driver_sql(
            "INSERT INTO logs (at, namespace, function, version, instance, call_id, stream, level, text) "
            "VALUES (1, 'default', 'f', 1, '', '', '', 1, 'first')"
        )
    waiter.join(10)
    assert done.is_set() and texts(first) == ["first", "second"]
    first.close()
    second.close()


def test_the_oldest_go_when_all_take_too_much_room(logs: LogStore) -> None:
    """Down to the bound, by what the file holds, not by counting texts; and the file grows no more while records come."""
    bound = 1 << 20
    for batch in range(8):
        logs.append([record(f"{batch}.{n} " + "x" * 8192) for n in range(50)])
    assert logs.shrink(1 << 30) == 0
    while logs.shrink(bound):
        pass
    kept = texts(logs, limit=READ_MAX)
    assert kept[-1].startswith("7.49 ")
    assert 0.5 * bound < sum(map(len, kept)) <= bound
    if not isinstance(logs, SqliteLogs):
        return
    size = logs.path.stat().st_size
    for batch in range(8, 16):
        logs.append([record(f"{batch}.{n} " + "x" * 8192) for n in range(50)])
        while logs.shrink(bound):
            pass
    assert logs.path.stat().st_size <= size
    assert texts(logs, limit=READ_MAX)[-1].startswith("15.49 ")


def test_an_empty_store_has_nothing_to_shrink(logs: LogStore) -> None:
    assert logs.shrink(1) == 0


def test_a_file_gets_smaller_in_steps_when_much_was_deleted_and_keeps_some_room(tmp_path: Path) -> None:
    logs = SqliteLogs(tmp_path / "logs.db")
    for _ in range(20):
        logs.append([record("x" * 8192, at=1.0) for _ in range(100)])
    logs.append([record("kept", at=9.0)])
    before = logs.path.stat().st_size
    assert logs.forget(before=2.0, keep=100_000) == 2000 and logs.path.stat().st_size >= before
    steps = 1
    while logs.tidy():
        steps += 1
    after = logs.path.stat().st_size
    assert steps >= 3 and after < before / 4 and room.wal_bytes(logs.path) == 0
    assert texts(logs) == ["kept"] and not logs.tidy() and logs.path.stat().st_size == after > 0
    logs.close()


def test_a_file_of_an_older_release_learns_to_get_smaller_when_it_is_small(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "logs.db")) as old:
        old.executescript("PRAGMA journal_mode=WAL; CREATE TABLE other (x); INSERT INTO other VALUES (1)")
    logs = SqliteLogs(tmp_path / "logs.db")
    assert logs._db.execute("PRAGMA auto_vacuum").fetchone() == (room.INCREMENTAL,)
    assert logs._db.execute("SELECT x FROM other").fetchall() == [(1,)]
    logs.close()
