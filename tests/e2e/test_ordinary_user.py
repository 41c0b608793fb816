"""The platform of a user without root: user namespaces where the kernel gives them, and the truth about what is missing."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e import leaks
from tests.e2e.conftest import uid_of
from tests.e2e.harness import Platform, descendants
from tests.e2e.load import ECHO, Load


@pytest.fixture(scope="module")
def mine() -> Iterator[Platform]:
    with Platform(as_uid=uid_of("ordinary")) as platform:
        yield platform


SEEN = """
import os
def handler(event, context):
    def readable(path):
        try:
            os.listdir(path)
            return True
        except OSError:
            return False
    return {
        "uid": os.getuid(), "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        "homes": [path for path in ("/root", "/home", "/var/lib", "/etc/ssh", event["folder"]) if readable(path)],
        "host": os.uname().nodename, "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [],
    }
"""


def test_everything_belongs_to_the_user_and_nothing_runs_as_root(mine: Platform) -> None:
    uid = mine.as_uid or os.getuid()
    mine.put("echo", ECHO.format(version=1), min_instances=1)
    for pid in descendants(mine.pid):
        with suppress(FileNotFoundError):  # ended meanwhile
            assert os.stat(f"/proc/{pid}").st_uid in (uid, 0), leaks.command_of(pid)  # 0: a process that may not be looked into
    for folder, _, names in os.walk(mine.data):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            assert os.lstat(path).st_uid == uid, path
    assert (mine.data / "control").stat().st_mode & 0o777 == 0o700


def test_a_deploy_says_which_walls_are_missing_and_doctor_says_what_that_costs(mine: Platform) -> None:
    event = mine.put("seen", SEEN)
    features = mine.request("GET", "/api/v1/doctor").json()["features"]
    said = " ".join(mine.cli("doctor", status=None).split())
    for wall, _, reason in (missing.partition(": ") for missing in event["missing"]):
        assert features[wall] == reason, (wall, features)
        assert wall in said, (wall, said)
    assert mine.put("seen", SEEN)["missing"] == event["missing"], "an unchanged deploy says it too"


def test_the_sandbox_hides_the_machine_as_it_does_for_root(mine: Platform) -> None:
    event = mine.put("seen", SEEN)
    said = mine.invoke("seen", {"folder": str(mine.folder)}).json()
    missing = {text.partition(":")[0] for text in event["missing"]}
    if "mountns" not in missing:
        assert said["homes"] == [], said
    if "pidns" not in missing:
        assert len(said["processes"]) <= 2, said
    if "netns" not in missing:
        assert set(said["interfaces"]) <= {"lo"}, said


def test_load_deploys_and_crashes_work_as_for_root(mine: Platform) -> None:
    mine.put("echo", ECHO.format(version=1))
    mine.put("crash", "import os\ndef handler(e, c): os._exit(1)\n")
    with Load(mine, "echo", threads=3) as load:
        for number in range(2, 8):
            load.wait_answers(5)
            mine.put("echo", ECHO.format(version=number))
            assert mine.invoke("crash").json()["errorType"] == "Runtime.ExitError"
        mine.wait_for("the newest version answers", lambda: load.versions[7] > 0)
    assert set(load.statuses) == {200} and not load.broken and not load.wrong and load.accounted == load.sent, load


def test_a_killed_node_is_restored_and_leaves_no_process_of_its_instances(mine: Platform) -> None:
    mine.put("echo", ECHO.format(version=1), min_instances=2)
    with Load(mine, "echo", threads=2) as load:
        load.wait_answers(5)
        old = mine.roles()["node"]
        before = [pid for pid in descendants(old) if pid != old]
        os.kill(old, 9)
        mine.wait_for("its zygotes and instances have ended", lambda: all(leaks.is_zombie(pid) for pid in before))
        load.wait_answers(20)
    assert load.accounted == load.sent and not load.wrong and not load.broken, load
    assert set(load.codes) <= {"Runtime.ExitError", "start_failed"}, load


def test_strict_isolation_refuses_what_auto_runs_with_less(mine: Platform) -> None:
    missing = mine.put("seen", SEEN)["missing"]
    with Platform(as_uid=uid_of("ordinary"), settings={"isolation": "strict"}) as strict:
        event = strict.try_put("seen", SEEN)
        if missing:
            assert event["event"] == "failed" and event["error"]["code"] == "isolation_refused", event
            assert all(wall in str(event["error"]) for wall in missing), event
        else:
            assert event["event"] == "deployed", event
