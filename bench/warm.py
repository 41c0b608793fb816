"""The warm path: functions that have their instances, everything on, called by wrk in a closed loop. One shape of load a figure."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.contenders import SUBJECTS, Baseline, Dayfly, cpu_us_per_call
from bench.load import closed_loop, wrk_there
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds
from bench.servers import missing, more_baselines
from bench.variants import ANY, Variant
from tests.e2e.harness import Platform

EMULATOR_CONNECTIONS = 1  # it refuses a second call while one runs
RUNS = 3

STRICT = Variant("", {"prefetch_max": 1}, {"min_instances": 2, "max_instances": 2})
ALONE = Variant("", {}, {"min_instances": 1, "max_instances": 1})


@dataclass(frozen=True)
class Load:
    """Who is called (a kind of contenders.py), on how many connections, with which settings, and which number is the figure."""

    kind: str
    connections: int = 64
    variant: Variant = ANY
    figure: str = "value"  # a field of Run: calls a second, or "p50", "p99" in milliseconds
    said: str = ""


def direct(quick: bool) -> Outcome:
    """Direct invoke, 100 bytes of JSON in, a JSON answer out."""
    return _measure(Load("direct"), quick)


def event(quick: bool) -> Outcome:
    """A whole HTTP request becomes an event (payload format 2.0), the proxy answer a whole HTTP answer."""
    return _measure(Load("proxy"), quick)


def strict(quick: bool) -> Outcome:
    """Two instances that have one call each at a time, the next one only after the answer: no prefetch."""
    return _measure(Load("direct", variant=STRICT, said="prefetch_max = 1, two instances, never more nor fewer"), quick)


def one(quick: bool) -> Outcome:
    """A caller alone: how long one call takes when nothing waits."""
    return _measure(Load("direct", connections=1, figure="p50"), quick)


def ten_kilobytes(quick: bool) -> Outcome:
    """10 KB of JSON with many small things in it, and nearly the same back."""
    return _measure(Load("big", said="10 KB of JSON (106 rows of a table) both ways"), quick)


def twenty(quick: bool) -> Outcome:
    """Twenty callers of one instance: what the last in the line waits."""
    return _measure(Load("direct", connections=20, variant=ALONE, figure="p99", said="one instance, never more"), quick)


def _measure(load: Load, quick: bool) -> Outcome:
    ours_seconds, theirs_seconds = (2.0, 1.0) if quick else (10.0, 4.0)
    others = more_baselines(load.kind)
    with Platform(settings=load.variant.platform_settings()) as platform:
        try:
            platform.put("subject", (SUBJECTS / f"{load.kind}.py").read_text(), namespace="default", **load.variant.function_settings())
            ours = Dayfly(platform, "subject", load.kind)
            ours.check()
            for other in others:
                other.start()
            everyone: list[Dayfly | Baseline] = [ours, *others]
            # Warm-up: instances started, connections accepted, caches filled. A quick run leaves the baselines' to their first
            # run of three, which the median passes over.
            for contender in everyone[: 1 if quick else None]:
                _call(contender, load, 1.0)
            measures: dict[str, Callable[[int], Run]] = {ours.name: lambda _: _call(ours, load, ours_seconds)}
            measures |= {other.name: lambda _, other=other: _call(other, load, theirs_seconds) for other in others}  # type: ignore[misc]
            series = alternate(measures, RUNS)
        finally:
            for other in others:
                other.stop()
    driver = f"wrk -t{min(2, load.connections)}"
    if not wrk_there():
        driver = "our own epoll driver (wrk is not installed; it is slower and lowers every figure)"
    method = (
        f"{driver}, {load.connections} connections ({EMULATOR_CONNECTIONS} to the emulator), {ours_seconds:g} s a run, "
        f"{theirs_seconds:g} s for a baseline, on the same cores{load.said and f'; {load.said}'}"
    )
    return Outcome(series, method, {"notes": load.variant.notes() | missing()})


def _call(one: Dayfly | Baseline, load: Load, seconds: float) -> Run:
    connections = EMULATOR_CONNECTIONS if one.name == "lambda emulator" else load.connections
    before = cpu_seconds(one.roots())
    run, calls = closed_loop(one.address, one.request(), connections, seconds)
    return replace(run, value=getattr(run, load.figure), cpu_us=cpu_us_per_call(one.roots(), before, calls))
