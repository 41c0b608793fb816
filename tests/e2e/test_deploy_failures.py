"""Deploys that fail say why in the user's own words, keep nothing, and callers never notice."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import uid_of
from tests.e2e.harness import CommandFailed, Platform
from tests.e2e.load import ECHO, Load


@pytest.fixture(scope="module")
def impatient() -> Iterator[Platform]:
    """A platform that gives modules two seconds to import, with `steady` deployed."""
    with Platform(settings={"init_timeout_seconds": 2}, as_uid=uid_of("root")) as platform:
        platform.put("steady", ECHO.format(version=1))
        yield platform


BROKEN: dict[str, tuple[str, dict[str, object], str, list[str]]] = {
    "syntax error": ("def handler(event, context):\n    return (\n", {}, "Runtime.UserCodeSyntaxError", ["handler.py", "return ("]),
    "missing handler": ("def other(event, context): pass\n", {}, "Runtime.HandlerNotFound", ["handler"]),
    "missing module": ("x = 1\n", {"handler": "elsewhere.handler"}, "Runtime.ImportModuleError", ["elsewhere"]),
    "uncallable handler": ("handler = 3\n", {}, "Runtime.HandlerNotFound", ["callable"]),
    "import error": ("import no_such_module\ndef handler(e, c): pass\n", {}, "Runtime.ImportModuleError", ["no_such_module", "handler.py"]),
    "exception": ("def prepare():\n    raise ValueError('the reason')\nprepare()\n", {}, "ValueError", ["the reason", "prepare()"]),
    "init that never ends": ("while True: pass\n", {}, "Sandbox.Timedout", ["2 seconds"]),
    "exit": ("import os; print('last words', flush=True); os._exit(7)\n", {}, "Runtime.ExitError", ["exit status 7", "last words"]),
    "sys.exit": ("import sys; sys.exit('not today')\n", {}, "Runtime.ExitError", ["exit status 1"]),
    "segfault": ("import ctypes; ctypes.string_at(0)\n", {}, "Runtime.ExitError", ["segmentation fault"]),
    "memory": ("b = []\nwhile True: b.append(b'1' * (8 << 20))\n", {}, "Runtime.ExitError", ["memory"]),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_version_that_cannot_start_is_refused_with_its_traceback_and_the_old_one_serves(impatient: Platform, way: str) -> None:
    source, config, kind, texts = BROKEN[way]
    before = impatient.request("GET", "/api/v1/functions/steady").json()
    with Load(impatient, "steady", threads=2) as load:
        load.wait_answers(5)
        event = impatient.try_put("steady", source, **config)
        load.wait_answers(5)
    assert event["event"] == "failed", event
    error = event["error"]
    assert (error["code"], error["fault"]) == ("init_failed", "function"), error
    assert error["errorType"] == kind, error
    for text in texts:
        assert text in str(error), error
    assert "dayfly/runtime" not in str(error.get("stackTrace")), "the traceback is the user's, not ours"
    after = impatient.request("GET", "/api/v1/functions/steady").json()
    assert (after["live"], numbers(after)) == (before["live"], numbers(before)), "no version is kept"
    assert not load.wrong and set(load.statuses) == {200} and not load.broken, load


def numbers(description: dict[str, Any]) -> list[int]:
    return [version["number"] for version in description["versions"]]


def test_a_first_deploy_that_fails_leaves_no_function(impatient: Platform) -> None:
    assert impatient.try_put("never", "1 / 0\n")["event"] == "failed"
    assert impatient.request("GET", "/api/v1/functions/never").status == 404
    assert impatient.invoke("never").status == 404
    impatient.put("never", "def handler(e, c): return 'now'\n")
    assert impatient.invoke("never").json() == "now"


def test_the_command_line_prints_the_users_traceback_and_ends_with_an_error(impatient: Platform) -> None:
    path = impatient.write("oops.py", "def helper():\n    return 1 / 0\n\nhelper()\n")
    with pytest.raises(CommandFailed) as failed:
        impatient.cli("deploy", str(path))
    text = str(failed.value)
    assert "ZeroDivisionError: division by zero" in text and "line 2, in helper" in text and "return 1 / 0" in text


def test_what_a_failing_init_printed_is_kept_in_the_log(impatient: Platform) -> None:
    impatient.try_put("steady", "print('before the fall')\nraise ValueError('fell')\n")

    def logged() -> bool:
        text = impatient.request("GET", "/api/v1/logs?function=steady&limit=1000").body
        return b"before the fall" in text and b"ValueError: fell" in text

    impatient.wait_for("the log has what the init printed and its traceback", logged)


def test_an_init_that_fails_only_later_answers_its_callers_and_recovers(impatient: Platform) -> None:
    """A module that works while it is proved and fails in production: callers learn it, nobody waits for the timeout."""
    source = """
import time
if time.time() > {until}: raise RuntimeError("too old")
def handler(event, context): return "young"
"""
    import time

    until = time.time() + 1.5
    event = impatient.try_put("aging", source.format(until=until), keep_alive_seconds=0)
    assert event["event"] == "deployed", event

    def grown_old() -> bool:
        answer = impatient.invoke("aging")
        assert answer.status == 200
        if "x-amz-function-error" in answer.headers:
            assert answer.json()["errorType"] == "Runtime.InitError" and "too old" in answer.body.decode(), answer.body
            return True
        return False

    impatient.wait_for("a start fails in production", grown_old)
    answer = impatient.request("GET", "/function/aging")
    assert answer.json()["error"]["code"] == "init_failed", answer.body
