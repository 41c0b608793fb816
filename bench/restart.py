"""restart-under-load: five thousand calls a second go on while a version is replaced, and while the gateway is. Whose call is lost?

The whole platform is replaced by `dayfly restart --rolling`. Beside it the gateway alone, as after a death: SIGTERM to its process, which
drains, ends, and is started again on the same listening socket; nobody does that to a platform in use, but it shows what rolling saves.
"""

import os
import signal
import time
from collections.abc import Callable

from bench.caller import Call, Plan
from bench.callers import calling
from bench.contenders import SUBJECTS, Baseline, Dayfly, FunctionsFramework, baselines_python, cpu_us_per_call
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

RATE, CONNECTIONS = 5000.0, 64
RUNS = 3
DEPLOY, ROLLING, RESTART = "dayfly", "rolling restart", "gateway ended"
RELOAD = "functions-framework, reload (HUP)"


def calls_lost(quick: bool) -> Outcome:
    """Failed calls of a run in which it happened once: a deploy; a rolling restart; also the end of the gateway."""
    seconds = 4.0 if quick else 10.0
    notes: dict[str, str] = {}
    source = (SUBJECTS / "direct.py").read_text()
    other = FunctionsFramework("direct") if baselines_python() else None
    with Platform() as platform:
        try:
            platform.put("subject", source, min_instances=2)
            ours = Dayfly(platform, "subject", "direct")
            ours.check()

            def deploy() -> None:
                platform.put("subject", f"{source}\n# deployed at {time.time()}\n", min_instances=2)

            measures: dict[str, Callable[[int], Run]] = {
                DEPLOY: lambda number: _run(ours, deploy, (seconds, f"deploy, run {number + 1}"), notes),
                ROLLING: lambda number: _run(ours, lambda: _roll(platform), (seconds, f"{ROLLING}, run {number + 1}"), notes),
                RESTART: lambda number: _run(ours, lambda: _restart(platform), (seconds, f"{RESTART}, run {number + 1}"), notes),
            }
            if other is not None:
                other.start()
                measures[RELOAD] = lambda number: _run(other, lambda: _reload(other), (seconds, f"{RELOAD}, run {number + 1}"), notes)
            series = alternate(measures, RUNS)
        finally:
            if other is not None:
                other.stop()
    method = (
        f"{RATE:,.0f} calls/s on {CONNECTIONS} keep-alive connections, evenly spaced, {seconds:g} s a run, from the due time; it happens "
        "after a third; lost: refused, failed, or the connection closed with a call on it; one closed between calls is made again; "
        "value: calls lost, p50 and p99 in ms of the others"
    )
    return Outcome(series, method, {"notes": notes}, (ROLLING, RESTART), {RELOAD: ROLLING})


def _run(one: Dayfly | Baseline, act: Callable[[], None], what: tuple[float, str], notes: dict[str, str]) -> Run:
    seconds, name = what
    call = Call("call", one.request().raw("127.0.0.1"))
    before = cpu_seconds(one.roots())
    plan = Plan(address=one.address, calls=(call,), connections=CONNECTIONS, seconds=seconds, per_second=RATE)
    with calling(plan) as callers:
        time.sleep(seconds / 3)  # the load before is part of the figure
        begun = time.monotonic()
        act()
        took = time.monotonic() - begun
        tally = callers.wait()
    times = tally.all_times()
    notes[name] = (
        f"done after {took:.2g} s; {tally.calls} calls, {tally.failed} lost{tally.failures()}; the longest of the others "
        f"{times.most_us / 1000:.3g} ms; {tally.driver()}"
    )
    cpu_us = cpu_us_per_call(one.roots(), before, tally.calls)
    return Run(float(tally.failed), times.quantile_ms(0.5), times.quantile_ms(0.99), tally.failed, cpu_us)


def _roll(platform: Platform) -> None:
    """Returns when the old processes have left."""
    platform.cli("restart", f"--data={platform.data}", "--rolling")


def _restart(platform: Platform) -> None:
    """Returns when another gateway is there."""
    old = platform.roles()["gateway"]
    os.kill(old, signal.SIGTERM)
    platform.wait_for("another gateway is there", lambda: platform.roles().get("gateway", 0) not in (0, old), seconds=30)


def _reload(other: Baseline) -> None:
    """New workers, then the old ones end, as gunicorn's documentation has it for new code."""
    assert other.process is not None
    other.process.send_signal(signal.SIGHUP)
