"""overload: five hundred callers want five times what a function can do. What is still done, and how are the others told?

Capacity is made small on purpose (instances that sleep, not compute), so that it is the platform's manners which are measured and not
the machine: sixteen calls run at once and 84 wait, a hundred places for five hundred connections.
"""

from collections.abc import Callable

from bench.caller import Call, Plan
from bench.callers import call_all
from bench.contenders import SUBJECTS, Dayfly, cpu_us_per_call
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

INSTANCES, CONCURRENCY = 4, 4  # subjects/counted.py fails when an instance runs more
SLOTS = INSTANCES * CONCURRENCY
QUEUE_MAX = 84
CALLERS = 500
TIMES = 5
RUNS = 3
REFUSALS = {"429", "503"}
PEAK = "its peak, without overload"


def five_times(quick: bool) -> Outcome:
    """Good answers a second while refusing, and the peak: the same function with as many callers as it has places for."""
    seconds = 2.0 if quick else 10.0
    notes: dict[str, str] = {}
    with Platform() as platform:
        settings = {"concurrency": CONCURRENCY, "min_instances": INSTANCES, "max_instances": INSTANCES, "queue_max": QUEUE_MAX}
        platform.put("subject", (SUBJECTS / "counted.py").read_text(), namespace="default", **settings)
        call = Call("call", Dayfly(platform, "subject", "direct").request().raw("127.0.0.1"))
        calm = Plan(address=platform.address, calls=(call,), connections=SLOTS + QUEUE_MAX, seconds=seconds)
        peak = call_all(calm).per_second
        storm = Plan(address=platform.address, calls=(call,), connections=CALLERS, seconds=seconds, per_second=TIMES * peak)
        measures: dict[str, Callable[[int], Run]] = {
            "dayfly": lambda number: _run(platform, storm, f"overload, run {number + 1}", notes),
            PEAK: lambda number: _run(platform, calm, f"peak, run {number + 1}", notes),
        }
        series = alternate(measures, RUNS)
    method = (
        f"{INSTANCES} instances of concurrency {CONCURRENCY}, 10 ms a call, queue_max {QUEUE_MAX}; {TIMES} × the peak of a first run "
        f"({peak:,.0f}/s) on {CALLERS} connections at a fixed rate, {seconds:g} s a run, timed from the due time; refused with 429 or 503 "
        "is no error, refused without Retry-After, failed or over an instance's limit is; p50 and p99 of the good answers"
    )
    return Outcome(series, method, {"notes": notes})


def _run(platform: Platform, plan: Plan, name: str, notes: dict[str, str]) -> Run:
    before = cpu_seconds([platform.pid])
    tally = call_all(plan)
    cpu_us = cpu_us_per_call([platform.pid], before, tally.calls)
    refused = sum(count for how, count in tally.bad.items() if how in REFUSALS)
    alive = _instances(platform)
    notes[name] = (
        f"{tally.calls} calls, {tally.good} good, {refused} refused, {tally.unadvised} of them without Retry-After, "
        f"{tally.failed - refused} otherwise{tally.failures()}; {alive} instances afterwards; {tally.driver()}"
    )
    return tally.run(cpu_us, errors=tally.failed - refused + tally.unadvised + max(0, alive - INSTANCES))


def _instances(platform: Platform) -> int:
    functions = platform.request("GET", "/api/v1/statistics").json()["functions"]
    return sum(int(one.get("instances") or 0) for one in functions)
