"""A hot function that computes, without end, beside many small ones and one that waits: who gets instances, and who gets the processors.

Compared are counts of calls and of instances, never times: the machine is others' as well.
"""

import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import AS_ORDINARY, AS_ROOT, uid_of
from tests.e2e.harness import Platform

COMPUTE = """
import time
def handler(event, context):
    end = time.process_time() + event / 1000
    while time.process_time() < end:
        pass
    return event
"""
WAIT = "import time\ndef handler(event, context):\n    time.sleep(0.2)\n    return event\n"
CALLERS = 20 * (os.cpu_count() or 1)
CALL_MS = 10


@contextmanager
def calling(platform: Platform, **callers: int) -> Iterator[Counter[str]]:
    """So many callers of each function, each calling again as soon as it is answered, until the body ends: good answers by function."""
    over, good, wrong = threading.Event(), Counter[str](), list[str]()

    def call(name: str) -> None:
        connection = http.client.HTTPConnection(*platform.address, timeout=60)
        headers = {"Authorization": f"Bearer {platform.token}", "Content-Type": "application/json"}
        while not over.is_set():
            connection.request("POST", f"/api/v1/functions/{name}/invoke", json.dumps(CALL_MS).encode(), headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                good[name] += 1
            else:
                wrong.append(f"{answer.status} {body[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=call, args=(name,), daemon=True) for name, count in callers.items() for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield good
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert not wrong, wrong[:5]


def statistics(platform: Platform, name: str) -> dict[str, float]:
    return platform.request("GET", f"/api/v1/functions/{name}").json()["statistics"]


@pytest.mark.parametrize("user", [AS_ROOT, AS_ORDINARY])
def test_a_hot_function_that_computes_queues_while_others_start_and_are_served(user: str, new_platform: Callable[..., Platform]) -> None:
    """Forty callers of a function that computes get the instances that the processors can run, the others wait; thirty callers of one that
    waits get thirty; and every one of many small functions is served from zero meanwhile."""
    platform = new_platform(as_uid=uid_of(user))
    most = 4 * (os.cpu_count() or 1)  # two for each processor, and as many again for what keeps an instance from computing
    small = [f"small{number}" for number in range(12)]
    for name in ("hot", *small):
        platform.put(name, COMPUTE, timeout_seconds=60.0)
    platform.put("waiter", WAIT)
    with calling(platform, hot=CALLERS) as good:
        platform.wait_until("the hot one is held", "/api/v1/functions/hot", lambda it: it["statistics"]["held_at"], seconds=30)
        held = platform.wait_until(
            "what it has too many has left",
            "/api/v1/functions/hot",
            lambda it: it["statistics"]["instances"] <= most and it["statistics"]["waiting"] > CALLERS // 3,
            seconds=30,
        )["statistics"]
        assert held["cpu_share"] > 0.25 and held["instances"] >= 1
        with calling(platform, waiter=30):
            platform.wait_until("who waits starts", "/api/v1/functions/waiter", lambda it: it["statistics"]["instances"] >= 25, seconds=30)
            assert statistics(platform, "waiter")["held_at"] == 0
        for name in small:
            before = good["hot"]
            assert platform.invoke(name, CALL_MS).status == 200
            assert good["hot"] - before < CALLERS * 5, f"{name} waited for many of the hot one's calls"
        assert statistics(platform, "hot")["instances"] <= 2 * most < CALLERS
        text = platform.request("GET", "/metrics").body.decode()
        assert 'dayfly_instances_held_at{function="hot",namespace="default"}' in text and "dayfly_cpu_pressure{" in text
    platform.wait_until("it is let go", "/api/v1/functions/hot", lambda it: not it["statistics"]["held_at"], seconds=30)


@pytest.mark.root
def test_a_function_with_twenty_instances_weighs_no_more_than_one_with_one(new_platform: Callable[..., Platform]) -> None:
    """Twenty instances are promised to the hot one, so they stay, and all of them compute. One caller of a small function, whose calls
    take as much, gets far more than one part in twenty-one: its function has one weight, like the other."""
    platform = new_platform(as_uid=uid_of("root"))
    checks = {check["name"]: check["state"] for check in platform.cli_json("doctor")["checks"]}
    if checks["cpu"] != "ok":
        pytest.skip("this machine has no control groups for processors")
    platform.put("hot", COMPUTE, timeout_seconds=60.0, min_instances=20)
    platform.put("small", COMPUTE, timeout_seconds=60.0)
    platform.wait_until("twenty are there", "/api/v1/functions/hot", lambda it: it["statistics"]["instances"] == 20, seconds=30)
    with calling(platform, hot=20, small=1) as good:
        platform.wait_until("the machine is pressed", "/api/v1/functions/hot", lambda it: it["statistics"]["held_at"], seconds=30)
        before = good.copy()
        platform.wait_for("the small one is served", lambda: good["small"] - before["small"] >= 60, seconds=60)
        hot, little = (good[name] - before[name] for name in ("hot", "small"))
        assert statistics(platform, "hot")["instances"] == 20
    assert hot < 8 * little, (hot, little)


def test_a_target_keeps_more_instances_than_demand_would(new_platform: Callable[..., Platform]) -> None:
    """Five calls a second from one caller need one instance; by a target of one for each there are more, and `describe` says why."""
    platform = new_platform(as_uid=uid_of("root"))
    scale = '[scale]\nmetric = "rps"\ntarget = 1\nstable_window_seconds = 2\n'
    platform.put("steady", {"handler.py": WAIT, "dayfly.toml": scale}, keep_alive_seconds=1.0)
    with calling(platform, steady=1):
        platform.wait_until(
            "as many as its calls are worth", "/api/v1/functions/steady", lambda it: it["statistics"]["instances"] >= 5, seconds=30
        )
        said = platform.cli("describe", "steady")
        assert '"metric": "rps"' in said and "wanted" in said
    platform.wait_until("and fewer afterwards", "/api/v1/functions/steady", lambda it: it["statistics"]["instances"] <= 1, seconds=30)
