"""`dayfly backup`, `dayfly restore` and `dayfly doctor --store`: what they say and how they end. What they do is tried below control."""

import json
import os
from pathlib import Path

import pytest

from dayfly.cli.directories import write_marker
from dayfly.store.logs_sqlite import SqliteLogs
from dayfly.store.migrate import open_database


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as after a first start: both databases, and nothing in them."""
    (tmp_path / "data" / "control").mkdir(parents=True)
    write_marker(tmp_path / "data")
    open_database(tmp_path / "data/control/dayfly.db", 1.0).close()
    SqliteLogs(tmp_path / "data/control/logs.db").close()
    return tmp_path / "data"


def test_there_and_back(run, data, tmp_path):
    done = run("backup", str(tmp_path / "b"), "--data", str(data), "--json")
    assert done.code == 0 and not json.loads(done.out)["key"] and json.loads(done.out)["logs"]
    done = run("restore", str(tmp_path / "b"), "--data", str(tmp_path / "back"))
    assert done.code == 0 and "as of" in done.out and "key of the secrets was left out" in done.err
    assert run("doctor", "--store", "--data", str(tmp_path / "back")).code == 0
    done = run("restore", str(tmp_path / "b"), "--data", str(tmp_path / "back"), "--json")
    assert done.code == 5 and json.loads(done.out)["error"]["code"] == "conflict"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["restore", "FILE"], 2, "Where to?"),
        (["restore", "FILE", "--data", "NEW"], 2, "cannot be restored"),
        (["restore", "MISSING", "--data", "NEW"], 5, "MISSING"),
        (["restore", "FOLDER", "--data", "NEW"], 5, "FOLDER"),
        (["restore"], 2, "FILE"),
        (["backup"], 2, "FILE"),
        (["backup", "FILE", "--data", "DATA"], 5, "replaces nothing"),
        (["backup", "NEW", "--data", "FOLDER"], 5, "was ever started"),
        (["backup", "NOWHERE/x", "--data", "DATA"], 5, "cannot be written"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(run, data, tmp_path, words, code, said):
    (tmp_path / "FILE").write_text("this is no backup")
    (tmp_path / "FOLDER").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    places = {name: str(tmp_path / name) for name in ("FILE", "NEW", "MISSING", "FOLDER", "NOWHERE/x")} | {"DATA": str(data)}
    done = run(*(places.get(word, word) for word in words))
    assert done.code == code and said in done.err and "Traceback" not in done.err, done
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bad_backup_has_a_code_of_its_own(run, tmp_path):
    (tmp_path / "FILE").write_text("this is no backup")
    done = run("restore", str(tmp_path / "FILE"), "--data", str(tmp_path / "new"), "--json")
    assert json.loads(done.out)["error"]["code"] == "bad_backup"


def test_doctor_on_a_directory_that_was_never_started(run, tmp_path):
    done = run("doctor", "--store", "--data", str(tmp_path / "nothing"))
    assert done.code == 0 and "never started" in done.out


def test_doctor_has_every_figure_in_json_and_leaves_nothing(run, data):
    before = sorted(os.listdir(data / "control"))
    document = json.loads(run("doctor", "--store", "--data", str(data), "--json").out)
    store = document["store"]
    assert document["ok"] and store["sync_ms_max"] >= store["sync_ms"] > 0
    facts = store["files"]["dayfly.db"]
    assert facts["bytes"] > 0 and facts["schema"] and facts["check"] == "integrity_check" and facts["damage"] == []
    assert facts["gives_room_back"] and facts["wal_bytes"] == 0 and facts["free_bytes"] >= 0
    assert sorted(os.listdir(data / "control")) == before


def test_doctor_says_when_control_would_not_start(run, data):
    (data / "control/database.url").write_text("postgresql://u:hush@h:hush/d")
    done = run("doctor", "--store", "--data", str(data))
    assert done.code == 5 and "libpq" in done.out and "hush" not in done.out + done.err
