"""Limits on a real platform: from dayfly.toml and the command line, through killed gateways and a killed control, to what callers read."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import uid_of
from tests.e2e.harness import Answer, Platform

HELLO = "def handler(event, context):\n    return 1\n"
QUOTA = "[limits]\ncalls_per_day = 5\nconcurrency = 50\n"


@pytest.fixture
def own(new_platform: Callable[..., Platform]) -> Iterator[Platform]:
    yield new_platform(as_uid=uid_of("root"))


def reason(answer: Answer) -> str:
    return str(answer.json()["error"]["reason"]) if answer.status == 429 else ""


def kill_and_wait(platform: Platform, *roles: str) -> None:
    old = platform.roles()
    for role in roles:
        os.kill(old[role], signal.SIGKILL)
    platform.wait_for("roles are restored", lambda: all(platform.roles().get(role, 0) not in (0, old[role]) for role in roles), seconds=30)
    platform.wait_until("control answers", "/api/v1/status", lambda status: status.get("gateways"))


def test_a_quota_survives_the_gateway_and_control_and_a_new_deploy(own: Platform) -> None:
    path = "/api/v1/functions/hello"
    own.put("hello", {"handler.py": HELLO, "dayfly.toml": QUOTA})
    for expected in (2, 4):
        assert [own.invoke("hello").status for _ in range(2)] == [200, 200]
        own.wait_until("usage has come", path, lambda found, expected=expected: found["usage_today"]["calls"] == expected)
        if expected == 2:
            kill_and_wait(own, "gateway")
    kill_and_wait(own, "gateway", "control")
    own.put("hello", {"handler.py": HELLO + "# changed\n", "dayfly.toml": QUOTA})
    answers = [own.invoke("hello") for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429] and reason(answers[1]) == "function_calls_per_day"
    assert answers[1].json()["Reason"] == "ReservedFunctionInvocationRateLimitExceeded" and int(answers[1].headers["retry-after"]) > 0
    own.wait_until("usage has come", path, lambda found: found["usage_today"]["calls"] == 5)
    own.request("DELETE", path)
    own.put("hello", {"handler.py": HELLO, "dayfly.toml": QUOTA})
    assert reason(own.invoke("hello")) == "function_calls_per_day", "nor does removing it give a new day"


def test_a_namespace_is_limited_paused_and_let_go_from_the_command_line(own: Platform) -> None:
    own.cli("namespace", "create", "shop")
    for name in ("one", "two"):
        own.put(name, HELLO, namespace="shop", auth="none")
    calls = [lambda name=name: own.request("GET", f"/function/{name}.shop", token="") for name in ("one", "two")]
    assert [call().status for call in calls] == [200, 200]
    own.cli("namespace", "limits", "shop", "--rate-per-second", "0.01", "--burst", "1")
    first, second = (call() for call in calls)
    assert (first.status, reason(second)) == (200, "namespace_rate") and int(second.headers["retry-after"]) > 60
    own.cli("namespace", "limits", "shop", "--clear", "--concurrency", "0")
    assert [reason(call()) for call in calls] == ["namespace_paused"] * 2
    kill_and_wait(own, "gateway")
    assert [reason(call()) for call in calls] == ["namespace_paused"] * 2
    said = own.cli("describe", "one", "-n", "shop")
    assert "concurrency            0 (namespace)" in said
    own.wait_until(
        "refusals are counted",
        "/api/v1/statistics?namespace=shop",
        lambda found: sum(it["refusals"].get("namespace_paused", 0) for it in found["functions"]) >= 2,
    )
    own.cli("namespace", "limits", "shop", "--concurrency", "none")
    assert [call().status for call in calls] == [200, 200]
    assert own.cli_json("namespace", "limits", "shop")["limits"] == {}
