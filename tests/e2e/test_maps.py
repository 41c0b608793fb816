"""Maps on a real platform, by the real command line: every item has its result once, whoever is killed meanwhile."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Platform
from tests.tidy.sources import REPOSITORY

pytestmark = pytest.mark.one_user

DOUBLE = "def handler(event, context):\n    return 2 * event\n"
SUM = "def handler(event, context):\n    return sum(event['results'])\n"
PICKY = "def handler(event, context):\n    if event % 10 == 3:\n        raise ValueError('no good')\n    return event\n"
SLOW = """
import time
def handler(event, context):
    began = time.time()
    time.sleep(0.02)
    return [began, time.time()]
"""
SLOW_SUM = """
import time
def handler(event, context):
    time.sleep(0.3)
    return sum(event["results"])
"""
SLEEPY = "import time\ndef handler(event, context):\n    time.sleep(0.005)\n    return 2 * event\n"
NEVER_AGAIN = {"policy": "own", "attempts": 1}


@pytest.fixture(scope="module")
def maps(platform: Platform) -> Iterator[Platform]:
    platform.put("m-double", DOUBLE)
    platform.put("m-sum", SUM)
    platform.put("m-picky", PICKY, **{"async": NEVER_AGAIN})
    platform.put("m-slow", SLOW, max_instances=16)
    yield platform


def lines(values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_words_are_counted_as_the_example_says(maps: Platform) -> None:
    folder = maps.copy(REPOSITORY / "examples" / "wordcount")
    for name in ("count_words", "total_words"):
        maps.deploy(folder / f"{name}.py")
    said = maps.cli("map", "count_words", str(folder / "lines.jsonl"), "--reduce", "total_words")
    assert said.strip() in (folder / "README.md").read_text()


def test_results_come_from_standard_input_to_standard_output_in_order(maps: Platform) -> None:
    said = maps.cli("map", "m-double", "-", "--ordered", stdin=lines(range(300)) + "\n\n7")
    found = [json.loads(line) for line in said.splitlines()]
    assert found == [{"index": n, "ok": True, "attempts": 1, "result": 2 * (n if n < 300 else 7)} for n in range(301)]


def test_a_bar_is_drawn_on_the_terminal_and_results_stay_what_they_are(maps: Platform) -> None:
    items = maps.write("wide.jsonl", lines(range(200)))
    terminal, slave = pty.openpty()
    try:
        done = subprocess.run(
            [maps.python, "-m", "dayfly", "map", "m-slow", str(items)], cwd=maps.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=slave, env=maps.environment | {"DAYFLY_TOKEN": maps.token, "TERM": "xterm", "COLUMNS": "40"}, timeout=60, check=True,
        )  # fmt: skip
        drawn = os.read(terminal, 1_000_000).decode()
    finally:
        os.close(slave)
        os.close(terminal)
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 200
    assert "200" in drawn and "\x1b[" in drawn


def test_failures_are_told_by_exit_code_and_redriven_into_the_same_file(maps: Platform) -> None:
    items, out = maps.write("picky.jsonl", lines(range(25))), maps.folder / "files" / "picky.out"
    maps.cli("map", "m-picky", str(items), "--id", "picky", "-o", str(out), status=1)
    bad = {it["index"]: it["error"] for it in read(out) if not it["ok"]}
    assert set(bad) == {3, 13, 23} and all(it["errorType"] == "ValueError" and it["code"] == "function_error" for it in bad.values())
    shown = maps.cli_json("maps", "show", "picky")
    assert (shown["state"], shown["done"], shown["failed"], shown["total"]) == ("done", 22, 3, 25)
    maps.cli("calls", "ls", "--tag", "map:picky")
    maps.put("m-picky", DOUBLE, **{"async": NEVER_AGAIN})
    maps.cli("maps", "redrive", "picky")
    maps.cli("map", "--resume", "picky", "-o", str(out))
    found = {it["index"]: it["result"] for it in read(out)}
    assert len(read(out)) == 25 and [found[n] for n in (3, 4, 13)] == [6, 4, 26], "those that had run did not run again"
    maps.put("m-picky", PICKY, **{"async": NEVER_AGAIN})
    maps.cli("maps", "rm", "picky", "--yes")
    assert maps.request("GET", "/api/v1/maps/picky").json()["error"]["code"] == "map_not_found"


def test_no_more_items_run_at_once_than_the_map_says(maps: Platform) -> None:
    said = maps.cli("map", "m-slow", "-", "-c", "3", stdin=lines(range(60)))
    times = [json.loads(line)["result"] for line in said.splitlines()]
    moves = sorted([(began, 1) for began, _ in times] + [(ended, -1) for _, ended in times])
    most = at_once = 0
    for _, change in moves:
        at_once += change
        most = max(most, at_once)
    assert 2 <= most <= 3


def test_large_items_and_results_come_whole_and_reducers_share_them(maps: Platform) -> None:
    maps.put("m-same", "def handler(event, context):\n    return event\n")
    maps.put("m-lengths", "def handler(event, context):\n    return sum(r if isinstance(r, int) else len(r) for r in event['results'])\n")
    texts = ["x" * 300_000 + str(number) for number in range(40)]
    items, out = maps.write("large.jsonl", lines(texts)), maps.folder / "files" / "large.out"
    said = maps.cli("map", "m-same", str(items), "--id", "large", "--ordered", "-o", str(out), "--reduce", "m-lengths")
    assert [it["result"] for it in read(out)] == texts
    assert int(said) == sum(map(len, texts)), "12 MB are three events, and their answers a fourth"


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("1\n2\n\n{no}\n", 2, ":4: no JSON"), ("", 2, "no items"), ("\n \n", 2, "no items"), ("NaN\n", 2, ":1: no JSON"),
        ('"' + "x" * 7_000_000 + '"\n', 4, "Line 1 is over"), ("1\n\n" + '"' + "x" * 7_000_000 + '"\n', 4, "Line 3 is over"),
    ],
)  # fmt: skip
def test_bad_items_are_named_by_their_line(maps: Platform, text: str, status: int, words: str) -> None:
    items = maps.write("bad.jsonl", text)
    done = _command(maps, "map", "m-double", str(items))
    _, said = done.communicate(timeout=60)
    assert (done.returncode, words in said) == (status, True), said


def test_who_is_not_there_and_what_is_no_order_is_refused(maps: Platform) -> None:
    items = str(maps.write("some.jsonl", lines(range(3))))
    maps.cli("map", "nobody", items, status=4)
    maps.cli("map", "m-double", items, "--reduce", "nobody", status=4)
    maps.cli("map", "m-double", items, "-q", "77", status=4)
    maps.cli("map", "m-double", items, "--id", "no id", status=4)
    maps.cli("map", "m-double", status=2)
    maps.cli("map", "--resume", "nobody", status=4)
    maps.cli("map", "--resume", "x", "--reduce", "y", status=2)
    maps.cli("map", "m-double", str(maps.folder / "nowhere"), status=2)
    assert maps.request("POST", "/api/v1/maps", b'{"function":"m-double","speed":9}').status == 400
    assert maps.request("POST", "/api/v1/maps", b'{"function":"m-double"}', token="").status == 401
    made = maps.request("POST", "/api/v1/maps", b'{"function":"m-double","id":"by-hand"}')
    again = maps.request("POST", "/api/v1/maps", b'{"function":"m-double","id":"by-hand"}')
    other = maps.request("POST", "/api/v1/maps", b'{"function":"m-sum","id":"by-hand"}')
    assert (made.status, again.status, other.status) == (201, 200, 409)
    assert maps.request("POST", "/api/v1/maps/by-hand/items?last=true", b"").status == 400
    assert maps.request("GET", "/api/v1/maps/by-hand/results?order=none").status == 400
    assert maps.request("GET", "/api/v1/maps/by-hand/results?after=x").status == 400
    assert maps.request("GET", "/api/v1/maps/by-hand/result").status == 409
    assert maps.request("DELETE", "/api/v1/maps/by-hand").status == 409
    assert maps.request("POST", "/api/v1/maps/by-hand/cancel").json()["state"] in ("ending", "cancelled")
    order = json.dumps({"name": "elsewhere", "namespaces": ["elsewhere"], "verbs": ["read", "invoke"]}).encode()
    stranger = maps.request("POST", "/api/v1/tokens", order).json()["token"]
    assert maps.request("GET", "/api/v1/maps/by-hand", token=stranger).status == 403
    assert maps.request("GET", "/api/v1/maps/by-hand?namespace=elsewhere", token=stranger).status == 404
    assert "by-hand" in [it["id"] for it in maps.request("GET", "/api/v1/maps").json()["maps"]]


def test_ctrl_c_leaves_the_map_running_and_resume_goes_on(maps: Platform) -> None:
    items, out = maps.write("many.jsonl", lines(range(400))), maps.folder / "files" / "many.out"
    with _running(maps, "map", "m-slow", str(items), "--id", "broken-off", "-o", str(out)) as process:
        maps.wait_until("some are done", "/api/v1/maps/broken-off", lambda it: it.get("done", 0) > 20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume broken-off" in said
    maps.cli("map", "--resume", "broken-off", "-o", str(out))
    assert sorted(it["index"] for it in read(out)) == list(range(400))


@pytest.mark.parametrize("when", ["sending", "running", "reducing"])
def test_every_result_is_there_once_when_control_is_killed(new_platform: Any, when: str) -> None:
    platform: Platform = new_platform(settings={"async_lease_seconds": 2, "map_reduce_items_max": 400})
    platform.put("work", SLEEPY, max_instances=8)
    platform.put("sum", SLOW_SUM, max_instances=2)
    count = 20_000 if when == "sending" else 3_000
    items, out = platform.write("items.jsonl", lines(range(count))), platform.folder / "files" / "out.jsonl"
    with _running(platform, "map", "work", str(items), "--id", "m", "--reduce", "sum", "-o", str(out)) as process:
        _wait(platform, {
            "sending": lambda it: it["state"] == "filling" and 0 < it["accepted"] < count,
            "running": lambda it: it["state"] == "running" and 500 < it["done"] < count,
            "reducing": lambda it: it["state"] == "reducing",
        }[when])  # fmt: skip
        os.kill(platform.roles()["control"], signal.SIGKILL)
        said, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert int(said.strip()) == 2 * sum(range(count))
    found = read(out)
    assert sorted(it["index"] for it in found) == list(range(count))
    assert all(it["ok"] and it["result"] == 2 * it["index"] for it in found)
    again = [json.loads(line) for line in platform.request("GET", "/api/v1/maps/m/results").body.splitlines()]
    assert [it["index"] for it in again] == list(range(count))


def _wait(platform: Platform, condition: Any) -> None:
    def there() -> bool:
        try:
            answer = platform.request("GET", "/api/v1/maps/m")
        except (OSError, HTTPException):
            return False
        return answer.status == 200 and condition(answer.json())

    platform.wait_for("the map is so far", there, seconds=60)


def _command(platform: Platform, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [platform.python, "-m", "dayfly", *words], cwd=platform.folder, env=platform.environment | {"DAYFLY_TOKEN": platform.token},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def _running(platform: Platform, *words: str) -> "Iterator[subprocess.Popen[str]]":
    process = _command(platform, *words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
