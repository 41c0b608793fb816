"""`dayfly up|status|down` with the real roles, as processes: the first start, refusals, kills, the end."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS_MAX = 60


class Machine:
    """One data directory and the commands on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.data = base / "data"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("DAYFLY_")}
        self.environment |= {"DAYFLY_CONFIG_DIR": str(base / "config"), "DAYFLY_DATA": str(self.data), "DAYFLY_PORT": "0"}

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dayfly", *words]
        return subprocess.run(command, env=self.environment | more, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)

    def status(self) -> dict:
        return json.loads(self("status", "--json").stdout)

    def wait(self, condition, what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen:\n{self.log()}"
            select.select([], [], [], 0.02)

    def log(self) -> str:
        path = self.data / "log/platform.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="dfy-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        there = Machine(Path(folder))
        yield there
        there("down")


def gone(pid: int) -> bool:
    return b"dayfly.app" not in (Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else b"")


def test_the_first_start_shows_the_token_once_and_stores_it(machine):
    first = machine("up", "-d", "--json")
    assert first.returncode == 0, first.stderr + machine.log()
    said = json.loads(first.stdout)
    assert said["token"].startswith("dfy_")
    assert not (machine.data / "control/admin-token").exists()
    stored = json.loads((machine.base / "config/credentials.json").read_text())
    assert stored["platforms"][said["url"]]["data"] == str(machine.data)
    assert stored["tokens"][str(machine.data)] == said["token"]
    assert machine("ls", "--json").returncode == 0
    assert said["token"] not in machine.log()
    assert machine("down").returncode == 0
    again = machine("up", "-d", "--json")
    assert json.loads(again.stdout)["token"] is None
    assert machine("ls").returncode == 0, "the token must be found again at the new port"


def test_up_in_front_ends_with_ctrl_c_and_leaves_nothing(machine):
    process = subprocess.Popen(
        [sys.executable, "-m", "dayfly", "up"], env=machine.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not lines or not lines[-1].startswith("ready in"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        pids = [role["pid"] for role in machine.status()["roles"].values()]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert all(gone(pid) for pid in pids)
    assert machine("status").returncode == 3


def test_a_second_up_is_refused_with_the_pid_and_changes_nothing(machine):
    assert machine("up", "-d").returncode == 0
    before = machine.status()
    second = machine("up", "-d")
    assert second.returncode == 5
    assert str(before["pid"]) in second.stderr
    assert machine.status()["roles"].keys() == before["roles"].keys()


def test_a_port_in_use_names_its_holder_and_leaves_no_trace(machine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = machine("up", "-d", DAYFLY_PORT=str(listener.getsockname()[1]))
    assert done.returncode == 5
    assert f"pid {os.getpid()}" in done.stderr
    assert not machine.data.exists()


def test_after_a_kill_of_everything_the_next_start_works(machine):
    """kill -9 of the supervisor: the roles follow it, and what lies around is cleared."""
    assert machine("up", "-d").returncode == 0
    before = machine.status()
    os.kill(before["pid"], signal.SIGKILL)
    machine.wait(lambda: all(gone(role["pid"]) for role in before["roles"].values()), "the end of the roles")
    assert machine("status").returncode == 3
    assert machine("up", "-d").returncode == 0, machine.log()
    assert machine.status()["pid"] != before["pid"]


def test_down_cleans_after_a_kill(machine):
    assert machine("up", "-d").returncode == 0
    os.kill(machine.status()["pid"], signal.SIGKILL)
    done = machine("down")
    assert done.returncode == 0
    left = [p.name for p in (machine.data / "run").rglob("*") if p.suffix != ".lock" and p.name not in ("control", "egress")]
    assert left == []


@pytest.mark.parametrize("role", ["node", "control", "gateway"])
def test_a_killed_role_is_back_in_less_than_a_second_or_so(machine, role):
    """The bound is generous: the machine may be busy. That it comes back at all, once, is the point."""
    assert machine("up", "-d").returncode == 0
    pid = machine.status()["roles"][role]["pid"]
    os.kill(pid, signal.SIGKILL)
    machine.wait(lambda: (now := machine.status()["roles"][role])["pid"] not in (0, pid) and now["ready"], "a new process")
    assert machine.status()["roles"][role]["restarts"] == 1
    assert machine("ls").returncode == 0


def test_a_user_that_does_not_exist_is_refused(machine):
    if os.geteuid() != 0:
        pytest.skip("only root drops to another user")
    done = machine("up", "-d", "--user", "nobody-of-that-name")
    assert done.returncode == 2
    assert "nobody-of-that-name" in done.stderr
    assert not machine.data.exists()


def test_down_where_nothing_runs_is_no_error(machine):
    assert machine("down").returncode == 0
    assert not machine.data.exists()


def test_status_and_down_without_a_directory_mean_the_platform_that_was_started_last(machine):
    """`ls` talks to it, so `status` and `down` must not look elsewhere; and they say where they look."""
    assert machine("up", "-d", "--run", str(machine.base / "run-elsewhere")).returncode == 0, machine.log()
    del machine.environment["DAYFLY_DATA"]
    machine.environment["XDG_DATA_HOME"] = str(machine.base / "empty")
    found = machine("status")
    assert found.returncode == 0
    assert f"data {machine.data}" in found.stdout
    assert f"at {machine.data}" in found.stderr
    assert machine.status()["running"]
    assert machine("status", "--data", str(machine.base / "other")).returncode == 3, "a directory that is named is meant"
    assert machine("down").stdout == "ended\n"
    assert machine("status").returncode == 3


def test_the_doctor_looks_without_a_platform(machine):
    checks = json.loads(machine("doctor", "--json").stdout)["checks"]
    assert {check["group"] for check in checks} >= {"isolation", "ports", "disk", "limits", "processors", "versions"}
    assert all(check["remedy"] and check["costs"] for check in checks if check["state"] == "missing")
