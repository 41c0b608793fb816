"""store/logs.py: batches in, questions out, forgetting by age and count."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store.logs import READ_MAX, LogQuery, LogStore


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path / "logs.db")
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
    assert texts(logs) == [evil]
    assert texts(logs, function="' OR 1=1 --") == []


def test_old_and_too_many_records_are_forgotten_and_ids_go_on(logs: LogStore) -> None:
    logs.append([record(str(n), at=float(n)) for n in range(10)])
    assert logs.forget(before=3.0, keep=100) == 3
    assert logs.forget(before=0.0, keep=2) == 5
    assert texts(logs) == ["8", "9"]
    assert logs.forget(before=100.0, keep=2) == 2
    logs.append([record("next")])
    assert logs.last_id() == 11


def test_a_batch_is_kept_whole_or_not_at_all(logs: LogStore) -> None:
    logs._db.execute("PRAGMA max_page_count=20")
    with pytest.raises(Refusal) as refusal:
        logs.append([record("x" * 1000) for _ in range(1000)])
    assert refusal.value.kind.code == "storage_full"
    assert texts(logs) == []
    logs.append([record("small")])
    assert texts(logs) == ["small"]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs.db")
    store._db.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(Refusal) as refusal:
        LogStore(tmp_path / "logs.db")
    assert refusal.value.kind.code == "data_unusable"


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
    size = logs.path.stat().st_size
    for batch in range(8, 16):
        logs.append([record(f"{batch}.{n} " + "x" * 8192) for n in range(50)])
        while logs.shrink(bound):
            pass
    assert logs.path.stat().st_size <= size
    assert texts(logs, limit=READ_MAX)[-1].startswith("15.49 ")


def test_an_empty_store_has_nothing_to_shrink(logs: LogStore) -> None:
    assert logs.shrink(1) == 0
