"""What the machine has runs out while calls are made: open files, memory, disk, the store. Calls go on or are refused in order, what cannot
be done is said in clear words, and everything works again when there is room.
"""

import json
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.chaos import apart
from tests.chaos.callers import Line, Load
from tests.chaos.conftest import New
from tests.chaos.crowd import Crowd
from tests.chaos.judge import Judge
from tests.e2e.harness import Platform, zipped

HELLO = "def handler(event, context):\n    return 'hello'\n"


@pytest.fixture(scope="module")
def judge(new_judge: New) -> Judge:
    made = new_judge()
    made.deploy("steady", min_instances=1)
    made.deploy("other", keep_alive_seconds=0)
    return made


LIMITED = """#!/bin/sh
ulimit -n {count}
exec {python} "$@"
"""


@contextmanager
def open_files(pid: int, room: int) -> Iterator[None]:
    """Only `room` more than it has now may this role open, for a while."""
    try:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:
        pytest.skip("other users' limits are not ours to set here (CAP_SYS_RESOURCE)")
    has = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (has + room, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_the_gateway_has_no_more_open_files(tmp_path: Path) -> None:
    """Who has a connection is served; others are cut, or told to come again, also callers of functions that nobody called yet."""
    python = tmp_path / "python"
    python.write_text(LIMITED.format(count=300, python=sys.executable))
    python.chmod(0o755)
    with Platform(python=str(python)) as platform:
        judge = Judge(platform)
        judge.deploy("steady", min_instances=1)
        for name in ("other", "stranger"):
            judge.deploy(name, keep_alive_seconds=0, timeout_seconds=2)
        lines = [Line(judge) for _ in range(3)]
        for line in lines:
            line.call("steady")
        with Load(judge, ("steady",), threads=3) as load:
            load.wait_answers(10)
            with Crowd(judge) as crowd:
                many = crowd.open(350, "steady", pad=200)
                for part in (many[:100], many[100:]):
                    crowd.send(part)
                    for line, name in zip(lines, ("steady", "other", "stranger"), strict=True):
                        line.call(name)
                        line.call(name, pad=100_000)  # a body that would ride in a file
                crowd.hear_until("all are over", lambda: all(client.over for client in many))
            load.wait_answers(20)
        for line in lines:
            line.close()
        judge.settle()
        for name in judge.names:
            judge.recovers(name)
        assert "Traceback" not in platform.log_text(), platform.log_text()
        judge.close()


@pytest.mark.root
@pytest.mark.parametrize("role", ["node", "control", "egress"])
def test_another_role_has_no_more_open_files(judge: Judge, role: str) -> None:
    with Load(judge, ("steady", "other"), threads=4) as load:
        load.wait_answers(10)
        with open_files(judge.platform.roles()[role], 1):
            load.wait_answers(10)
            status, said = deploy(judge.platform, HELLO + f"# {role}\n")
            assert status == "deployed" or (said["code"] not in ("internal", "") and said["message"]), said
        load.wait_answers(20)
    judge.settle()
    judge.recovers("other")
    assert deploy(judge.platform, HELLO + f"# {role}, again\n")[0] == "deployed"


def deploy(platform: Platform, source: str) -> tuple[str, dict[str, str]]:
    """Try to: the last event's name, and its error, or the refusal of the request."""
    answer = platform.upload("hello", zipped({"handler.py": source}), {})
    last = json.loads(answer.body.strip().splitlines()[-1])
    return last.get("event", "refused"), last.get("error", {})


def test_no_memory_is_left_for_idle_instances(new_judge: New) -> None:
    judge = new_judge(memory_available_bytes_min=1 << 60)
    judge.deploy("steady", keep_alive_seconds=60)
    judge.deploy("other", keep_alive_seconds=60)
    with Load(judge, ("steady", "other"), threads=4, pause_max=0.05) as load:
        for _ in range(10):
            load.wait_answers(10)
    counts = judge.settle()
    assert set(counts) == {"answered"}, judge


@pytest.mark.root
def test_the_disk_is_full_and_roles_die_meanwhile() -> None:
    """Calls go on; deploys say why they cannot; roles that die come back at once or when there is room."""

    def body() -> None:
        platform = Platform()
        apart.own_mounts()
        try:
            apart.small_disk(platform.data, "24m")
            platform.start()
            judge = Judge(platform)
            judge.deploy("steady", min_instances=1)
            with Load(judge, ("steady",), threads=3) as load:
                load.wait_answers(10)
                filler = apart.fill(platform.data)
                load.wait_answers(20)
                status, error = deploy(platform, HELLO + "#" * 2_000_000)
                assert (status != "deployed") and error["code"] == "storage_full", (status, error)
                for role in ("egress", "node", "gateway"):
                    os.kill(platform.roles()[role], signal.SIGKILL)
                    load.wait_answers(20)  # it is back, although nothing can be written
                os.kill(platform.roles()["control"], signal.SIGKILL)
                load.wait_answers(20)
                filler.unlink()
                platform.wait_for("deploys work again", lambda: deployed(platform), seconds=30)
                load.wait_answers(20)
            judge.settle()
            judge.close()
            assert platform.stop() == 0
        finally:
            platform.stop()
            apart.no_disk(platform.data)
            platform.close()

    apart.in_a_thread(body)


def deployed(platform: Platform) -> bool:
    try:
        return deploy(platform, HELLO + "# there is room\n")[0] == "deployed"
    except (OSError, ValueError):
        return False


def test_the_store_cannot_be_had_and_calls_go_on(judge: Judge) -> None:
    """Somebody else holds the database: warm and cold calls go on, deploys and secrets fail clearly, and nothing is lost of usage."""
    platform = judge.platform
    database = platform.data / "control" / "dayfly.db"
    with Load(judge, ("steady", "other"), threads=3) as load:
        load.wait_answers(10)
        with closing(sqlite3.connect(database, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            status, error = deploy(platform, HELLO + "# locked\n")
            assert status != "deployed" and error["code"] == "data_unusable" and "locked" in error["message"], (status, error)
            load.wait_answers(20)
            holder.execute("ROLLBACK")
        platform.wait_for("deploys work again", lambda: deployed(platform), seconds=30)
        load.wait_answers(20)
    judge.settle()
    ran = len(judge.begun)
    platform.wait_until("usage knows every call", "/api/v1/usage", lambda said: calls_in(said) >= ran)


def calls_in(said: dict[str, list[dict[str, int]]]) -> int:
    return sum(day.get("calls", 0) for days in said.values() if isinstance(days, list) for day in days)
