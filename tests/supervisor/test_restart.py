"""Restarts over toy roles: one after the other or all at once, by a program that is exec'ed anew with the same pid and the same socket."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dayfly.supervisor import RENEW, ROLL
from tests.supervisor.harness import DEADLINE_SECONDS, Toys, alive

FOUR = (("node", "plain"), ("egress", "plain"), ("control", "plain"), ("gateway", "listens"))


@pytest.fixture
def start(tmp_path) -> Iterator:
    made: list[Toys] = []

    def begin(*plan: tuple[str, str], **more) -> Toys:
        made.append(Toys(tmp_path, *(plan or FOUR), **more))
        made[-1].announcement()
        return made[-1]

    yield begin
    for toys in made:
        toys.close()


def pids(toys: Toys) -> dict[str, int]:
    return {name: toys.pid(name) for name, _ in FOUR}


def test_a_rolling_restart_replaces_every_role_and_keeps_the_supervisor_and_its_socket(start):
    toys = start()
    before = pids(toys)
    assert toys.restart(ROLL)["error"] == ""
    after = pids(toys)
    assert not set(before.values()) & set(after.values())
    assert not [pid for pid in before.values() if alive(pid)]
    assert toys.process.poll() is None and toys.state()["pid"] == toys.process.pid
    with closing(socket.create_connection(toys.listener.getsockname(), timeout=DEADLINE_SECONDS)) as client:
        assert client.send(b"x") == 1
    assert toys.end() == 0
    assert not [pid for pid in after.values() if alive(pid)]


def test_the_successor_serves_before_the_old_one_is_told_except_where_only_one_may_work(start):
    toys = start()
    before = pids(toys)
    toys.restart(ROLL)
    after = pids(toys)
    lines = Path(toys.folder, "events").read_text().splitlines()

    def at(event: str) -> int:
        return lines.index(event)

    for name in ("egress", "node", "gateway"):
        assert at(f"{name} ready {after[name]}") < at(f"{name} relieved {before[name]}")
    assert at(f"control start {after['control']}") < at(f"control relieved {before['control']}") < at(f"control go {after['control']}")
    starts = [at(f"{name} start {after[name]}") for name in ("egress", "node", "control", "gateway")]
    assert starts == sorted(starts), "those that others connect to come first"


@pytest.mark.parametrize("name", ["node", "control", "gateway"])
def test_a_successor_that_does_not_start_leaves_the_old_one_in_service(start, name):
    toys = start()
    before = pids(toys)
    Path(toys.folder, f"{name}.ill").touch()
    done = toys.restart(ROLL)
    assert done["error"] == f"the new {name} did not start: it is ill"
    assert toys.pid(name) == before[name] and alive(before[name])
    Path(toys.folder, f"{name}.ill").unlink()
    assert toys.restart(ROLL)["error"] == ""
    assert not set(before.values()) & set(pids(toys).values())


def test_a_successor_that_is_not_ready_in_time_is_ended_and_the_old_one_stays(start):
    toys = start(start_seconds=1.0)
    before = pids(toys)
    Path(toys.folder, "gateway.slow").touch()
    assert toys.restart(ROLL)["error"] == "the new gateway was not ready within 1 seconds"
    assert toys.pid("gateway") == before["gateway"]
    toys.wait(lambda: sum(alive(pid) for pid in toys.pids()) == 4, "the end of the one that was too slow")


def test_a_program_that_cannot_go_on_is_found_out_before_anything_changes(start):
    toys = start()
    before = pids(toys)
    Path(toys.folder, "broken").touch()
    for number in (ROLL, RENEW):
        assert "does not start" in toys.restart(number)["error"]
    assert pids(toys) == before


def test_a_restart_of_all_ends_and_starts_everything_while_the_socket_listens(start):
    toys = start()
    before = pids(toys)
    assert toys.restart(RENEW)["error"] == ""
    assert not set(before.values()) & set(pids(toys).values())
    assert toys.process.poll() is None
    order = [event for event in toys.events() if event.endswith("relieved")]
    assert order == ["gateway relieved", "control relieved", "egress relieved", "node relieved"]
    assert toys.end() == 0


def test_a_killed_role_is_restored_after_a_restart_as_before(start):
    toys = start()
    toys.restart(ROLL)
    old = toys.pid("gateway")
    os.kill(old, signal.SIGKILL)
    toys.wait(lambda: toys.pid("gateway") not in (0, old) and toys.state()["roles"]["gateway"]["ready"], "a new process")


def test_the_end_in_the_middle_of_a_restart_leaves_nothing(start):
    toys = start()
    Path(toys.folder, "gateway.slow").touch()
    toys.process.send_signal(ROLL)
    toys.wait(lambda: toys.restarted()["role"] == "gateway", "the gateway's turn")
    assert toys.end() == 0
    assert not [pid for pid in toys.pids() if alive(pid)]


def test_roles_see_the_end_of_a_supervisor_that_is_killed_after_a_restart(start):
    toys = start()
    toys.restart(ROLL)
    toys.process.kill()
    toys.wait(lambda: not [pid for pid in toys.pids() if alive(pid)], "the end of all")


FIVE = (*FOUR, ("gateway-1", "listens"))


def test_of_two_gateways_each_is_restored_and_replaced_on_its_own(start):
    toys = start(*FIVE)
    before = {name: toys.pid(name) for name, _ in FIVE}
    os.kill(before["gateway-1"], signal.SIGKILL)
    toys.wait(lambda: toys.pid("gateway-1") not in (0, before["gateway-1"]) and toys.state()["roles"]["gateway-1"]["ready"], "its return")
    assert toys.pid("gateway") == before["gateway"] and alive(before["gateway"])
    before["gateway-1"] = toys.pid("gateway-1")
    assert toys.restart(ROLL)["error"] == ""
    lines = Path(toys.folder, "events").read_text().splitlines()
    for name in ("gateway", "gateway-1"):
        assert lines.index(f"{name} ready {toys.pid(name)}") < lines.index(f"{name} relieved {before[name]}")
    assert not [pid for pid in before.values() if alive(pid)]
    assert toys.end() == 0


def test_a_second_gateway_that_does_not_start_leaves_the_old_one_beside_the_new_first_one(start):
    toys = start(*FIVE)
    before = {name: toys.pid(name) for name, _ in FIVE}
    Path(toys.folder, "gateway-1.ill").touch()
    assert toys.restart(ROLL)["error"] == "the new gateway-1 did not start: it is ill"
    assert toys.pid("gateway-1") == before["gateway-1"] and alive(before["gateway-1"])
    assert toys.pid("gateway") != before["gateway"]


def test_gateways_end_at_the_same_time_and_before_all_others(start):
    """What they have accepted may take its time; they take it together."""
    toys = start(*FOUR[:3], ("gateway", "stubborn"), ("gateway-1", "stubborn"), stop_seconds=1.0)
    pids = [toys.pid(name) for name in ("node", "gateway", "gateway-1")]
    toys.end()
    ends = [event for event in toys.events() if event.endswith(" term")]
    assert sorted(ends[:2]) == ["gateway term", "gateway-1 term"] and ends[-1] == "node term"
    assert not [pid for pid in pids if alive(pid)]


def test_everything_is_renewed_with_two_gateways_too(start):
    toys = start(*FIVE)
    before = {name: toys.pid(name) for name, _ in FIVE}
    assert toys.restart(RENEW)["error"] == ""
    now = {name: toys.pid(name) for name, _ in FIVE}
    assert not set(before.values()) & set(now.values())
    assert toys.end() == 0
    assert not [pid for pid in now.values() if alive(pid)]
