"""map: 100,000 trivial items from the first byte sent to the last result read, over the API, as `dayfly map` does it.

A baseline sends the same items as synchronous calls over 64 connections: what durability, the queue and the way back cost beside the calls.
"""

import http.client
import json
import time
from collections.abc import Iterator

from bench.caller import Call, Plan
from bench.callers import call_all
from bench.contenders import Dayfly, cpu_us_per_call
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

ITEMS, QUICK_ITEMS = 100_000, 10_000
CHUNK = 8_000
WAIT = "60m"
SYNCHRONOUS = "the same items as synchronous calls, 64 connections"
SOURCE = "def handler(event, context):\n    return event\n"


def many_items(quick: bool) -> Outcome:
    """Seconds for 100,000 items; quick: for 10,000, scaled up."""
    items, runs = (QUICK_ITEMS, 2) if quick else (ITEMS, 3)
    notes: dict[str, str] = {}
    with Platform() as platform:
        platform.put("trivial", SOURCE)
        _synchronous(platform, 1.0)  # instances are there
        series = alternate(
            {
                "dayfly map": lambda number: _map(platform, f"run-{number}", items, notes),
                SYNCHRONOUS: lambda _: _synchronous(platform, 3.0 if quick else 10.0),
            },
            runs,
        )
    scaled = f"; {QUICK_ITEMS} were taken, and scaled to {ITEMS}" if quick else ""
    method = f"one upload in pieces of {CHUNK}, results read in the order of the items while it runs, one client process{scaled}"
    return Outcome(series, method, {"notes": notes})


def _map(platform: Platform, name: str, items: int, notes: dict[str, str]) -> Run:
    before, begun = cpu_seconds([platform.pid]), time.perf_counter()
    _ask(platform, "POST", "/api/v1/maps", json.dumps({"function": "trivial", "id": name}).encode())
    for first in range(0, items, CHUNK):
        behind = min(items, first + CHUNK)
        body = b"\n".join(b"%d" % number for number in range(first, behind))
        last = "&last=true" if behind == items else ""
        _ask(platform, "POST", f"/api/v1/maps/{name}/items?first={first}{last}", body)
    sent = time.perf_counter() - begun
    good = sum(line.get("ok") is True for line in _results(platform, name))
    seconds = time.perf_counter() - begun
    cpu_us = cpu_us_per_call([platform.pid], before, items)
    notes[name] = f"{good} of {items} in {seconds:.2f} s, sent after {sent:.2f} s, {cpu_us:.0f} µs of processor time an item"
    value = seconds * ITEMS / items
    return Run(value, value, value, items - good, cpu_us)


def _results(platform: Platform, name: str) -> Iterator[dict[str, object]]:
    connection = http.client.HTTPConnection(*platform.address, timeout=600)
    connection.request("GET", f"/api/v1/maps/{name}/results?wait={WAIT}", headers={"Authorization": f"Bearer {platform.token}"})
    answer = connection.getresponse()
    while raw := answer.readline():
        yield json.loads(raw)
    connection.close()


def _ask(platform: Platform, method: str, path: str, body: bytes) -> None:
    answer = platform.request(method, path, body)
    if answer.status >= 300:
        raise AssertionError(f"{method} {path} → {answer.status} {answer.body[:500]!r}")


def _synchronous(platform: Platform, seconds: float) -> Run:
    """Seconds that as many synchronous calls take, at the rate of this run."""
    before = cpu_seconds([platform.pid])
    raw = Dayfly(platform, "trivial", "direct").request().raw("127.0.0.1")
    tally = call_all(Plan(address=platform.address, calls=(Call("call", raw),), connections=64, seconds=seconds), 2)
    value = ITEMS * seconds / max(1, tally.good)
    return Run(value, value, value, tally.failed, cpu_us_per_call([platform.pid], before, tally.calls))
