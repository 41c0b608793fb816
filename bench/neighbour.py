"""neighbour: what a warm function's callers notice while another function bursts two hundred cold starts.

The neighbour is called at a steady rate (Poisson, from the due time) before and during the burst, in one run. The bare handler process
beside the same burst tells how much of it is the machine's: two cores are busy, whoever is called.
"""

import json
import time
from collections.abc import Callable

from bench.arrivals import Address, Arrival, drive, failures, poisson, split
from bench.contenders import SUBJECTS, Bare, Dayfly, baselines_python
from bench.load import Request
from bench.outcome import Outcome, Run, alternate, quantile
from tests.e2e.harness import Platform

BURST = 200
HOLDING = """import time


def handler(event, context):
    there = time.time()
    time.sleep(max(0.0, event["until"] - there))
    return {"greeting": "Hello, Ada!", "there": there}
"""
RATE = 300.0
RUNS = 3
SEED = 7
WARM_UP_SECONDS = 1.0


def during_a_burst(quick: bool) -> Outcome:
    """p99 while instances of the other function are being started ÷ p99 before."""
    before, hold = (1.5, 2.5) if quick else (6.0, 4.0)
    notes: dict[str, str] = {}
    bare = Bare("direct") if baselines_python() else None
    with Platform() as platform:
        try:
            platform.put("subject", (SUBJECTS / "direct.py").read_text())
            ours = Dayfly(platform, "subject", "direct")
            ours.check()
            for number in range(2 * RUNS):
                platform.put(f"burst{number}", HOLDING, keep_alive_seconds=0, max_instances=BURST, timeout_seconds=60)
            plan = (before, hold)
            measures: dict[str, Callable[[int], Run]] = {
                "dayfly": lambda number: _run(platform, (ours.request(), ours.address), f"burst{number}", plan, notes)
            }
            if bare is not None:
                bare.start()
                measures[bare.name] = lambda number: _run(platform, (bare.request(), bare.address), f"burst{number + RUNS}", plan, notes)
            series = alternate(measures, RUNS)
        finally:
            if bare is not None:
                bare.stop()
    method = (
        f"{RATE:g} calls/s to the neighbour (Poisson, from the due time), {before:g} s before the burst and until its last instance was "
        f"there; the burst: {BURST} calls of one other function at one instant, each holding its instance; p50 and p99 in ms, during the "
        "burst; the bare handler beside the same burst"
    )
    return Outcome(series, method, {"notes": notes})


def _run(platform: Platform, neighbour: tuple[Request, Address], burst: str, plan: tuple[float, float], notes: dict[str, str]) -> Run:
    before, hold = plan
    request, address = neighbour
    at = WARM_UP_SECONDS + before
    steady = [Arrival(due, request.raw("127.0.0.1"), address) for due in poisson(RATE, at + hold, SEED)]
    body = json.dumps({"until": time.time() + at + hold}).encode()
    headers = {"Authorization": f"Bearer {platform.token}", "Content-Type": "application/json"}
    raw = Request("POST", f"/api/v1/functions/{burst}/invoke", headers, body).raw("127.0.0.1")
    arrivals = sorted([*steady, *[Arrival(at, raw, platform.address)] * BURST], key=lambda arrival: arrival.due)
    driven = drive(arrivals, connections=BURST + 16)
    of_burst = [number for number, arrival in enumerate(arrivals) if arrival.raw is raw]
    replies, errors = split(driven, of_burst)
    end = max((json.loads(reply.body)["there"] for reply in replies), default=0.0) - driven.begun_at
    cold = len({reply.header("x-dayfly-instance") for reply in replies})
    quiet, quiet_errors = split(driven, [n for n, one in enumerate(arrivals) if one.raw is not raw and WARM_UP_SECONDS <= one.due < at])
    loud, loud_errors = split(driven, [n for n, one in enumerate(arrivals) if one.raw is not raw and at <= one.due <= end])
    times, calm = [reply.milliseconds for reply in loud], quantile([reply.milliseconds for reply in quiet], 0.99)
    p99 = quantile(times, 0.99)
    cost = driven.driver()
    notes[f"beside {burst}"] = (
        f"{cold} instances within {end - at:.2f} s; the neighbour's p99 {calm:.3g} ms before ({len(quiet)} calls), "
        f"{p99:.3g} ms during ({len(loud)} calls){failures(driven)}, driver {cost['cpu_percent_of_a_core']} % of a core, "
        f"{cost['late_ms_p99']} ms late at p99"
    )
    return Run(p99 / max(calm, 1e-6), quantile(times, 0.5), p99, errors + quiet_errors + loud_errors + (BURST - cold))
