"""kill -9 of every process under load: the others go on, the supervisor restores it, callers get one clean answer, nothing stays behind."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e import leaks
from tests.e2e.conftest import uid_of
from tests.e2e.harness import Answer, Platform, descendants, parent_of
from tests.e2e.load import Load

# Says which call it runs: a call that ran twice is in the log twice.
SAYS = """
def handler(event, context):
    print("ran " + context.aws_request_id)
    return {"id": context.aws_request_id, "version": 1, "sent": event["sent"]}
"""
SLOW = """
import time
def handler(event, context):
    print("began " + context.aws_request_id)
    time.sleep(event.get("seconds", 0))
    return "done"
"""


@pytest.fixture(scope="module")
def robust(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with Platform(as_uid=uid_of("root"), settings={"log_retention_days": 1}) as platform:
        platform.put("says", SAYS, timeout_seconds=10)
        platform.put("slow", SLOW, timeout_seconds=60)
        yield platform


def wait_restored(platform: Platform, name: str, old: int) -> int:
    """Until the supervisor's state names another, ready process for the role."""

    def restored() -> bool:
        pid = platform.roles().get(name, 0)
        return pid not in (0, old) and os.path.exists(f"/proc/{pid}")

    platform.wait_for(f"{name} is restored", restored, seconds=30)
    return platform.roles()[name]


def instances(platform: Platform) -> list[int]:
    """Pids of the instances. A sandbox that only stands ready has no answers socket (descriptor 4) yet."""
    return [pid for pid in sandboxes(platform) if os.path.lexists(f"/proc/{pid}/fd/4")]


def sandboxes(platform: Platform) -> list[int]:
    """Pids of instances and of sandboxes that stand ready: children of the zygotes, which are children of the node."""
    node = platform.roles()["node"]
    return [pid for pid in descendants(node) if parent_of(parent_of(pid)) == node and pid != node]


def zygotes(platform: Platform) -> list[int]:
    node = platform.roles()["node"]
    return [pid for pid in descendants(node) if parent_of(pid) == node]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def ran_twice(platform: Platform, load: Load) -> dict[str, int]:
    """Calls of `says` that the log names more than once; what was logged while control was away may be lost."""
    last = platform.invoke("says", {"sent": ""}, X_Call_Id=f"load-last-{load.sent}").headers["x-call-id"]
    asked = f"/api/v1/logs?function=says&limit=10000&call={last}"
    platform.wait_for("the log names the calls that ran", lambda: b"ran load-last" in platform.request("GET", asked).body)
    text = platform.request("GET", "/api/v1/logs?function=says&limit=10000").body.decode()
    runs = Counter(line.split("ran ", 1)[1].split('"')[0].split("\\n")[0] for line in text.splitlines() if "ran load-" in line)
    assert runs
    return {call: count for call, count in runs.items() if count > 1}


def is_clean(load: Load, *codes: str) -> None:
    """Every request was answered once or its connection failed; failures are of these codes only."""
    assert load.accounted == load.sent and not load.wrong, load
    assert set(load.codes) <= set(codes), load


GONE = ("Runtime.ExitError", "start_failed")  # an instance died under the call; none could be started for it


@pytest.mark.parametrize(
    ("role", "codes", "may_break"),
    [
        ("control", (), False),
        ("egress", (), False),
        ("node", GONE, False),
        ("gateway", ("control_unavailable", "shutting_down"), True),
    ],
)
def test_a_killed_role_is_restored_under_load_and_callers_get_clean_answers(
    robust: Platform, role: str, codes: tuple[str, ...], may_break: bool
) -> None:
    others = {name: pid for name, pid in robust.roles().items() if name != role}
    with Load(robust, "says") as load:
        for _ in range(2):
            load.wait_answers(20)
            old = robust.roles()[role]
            kill(old)
            wait_restored(robust, role, old)
            load.wait_answers(20)
    is_clean(load, *codes)
    assert may_break or not load.broken, load
    assert {name: pid for name, pid in robust.roles().items() if name != role} == others, "the others go on"
    assert robust.invoke("slow", {}).json() == "done"
    robust.put("says", SAYS + f"# after {role}\n", timeout_seconds=10)
    assert not ran_twice(robust, load)


def test_killed_instances_cost_only_the_call_they_ran(robust: Platform) -> None:
    killed = 0
    with Load(robust, "says") as load:
        for _ in range(10):
            load.wait_answers(5)
            for pid in instances(robust):
                kill(pid)
                killed += 1
        load.wait_answers(20)
    is_clean(load, "Runtime.ExitError", "Runtime.InitError")  # the latter: killed while it started
    assert not load.broken and killed >= 10 and load.statuses[-200] <= killed, (killed, load)
    assert not ran_twice(robust, load)


def test_a_killed_zygote_takes_its_instances_along_and_is_made_again(robust: Platform) -> None:
    with Load(robust, "says") as load:
        for _ in range(3):
            load.wait_answers(10)
            for pid in zygotes(robust):
                kill(pid)
        load.wait_answers(20)
    is_clean(load, *GONE)
    assert not load.broken, load
    assert not ran_twice(robust, load)


def test_gateway_and_node_killed_together_come_back_together(robust: Platform) -> None:
    with Load(robust, "says") as load:
        load.wait_answers(10)
        old = robust.roles()
        for role in ("gateway", "node", "control"):
            kill(old[role])
        for role in ("gateway", "node", "control"):
            wait_restored(robust, role, old[role])
        load.wait_answers(20)
    is_clean(load, *GONE, "control_unavailable", "shutting_down")
    assert not ran_twice(robust, load)


def test_a_call_that_runs_when_its_gateway_dies_ends_with_its_instance(robust: Platform) -> None:
    """Nobody is left to hear it: the instance does not run on for ever."""
    thread, _ = in_background(lambda: robust.invoke("slow", {"seconds": 3000}, X_Call_Id="orphaned"))
    wait_logged(robust, "began orphaned")
    before = set(instances(robust))
    old = robust.roles()["gateway"]
    kill(old)
    thread.join(30)
    wait_restored(robust, "gateway", old)
    robust.wait_for("the old gateway's instances have ended", lambda: not before & set(instances(robust)))
    assert robust.invoke("slow", {}).json() == "done"


def in_background(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    said: list[Answer] = []

    def run() -> None:
        with suppress(OSError):  # the connection failed: that is what some tests are about
            said.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


def wait_logged(platform: Platform, text: str) -> None:
    logged: Callable[[], bool] = lambda: text in platform.request("GET", "/api/v1/logs?function=slow&limit=1000").body.decode()  # noqa: E731
    platform.wait_for(f"the log says {text!r}", logged)


def test_nothing_piles_up_over_many_deaths(robust: Platform) -> None:
    """After all of the above: no control group, scratch folder or socket of an instance that is gone."""
    alive = len(sandboxes(robust))
    groups = [path for name in leaks.control_groups(robust.data) for path in Path(name).rglob("*") if path.is_dir()]
    used = {str(path.name) for path in groups if (path / "cgroup.procs").exists() and (path / "cgroup.procs").read_text().strip()}
    assert len(used) <= alive + len(zygotes(robust)) + 2, (alive, used)
    assert len({path.name for path in groups}) <= alive + 120, "spare groups are bounded"
    scratch = robust.data / "run" / "scratch"
    assert not scratch.exists() or len(list(scratch.iterdir())) <= alive
    assert not leaks.mounts_below(robust.folder)


def test_sigterm_lets_running_calls_finish_and_refuses_new_ones(new_platform: Callable[..., Platform]) -> None:
    platform = new_platform(as_uid=uid_of("root"))
    platform.put("slow", SLOW, timeout_seconds=60)
    thread, said = in_background(lambda: platform.invoke("slow", {"seconds": 1.5}, X_Call_Id="draining"))
    wait_logged(platform, "began draining")
    assert platform.stop() == 0
    thread.join(30)
    assert [answer.json() for answer in said] == ["done"], "an accepted call is finished"
    with pytest.raises(OSError):
        platform.request("GET", "/healthz")
    platform.start()
    assert platform.invoke("slow", {}).json() == "done", "the next start knows its functions"


def test_a_killed_supervisor_takes_everything_along_and_the_next_up_works(new_platform: Callable[..., Platform]) -> None:
    platform = new_platform(as_uid=uid_of("root"))
    platform.put("says", SAYS, min_instances=1)
    tree = platform.processes()
    assert len(tree) >= 6
    with Load(platform, "says", threads=2) as load:
        load.wait_answers(10)
        kill(platform.pid)
        platform.wait_for("every process has ended", lambda: all(leaks.is_zombie(pid) for pid in tree), seconds=30)
    assert load.accounted == load.sent and not load.wrong and not load.codes, load
    assert platform.process is not None and platform.process.stdout is not None
    platform.process.wait(10)
    platform.process.stdout.close()
    leaks.strays()  # collects the orphans, whose parent we are
    assert not leaks.mounts_below(platform.folder)
    platform.start()
    assert platform.invoke("says", {"sent": ""}).json()["version"] == 1
