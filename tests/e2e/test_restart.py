"""Restarts, deploys, rollbacks and scaling down under a steady load: every call is answered 200, no connection breaks."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dayfly
from tests.e2e import leaks
from tests.e2e.conftest import uid_of
from tests.e2e.harness import Answer, Platform, parent_of
from tests.e2e.load import ECHO, Load

SLOW = """
import time
def handler(event, context):
    print("began " + context.aws_request_id)
    time.sleep(event.get("seconds", 0))
    return "done"
"""


@pytest.fixture(scope="module", params=[pytest.param("root", marks=pytest.mark.root), "ordinary"])
def mended(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with Platform(as_uid=uid_of(request.param), settings={"drain_timeout_seconds": 5}) as platform:
        platform.put("echo", ECHO.format(version=1), timeout_seconds=20)
        platform.put("slow", SLOW, timeout_seconds=60)
        yield platform


def lost_nothing(load: Load) -> None:
    assert set(load.statuses) == {200} and not load.broken and not load.wrong and load.accounted == load.sent, load


def restart(platform: Platform, *flags: str) -> None:
    platform.cli("restart", f"--data={platform.data}", *flags)


@pytest.mark.timeout(120)
def test_a_rolling_restart_under_load_loses_no_call_and_replaces_every_process(mended: Platform) -> None:
    before, supervisor = mended.roles(), mended.pid
    with Load(mended, "echo", threads=4) as load:
        load.wait_answers(20)
        for _ in range(2):
            restart(mended, "--rolling")
            load.wait_answers(20)
    lost_nothing(load)
    assert not set(before.values()) & set(mended.roles().values())
    assert mended.pid == supervisor and mended.process is not None and mended.process.poll() is None
    assert not [pid for pid in before.values() if os.path.exists(f"/proc/{pid}")]


@pytest.mark.timeout(120)
def test_a_plain_restart_keeps_callers_waiting_and_loses_none_of_them(mended: Platform) -> None:
    before, supervisor = mended.roles(), mended.pid
    with Load(mended, "echo", threads=4) as load:
        load.wait_answers(20)
        restart(mended)
        load.wait_answers(20)
    lost_nothing(load)
    assert not set(before.values()) & set(mended.roles().values()) and mended.pid == supervisor


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(call()))
    thread.start()
    return thread, said


def wait_logged(platform: Platform, text: str) -> None:
    logged: Callable[[], bool] = lambda: text in platform.request("GET", "/api/v1/logs?function=slow&limit=1000").body.decode()  # noqa: E731
    platform.wait_for(f"the log says {text!r}", logged)


@pytest.mark.timeout(120)
def test_a_call_that_runs_longer_than_the_drain_timeout_is_finished_by_the_old_gateway_and_node(mended: Platform) -> None:
    """Relieved processes are bounded by the calls they have, not by drain_timeout_seconds (5 here)."""
    thread, said = in_background(lambda: mended.invoke("slow", {"seconds": 7}, X_Call_Id="enduring"))
    wait_logged(mended, "began enduring")
    old = mended.roles()
    rolling, _ = in_background(lambda: restart(mended, "--rolling"))
    mended.wait_for("a new gateway serves", lambda: mended.roles()["gateway"] not in (0, old["gateway"]))
    assert mended.invoke("slow", {}).json() == "done", "others are served meanwhile"
    assert os.path.exists(f"/proc/{old['node']}"), "the old node stays for the old gateway's instances"
    thread.join(60)
    rolling.join(60)
    (answer,) = said
    assert isinstance(answer, Answer) and answer.json() == "done"
    assert not os.path.exists(f"/proc/{old['node']}") and not os.path.exists(f"/proc/{old['gateway']}")


@pytest.mark.timeout(120)
def test_an_idle_connection_gets_one_more_answer_that_says_it_is_the_last(mended: Platform) -> None:
    connection = http.client.HTTPConnection(*mended.address, timeout=30)
    headers = {"Authorization": f"Bearer {mended.token}", "Content-Type": "application/json"}

    def ask() -> http.client.HTTPResponse:
        connection.request("POST", "/api/v1/functions/echo/invoke", b'{"sent": ""}', headers)
        answer = connection.getresponse()
        answer.read()
        return answer

    assert ask().getheader("connection") != "close"
    assert connection.sock is not None
    old = mended.roles()["gateway"]
    rolling, _ = in_background(lambda: restart(mended, "--rolling"))
    mended.wait_for("a new gateway serves", lambda: mended.roles()["gateway"] not in (0, old))
    answer = ask()
    assert (answer.status, answer.getheader("connection")) == (200, "close")
    rolling.join(60)
    assert ask().status == 200
    connection.close()


@pytest.mark.timeout(180)
def test_deploys_and_questions_to_control_go_on_during_a_rolling_restart(mended: Platform) -> None:
    """Control exists once: clients of its API wait while the store is handed over, a deploy that runs is finished before."""
    over, failures = threading.Event(), []

    def work(act: Callable[[int], bool]) -> int:
        count = 0
        while not over.is_set():
            count += 1
            try:
                good = act(count)
            except (AssertionError, OSError, http.client.HTTPException) as error:
                failures.append(f"{type(error).__name__}: {error}")
            else:
                failures.extend([] if good else [f"bad answer {count}"])
        return count

    threads = [
        in_background(lambda: work(lambda count: bool(mended.put("fresh", ECHO.format(version=count))["version"]))),
        in_background(lambda: work(lambda _: mended.request("GET", "/api/v1/functions").status == 200)),
    ]
    with Load(mended, "echo", threads=2) as load:
        for _ in range(2):
            restart(mended, "--rolling")
            load.wait_answers(10)
    over.set()
    for thread, _ in threads:
        thread.join(60)
    assert not failures, failures[:5]
    assert all(isinstance(said[0], int) and said[0] > 2 for _, said in threads), "both were busy"
    lost_nothing(load)


@pytest.mark.timeout(180)
def test_deploy_rollback_and_scaling_down_under_load_lose_no_call(mended: Platform) -> None:
    """Instances are asked to leave after each call and brought back by the next; versions come and go meanwhile."""
    eager = {"keep_alive": "fixed", "keep_alive_seconds": 0, "timeout_seconds": 20}
    mended.put("moving", ECHO.format(version=1), **eager)
    with Load(mended, "moving", threads=4) as load:
        load.wait_answers(20)
        for number in range(2, 8):
            mended.put("moving", ECHO.format(version=number), **eager, max_instances=1 + number % 3)
            load.wait_answers(5)
            assert mended.request("POST", "/api/v1/functions/moving/rollback", b"{}").status == 200
            load.wait_answers(5)
    lost_nothing(load)
    mended.wait_until("no instance is left", "/api/v1/functions/moving", lambda it: not it.get("instances"))


@pytest.mark.timeout(120)
def test_a_gateway_that_dies_while_it_leaves_takes_nobody_else_along(mended: Platform) -> None:
    thread, _ = in_background(lambda: broken(lambda: mended.invoke("slow", {"seconds": 50}, X_Call_Id="doomed")))
    wait_logged(mended, "began doomed")
    old = mended.roles()
    rolling, said = in_background(lambda: restart(mended, "--rolling"))
    mended.wait_for("a new gateway serves", lambda: mended.roles()["gateway"] not in (0, old["gateway"]))
    os.kill(old["gateway"], signal.SIGKILL)
    rolling.join(60)
    thread.join(60)
    assert said == [None], "the restart is over"
    assert not os.path.exists(f"/proc/{old['node']}")
    assert mended.invoke("slow", {}).json() == "done"


def broken(call: Callable[[], object]) -> str:
    try:
        call()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    return ""


@pytest.mark.timeout(120)
def test_nothing_of_the_old_generations_is_left(mended: Platform) -> None:
    """After all of the above: one generation of processes, one folder of control groups, no socket of a former node."""
    assert {pid for pid in mended.processes() if parent_of(pid) == mended.pid} == set(mended.roles().values())
    state = json.loads(Path(mended.data, "run", "state.json").read_text())
    assert state["leaving"] == {} and not state["restart"]["running"]
    assert len({Path(name).name for name in leaks.control_groups(mended.data)}) <= 1, "none where they cannot be had"
    assert not list(Path(mended.data, "run").glob("node-*.sock"))


@pytest.mark.timeout(180)
@pytest.mark.root
@pytest.mark.parametrize("flag", [("--rolling",), ()])
def test_after_an_upgrade_a_restart_runs_the_new_code_in_every_process(flag: tuple[str, ...]) -> None:
    """`pip install -U` replaces files below a running platform; one that cannot start is refused, the next one is taken."""
    platform = Platform(as_uid=uid_of("root"))
    try:
        code = installed(platform)
        platform.start()
        platform.put("echo", ECHO.format(version=1))
        old = platform.roles()
        (code / "handover.py").rename(code / "handover.away")
        platform.cli("restart", f"--data={platform.data}", *flag, status=None)
        assert platform.roles() == old, "a broken installation changes nothing"
        (code / "handover.away").rename(code / "handover.py")
        text = (code / "__init__.py").read_text()
        (code / "__init__.py").write_text(text.replace("__version__", "__former__") + '\n__version__ = "9.9.9"\n')
        (code / "supervisor.py").write_text((code / "supervisor.py").read_text().replace('"stopping"', '"stopping_anew"'))
        with Load(platform, "echo", threads=2) as load:
            load.wait_answers(10)
            platform.cli("restart", f"--data={platform.data}", *flag)
            load.wait_answers(10)
        lost_nothing(load)
        assert b'dayfly_info{version="9.9.9"}' in platform.request("GET", "/metrics").body
        assert platform.stop() == 0
        assert "stopping_anew" in platform.log_text(), "the supervisor, too, is what is installed now"
    finally:
        platform.close()


def installed(platform: Platform) -> Path:
    """An environment of the platform's own whose `dayfly` is a copy; everything else comes from ours. Returns the copy's folder."""
    home = platform.folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    platform.python = str(home / "bin" / "python")
    copy = home / "copy" / "dayfly"
    shutil.copytree(Path(dayfly.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (site,) = home.glob("lib/python*/site-packages")
    (site / "copy.pth").write_text(f"{copy.parent}\n{sysconfig.get_paths()['purelib']}\n")
    return copy
