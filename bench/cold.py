"""Lone cold calls: whole HTTP calls in full isolation, each after 20 ms of silence, and what served them.

`cold-trivial`, `cold-prepared` and `cold-fork` call functions that were never called before, once each. `cold-template`, `cold-ahead` and
`cold-import` call three functions with heavy imports (heavy.py has the subjects) again and again, each time when no instance is left.
"""

from collections.abc import Callable, Mapping

from bench.contenders import SUBJECTS, Baseline, Dayfly, baselines, cpu_us_per_call
from bench.load import Client, Request, spaced_calls
from bench.origin import Tally
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from bench.variants import ANY, FORK, PREPARED, Variant
from tests.e2e.harness import Platform

PAUSE_SECONDS = 0.02
RUNS = 3


def trivial(quick: bool) -> Outcome:
    """Whatever serves it by default."""
    return _measure(quick, ANY)


def prepared(quick: bool) -> Outcome:
    """From a prepared sandbox; an answer from a fork is a miss, and counts in the figure."""
    return _measure(quick, PREPARED)


def fork(quick: bool) -> Outcome:
    """Forked on demand, with no prepared sandbox on the machine."""
    return _measure(quick, FORK)


def _measure(quick: bool, variant: Variant) -> Outcome:
    """The time from the first byte sent to the last byte received; of a baseline, from starting its process."""
    calls, starts = (50, 2) if quick else (200, 5)
    tally = Tally(variant.origin)
    with Platform(settings=variant.platform_settings()) as platform:
        names = deploy(platform, calls * RUNS, variant.function_settings())
        wait_nothing_runs(platform)
        batches = [names[number * calls : (number + 1) * calls] for number in range(RUNS)]
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda number: _call(platform, batches[number], tally)}
        measures |= {other.name: lambda _, other=other: start_cold(other, starts) for other in baselines("direct")}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = (
        f"{calls} functions a run, each called for the first time, {PAUSE_SECONDS * 1000:g} ms idle before each, one connection; "
        f"baselines: {starts} process starts a run, from the start to the first answer"
    )
    return Outcome(series, method, {"origins": {"dayfly": tally.document()}, "notes": variant.notes()})


def deploy(platform: Platform, count: int, config: Mapping[str, object]) -> list[str]:
    """Functions with code of their own that keep no instance, so that none exists when each is called; through the API."""
    source = (SUBJECTS / "direct.py").read_text()
    names = [f"f{number:04}" for number in range(count)]
    for name in names:
        platform.put(name, f"{source}\n# {name}: no two functions share their code\n", namespace="default", keep_alive_seconds=0, **config)
    return names


def wait_nothing_runs(platform: Platform) -> None:
    """Instances that proved the deploys have ended."""
    platform.wait_until(
        "no instance is left of the deploys",
        "/api/v1/statistics",
        lambda document: not any(function.get("instances") for function in document["functions"]),
    )


def invoke(platform: Platform, name: str) -> bytes:
    """The bytes of a direct call."""
    request: Request = Dayfly(platform, name, "direct").request()
    return request.raw("127.0.0.1")


def _call(platform: Platform, names: list[str], tally: Tally) -> Run:
    client = Client(platform.address)
    try:
        before = cpu_seconds([platform.pid])
        replies, errors = spaced_calls(client, [invoke(platform, name) for name in names], PAUSE_SECONDS)
    finally:
        client.close()
    # An answer from an instance that was there already would be a measurement of something else.
    cold, warm = tally.take(replies)
    return of_latencies(cold, errors + warm, cpu_us_per_call([platform.pid], before, len(names)))


def start_cold(other: Baseline, starts: int) -> Run:
    """A baseline's cold start: its process is started and answers once."""
    samples, cpu = [], 0.0
    for _ in range(starts):
        try:
            samples.append(other.start())
            cpu += cpu_seconds(other.roots())
        finally:
            other.stop()
    return of_latencies(samples, cpu_us=cpu * 1e6 / starts)
