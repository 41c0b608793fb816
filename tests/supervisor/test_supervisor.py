"""The supervisor over toy roles: real processes, real signals, no sleeping."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dayfly.supervisor import BACKOFF_SECONDS_MAX, restart_delay
from tests.supervisor.harness import DEADLINE_SECONDS, Toys, alive


@pytest.fixture
def start(tmp_path) -> Iterator:
    made: list[Toys] = []

    def begin(*plan: tuple[str, str], **more) -> Toys:
        made.append(Toys(tmp_path, *plan, **more))
        return made[-1]

    yield begin
    for toys in made:
        toys.close()


THREE = (("node", "plain"), ("control", "plain"), ("gateway", "listens"))


def test_each_role_runs_only_when_the_one_before_it_is_ready(start):
    toys = start(*THREE)
    assert toys.announcement()["ready"] is True
    order = [event for event in toys.events() if not event.endswith("start")]
    assert order == ["node go", "node ready", "control go", "control ready", "gateway go", "gateway ready"]


def test_the_end_comes_in_reverse_order_and_leaves_nothing(start):
    toys = start(*THREE)
    toys.announcement()
    assert toys.end() == 0
    assert [event for event in toys.events() if event.endswith("term")] == ["gateway term", "control term", "node term"]
    assert not [pid for pid in toys.pids() if alive(pid)]
    assert not (toys.folder / "state.json").exists()


@pytest.mark.parametrize("name", ["node", "control", "gateway"])
def test_a_killed_role_is_restored_at_once_and_the_others_stay(start, name):
    toys = start(*THREE)
    toys.announcement()
    before = {other: toys.pid(other) for other in ("node", "control", "gateway")}
    os.kill(before[name], signal.SIGKILL)
    toys.wait(lambda: toys.pid(name) not in (0, before[name]) and toys.state()["roles"][name]["ready"], "a new process")
    assert {other: toys.pid(other) for other in before if other != name} == {o: p for o, p in before.items() if o != name}
    died = next(line for line in toys.log() if line["event"] == "role_died")
    assert died["restart_in_seconds"] == 0
    assert died["how"] == "signal 9"


def test_a_role_that_dies_repeatedly_is_restarted_ever_more_slowly(start):
    toys = start(("node", "plain"), ("control", "dies-again"))
    toys.announcement()
    os.kill(toys.pid("control"), signal.SIGKILL)
    toys.wait(lambda: sum(line["event"] == "role_died" for line in toys.log()) >= 4, "four deaths")
    delays = [line["restart_in_seconds"] for line in toys.log() if line["event"] == "role_died"]
    assert delays[:4] == [0, 0.1, 0.2, 0.4]
    assert toys.process.poll() is None


def test_the_delay_grows_and_is_bounded():
    delays = [restart_delay(deaths) for deaths in range(1, 40)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == BACKOFF_SECONDS_MAX


def test_a_role_that_cannot_start_fails_the_whole_start_with_its_own_words(start):
    toys = start(("node", "plain"), ("control", "refuses"), ("gateway", "listens"))
    assert toys.announcement() == {"error": "the store is of a newer version", "role": "control"}
    assert toys.process.wait(DEADLINE_SECONDS) == 5
    assert "gateway go" not in toys.events()
    assert not [pid for pid in toys.pids() if alive(pid)]


def test_roles_see_end_of_file_on_their_lifeline_when_the_supervisor_is_killed(start):
    toys = start(*THREE)
    toys.announcement()
    toys.process.kill()
    toys.wait(lambda: sum(event.endswith("orphaned") for event in toys.events()) == 3, "three roles ending")
    toys.wait(lambda: not [pid for pid in toys.pids() if alive(pid)], "the end of all")


def test_who_does_not_end_in_time_is_killed(start):
    toys = start(("node", "stubborn"), ("gateway", "plain"), stop_seconds=0.3)
    toys.announcement()
    assert toys.end() == 0
    assert any(line["event"] == "role_killed" and line["role"] == "node" for line in toys.log())
    assert not [pid for pid in toys.pids() if alive(pid)]


def test_a_second_signal_does_not_wait_any_longer(start):
    toys = start(("node", "stubborn"), stop_seconds=600)
    toys.announcement()
    toys.process.send_signal(signal.SIGTERM)
    toys.wait(lambda: "node term" in toys.events(), "the polite request")
    toys.process.send_signal(signal.SIGINT)
    assert toys.process.wait(DEADLINE_SECONDS) == 0


def test_a_connection_made_while_the_gateway_is_down_waits_in_the_kernel(start):
    toys = start(*THREE)
    toys.announcement()
    os.kill(toys.pid("gateway"), signal.SIGKILL)
    with closing(socket.create_connection(toys.listener.getsockname(), timeout=DEADLINE_SECONDS)) as client:
        assert client.send(b"x") == 1


def test_a_signal_during_the_start_ends_it_in_order(start):
    toys = start(("node", "plain"), ("control", "late"))
    toys.wait(lambda: "control go" in toys.events(), "a start that hangs")
    assert toys.end() == 0
    assert not [pid for pid in toys.pids() if alive(pid)]


def test_an_idle_supervisor_does_not_wake_up(start):
    """It sleeps in poll: no voluntary context switch in half a second."""
    toys = start(("node", "plain"))
    toys.announcement()

    def switches() -> int:
        lines = Path(f"/proc/{toys.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("voluntary"))

    toys.wait(lambda: toys.state()["roles"]["node"]["ready"], "ready")
    seen = [(time.monotonic(), switches())]  # it may still write down that its role is ready: wait for it to come to rest

    def rests() -> bool:
        seen.append((time.monotonic(), switches()))
        return any(seen[-1][0] - at > 0.5 and seen[-1][1] - count <= 1 for at, count in seen)

    toys.wait(rests, "half a second of rest")
