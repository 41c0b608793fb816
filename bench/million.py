"""million-a-minute: ten minutes at 16,667 calls a second over fifty functions, some of them much more popular, with a deploy every ten
seconds; then a minute at 50,000 calls a second. Is every call answered, how soon, and does memory stay where it was?

Both are taken in three runs that alternate with the bare handler at the lower rate, so that its figure is of the same hour. Calls are
evenly spaced and timed from when they were due.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.caller import Call, Plan
from bench.callers import call_all
from bench.contenders import SUBJECTS, Bare, Baseline, Dayfly, baselines_python, cpu_us_per_call
from bench.outcome import Outcome, Run, alternate
from bench.processes import cpu_seconds, pss_bytes
from bench.tally import Tally
from tests.e2e.harness import Platform

FUNCTIONS = 50
ZIPF = 1.0  # the k-th most popular function has 1/k of the first one's calls
RATE, FAST_RATE = 1e6 / 60, 3e6 / 60
CONNECTIONS, PROCESSES = 128, 2
DEPLOY_SECONDS = 10.0
RUNS = 3
SETTLE_SECONDS = 2.0
MB = 1024 * 1024
SLOW, FAST, BARE = "dayfly", "three million a minute", "bare handler, a million a minute"


def over_fifty(quick: bool) -> Outcome:
    """Mean milliseconds from the due time at a million a minute; also at three million."""
    seconds, fast_seconds, theirs_seconds = (6.0, 2.0, 2.0) if quick else (200.0, 20.0, 20.0)
    notes: dict[str, str] = {}
    sizes: list[float] = []
    bare = Bare("direct") if baselines_python() else None
    with Platform() as platform:
        try:
            fifty = Fifty(platform, notes)
            fifty.warm_up()
            sizes.append(_megabytes(platform))
            measures: dict[str, Callable[[int], Run]] = {
                SLOW: lambda number: fifty.run(f"a million a minute, run {number + 1}", RATE, seconds),
                FAST: lambda number: fifty.run(f"{FAST}, run {number + 1}", FAST_RATE, fast_seconds, sizes),
            }
            if bare is not None:
                bare.start()
                measures[BARE] = lambda number: _bare(bare, theirs_seconds, f"{BARE}, run {number + 1}", notes)
            series = alternate(measures, RUNS)
        finally:
            if bare is not None:
                bare.stop()
    notes["memory of all platform processes (PSS) before, then after each pair of runs, MB"] = ", ".join(f"{size:.1f}" for size in sizes)
    method = (
        f"{RATE:,.0f} calls/s for {RUNS} × {seconds:g} s and {FAST_RATE:,.0f} for {RUNS} × {fast_seconds:g} s, evenly spaced, from the due "
        f"time; {FUNCTIONS} functions, Zipf {ZIPF:g}, one of them deployed anew every {min(DEPLOY_SECONDS, seconds / 3):g} s; "
        f"{CONNECTIONS} connections in {PROCESSES} processes of our own driver on the same cores; value is the mean"
    )
    return Outcome(series, method, {"notes": notes}, (FAST,), {BARE: SLOW})


class Fifty:
    """The functions, whoever calls them and whoever deploys them."""

    def __init__(self, platform: Platform, notes: dict[str, str]) -> None:
        self.platform = platform
        self.notes = notes
        self.names = [f"f{number:02}" for number in range(FUNCTIONS)]
        self.source = (SUBJECTS / "direct.py").read_text()
        self.revisions = 0
        self.deploy_seconds: list[float] = []
        self.deploys_failed: list[str] = []
        for _ in self.names:
            self.deploy()
        raws = [Dayfly(platform, name, "direct").request().raw("127.0.0.1") for name in self.names]
        self.calls = tuple(Call("call", raw, 1 / (place + 1) ** ZIPF) for place, raw in enumerate(raws))

    def deploy(self) -> None:
        """The next function in turn gets new code, with the same answers."""
        begun = time.monotonic()
        name = self.names[self.revisions % FUNCTIONS]
        self.revisions += 1
        self.platform.put(name, f"{self.source}\n# revision {self.revisions}\n")
        self.deploy_seconds.append(time.monotonic() - begun)

    @contextmanager
    def deploying(self, every_seconds: float) -> Iterator[None]:
        """A deploy at each tick in a thread of its own; those that fail are remembered."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(every_seconds):
                try:
                    self.deploy()
                except (AssertionError, OSError) as error:
                    self.deploys_failed.append(str(error)[:200])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def warm_up(self) -> None:
        """Instances are there, and what a first call brings to life for good."""
        self._call(1000.0, 2.0)

    def _call(self, per_second: float, seconds: float) -> Tally:
        address = self.platform.address
        plan = Plan(address=address, calls=self.calls, connections=CONNECTIONS, seconds=seconds, per_second=per_second)
        return call_all(plan, PROCESSES)

    def run(self, name: str, per_second: float, seconds: float, sizes: list[float] | None = None) -> Run:
        """One rate for some seconds, with deploys; then the platform's memory is added to `sizes`."""
        self.deploy_seconds.clear()
        self.deploys_failed.clear()
        before = cpu_seconds([self.platform.pid])
        with self.deploying(min(DEPLOY_SECONDS, seconds / 3)):
            tally = self._call(per_second, seconds)
        cpu_us = cpu_us_per_call([self.platform.pid], before, tally.calls)
        times, failed = tally.all_times(), self.deploys_failed
        self.notes[name] = (
            f"{tally.calls} calls, {100 * tally.good / max(1, tally.calls):.4f} % good{tally.failures()}; mean "
            f"{times.mean_ms:.3g} ms, p99.99 {times.quantile_ms(0.9999):.3g}, most {times.most_us / 1000:.3g}; "
            f"{len(self.deploy_seconds)} deploys of {max(self.deploy_seconds, default=0.0):.2g} s at most, {len(failed)} failed"
            f"{': ' + '; '.join(failed) if failed else ''}; {tally.driver()}"
        )
        if sizes is not None:
            sizes.append(_megabytes(self.platform))
        return _mean(tally, tally.failed + len(failed), cpu_us)


def _mean(tally: Tally, errors: int, cpu_us: float) -> Run:
    times = tally.all_times()
    return Run(times.mean_ms, times.quantile_ms(0.5), times.quantile_ms(0.99), errors, cpu_us)


def _megabytes(platform: Platform) -> float:
    """When instances that went out of use have gone."""
    time.sleep(SETTLE_SECONDS)  # there is nobody to ask whether they all have
    return sum(map(pss_bytes, platform.processes())) / MB


def _bare(bare: Baseline, seconds: float, name: str, notes: dict[str, str]) -> Run:
    before = cpu_seconds(bare.roots())
    call = Call("call", bare.request().raw("127.0.0.1"))
    tally = call_all(Plan(address=bare.address, calls=(call,), connections=CONNECTIONS, seconds=seconds, per_second=RATE), PROCESSES)
    notes[name] = f"p99.99 {tally.all_times().quantile_ms(0.9999):.3g} ms{tally.failures()}; {tally.driver()}"
    return _mean(tally, tally.failed, cpu_us_per_call(bare.roots(), before, tally.calls))
