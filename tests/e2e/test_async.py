"""Asynchronous calls on a real platform: a 202 is a promise, whichever door it came from and whoever dies meanwhile."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.harness import Answer, Platform, descendants, parent_of

pytestmark = pytest.mark.one_user

ECHO = "def handler(event, context):\n    print('ran', context.aws_request_id)\n    return {'got': event, 'lineage': context.lineage}\n"
BROKEN = "def handler(event, context):\n    raise ValueError('no good ' + str(event))\n"
CRASH = "import os\ndef handler(event, context):\n    os._exit(3)\n"
SLOW = """
import time
def handler(event, context):
    print('began', flush=True)
    time.sleep(event.get('seconds', 0.0))
    return 'slept'
"""
WEB = """
def handler(event, context):
    status = int(event["queryStringParameters"].get("status", "200")) if event.get("queryStringParameters") else 200
    headers = {"retry-after": "1", "content-type": "text/plain"} if status == 503 else {"content-type": "text/plain"}
    return {"statusCode": status, "headers": headers, "body": event["rawPath"] + " " + event["headers"].get("x-dayfly-lineage", "")}
"""
FAST_RETRY = {"policy": "own", "attempts": 3, "backoff_seconds": 0.05, "jitter": "none"}


@pytest.fixture(scope="module")
def calls(platform: Platform) -> Iterator[Platform]:
    platform.put("a-echo", ECHO)
    platform.put("a-broken", BROKEN, **{"async": FAST_RETRY})
    platform.put("a-crash", CRASH, **{"async": FAST_RETRY})
    platform.put("a-slow", SLOW, timeout_seconds=30, max_instances=2)
    platform.put("a-web", WEB, auth="none", **{"async": {"policy": "own", "attempts": 2, "backoff_seconds": 0.05, "retry_on": [503]}})
    yield platform


def send(platform: Platform, name: str, event: object = None, **headers: str) -> Answer:
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    return platform.request("POST", f"/api/v1/functions/{name}/invoke?mode=async", json.dumps(event).encode(), sent)


def accepted(answer: Answer) -> str:
    assert answer.status == 202, (answer.status, answer.body)
    return answer.headers["x-call-id"]


def settled(platform: Platform, call_id: str) -> dict[str, Any]:
    """The call once it is done or dead."""
    for _ in range(4):
        answer = platform.request("GET", f"/api/v1/calls/{call_id}?wait=15s")
        assert answer.status == 200, answer.body
        call: dict[str, Any] = answer.json()
        if call["state"] in ("done", "dead"):
            return call
    raise AssertionError(f"not settled: {json.dumps(call)[:3000]}")


def failure(platform: Platform, *words: str) -> str:
    """What a command that fails says, with what to do about it."""
    error = json.loads(platform.cli(*words, "--json", status=None))["error"]
    return f"{error['message']} {error['hint']}"


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


# ---- doors -----------------------------------------------------------------------------------------------------------------------------


def test_a_202_leads_to_a_result_with_its_attempt_cost_and_logs(calls: Platform) -> None:
    answer = send(calls, "a-echo", {"x": 1})
    call_id = accepted(answer)
    assert answer.json() == {"call_id": call_id} and answer.headers["location"] == f"/api/v1/calls/{call_id}"
    call = settled(calls, call_id)
    assert (call["state"], call["result"]["ok"], call["result"]["body"]["got"]) == ("done", True, {"x": 1})
    assert [it["outcome"] for it in call["tries"]] == ["ok"] and call["cost"] > 0
    assert call["tries"][0]["leased_at"] <= call["tries"][0]["began_at"] <= call["tries"][0]["ended_at"]
    assert calls.request("GET", f"/api/v1/calls/{call_id}/result").json()["got"] == {"x": 1}
    calls.wait_for("its log line is there", lambda: call_id.encode() in calls.request("GET", call["logs"]).body)


def test_prefer_respond_async_works_on_any_http_call_and_says_so(calls: Platform) -> None:
    answer = calls.request("PUT", "/function/a-web/some/path?status=201", b"body", {"Prefer": "wait=5, respond-async"}, token="")
    assert answer.headers["preference-applied"] == "respond-async"
    call = settled(calls, accepted(answer))
    assert (call["state"], call["result"]["status"], call["result"]["headers"]["content-type"]) == ("done", 201, "text/plain")
    assert call["result"]["body"].startswith("/some/path root=")
    invoke = calls.request("POST", "/api/v1/functions/a-echo/invoke", b"7", {"Prefer": "respond-async"})
    assert settled(calls, accepted(invoke))["result"]["body"]["got"] == 7


def test_lambdas_event_type_answers_202_without_a_body(calls: Platform) -> None:
    answer = calls.request("POST", "/api/v1/functions/a-echo/invoke", b'"e"', {"X-Amz-Invocation-Type": "Event"})
    assert answer.body == b"" and settled(calls, accepted(answer))["source"] == "lambda"
    assert calls.request("POST", "/api/v1/functions/a-echo/invoke", b"1", {"X-Amz-Invocation-Type": "DryRun"}).status == 204
    bad = calls.request("POST", "/api/v1/functions/a-echo/invoke", b"1", {"X-Amz-Invocation-Type": "Later"})
    assert code(bad) == (400, "bad_request")


def test_openfaas_async_function_answers_202_and_keeps_path_query_and_method(calls: Platform) -> None:
    answer = calls.request("DELETE", "/async-function/a-web/p/q?status=202", b"", token="")
    assert answer.body == b""
    call = settled(calls, accepted(answer))
    assert call["source"] == "openfaas" and call["result"]["status"] == 202 and call["result"]["body"].startswith("/p/q ")


@pytest.mark.parametrize("path", ["/async-function/nobody", "/api/v1/functions/nobody/invoke?mode=async"])
def test_there_is_no_202_for_what_does_not_exist(calls: Platform, path: str) -> None:
    assert code(calls.request("POST", path, b"{}")) == (404, "function_not_found")


def test_a_202_needs_the_token_that_a_200_needs(calls: Platform) -> None:
    assert code(calls.request("POST", "/async-function/a-echo", b"{}", token="")) == (401, "unauthorized")
    assert code(calls.request("GET", "/api/v1/calls/" + "0" * 8, token="")) == (401, "unauthorized")


# ---- wishes ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Dayfly-Delay", "soon"), ("X-Dayfly-Delay", "-1"), ("X-Dayfly-Delay", "1e9"), ("X-Dayfly-Delay", "99999999"),
        ("X-Dayfly-Not-Before", "tomorrow"), ("X-Dayfly-Not-Before", "2999-01-01T00:00:00Z"),
        ("X-Dayfly-Not-Before", "2026-01-01T00:00:00"),
        ("X-Dayfly-Priority", "10"), ("X-Dayfly-Priority", "high"), ("X-Dayfly-Deadline", "0"), ("Idempotency-Key", "x" * 256),
        ("X-Dayfly-Group", ""), ("X-Callback-Url", "ftp://example.com"), ("X-Callback-Url", "http://u:p@example.com/"),
    ],
)  # fmt: skip
def test_a_wish_out_of_its_bounds_is_refused_by_name(calls: Platform, header: str, value: str) -> None:
    answer = send(calls, "a-echo", 1, **{header: value})
    assert code(answer) == (400, "bad_request") and header in answer.json()["error"]["message"]


def test_the_same_idempotency_key_is_one_call(calls: Platform) -> None:
    first = send(calls, "a-echo", 1, Idempotency_Key="order-17")
    second = send(calls, "a-echo", 2, Idempotency_Key='"order-17"')
    assert accepted(first) == accepted(second)
    assert second.headers["x-dayfly-duplicate"] == "true" and second.json()["duplicate"] is True
    assert "x-dayfly-duplicate" not in first.headers
    assert settled(calls, accepted(first))["result"]["body"]["got"] == 1


def test_a_delayed_call_waits_for_its_time(calls: Platform) -> None:
    call = settled(calls, accepted(send(calls, "a-echo", 1, X_Dayfly_Delay="0.7")))
    assert call["tries"][0]["leased_at"] >= call["due"] >= call["accepted_at"] + 0.69


def test_calls_of_a_group_run_one_after_the_other_in_order(calls: Platform) -> None:
    ids = [accepted(send(calls, "a-slow", {"seconds": 0.05}, X_Dayfly_Group="g")) for _ in range(4)]
    tries = [settled(calls, it)["tries"][0] for it in ids]
    assert all(before["ended_at"] <= after["leased_at"] for before, after in pairwise(tries)), tries


def test_a_chain_carries_its_lineage_and_ends_at_its_depth(calls: Platform) -> None:
    call = settled(calls, accepted(send(calls, "a-echo", 1, X_Dayfly_Lineage="root=r1;parent=p1;depth=3")))
    assert call["lineage"] == {"root": "r1", "parent": "p1", "depth": 3}
    assert call["result"]["body"]["lineage"] == f"root=r1;parent={call['id']};depth=4"
    assert code(send(calls, "a-echo", 1, X_Dayfly_Lineage="root=r1;parent=p1;depth=33")) == (508, "chain_too_deep")


# ---- policies --------------------------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_then_dead_then_redriven(calls: Platform) -> None:
    call_id = accepted(send(calls, "a-broken", "event"))
    call = settled(calls, call_id)
    assert (call["state"], call["reason"], call["attempts"]) == ("dead", "retries_exhausted", 3)
    assert [it["outcome"] for it in call["tries"]] == ["error"] * 3
    assert "no good event" in call["tries"][0]["detail"] and call["result"]["body"]["errorType"] == "ValueError"
    dead = calls.request("GET", "/api/v1/calls?state=dead&function=a-broken").json()["calls"]
    assert call_id in [it["id"] for it in dead]
    calls.put("a-broken", ECHO, **{"async": FAST_RETRY})
    assert calls.request("POST", f"/api/v1/calls/{call_id}/redrive").json()["calls"] == {call_id: "waiting"}
    again = settled(calls, call_id)
    assert (again["state"], again["result"]["body"]["got"], len(again["tries"])) == ("done", "event", 4)
    calls.put("a-broken", BROKEN, **{"async": FAST_RETRY})
    assert code(calls.request("POST", f"/api/v1/calls/{call_id}/redrive")) == (409, "conflict")


def test_a_poison_event_ends_in_the_dead_letters_and_nobody_elses_calls(calls: Platform) -> None:
    poison, other = accepted(send(calls, "a-crash", 1)), accepted(send(calls, "a-echo", 2))
    assert settled(calls, other)["state"] == "done"
    call = settled(calls, poison)
    assert (call["state"], call["reason"]) == ("dead", "retries_exhausted")
    assert [it["outcome"] for it in call["tries"]] == ["crashed"] * 3


def test_an_answers_status_is_tried_again_as_the_policy_says_and_retry_after_is_kept(calls: Platform) -> None:
    call = settled(calls, accepted(calls.request("GET", "/async-function/a-web/?status=503", token="")))
    first, second = call["tries"]
    assert (call["state"], first["outcome"], first["status"]) == ("dead", "status", 503)
    assert second["leased_at"] >= first["ended_at"] + 0.99
    assert settled(calls, accepted(calls.request("GET", "/async-function/a-web/?status=404", token="")))["state"] == "done"


def test_calls_that_wait_when_their_function_goes_are_dead_with_that_reason(calls: Platform) -> None:
    calls.put("a-going", ECHO)
    call_id = accepted(send(calls, "a-going", 1, X_Dayfly_Delay="1"))
    assert calls.request("DELETE", "/api/v1/functions/a-going").status == 200
    call = settled(calls, call_id)
    assert (call["state"], call["reason"]) == ("dead", "function_not_found")


def test_a_function_over_its_limits_is_throttled_and_then_runs(calls: Platform) -> None:
    calls.put("a-limited", ECHO, limits={"rate_per_second": 1, "burst": 1})
    ids = [accepted(send(calls, "a-limited", number)) for number in range(3)]
    for call in [settled(calls, call_id) for call_id in ids]:
        assert call["state"] == "done" and call["attempts"] == 1
        assert {it["outcome"] for it in call["tries"][:-1]} <= {"throttled"} and not any(it["counted"] for it in call["tries"][:-1])
    assert any(len(calls.request("GET", f"/api/v1/calls/{call_id}").json()["tries"]) > 1 for call_id in ids)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"policy": "hope"}, "policy"), ({"attempts": 0}, "attempts"), ({"attempts": 101}, "attempts"),
        ({"backoff_seconds": -1}, "backoff"), ({"jitter": "some"}, "jitter"), ({"retry_on": [200]}, "retry_on"),
        ({"retry_on": "all"}, "retry_on"), ({"idempotent": 1}, "idempotent"),
        ({"max_age_seconds": 0}, "max_age"), ({"on_failure": "http://"}, "on_failure"), ({"on_success": "a b"}, "on_success"),
        ({"tries": 3}, "unknown key"), ([], "table"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_at_the_deploy(calls: Platform, table: object, word: str) -> None:
    event = calls.try_put("a-bad", ECHO, **{"async": table})
    assert event["event"] == "failed" and event["error"]["code"] == "bad_config" and word in event["error"]["message"], event


# ---- afterwards ------------------------------------------------------------------------------------------------------------------------


def test_waiting_and_running_calls_can_be_cancelled(calls: Platform) -> None:
    later = accepted(send(calls, "a-slow", {}, X_Dayfly_Delay="60"))
    assert calls.request("POST", f"/api/v1/calls/{later}/cancel").json()["calls"] == {later: "cancelled"}
    running = accepted(send(calls, "a-slow", {"seconds": 25}))
    calls.wait_for("it runs", lambda: b"began" in calls.request("GET", f"/api/v1/logs?function=a-slow&call={running}").body)
    assert calls.request("POST", f"/api/v1/calls/{running}/cancel").json()["calls"] == {running: "cancelling"}
    for call_id in (later, running):
        call = settled(calls, call_id)
        assert (call["state"], call["reason"]) == ("dead", "cancelled")
    assert code(calls.request("POST", f"/api/v1/calls/{running}/cancel")) == (409, "conflict")
    assert code(calls.request("POST", "/api/v1/calls/nobody/cancel")) == (404, "call_not_found")


def test_large_bodies_and_results_come_whole(calls: Platform) -> None:
    text = "x" * 300_000
    call_id = accepted(send(calls, "a-echo", text))
    call = settled(calls, call_id)
    assert call["result"]["truncated"] and call["result"]["bytes"] > 300_000
    assert calls.request("GET", f"/api/v1/calls/{call_id}/result").json()["got"] == text
    too_large = calls.request("POST", "/async-function/a-echo", b"x" * (6 * 1024 * 1024 + 1))
    assert code(too_large) == (413, "body_too_large")


def test_lists_are_paged_and_calls_purged(calls: Platform) -> None:
    calls.put("a-many", ECHO)
    ids = [accepted(send(calls, "a-many", number)) for number in range(5)]
    for call_id in ids:
        settled(calls, call_id)
    seen, before = [], ""
    while True:
        page = calls.request("GET", f"/api/v1/calls?function=a-many&limit=2&before={before}").json()
        seen += [it["id"] for it in page["calls"]]
        before = page["next"]
        if not before:
            break
    assert seen == ids[::-1]
    assert calls.request("DELETE", f"/api/v1/calls/{ids[0]}").json()["calls"] == {ids[0]: "purged"}
    assert code(calls.request("GET", f"/api/v1/calls/{ids[0]}")) == (404, "call_not_found")
    queue = next(it for it in calls.request("GET", "/api/v1/queues").json()["queues"] if it["function"] == "a-many")
    assert (queue["done"], queue["waiting"], queue["dead"]) == (4, 0, 0)


def test_a_call_is_there_only_for_those_who_may_see_its_namespace(calls: Platform) -> None:
    order = json.dumps({"name": "other-space", "namespaces": ["elsewhere"], "verbs": ["read", "invoke"]}).encode()
    stranger = calls.request("POST", "/api/v1/tokens", order).json()["token"]
    call_id = accepted(send(calls, "a-echo", 1))
    assert code(calls.request("GET", f"/api/v1/calls/{call_id}", token=stranger)) == (404, "call_not_found")
    assert code(calls.request("POST", f"/api/v1/calls/{call_id}/cancel", token=stranger)) == (404, "call_not_found")
    assert code(calls.request("GET", "/api/v1/calls", token=stranger)) == (403, "forbidden")


def test_a_wait_ends_at_its_time_with_the_call_as_it_is(calls: Platform) -> None:
    call_id = accepted(send(calls, "a-slow", {}, X_Dayfly_Delay="60"))
    assert calls.request("GET", f"/api/v1/calls/{call_id}?wait=0.2s").json()["state"] == "waiting"
    assert code(calls.request("GET", f"/api/v1/calls/{call_id}?wait=2m")) == (400, "bad_request")
    assert code(calls.request("GET", f"/api/v1/calls/{call_id}/result")) == (409, "conflict")
    calls.request("POST", f"/api/v1/calls/{call_id}/cancel")


def test_synchronous_calls_are_not_starved_by_a_backlog(calls: Platform) -> None:
    calls.put("a-busy", SLOW, max_instances=2)
    ids = [accepted(send(calls, "a-busy", {"seconds": 0.1})) for _ in range(30)]
    for _ in range(5):  # one instance of the two is always theirs
        assert calls.invoke("a-busy", {"seconds": 0}).body == b'"slept"'
    states = {calls.request("GET", f"/api/v1/calls/{ids[-1]}").json()["state"] for _ in range(1)}
    assert states <= {"waiting", "leased"}, "the backlog was still there"
    assert all(settled(calls, it)["state"] == "done" for it in ids)


def test_the_command_line_calls_waits_shows_redrives_and_purges(calls: Platform) -> None:
    calls.put("a-cli", BROKEN, **{"async": {"policy": "own", "attempts": 1}})
    assert json.loads(calls.cli("invoke", "a-echo", "--async", "--wait", "-d", "[1]"))["got"] == [1]
    first = calls.cli_json("invoke", "a-echo", "--async", "--key", "cli-key", "-d", "1")
    assert calls.cli_json("invoke", "a-echo", "--async", "--key", "cli-key") == {"call_id": first["call_id"], "duplicate": True}
    assert "dayfly calls wait" in calls.cli("invoke", "a-echo", "--async", "--delay", "0.1")
    assert "Add --async" in failure(calls, "invoke", "a-echo", "--wait")
    said = calls.cli("invoke", "a-cli", "--async", "--wait", "-d", "7", status=1)
    assert "dead (retries_exhausted)" in said and "no good 7" in said
    (dead,) = calls.cli_json("calls", "ls", "a-cli", "--state", "dead")["calls"]
    assert dead["id"] in calls.cli("calls", "show", dead["id"]) and dead["id"] in calls.cli("calls", "ls", "a-cli")
    assert calls.cli_json("calls", "redrive", "--function", "a-cli")["calls"] == {dead["id"]: "waiting"}
    calls.cli("calls", "wait", dead["id"], status=1)
    assert calls.cli_json("calls", "cancel", dead["id"])["calls"] == {dead["id"]: "settled"}
    assert calls.cli_json("calls", "purge", "--function", "a-cli", "--yes")["calls"] == {dead["id"]: "purged"}
    (row,) = [it for it in calls.cli_json("calls", "ls", "--counts")["queues"] if it["function"] == "a-echo"]
    assert row["done"] > 0
    later = calls.cli_json("invoke", "a-echo", "--async", "--delay", "60")["call_id"]
    assert "still waiting" in failure(calls, "calls", "wait", later, "--timeout", "0.1")
    calls.cli("calls", "cancel", later)


# ---- who dies meanwhile ----------------------------------------------------------------------------------------------------------------


def test_control_down_is_503_with_retry_after_and_nothing_is_promised(new_platform: Any) -> None:
    platform = new_platform(settings={"async_accept_seconds": 0.3})
    platform.put("echo", ECHO)
    control = platform.roles()["control"]
    os.kill(control, signal.SIGSTOP)
    try:
        answer = send(platform, "echo", 1)
        assert code(answer) == (503, "acceptance_unknown") and answer.headers["retry-after"] == "1"
        assert platform.invoke("echo", 1).status == 200, "synchronous calls go on"
    finally:
        os.kill(control, signal.SIGCONT)


def test_a_rolling_restart_under_load_refuses_no_call_and_loses_none(new_platform: Any) -> None:
    platform = new_platform()
    platform.put("once", SLOW, max_instances=8, **{"async": {"idempotent": False}})
    answers: list[Answer] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            answers.append(send(platform, "once", {"seconds": 0.05}))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        platform.cli("restart")
    finally:
        over.set()
        thread.join(60)
    assert {answer.status for answer in answers} == {202}, [answer.body for answer in answers if answer.status != 202]
    ended = [settled(platform, accepted(answer)) for answer in answers]
    assert {call["state"] for call in ended} == {"done"}, [call for call in ended if call["state"] != "done"][:3]


@pytest.mark.parametrize("role", ["gateway", "control", "node", "instance"])
def test_every_acknowledged_call_is_settled_when_something_is_killed_under_load(new_platform: Any, role: str) -> None:
    platform = new_platform(settings={"async_lease_seconds": 2})
    platform.put("work", SLOW, max_instances=8, **{"async": FAST_RETRY})
    platform.put("once", SLOW, max_instances=8, **{"async": FAST_RETRY | {"idempotent": False}})
    ids: dict[str, str] = {}
    enough = threading.Event()

    def load(name: str) -> None:
        for _ in range(60):
            try:
                answer = send(platform, name, {"seconds": 0.1})
            except (OSError, HTTPException):
                continue  # the gateway was away: nothing was promised
            if answer.status == 202:
                ids[answer.headers["x-call-id"]] = name
            if len(ids) > 50:
                enough.set()

    threads = [threading.Thread(target=load, args=(name,)) for name in ("work", "once")]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    os.kill(_victim(platform, role), signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    platform.wait_for("the platform is back", lambda: _there(platform), seconds=30)
    unhappy = []
    for call_id, name in ids.items():
        call = settled(platform, call_id)
        unhappy += [call] if call["state"] != "done" else []
        if name == "work":
            assert call["state"] == "done", call
        else:
            assert call["state"] == "done" or call["reason"] in ("lost", "may_have_run"), call
            assert sum(it["outcome"] in ("ok", "crashed", "lost", "timeout") for it in call["tries"]) <= 1, call
            said = platform.request("GET", f"/api/v1/logs?function=once&call={call_id}").body
            assert said.count(b"began") <= 1, f"{call_id} ran twice"
    if role == "gateway":
        assert unhappy, "some that may not run twice were in the killed gateway's hands"


def test_everything_killed_at_once_forgets_no_acknowledged_call(new_platform: Any) -> None:
    platform = new_platform(settings={"async_lease_seconds": 2})
    platform.put("work", SLOW, max_instances=4, **{"async": FAST_RETRY})
    ids = [accepted(send(platform, "work", {"seconds": 0.2})) for _ in range(40)]
    later = accepted(send(platform, "work", {}, X_Dayfly_Delay="3"))
    killed = platform.processes()
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    platform.stop()
    platform.start()
    for call_id in [*ids, later]:
        assert settled(platform, call_id)["state"] == "done"


def _victim(platform: Platform, role: str) -> int:
    if role != "instance":
        return platform.roles()[role]
    node = platform.roles()["node"]
    below = [pid for pid in descendants(node) if parent_of(parent_of(pid)) == node]
    instances = [pid for pid in below if os.path.lexists(f"/proc/{pid}/fd/4")]  # others only stand ready
    assert instances, "calls are under way, so somebody runs them"
    return instances[-1]


def _there(platform: Platform) -> bool:
    try:
        return platform.request("GET", "/api/v1/queues").status == 200
    except (OSError, HTTPException):
        return False
