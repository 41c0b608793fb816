"""`dayfly backup` of a platform under load, `dayfly restore` to another place, and a platform that starts there as if nothing had been."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import uid_of
from tests.e2e.harness import CommandFailed, Platform
from tests.e2e.load import ECHO, Load

READS = "def handler(event, context):\n    print('read it')\n    return open('/run/secrets/KEY').read()\n"


@pytest.fixture(params=["root", "ordinary"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Platform, Platform]]:
    """A platform that runs, and one of the same user that was never started: its data directory is not there yet."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root: run scripts/test as root to include it")
    first, second = (Platform(as_uid=uid_of(request.param)) for _ in range(2))
    try:
        first.start()
        yield first, second
    finally:
        first.close()
        second.close()


def test_a_platform_is_backed_up_while_it_serves_and_goes_on_elsewhere(pair: tuple[Platform, Platform]) -> None:
    first, second = pair
    first.cli("secret", "set", "KEY", stdin="the value")
    first.put("reads", READS, secrets=["KEY"])
    for number in (1, 2):
        first.put("echo", ECHO.format(version=number))
    first.cli("rollback", "echo")
    assert first.invoke("reads").json() == "the value"
    first.wait_for("logs arrive", lambda: "read it" in first.cli("logs", "reads"))
    archive = second.folder / "backup"
    with Load(first, "echo", threads=2) as load:
        load.wait_answers(10)
        made = json.loads(first.cli("backup", str(first.folder / "backup"), "--data", str(first.data), "--json"))
        first.put("echo", ECHO.format(version=3))
        load.wait_answers(10)
    assert set(load.statuses) == {200} and not load.broken and not load.wrong
    assert made["key"] and made["logs"] and made["schema"] and not made["missing"] and not made["left_out"]
    shutil.move(first.folder / "backup", archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    said = second.cli("restore", str(archive), "--data", str(second.data))
    assert str(second.data) in said
    second.start()
    second.token = first.token
    assert second.invoke("reads").json() == "the value"
    assert second.invoke("echo", {"sent": 1}).json()["version"] == 1, "as of the backup, rolled back"
    answer = second.request("GET", "/api/v1/functions/reads")
    assert answer.status == 200, "the token holds"
    logs = second.request("GET", "/api/v1/logs?function=reads")
    assert "read it" in logs.body.decode()
    if os.geteuid() == 0 and not second.as_uid:
        for path in (second.data / "control").iterdir():
            assert path.stat().st_uid == (second.data / "control").stat().st_uid != 0, path
    checks = json.loads(second.cli("doctor", "--store", "--data", str(second.data), "--json"))
    assert checks["ok"] and set(checks["store"]["files"]) >= {"dayfly.db", "logs.db"}
    with pytest.raises(CommandFailed, match="not empty"):
        second.cli("restore", str(archive), "--data", str(second.data))


def test_another_user_may_neither_read_nor_look(pair: tuple[Platform, Platform]) -> None:
    first, _ = pair
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    stranger: dict[str, object] = {"user": 64_322, "group": 64_322, "extra_groups": []}
    place = first.folder / "strangers"
    place.mkdir(mode=0o700)
    os.chown(place, 64_322, 64_322)
    for words in (["backup", str(place / "backup")], ["doctor", "--store"]):
        done = subprocess.run(
            [first.python, "-m", "dayfly", *words, "--data", str(first.data)],
            env=first.environment | {"HOME": str(place)}, cwd=place, capture_output=True, text=True, **stranger,  # type: ignore[call-overload]
        )  # fmt: skip
        assert done.returncode not in (0, 1) and "Traceback" not in done.stderr, done
        assert "as root or as" in done.stderr, done
    assert not list(place.iterdir())


def test_doctor_says_what_is_wrong_with_a_store(pair: tuple[Platform, Platform]) -> None:
    first, _ = pair
    said = first.cli("doctor", "--store", "--data", str(first.data))
    assert "dayfly.db" in said and "integrity_check ok" in said and "write and sync" in said
    first.stop()
    database = first.data / "control" / "dayfly.db"
    content = bytearray(database.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    database.write_bytes(content)
    with pytest.raises(CommandFailed, match="damaged"):
        first.cli("doctor", "--store", "--data", str(first.data))
    document = json.loads(first.cli("doctor", "--store", "--data", str(first.data), "--json", status=5))
    assert not document["ok"] and document["store"]["files"]["dayfly.db"]["damage"]
