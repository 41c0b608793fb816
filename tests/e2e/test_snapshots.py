"""Snapshots as a user meets them: when a template is made, what is said about it, how it ends; and where a cold start comes from."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.harness import Answer, Platform, descendants

pytestmark = [pytest.mark.one_user, pytest.mark.root]

# Init that costs processor time: enough for a template, whatever the machine.
HEAVY = """
import os, time
began = time.thread_time()
while time.thread_time() - began < 0.03:
    sum(range(1000))
COUNT = []
def handler(event, context):
    COUNT.append(1)
    return {"count": len(COUNT), "instance": os.environ["DAYFLY_INSTANCE"], "how": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]}
"""
THREAD = HEAVY + "\nimport threading\nthreading.Thread(target=time.sleep, args=(600,), daemon=True, name='poller').start()\n"


def template_of(platform: Platform, name: str) -> str:
    """What statistics say of it once that is settled."""

    def settled(document: dict) -> bool:
        return any(it["name"] == name and it["template"] not in ("", "making") and not it["instances"] for it in document["functions"])

    # And the instance that proved the deploy is gone: it would be warm.
    document = platform.wait_until(f"{name} has its template or does without", "/api/v1/statistics", settled)
    return str(next(it["template"] for it in document["functions"] if it["name"] == name))


def test_a_costly_init_runs_once_and_cold_starts_come_from_it(platform: Platform) -> None:
    """Made after the deploy's proof; each call of a function that keeps nothing is cold, and an instance of its own."""
    platform.put("heavy", HEAVY, keep_alive_seconds=0)
    assert template_of(platform, "heavy") == "ready"
    answers = [platform.invoke("heavy") for _ in range(5)]
    assert {it.headers["x-dayfly-start"] for it in answers} == {"cold"}
    assert {it.headers["x-dayfly-origin"] for it in answers} <= {"template", "ahead"}
    assert [it.json()["count"] for it in answers] == [1] * 5
    assert len({it.json()["instance"] for it in answers}) == 5
    assert {it.json()["how"] for it in answers} == {"snap-start"}
    assert "ready" in platform.cli("describe", "heavy")


def test_a_burst_of_a_templated_function_is_answered(platform: Platform) -> None:
    """Every call at once, each held until all are there: nobody loses an instance."""
    source = HEAVY.replace("    COUNT.append(1)\n", "    COUNT.append(1)\n    time.sleep(max(0.0, event['until'] - time.time()))\n")
    platform.put("crowd", source, max_instances=80, keep_alive_seconds=0)
    assert template_of(platform, "crowd") == "ready"
    until = time.time() + 3.0
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda _: platform.invoke("crowd", {"until": until}), range(80)))
    assert [answer.json().get("count") for answer in answers] == [1] * 80, [a.body for a in answers if b"count" not in a.body][:3]


def test_what_forbids_a_snapshot_is_told_to_its_owner(platform: Platform) -> None:
    """In the function's log and in its description; the function works as before."""
    platform.put("threaded", THREAD, keep_alive_seconds=0)
    assert "1 running thread (poller)" in template_of(platform, "threaded")
    answer = platform.invoke("threaded")
    assert answer.json()["count"] == 1
    assert answer.headers["x-dayfly-origin"] in ("fork", "prepared")
    platform.wait_for("the log says so", lambda: "No snapshot of version 1" in platform.cli("logs", "threaded"))


def test_off_and_cheap_functions_have_none(platform: Platform) -> None:
    """`snapshot = "off"` is kept to, and an init of no cost is not worth one."""
    platform.put("never", HEAVY, snapshot="off", keep_alive_seconds=0)
    platform.put("cheap", "def handler(event, context):\n    return 1\n", keep_alive_seconds=0)
    platform.put("after", HEAVY, keep_alive_seconds=0)
    assert template_of(platform, "after") == "ready"  # those before it in turn would have theirs by now
    for name in ("never", "cheap"):
        assert platform.invoke(name).headers["x-dayfly-origin"] in ("fork", "prepared")
    found = {it["name"]: it["template"] for it in platform.request("GET", "/api/v1/statistics").json()["functions"]}
    assert found["never"] == found["cheap"] == ""


def test_a_removed_function_takes_its_template_along(new_platform: Callable[..., Platform]) -> None:
    """And so does a new version with the old one's."""
    platform = new_platform()
    platform.put("heavy", HEAVY, keep_alive_seconds=0)
    assert template_of(platform, "heavy") == "ready"
    platform.wait_until("instances have ended", "/api/v1/statistics", lambda document: not document["functions"][0]["instances"])
    before = count(platform)
    platform.cli("rm", "heavy", "--yes")
    platform.wait_for("the template is gone", lambda: count(platform) < before)


def count(platform: Platform) -> int:
    """Processes of namespaces of their own pid 1: instances, prepared ones, templates."""
    return sum(len(_nspids(pid)) > 2 for pid in descendants(platform.pid))


def _nspids(pid: int) -> list[str]:
    try:
        return next(line.split()[1:] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid"))
    except (OSError, StopIteration):
        return []


def test_a_changed_secret_makes_a_new_template(platform: Platform) -> None:
    """Instances never come from a template with the old value."""
    source = HEAVY.replace('return {"count"', 'return {"secret": SECRET, "count"') + "\nSECRET = open('/run/secrets/word').read()\n"
    platform.cli("secret", "set", "word", stdin="old")
    platform.put("secretive", source, secrets=["word"], keep_alive_seconds=0)
    assert template_of(platform, "secretive") == "ready"
    assert platform.invoke("secretive").json()["secret"] == "old"
    platform.cli("secret", "set", "word", stdin="new")
    platform.wait_for("the new value is there", lambda: platform.invoke("secretive").json()["secret"] == "new")
    assert {platform.invoke("secretive").json()["secret"] for _ in range(6)} == {"new"}


def test_kill_9_of_a_template_loses_no_later_call(new_platform: Callable[..., Platform]) -> None:
    """Starts go on without it."""
    platform = new_platform()
    platform.put("heavy", HEAVY, keep_alive_seconds=0)
    assert template_of(platform, "heavy") == "ready"
    for pid in descendants(platform.pid):
        if len(_nspids(pid)) > 2:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    answers = [platform.invoke("heavy") for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5, [answer.body for answer in answers]


NUMPY = {"requirements.txt": "numpy==2.2.6\n"}
# A thread forbids a template of the version's own, so that every start of it shows where the next best came from.
WITH_NUMPY = """
import sys
THERE = "numpy" in sys.modules
import numpy, random, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
def handler(event, context):
    import os
    return {"there": THERE, "version": os.environ["AWS_LAMBDA_FUNCTION_VERSION"], "dice": [float(numpy.random.random()), random.random()]}
"""


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_new_code_starts_from_what_its_packages_were_imported_to(new_platform: Callable[..., Platform]) -> None:
    """Once a version has shown what it imports of its layer, the very first start of the next is spared it; other code's, too."""
    platform = new_platform()

    def cold(name: str) -> Answer:
        """The next cold answer: the instance that proved a deploy may take a call before it goes."""
        answers: list[Answer] = []
        platform.wait_for("a cold start", lambda: answers.append(platform.invoke(name)) or "x-dayfly-origin" in answers[-1].headers)
        return answers[-1]

    def is_from_packages(answer: Answer) -> bool:
        return answer.headers["x-dayfly-origin"] == "packages" and answer.json()["there"]

    platform.put("science", {"handler.py": WITH_NUMPY} | NUMPY, keep_alive_seconds=0)
    platform.wait_for("the packages stand ready", lambda: is_from_packages(cold("science")))
    deployed = platform.put("science", {"handler.py": WITH_NUMPY + "# 2\n"} | NUMPY, keep_alive_seconds=0, memory_mb=200)
    answers = [cold("science") for _ in range(4)]
    assert all(map(is_from_packages, answers)), [it.headers for it in answers]
    assert {it.json()["version"] for it in answers} == {str(deployed["version"])} == {"2"}
    assert len({str(it.json()["dice"]) for it in answers}) == 4
    platform.put("other", {"handler.py": WITH_NUMPY} | NUMPY, keep_alive_seconds=0)
    assert is_from_packages(cold("other"))
    for name, config in (("own-env", {"env": {"A": "b"}}), ("forbids", {"snapshot": "off"})):
        platform.put(name, {"handler.py": WITH_NUMPY} | NUMPY, keep_alive_seconds=0, **config)
        assert cold(name).headers["x-dayfly-origin"] in ("fork", "prepared"), name
