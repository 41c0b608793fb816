"""store/schedules.py: rows in and out, who moves the mark, what is forgotten. On both databases."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dayfly.core.model.function import FunctionConfig, Version
from dayfly.core.model.schedule import Kept, Schedule
from dayfly.store import functions, schedules
from dayfly.store.migrate import open_database
from dayfly.store.server import Server


@pytest.fixture
def tx(where: Path | Server) -> Iterator[sa.Connection]:
    database = open_database(where, 1.0)
    with database.transaction() as connection:
        for name in ("f", "g"):
            version = Version(namespace="default", function=name, number=1, config=FunctionConfig(), code_digest="c")
            functions.add_version(connection, version)
        yield connection
    database.close()


def kept(name: str, **fields: Any) -> Kept:
    said = {"function": "f", "declared": False, "next_at": 5.0, "created_at": 1.790000000123456e9} | fields
    return Kept(namespace="default", schedule=Schedule(name=name, cron="0 3 * * *", payload='{"ü":1}'), **said)  # type: ignore[arg-type]


def test_a_schedule_comes_back_as_it_was_and_goes_with_its_function(tx: sa.Connection) -> None:
    whole = kept(
        "a",
        declared=True,
        paused=True,
        dice=0.1 + 0.2,
        decided=1.79e9 + 1 / 3,
        last_due=2.5,
        last_call="c",
        fired=2**40,
        skipped=1,
        missed=2,
    )
    for it in (whole, kept("b", function="g"), kept("c")):
        schedules.put(tx, it)
    assert schedules.get(tx, "default", "a") == whole and schedules.get(tx, "default", "x") is None
    assert [it.name for it in schedules.of(tx, ("default", "other"))] == ["a", "b", "c"] and schedules.count(tx, "default") == 3
    assert [it.name for it in schedules.of(tx, ("default",), "g")] == ["b"]
    functions.drop_function(tx, "default", "f")
    assert [it.name for it in schedules.of(tx, ("default",))] == ["b"]
    assert schedules.drop(tx, "default", "b") and not schedules.drop(tx, "default", "b")


def test_those_whose_time_has_come_are_found_the_longest_waiting_first(tx: sa.Connection) -> None:
    assert schedules.next_at(tx) is None
    for name, moment in (("a", 30.0), ("b", 10.0), ("c", 20.0), ("d", None), ("e", 40.0)):
        schedules.put(tx, kept(name, next_at=moment))
    assert schedules.next_at(tx) == 10.0
    assert [it.name for it in schedules.due(tx, 30.0, 9)] == ["b", "c", "a"] and [it.name for it in schedules.due(tx, 30.0, 2)] == [
        "b",
        "c",
    ]


def test_only_who_read_the_present_revision_changes_it_and_not_one_that_was_made_anew(tx: sa.Connection) -> None:
    schedules.put(tx, kept("a", revision=1))
    read = schedules.get(tx, "default", "a")
    assert read is not None and schedules.change(tx, read) and not schedules.change(tx, read)
    again = kept("a", revision=2, created_at=9.0)
    schedules.put(tx, again)
    stale = kept("a", revision=2, fired=5)
    assert not schedules.change(tx, stale) and schedules.get(tx, "default", "a") == again


def test_marks_in_the_future_are_roused_and_others_are_not(tx: sa.Connection) -> None:
    for name, decided, moment in (("a", 1000.0, 2000.0), ("b", 10.0, 2000.0), ("c", 1000.0, None)):
        schedules.put(tx, kept(name, decided=decided, next_at=moment))
    assert schedules.rouse(tx, 500.0, 50.0) == 1
    assert {it.name: it.next_at for it in schedules.of(tx, ("default",))} == {"a": 50.0, "b": 2000.0, "c": None}


def test_what_is_over_is_forgotten_but_not_what_is_declared_or_off_or_comes_again(tx: sa.Connection) -> None:
    over = Schedule(name="over", at="2026-01-01")
    base = {"function": "f", "namespace": "default", "next_at": None, "updated_at": 10.0}
    rows = {
        "over": Kept(schedule=over, declared=False, **base),  # type: ignore[arg-type]
        "declared": Kept(schedule=Schedule(name="declared", at="2026-01-01"), declared=True, **base),  # type: ignore[arg-type]
        "paused": Kept(schedule=Schedule(name="paused", at="2026-01-01"), declared=False, paused=True, **base),  # type: ignore[arg-type]
        "off": Kept(schedule=Schedule(name="off", at="2026-01-01", enabled=False), declared=False, **base),  # type: ignore[arg-type]
        "rate": Kept(schedule=Schedule(name="rate", rate="1 day"), declared=False, **base),  # type: ignore[arg-type]
    }
    for row in rows.values():
        schedules.put(tx, row)
    assert schedules.forget(tx, 10.0) == 0 and schedules.forget(tx, 11.0) == 1
    assert {it.name for it in schedules.of(tx, ("default",))} == set(rows) - {"over"}
