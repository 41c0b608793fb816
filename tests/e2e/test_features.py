"""What a user can do, end to end: each feature once, through the doors a user has."""

import base64
import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Platform

pytestmark = pytest.mark.one_user

LOGS = """
import logging, os, subprocess, sys
log = logging.getLogger("mine")
def handler(event, context):
    print("plain words")
    print("to the side", file=sys.stderr)
    logging.getLogger().setLevel(logging.DEBUG)
    log.debug("debugging %s", 1)
    log.warning("careful")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("caught")
    subprocess.run([sys.executable, "-c", "print('from a child')"])
    os.write(1, b"from the descriptor\\n")
    return "logged"
"""
CONTEXT = """
import os
def handler(event, context):
    client = context.client_context
    return {
        "id": context.aws_request_id, "name": context.function_name, "version": context.function_version,
        "memory": context.memory_limit_in_mb, "arn": context.invoked_function_arn, "left": context.get_remaining_time_in_millis(),
        "custom": client.custom if client else None, "environment": {k: os.environ.get(k) for k in ("GREETING", "TZ", "_HANDLER")},
        "cwd": os.getcwd(), "uid": os.getuid(), "python": list(__import__("sys").version_info[:2]),
    }
"""
SECRETS = """
import os
def handler(event, context):
    folder = os.environ.get("DAYFLY_SECRETS", "/run/secrets")
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        with open(f"{folder}/{name}") as file:
            found[name] = file.read()
    try:
        with open(f"{folder}/new", "w") as file:
            file.write("x")
        writable = True
    except OSError:
        writable = False
    return {"found": found, "writable": writable, "environment": "hush" in str(dict(os.environ))}
"""
OVERLAP = """
import asyncio
waiting, all_here = 0, asyncio.Event()
async def handler(event, context):
    global waiting
    waiting += 1
    if waiting == event["together"]:
        all_here.set()
    await asyncio.wait_for(all_here.wait(), 20)
    print("call " + context.aws_request_id)
    return waiting
"""
STREAM = """
import os, time
def handler(event, context):
    yield "first "
    while not os.path.exists("/tmp/never") and context.get_remaining_time_in_millis() > 29000 - 300:
        time.sleep(0.01)
    yield "last"
"""


@pytest.fixture(scope="module")
def features(platform: Platform) -> Iterator[Platform]:
    platform.put("logs", LOGS)
    platform.put("context", CONTEXT, env={"GREETING": "hello"}, memory_mb=192)
    yield platform


def records(platform: Platform, **query: str) -> list[dict[str, object]]:
    asked = "&".join(f"{key}={value}" for key, value in query.items())
    return [json.loads(line) for line in platform.request("GET", f"/api/v1/logs?{asked}&limit=10000").body.splitlines()]


def test_output_of_every_kind_is_kept_with_call_id_and_level(features: Platform) -> None:
    for call in ("log-two", "log-one"):
        assert features.invoke("logs", {}, X_Call_Id=call).json() == "logged"
    wanted = {
        "plain words": ("stdout", 20), "to the side": ("stderr", 30), "debugging 1": ("logging", 10), "careful": ("logging", 30),
        "ZeroDivisionError": ("logging", 40), "from a child": ("stdout", 20), "from the descriptor": ("stdout", 20),
    }  # fmt: skip

    def there() -> dict[str, tuple[object, object]]:
        found = records(features, function="logs", call="log-one")
        assert {record["call_id"] for record in found} <= {"log-one"}
        return {text: (r["stream"], r["level"]) for r in found for text in wanted if text in str(r["text"])}

    features.wait_for("all lines are there", lambda: set(there()) == set(wanted))
    assert there() == wanted
    printed = features.cli("logs", "logs", "--call", "log-two")
    assert all(text in printed for text in wanted), printed


def test_the_log_tail_comes_with_the_answer_when_asked_for(features: Platform) -> None:
    answer = features.invoke("logs", {}, X_Amz_Log_Type="Tail")
    tail = base64.b64decode(answer.headers["x-amz-log-result"]).decode()
    assert "plain words" in tail and "careful" in tail
    assert "x-amz-log-result" not in features.invoke("logs", {}).headers


def test_context_has_lambdas_fields_and_the_answer_names_call_version_and_phases(features: Platform) -> None:
    client = base64.b64encode(b'{"custom": {"key": "value"}}').decode()
    answer = features.invoke("context", {}, X_Call_Id="given-id", X_Amz_Client_Context=client)
    said = answer.json()
    assert said["id"] == answer.headers["x-call-id"] == "given-id"
    assert (said["name"], said["version"], said["memory"], said["custom"]) == ("context", "1", "192", {"key": "value"})
    assert 0 < said["left"] <= 30_000 and said["environment"]["GREETING"] == "hello" and said["python"] == list(sys.version_info[:2])
    assert said["uid"] != 0
    bad = features.invoke("context", {}, X_Call_Id="not valid\tid", X_Amz_Client_Context=client)
    assert bad.status == 200 and bad.headers["x-call-id"] != "not valid\tid"
    assert features.invoke("context", {}, X_Amz_Client_Context="###").status == 400


def test_cold_answers_name_their_start_and_init_and_warm_ones_do_not(features: Platform) -> None:
    features.put("phases", "import time; time.sleep(0.05)\ndef handler(e, c): return 1\n", keep_alive_seconds=0)

    def cold() -> dict[str, str] | None:
        headers = features.invoke("phases", {}).headers
        return headers if headers["x-dayfly-start"] == "cold" else None

    features.wait_for("a call starts an instance", cold)
    features.wait_for("a call starts an instance", lambda: (seen := cold()) and phases(seen)["init"] >= 40 and phases(seen)["start"] > 0)
    features.put("phases", "def handler(e, c): return 2\n", keep_alive_seconds=60)
    features.invoke("phases", {})
    warm = features.invoke("phases", {}).headers
    assert warm["x-dayfly-start"] == "warm" and set(phases(warm)) == {"queue", "exec"}


def phases(headers: dict[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([0-9.]+)", headers["server-timing"])}


def test_secrets_are_files_of_their_function_only_and_changes_arrive(features: Platform) -> None:
    for name, value in (("KEY", "hush-1"), ("OTHER", "hush-other")):
        assert features.request("PUT", f"/api/v1/secrets/{name}", value.encode()).status == 200
    features.put("keeper", SECRETS, secrets=["KEY"])
    features.put("stranger", SECRETS)
    assert features.invoke("keeper").json() == {"found": {"KEY": "hush-1"}, "writable": False, "environment": False}
    assert features.invoke("stranger").json()["found"] == {}
    features.request("PUT", "/api/v1/secrets/KEY", b"hush-2")
    assert features.invoke("keeper").json()["found"] == {"KEY": "hush-2"}
    assert features.request("DELETE", "/api/v1/secrets/KEY").status == 409
    everywhere = features.request("GET", "/api/v1/secrets").body + features.request("GET", "/api/v1/functions/keeper").body
    assert b"hush" not in everywhere and "hush" not in features.log_text()
    assert not any(b"hush-" in path.read_bytes() for path in (features.data / "control").iterdir() if path.is_file()), "sealed at rest"
    missing = features.try_put("greedy", SECRETS, secrets=["NOBODY"])
    assert missing["event"] == "failed" and "NOBODY" in str(missing["error"])


def test_an_async_handler_with_concurrency_serves_calls_at_once_in_one_instance(features: Platform) -> None:
    features.put("overlap", OVERLAP, concurrency=8, max_instances=1)
    said: list[object] = []
    threads = [threading.Thread(target=lambda: said.append(features.invoke("overlap", {"together": 8}).json())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [8] * 8


@pytest.mark.parametrize("door", ["/function/stream", "/api/v1/functions/stream/invoke"])
def test_a_stream_arrives_while_it_is_written_at_both_doors(features: Platform, door: str) -> None:
    features.put("stream", STREAM)
    connection = http.client.HTTPConnection(*features.address, timeout=30)
    try:
        connection.request("POST", door, b"{}", {"Authorization": f"Bearer {features.token}"})
        answer = connection.getresponse()
        assert answer.getheader("transfer-encoding") == "chunked"
        first = answer.read1(100)
        assert first == b"first ", "the first part comes alone, before the last is written"
        assert answer.read() == b"last"
    finally:
        connection.close()


def statistics(platform: Platform, name: str) -> dict[str, object]:
    found: list[dict[str, object]] = platform.request("GET", "/api/v1/statistics").json()["functions"]
    return next((function for function in found if function["name"] == name), {})


def test_statistics_metrics_and_usage_count_the_same_calls(features: Platform) -> None:
    features.put("counted", "def handler(event, context):\n    if event.get('fail'): raise ValueError\n    return 1\n", memory_mb=256)
    for number in range(30):
        features.invoke("counted", {"fail": number % 3 == 0})
    features.wait_for("statistics have all calls", lambda: statistics(features, "counted").get("calls") == 30)
    assert statistics(features, "counted")["errors"] == 10

    def usage() -> dict[str, float]:
        rows = features.request("GET", "/api/v1/usage?function=counted").json()["usage"]
        return {key: sum(row[key] for row in rows) for key in ("calls", "errors", "billed_ms", "gb_seconds", "cost")}

    features.wait_for("usage has all calls", lambda: usage()["calls"] == 30)
    used = usage()
    assert used["errors"] == 10 and used["billed_ms"] >= 30
    assert used["gb_seconds"] == pytest.approx(used["billed_ms"] / 1000 * 256 / 1024, rel=0.01)
    assert used["cost"] == pytest.approx(30 * 0.2e-6 + used["gb_seconds"] * 0.0000166667, rel=0.01)
    text = features.request("GET", "/metrics").body.decode()
    counted = [line for line in text.splitlines() if 'function="counted"' in line and line.startswith("dayfly_calls_total")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == 30, counted
    assert features.request("GET", "/api/v1/functions/counted").json()["usage_today"]["calls"] == 30


def test_an_idle_function_goes_to_zero_and_min_instances_stay(features: Platform) -> None:
    source = "import os\ndef handler(e, c): return os.uname().nodename\n"
    features.put("idle", source, keep_alive_seconds=0.2)
    features.put("kept", source, keep_alive_seconds=0.2, min_instances=2)
    features.invoke("idle")
    features.wait_for("no instance is left", lambda: statistics(features, "idle").get("instances") == 0)
    features.wait_for("two instances stay", lambda: statistics(features, "kept").get("instances") == 2)
    assert features.invoke("kept").headers["x-dayfly-start"] == "warm"
    assert features.invoke("idle").headers["x-dayfly-start"] == "cold"


def test_an_open_window_keeps_its_instances_ready_and_a_deploy_without_it_lets_them_go(features: Platform) -> None:
    source = "def handler(e, c): return 1\n"
    window = '[[provisioned]]\ncron = "* * * * *"\nduration = "1h"\nmin_instances = 3\ntimezone = "Europe/Berlin"\n'
    features.put("office", {"handler.py": source, "dayfly.toml": window}, keep_alive_seconds=0)
    features.wait_for("three instances are ready", lambda: statistics(features, "office").get("instances") == 3)
    assert features.invoke("office").headers["x-dayfly-start"] == "warm"
    shown = features.request("GET", "/api/v1/functions/office").json()["config"]["provisioned"]
    assert shown == [{"cron": "* * * * *", "duration_seconds": 3600.0, "min_instances": 3, "timezone": "Europe/Berlin"}]
    features.put("office", source, keep_alive_seconds=0)
    features.wait_for("nobody is kept", lambda: statistics(features, "office").get("instances") == 0)
    refused = features.try_put("office", {"handler.py": source, "dayfly.toml": window.replace("Berlin", "Atlantis")})
    assert "unknown; names are those of the IANA database" in json.dumps(refused)


def test_what_keep_alive_learned_is_shown(features: Platform) -> None:
    features.put("learner", "def handler(e, c): return 1\n")
    features.invoke("learner")
    features.wait_for("it is counted", lambda: statistics(features, "learner").get("keep_seconds") == 60.0)
    assert statistics(features, "learner")["idle_times"] == statistics(features, "learner")["ahead_seconds"] == 0


def test_namespaces_keep_functions_of_one_name_apart(features: Platform) -> None:
    for name in ("red", "blue"):
        features.request("POST", "/api/v1/namespaces", json.dumps({"name": name}).encode())
        features.put("twin", f"def handler(e, c): return {name!r}\n", namespace=name)
    assert features.request("GET", "/function/twin.red").body == b"red"
    assert features.request("POST", "/api/v1/functions/twin/invoke?namespace=blue", b"{}").json() == "blue"
    assert features.request("GET", "/function/twin").status == 404
    features.request("PUT", "/api/v1/secrets/S?namespace=red", b"red-only")
    assert features.try_put("twin", "def handler(e, c): pass\n", namespace="blue", secrets=["S"])["event"] == "failed"
    assert features.request("DELETE", "/api/v1/namespaces/red").status == 409
    features.request("DELETE", "/api/v1/functions/twin?namespace=red")
    features.request("DELETE", "/api/v1/secrets/S?namespace=red")
    assert features.request("DELETE", "/api/v1/namespaces/red").status == 200


def test_max_instances_bounds_and_callers_wait_their_turn(features: Platform) -> None:
    features.put("narrow", "import time\ndef handler(e, c):\n    time.sleep(0.05)\n    return c.aws_request_id\n", max_instances=2)
    said: list[object] = []
    threads = [threading.Thread(target=lambda: said.append(features.invoke("narrow").headers["x-dayfly-instance"])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 12 and len(set(said)) <= 2


def test_every_interpreter_of_this_machine_runs_functions(features: Platform) -> None:
    found = features.request("GET", "/api/v1/doctor").json()
    runtimes = found.get("runtimes") or found.get("interpreters") or {}
    assert runtimes, found
    for runtime in runtimes:
        features.put("interpreter", CONTEXT, runtime=runtime)
        major, minor = features.invoke("interpreter").json()["python"]
        assert runtime == f"python{major}.{minor}"


@pytest.mark.network
@pytest.mark.slow
def test_dependencies_are_installed_once_and_shared(features: Platform) -> None:
    files = {"handler.py": "import iniconfig\ndef handler(e, c): return iniconfig.__name__\n", "requirements.txt": "iniconfig==2.0.0\n"}
    layers = features.data / "layers"
    before = set(layers.iterdir()) if layers.exists() else set()
    first = features.put("needy", files)
    again = features.put("needy", files | {"other.py": ""})
    shared = features.put("needy-too", files)
    assert features.invoke("needy").json() == features.invoke("needy-too").json() == "iniconfig"
    assert again["seconds"].get("build", 0) < first["seconds"]["build"] / 3 > shared["seconds"].get("build", 0)
    assert len(set(layers.iterdir()) - before) == 1
    failed = features.try_put("needy", files | {"requirements.txt": "iniconfig==999\n"})
    assert failed["event"] == "failed" and failed["error"]["code"] == "build_failed" and "iniconfig" in str(failed["error"])
    assert features.invoke("needy").json() == "iniconfig"
