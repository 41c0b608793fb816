"""Restarts, deploys, rollbacks and scaling down under a steady load: every call is answered 200, no connection breaks."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import uid_of
from tests.e2e.harness import Platform
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
