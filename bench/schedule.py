"""schedule: how late the clock's calls are. From the due time to the first line of the handler, both on this machine's clock.

The baseline is what a bare process does that sleeps until each full second: the kernel's timer and the interpreter, nothing else. Every due
time that passed must have been one call: those that are missing or there twice are errors.
"""

import json
import time
from datetime import datetime
from urllib.parse import quote

from bench.contenders import cpu_us_per_call
from bench.outcome import Outcome, Run, alternate, quantile
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

SCHEDULES = 20  # all due at the same moment, which is what clocks do
RUNS = 3
SETTLE_SECONDS_MAX = 20.0
LOGS_MAX = 10_000
SOURCE = """
import time
def handler(event, context):
    now, said = time.time(), context.client_context.custom
    print("fired", said["schedule"], said["due"], now)
"""


def accuracy(quick: bool) -> Outcome:
    """Lateness in milliseconds; the value is the 99th percentile."""
    seconds = 5.0 if quick else 30.0
    with Platform() as platform:
        platform.put("clock", SOURCE, min_instances=1)
        measures = {"dayfly": lambda number: _fired(platform, number, seconds), "a sleeping process": lambda _: _slept(seconds)}
        series = alternate(measures, RUNS)
    method = (
        f"{SCHEDULES} schedules with `rate = 1 second`, due together, {seconds:g} s a run, one function, an instance kept ready; from "
        f"the due time to the handler's first line; the value is the p99; due times that are missing or fired twice are errors"
    )
    return Outcome(series, method)


def _fired(platform: Platform, number: int, seconds: float) -> Run:
    names = [f"s{number}-{index}" for index in range(SCHEDULES)]
    before = cpu_seconds([platform.pid])
    for name in names:
        _ask(platform, "PUT", name, {"function": "clock", "rate": "1 second", "overlap": "parallel", "missed": "all"})
    time.sleep(seconds)  # what is measured: time in which clocks strike
    for name in names:
        _ask(platform, "POST", f"{name}/pause")
    counted = {name: int(_ask(platform, "GET", name)["counts"]["fired"]) for name in names}
    wanted = sum(counted.values())
    late = _lateness(platform, names, wanted)
    slots = {(name, due) for name, due, _ in late}
    wrong = abs(wanted - len(slots)) + len(late) - len(slots) + _gaps(late, names)
    samples = [1000 * after for _, _, after in late]
    p99 = quantile(samples, 0.99)
    cpu_us = cpu_us_per_call([platform.pid], before, max(1, wanted))
    return Run(p99, quantile(samples, 0.5), p99, wrong, cpu_us, tuple(samples))


def _lateness(platform: Platform, names: list[str], wanted: int) -> list[tuple[str, float, float]]:
    """(schedule, due time, seconds after it) of each run that the log tells of, when all are there or the time is up."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        answer = platform.request("GET", f"/api/v1/logs?function=clock&limit={LOGS_MAX}")
        lines = [json.loads(line)["text"].split() for line in answer.body.splitlines()]
        ours = [line for line in lines if line[:1] == ["fired"] and line[1] in names]
        if len(ours) >= wanted or time.monotonic() > deadline:
            return [(name, due := _epoch(text), float(now) - due) for _, name, text, now in ours]
        time.sleep(0.1)


def _gaps(late: list[tuple[str, float, float]], names: list[str]) -> int:
    """Due times between the first and the last of a schedule that were not fired."""
    missing = 0
    for name in names:
        due = {moment for said, moment, _ in late if said == name}
        missing += round(max(due) - min(due)) + 1 - len(due) if due else 1
    return missing


def _slept(seconds: float) -> Run:
    samples = []
    for _ in range(int(seconds)):
        due = float(int(time.time()) + 1)
        time.sleep(due - time.time())
        samples.append(1000 * (time.time() - due))
    p99 = quantile(samples, 0.99)
    return Run(p99, quantile(samples, 0.5), p99, samples=tuple(samples))


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _ask(platform: Platform, method: str, path: str, body: object = None) -> dict[str, dict[str, int]]:
    sent = b"" if body is None else json.dumps(body).encode()
    answer = platform.request(method, f"/api/v1/schedules/{quote(path)}", sent, {"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    found: dict[str, dict[str, int]] = answer.json()
    return found
