"""Time: the machine is suspended, a role stops for a while, the machine has just booted.

CHAOS_STOPPED_SECONDS says how long everybody stops; a full day has 30. Clocks on the wall that jump are tried where `now` is an argument
(tests/control/test_deploy.py for code on disk, tests/core/test_limits.py for quotas): nothing else in a call's life looks at them.
"""

import os
import signal
import threading
from contextlib import suppress

import pytest

from tests.chaos import apart
from tests.chaos.callers import Load
from tests.chaos.conftest import STOPPED_SECONDS, New
from tests.chaos.crowd import Crowd
from tests.chaos.judge import Judge
from tests.e2e.harness import Platform


@pytest.fixture(scope="module")
def judge(new_judge: New) -> Judge:
    made = new_judge()
    made.deploy("steady", min_instances=1, keep_alive_seconds=1)
    made.deploy("short", timeout_seconds=1)
    return made


def test_the_whole_platform_is_suspended_and_goes_on(judge: Judge) -> None:
    roles = judge.platform.roles()
    pids = judge.platform.processes()
    with Crowd(judge) as crowd, Load(judge, ("steady", "short"), threads=4) as load:
        waiting = crowd.open(20, "short", pause=0.5)
        crowd.send(waiting)
        load.wait_answers(10)
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            threading.Event().wait(STOPPED_SECONDS)  # the thing that is tried
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        load.wait_answers(30)
        crowd.hear_until("all that waited are told", lambda: all(client.over for client in waiting))
    counts = judge.settle()
    assert not counts["cut"], judge
    assert judge.platform.roles() == roles, "nobody was taken for dead"


@pytest.mark.parametrize("role", ["control", "node", "egress", "gateway"])
def test_one_role_stops_for_a_while_and_goes_on(judge: Judge, role: str) -> None:
    roles = judge.platform.roles()
    with Load(judge, ("steady",), threads=4) as load:
        load.wait_answers(10)
        os.kill(roles[role], signal.SIGSTOP)
        try:
            if role != "gateway":
                load.wait_answers(20)  # warm calls need none of these
            threading.Event().wait(STOPPED_SECONDS / 3)
        finally:
            os.kill(roles[role], signal.SIGCONT)
        load.wait_answers(20)
    counts = judge.settle()
    assert not counts["cut"], judge
    assert judge.platform.roles() == roles, "nobody was taken for dead"


@pytest.mark.root
def test_the_machine_has_just_booted() -> None:
    """The monotonic clock is near zero, where "never" and "long ago" are easily taken for each other."""

    def body() -> None:
        apart.just_booted()
        with Platform() as platform:
            judge = Judge(platform)
            judge.deploy("steady", min_instances=1)
            judge.deploy("other", keep_alive_seconds=1)
            with Load(judge, ("steady", "other"), threads=4) as load:
                load.wait_answers(100)
            counts = judge.settle()
            judge.close()
            assert set(counts) == {"answered"}, judge

    try:
        apart.in_a_thread(body)
    except OSError as error:
        pytest.skip(f"no time namespaces here: {error}")
