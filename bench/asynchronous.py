"""Calls that nobody waits for: how many a second are made durable, how many run to their end, and how soon one begins.

`accept` is the 202 alone: the calls are not due for an hour, so nobody runs them. `settle` is the whole way, from the first call sent to
the last result on disk. `latency` is a call alone, from its sending to its handler's first line. Beside two job queues that are asked to
be as durable (queues.py); after each run the platform is asked how many calls it has: one that got its 202 and is not there is an error.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.contenders import SUBJECTS, Dayfly, cpu_us_per_call
from bench.load import Client, Reply, Request, closed_loop
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from bench.queues import JobQueue, job_queues, missing
from tests.e2e.harness import Platform

IN_FLIGHT = 64
RUNS = 3
DELAY = {"X-Dayfly-Delay": "3600"}
LOOK_SECONDS = 0.02
SETTLED_SECONDS_MAX = 300.0
PAUSE_SECONDS = 0.02
MOMENT = """import time


def handler(event, context):
    return {"at": time.time()}
"""
THEIRS = (
    f"Celery and NATS: {IN_FLIGHT} producers in flight in as many processes as cores, no HTTP, no token, no limits, no sandbox, a worker "
    "process per core; Redis with appendfsync always, JetStream with sync_interval always; CPU is of servers and workers, not of producers"
)


def accept(quick: bool) -> Outcome:
    """202s a second, each after its fsync."""
    seconds = 2.0 if quick else 10.0
    with ExitStack() as stack:
        platform = _platform(stack)
        others = _started(stack, workers=False)
        request = asynchronous(platform, "subject", DELAY)
        closed_loop(platform.address, request, IN_FLIGHT, 1.0)
        notes: dict[str, str] = {}
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda number: _accept(platform, request, seconds, f"run {number}", notes)}
        measures |= {other.name: lambda _, other=other: other.accept(seconds, IN_FLIGHT) for other in others}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = f"POST …/invoke?mode=async of 100 bytes, {IN_FLIGHT} connections of wrk, {seconds:g} s a run, not due for an hour. {THEIRS}"
    return Outcome(series, method, {"notes": notes | _notes(others)})


def settle(quick: bool) -> Outcome:
    """Calls accepted, run and settled a second. p50 and p99 are those of the 202s meanwhile."""
    seconds, limit = (1.5, 5.0) if quick else (6.0, 25.0)
    with ExitStack() as stack:
        platform = _platform(stack)
        others = _started(stack, workers=True)
        request = asynchronous(platform, "subject")
        notes: dict[str, str] = {}
        _settle(platform, request, 1.0, "", {})
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda number: _settle(platform, request, seconds, f"run {number}", notes)}
        measures |= {other.name: lambda _, other=other: other.settle(seconds, IN_FLIGHT, limit) for other in others}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = (
        f"a trivial function, 100 bytes, {IN_FLIGHT} connections of wrk for {seconds:g} s, then until the last is settled (a baseline: "
        f"until {limit:g} s are over, and what it settled by then counts); CPU of everything, instances included. {THEIRS}"
    )
    return Outcome(series, method, {"notes": notes | _notes(others)})


def latency(quick: bool) -> Outcome:
    """Milliseconds from sending a call to the handler's first line, the queue idle; beside it, the same function called synchronously."""
    count = 60 if quick else 500
    with ExitStack() as stack:
        platform = _platform(stack)
        others = _started(stack, workers=True)
        client = Client(platform.address)
        stack.callback(client.close)
        _begun(client, platform, 20, True)
        measures: dict[str, Callable[[int], Run]] = {
            "dayfly": lambda _: _begun(client, platform, count, True),
            SYNC: lambda _: _begun(client, platform, count, False),
        }
        measures |= {other.name: lambda _, other=other: other.latency(count) for other in others}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    added = series[0].summary()["p50"] - series[1].summary()["p50"]
    method = (
        f"{count} calls a run, each after the one before has ended, timed on one clock by the handler; ours is asked for its result "
        f"{1000 * PAUSE_SECONDS:g} ms later. {THEIRS}"
    )
    return Outcome(series, method, {"notes": {"added to a synchronous call, p50": f"{added:.3g} ms"} | _notes(others)}, (SYNC,))


SYNC = "called synchronously"


def asynchronous(platform: Platform, function: str, headers: dict[str, str] | None = None) -> Request:
    """A call that is answered 202."""
    waited = Dayfly(platform, function, "direct").request()
    return Request(waited.method, f"{waited.path}?mode=async", waited.headers | (headers or {}), waited.body)


def queued(platform: Platform) -> dict[str, int]:
    """Calls by state, of all functions."""
    lanes: list[dict[str, Any]] = platform.request("GET", "/api/v1/queues").json()["queues"]
    return {state: sum(lane[state] for lane in lanes) for state in ("waiting", "leased", "done", "dead")}


def _platform(stack: ExitStack) -> Platform:
    platform = stack.enter_context(Platform())
    platform.put("subject", (SUBJECTS / "direct.py").read_text())
    platform.put("moment", MOMENT)
    Dayfly(platform, "subject", "direct").check()
    return platform


def _started(stack: ExitStack, *, workers: bool) -> list[JobQueue]:
    others = job_queues()
    for other in others:
        stack.callback(other.stop)
        other.start(workers=workers)
    return others


def _accept(platform: Platform, request: Request, seconds: float, name: str, notes: dict[str, str]) -> Run:
    before, there = _cpu(platform), sum(queued(platform).values())
    run, calls = closed_loop(platform.address, request, IN_FLIGHT, seconds)
    used = _cpu(platform)
    lost = max(0, calls - run.errors - (sum(queued(platform).values()) - there))
    notes[f"CPU µs per call, {name}"] = _by_role(before, used, calls)
    return Run(run.value, run.p50, run.p99, run.errors + lost, (used["all"] - before["all"]) * 1e6 / max(1, calls))


def _settle(platform: Platform, request: Request, seconds: float, name: str, notes: dict[str, str]) -> Run:
    before, states, begun = _cpu(platform), queued(platform), time.monotonic()
    run, calls = closed_loop(platform.address, request, IN_FLIGHT, seconds)
    now = queued(platform)
    while (now["waiting"] or now["leased"]) and time.monotonic() < begun + SETTLED_SECONDS_MAX:
        time.sleep(LOOK_SECONDS)  # each look costs the platform some 3 ms; the last one is late by half of this
        now = queued(platform)
    took, used, settled = time.monotonic() - begun, _cpu(platform), now["done"] - states["done"]
    lost = max(0, calls - run.errors - settled)
    notes[f"CPU µs per call, {name}"] = f"{_by_role(before, used, settled)}; {settled} settled within {took:.2f} s"
    return Run(settled / took, run.p50, run.p99, run.errors + lost, (used["all"] - before["all"]) * 1e6 / max(1, settled))


def _begun(client: Client, platform: Platform, count: int, is_async: bool) -> Run:
    bearer = {"Authorization": f"Bearer {platform.token}"}
    mode = "?mode=async" if is_async else ""
    raw = Request("POST", f"/api/v1/functions/moment/invoke{mode}", bearer | {"Content-Type": "application/json"}, b"{}").raw("127.0.0.1")
    before, times = cpu_seconds([platform.pid]), []
    for _ in range(count):
        sent = time.time()
        reply = client.call(raw)
        if is_async:
            reply = _result(client, bearer, reply)
        times.append((float(json.loads(reply.body)["at"]) - sent) * 1000)
    return of_latencies(times, cpu_us=cpu_us_per_call([platform.pid], before, count))


def _result(client: Client, bearer: dict[str, str], accepted: Reply) -> Reply:
    time.sleep(PAUSE_SECONDS)  # or the question would compete with what is measured
    path = f"/api/v1/calls/{json.loads(accepted.body)['call_id']}/result?wait=30s"
    return client.call(Request("GET", path, bearer).raw("127.0.0.1"))


def _cpu(platform: Platform) -> dict[str, float]:
    return {role: cpu_seconds([pid]) for role, pid in platform.roles().items()} | {"all": cpu_seconds([platform.pid])}


def _by_role(before: dict[str, float], used: dict[str, float], calls: int) -> str:
    return ", ".join(f"{role} {(used[role] - before[role]) * 1e6 / max(1, calls):.0f}" for role in ("gateway", "control", "all"))


def _notes(others: list[JobQueue]) -> dict[str, str]:
    return missing() | {name: text for other in others for name, text in other.notes.items()}
