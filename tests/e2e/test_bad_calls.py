"""Functions that fail in every way there is: the caller learns the truth, the next call works, neighbours notice nothing."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.harness import Answer, Platform, descendants

SOURCE = (Path(__file__).parent / "torture.py").read_text()
NEIGHBOUR = "def handler(event, context):\n    return 'fine'\n"


@pytest.fixture(scope="session")
def victim(platform: Platform) -> Iterator[Platform]:
    """The platform with three functions: `torture`, `hasty` (the same, short timeout), `neighbour`."""
    platform.put("torture", SOURCE, memory_mb=128, tmp_mb=16, timeout_seconds=20)
    platform.put("hasty", SOURCE, memory_mb=128, timeout_seconds=1)
    platform.put("neighbour", NEIGHBOUR, auth="none")
    yield platform


def act(platform: Platform, act: str, *, name: str = "torture", **arguments: object) -> Answer:
    return platform.invoke(name, {"act": act} | arguments)


def error_of(answer: Answer) -> dict[str, object]:
    """The Lambda-shaped error of a direct invoke."""
    assert (answer.status, answer.headers.get("x-amz-function-error")) == (200, "Unhandled"), (answer.status, answer.body[:500])
    error = answer.json()
    assert isinstance(error, dict) and set(error) >= {"errorType", "errorMessage", "requestId", "stackTrace"}, error
    assert error["requestId"] == answer.headers["x-call-id"]
    return error


def works(platform: Platform, *, name: str = "torture") -> None:
    """The next call is answered as if nothing had been."""
    answer = act(platform, "who", name=name)
    assert answer.status == 200 and "x-amz-function-error" not in answer.headers, answer.body[:500]


RAISING = {
    "raise_": ("KeyError", "the-secret-detail"),
    "raise_unprintable": ("Unprintable", "unprintable"),
    "recurse": ("RecursionError", "recursion"),
    "not_json": ("Runtime.MarshalError", "object"),
    "circular": ("Runtime.MarshalError", ""),
    "nan": ("Runtime.MarshalError", ""),
    "too_large": ("Function.ResponseSizeTooLarge", "Response payload size exceeded"),
    "exit_now": ("Runtime.ExitError", "exit status 3"),
    "segfault": ("Runtime.ExitError", "segmentation fault"),
    "abort": ("Runtime.ExitError", "signal"),  # which one depends: the first process of a pid namespace cannot be aborted, and crashes
    "sys_exit": ("Runtime.ExitError", "exit status 4"),
}


@pytest.mark.parametrize("way", RAISING)
def test_a_failing_call_is_answered_as_lambda_does_and_the_next_one_works(victim: Platform, way: str) -> None:
    kind, text = RAISING[way]
    error = error_of(act(victim, way))
    assert error["errorType"] == kind and text in str(error["errorMessage"]), error
    works(victim)


def test_the_traceback_of_a_direct_invoke_holds_the_users_frames_only(victim: Platform) -> None:
    stack = error_of(act(victim, "raise_"))["stackTrace"]
    assert isinstance(stack, list) and "handler.py" in stack[0] and 'raise KeyError("the-secret-detail")' in stack[-1]
    assert not any("dayfly" in line for line in stack)


@pytest.mark.parametrize(
    ("way", "status", "code"),
    [
        ("raise_", 502, "function_error"),
        ("raise_unprintable", 502, "function_error"),
        ("not_json", 502, "function_bad_answer"),
        ("circular", 502, "function_bad_answer"),
        ("too_large", 502, "function_bad_answer"),
        ("bad_status", 502, "function_bad_answer"),
        ("split_header", 502, "function_bad_answer"),
        ("exit_now", 502, "function_crashed"),
        ("segfault", 502, "function_crashed"),
        ("sys_exit", 502, "function_crashed"),
    ],
)
def test_strangers_at_the_http_door_see_the_kind_of_failure_and_no_traceback(victim: Platform, way: str, status: int, code: str) -> None:
    answer = victim.request("GET", f"/function/torture/{way}")
    assert (answer.status, answer.json()["error"]["code"]) == (status, code), answer.body[:500]
    assert answer.json()["error"]["call_id"] == answer.headers["x-call-id"]
    assert b"Traceback" not in answer.body and b"the-secret-detail" not in answer.body and "set-cookie" not in answer.headers
    works(victim)


def test_bytes_pass_through_both_doors(victim: Platform) -> None:
    assert act(victim, "as_bytes").body == b"\x00\xffbytes"
    assert victim.request("GET", "/function/torture/as_bytes").body == b"\x00\xffbytes"


def test_an_answer_just_below_six_megabytes_arrives_whole(victim: Platform) -> None:
    assert len(act(victim, "large").json()) == 6 * 1024 * 1024 - 1024


@pytest.mark.parametrize("way", ["loop", "sleep", "swallow"])
def test_a_call_past_its_timeout_is_told_so_its_instance_ends_and_the_next_call_works(victim: Platform, way: str) -> None:
    before = act(victim, "who", name="hasty").headers["x-dayfly-instance"]
    error = error_of(act(victim, way, name="hasty"))
    assert error["errorType"] == "Sandbox.Timedout" and "Task timed out after 1.00 seconds" in str(error["errorMessage"])
    after = act(victim, "who", name="hasty").headers["x-dayfly-instance"]
    assert after != before, "the instance that did not return was ended"
    answer = victim.request("GET", f"/function/hasty/{way}")
    assert (answer.status, answer.json()["error"]["code"]) == (504, "function_timeout")
    works(victim, name="hasty")


def instances_of(platform: Platform) -> set[int]:
    """Pids of everything below the node."""
    return set(descendants(platform.roles()["node"]))


def not_alone(pids: set[int]) -> set[int]:
    """Those that share their pid namespace with another of them: a sandbox that was made ahead meanwhile is alone in its own."""
    spaces: dict[int, str] = {}
    for pid in pids:
        with suppress(FileNotFoundError):  # ended meanwhile
            spaces[pid] = os.readlink(f"/proc/{pid}/ns/pid")
    counts = Counter(spaces.values())
    return {pid for pid, space in spaces.items() if counts[space] > 1}


@pytest.mark.parametrize("way", ["daemons", "child_program"])
def test_what_a_call_leaves_behind_ends_with_its_instance(victim: Platform, way: str) -> None:
    before = instances_of(victim)
    assert "left" in act(victim, way).json()
    left = not_alone(instances_of(victim)) - before
    assert left, "the test sees the processes that were left"
    error_of(act(victim, "exit_now"))  # the instance that has them ends
    victim.wait_for(
        "the processes that were left are gone", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in left & instances_of(victim))
    )
    works(victim)


def test_a_call_over_its_memory_is_told_so_and_the_next_one_works(victim: Platform) -> None:
    error = error_of(act(victim, "memory_bomb"))
    # With a control group the kernel kills; without one the interpreter's own limit raises.
    assert (error["errorType"], "memory" in str(error["errorMessage"])) in {("Runtime.ExitError", True), ("MemoryError", False)}, error
    works(victim)


def test_a_child_over_the_memory_limit_does_not_stop_the_function_from_working(victim: Platform) -> None:
    act(victim, "child_memory_bomb")
    works(victim)


def test_a_fork_bomb_is_bounded_neighbours_answer_meanwhile_and_the_next_call_works(victim: Platform) -> None:
    before = instances_of(victim)
    said: list[Answer] = []
    thread = threading.Thread(target=lambda: said.append(act(victim, "fork_bomb", name="hasty")))
    thread.start()
    answered, most = 0, 0
    while thread.is_alive():
        answered += victim.request("GET", "/function/neighbour", token="").body == b"fine"
        most = max(most, len(instances_of(victim) - before))
    thread.join()
    assert answered > 0 and 1 < most <= 1200, (answered, most)
    assert error_of(said[0])["errorType"] in ("Sandbox.Timedout", "Runtime.ExitError")
    victim.wait_for("the bomb's processes are gone", lambda: len(instances_of(victim) - before) <= 4)
    works(victim, name="hasty")


def test_threads_are_bounded(victim: Platform) -> None:
    answer = act(victim, "threads")
    assert answer.status == 200
    assert "x-amz-function-error" in answer.headers or answer.json() < 5000
    works(victim)


def test_tmp_is_bounded_and_says_so_in_the_kernels_words(victim: Platform) -> None:
    answer = act(victim, "fill_tmp").json()
    assert answer["name"] in ("No space left on device", "File too large"), answer
    works(victim)


def test_names_in_tmp_are_bounded(victim: Platform) -> None:
    assert act(victim, "many_files").json()["name"] == "No space left on device"
    error_of(act(victim, "exit_now"))
    works(victim)


def test_an_instance_that_closes_its_own_descriptors_is_a_crash(victim: Platform) -> None:
    error_of(act(victim, "close_everything"))
    works(victim)


def test_an_instance_that_writes_garbage_to_every_descriptor_harms_only_itself(victim: Platform) -> None:
    assert error_of(act(victim, "garbage"))["errorType"] == "Runtime.ExitError", "its call may have run and is not repeated"
    works(victim)
    assert victim.request("GET", "/function/neighbour", token="").body == b"fine"


def test_a_function_that_prints_without_end_is_cut_and_counted(victim: Platform) -> None:
    answer = act(victim, "shout", lines=12_000)
    assert answer.json() == "shouted"
    works(victim)


def test_an_instance_sees_nothing_of_the_environment_the_platform_was_started_in(victim: Platform) -> None:
    seen = act(victim, "environment").json()
    told = json.dumps(seen)
    assert "DAYFLY_CONFIG_DIR" not in told and "DAYFLY_TOKEN" not in told and str(victim.folder / "config") not in told, told[:3000]
    assert "E2E_CANARY" not in told
