"""warm-direct and warm-event: as many calls a second as 64 connections can make, everything on."""

from collections.abc import Callable

from bench.contenders import SUBJECTS, Baseline, Dayfly, baselines, cpu_us_per_call
from bench.load import closed_loop, wrk_there
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

CONNECTIONS = 64
EMULATOR_CONNECTIONS = 1  # it refuses a second call while one runs


def direct(quick: bool) -> Outcome:
    """Direct invoke, 100 bytes of JSON in, a JSON answer out."""
    return _measure("direct", quick)


def event(quick: bool) -> Outcome:
    """A whole HTTP request becomes an event (payload format 2.0), the proxy answer a whole HTTP answer."""
    return _measure("proxy", quick)


def _measure(kind: str, quick: bool) -> Outcome:
    ours_seconds, theirs_seconds = (2.0, 1.0) if quick else (10.0, 5.0)
    others = baselines(kind)
    with Platform() as platform:
        try:
            platform.deploy(SUBJECTS / f"{kind}.py", "--name", "subject")
            ours = Dayfly(platform, "subject", kind)
            ours.check()
            for other in others:
                other.start()
            everyone: list[Dayfly | Baseline] = [ours, *others]
            # Warm-up: instances started, connections accepted, caches filled. A quick run leaves the baselines' to their first
            # run of three, which the median passes over.
            for one in everyone[: 1 if quick else None]:
                _load(one, 1.0)
            measures: dict[str, Callable[[int], Run]] = {ours.name: lambda _: _load(ours, ours_seconds)}
            measures |= {other.name: lambda _, other=other: _load(other, theirs_seconds) for other in others}  # type: ignore[misc]
            series = alternate(measures, 3)
        finally:
            for other in others:
                other.stop()
    driver = "wrk -t2" if wrk_there() else "our own epoll driver (wrk is not installed; it is slower and lowers every figure)"
    method = f"{driver}, {CONNECTIONS} connections ({EMULATOR_CONNECTIONS} to the emulator), {ours_seconds:g} s a run, on the same cores"
    return Outcome(series, method)


def _load(one: Dayfly | Baseline, seconds: float) -> Run:
    connections = EMULATOR_CONNECTIONS if one.name == "lambda emulator" else CONNECTIONS
    before = cpu_seconds(one.roots())
    run, calls = closed_loop(one.address, one.request(), connections, seconds)
    return Run(run.value, run.p50, run.p99, run.errors, cpu_us_per_call(one.roots(), before, calls))
