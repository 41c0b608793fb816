"""cold-trivial: a function that was never called before answers a whole HTTP call, in full isolation, after 20 ms of silence."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.contenders import SUBJECTS, Baseline, Dayfly, baselines, cpu_us_per_call, function_files
from bench.load import Client, spaced_calls
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

PAUSE_SECONDS = 0.02
RUNS = 3


def trivial(quick: bool) -> Outcome:
    """The time from the first byte sent to the last byte received; of a baseline, from starting its process."""
    calls, starts = (20, 2) if quick else (100, 5)
    with Platform() as platform:
        names = _deploy(platform, calls * RUNS)
        _wait_nothing_runs(platform)
        batches = [names[number * calls : (number + 1) * calls] for number in range(RUNS)]
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda number: _call(platform, batches[number])}
        measures |= {other.name: lambda _, other=other: _start(other, starts) for other in baselines("direct")}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = (
        f"{calls} functions a run, each called for the first time, {PAUSE_SECONDS * 1000:g} ms idle before each, one connection; "
        f"baselines: {starts} process starts a run, from the start to the first answer"
    )
    return Outcome(series, method)


def _deploy(platform: Platform, count: int) -> list[str]:
    """Functions with code of their own that keep no instance, so that none exists when each is called."""
    folder = platform.write("functions/.keep", "").parent
    source = (SUBJECTS / "direct.py").read_text()

    def deploy(path: Path) -> str:
        platform.deploy(path, "--keep-alive-seconds", "0")
        return path.stem

    # The first alone (it warms what is shared), the others two at a time: a command line each, as users deploy.
    paths = list(function_files(folder, count, source))
    first = deploy(paths[0])
    with ThreadPoolExecutor(2) as pool:
        return [first, *pool.map(deploy, paths[1:])]


def _wait_nothing_runs(platform: Platform) -> None:
    """Instances that proved the deploys have ended."""
    platform.wait_until(
        "no instance is left of the deploys",
        "/api/v1/statistics",
        lambda document: not any(function.get("instances") for function in document["functions"]),
    )


def _call(platform: Platform, names: list[str]) -> Run:
    subjects = [Dayfly(platform, name, "direct") for name in names]
    client = Client(platform.address)
    try:
        before = cpu_seconds([platform.pid])
        replies, errors = spaced_calls(client, [subject.request().raw("127.0.0.1") for subject in subjects], PAUSE_SECONDS)
    finally:
        client.close()
    # An answer from an instance that was there already would be a measurement of something else.
    cold = [reply for reply in replies if reply.header("x-dayfly-start") == "cold"]
    return of_latencies(
        [reply.milliseconds for reply in cold],
        errors + len(replies) - len(cold),
        cpu_us_per_call([platform.pid], before, len(names)),
    )


def _start(other: Baseline, starts: int) -> Run:
    samples, cpu = [], 0.0
    for _ in range(starts):
        try:
            samples.append(other.start())
            cpu += cpu_seconds(other.roots())
        finally:
            other.stop()
    return of_latencies(samples, cpu_us=cpu * 1e6 / starts)
