"""mixed: one call in a hundred takes 20 ms, the others nothing. What do the short ones notice, and how much good gets done?

The same load goes to a platform that keeps strictly one call in flight per instance: whoever lets calls wait on an instance in front of
others that are free must not do worse than that.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack

from bench.caller import Call, Plan
from bench.callers import call_all
from bench.contenders import EVENT, SUBJECTS, Dayfly, cpu_us_per_call
from bench.load import Request
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from bench.variants import Variant
from tests.e2e.harness import Platform

CONNECTIONS = 64
RUNS = 3
LONG_SHARE, LONG_SECONDS = 0.01, 0.02
SETTINGS: dict[str, object] = {"min_instances": 4, "max_instances": 4}
OURS, STRICT = "dayfly", "dayfly, strictly one in flight"
VARIANTS = {OURS: Variant("", {}, SETTINGS), STRICT: Variant("", {"prefetch_max": 1}, SETTINGS)}


def beside_strict(quick: bool) -> Outcome:
    """Good answers a second, of short and long calls together; p50 and p99 of the short ones."""
    seconds = 2.0 if quick else 12.0
    notes: dict[str, str] = {}
    with ExitStack() as stack:
        measures: dict[str, Callable[[int], Run]] = {}
        for name, variant in VARIANTS.items():
            platform = stack.enter_context(Platform(settings=variant.platform_settings()))
            platform.put("subject", (SUBJECTS / "mixed.py").read_text(), namespace="default", **variant.function_settings())
            plan = _plan(platform, seconds)
            call_all(_plan(platform, 0.5))  # instances there, connections accepted, the run time known
            measures[name] = lambda number, name=name, platform=platform, plan=plan: _run(name, number, platform, plan, notes)  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = (
        f"{CONNECTIONS} connections in a closed loop of our own driver, {seconds:g} s a run; {LONG_SHARE:.0%} of the calls sleep "
        f"{LONG_SECONDS * 1000:g} ms, drawn at random; 4 instances, so no more than {4 / (LONG_SHARE * LONG_SECONDS):,.0f}/s are possible; "
        "value: good answers of both kinds; p50 and p99: of the short ones"
    )
    return Outcome(series, method, {"notes": VARIANTS[STRICT].notes() | notes})


def _plan(platform: Platform, seconds: float) -> Plan:
    subject = Dayfly(platform, "subject", "direct").request()

    def call(label: str, wait: float, weight: float) -> Call:
        body = json.dumps({"name": EVENT["name"], "seconds": wait}).encode()
        return Call(label, Request(subject.method, subject.path, subject.headers, body).raw("127.0.0.1"), weight)

    calls = (call("short", 0.0, 1 - LONG_SHARE), call("long", LONG_SECONDS, LONG_SHARE))
    return Plan(address=platform.address, calls=calls, connections=CONNECTIONS, seconds=seconds)


def _run(name: str, number: int, platform: Platform, plan: Plan, notes: dict[str, str]) -> Run:
    before = cpu_seconds([platform.pid])
    tally = call_all(plan)
    short, long = (tally.times[label] for label in ("short", "long"))
    notes[f"{name}, run {number + 1}"] = (
        f"{long.count} long calls, p50 {long.quantile_ms(0.5):.3g} ms, p99 {long.quantile_ms(0.99):.3g} ms; mean of the short "
        f"{short.mean_ms:.3g} ms{tally.failures()}; {tally.driver()}"
    )
    return tally.run(cpu_us_per_call([platform.pid], before, tally.calls), times=short)
