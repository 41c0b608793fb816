"""cold-sustained: a minute in which every call is cold. Calls come as a Poisson process, seeded, at 300/s and at 500/s.

Each call is timed from when it was due (arrivals.py), so a platform that falls behind cannot hide it; ends of instances, and whatever is
made again for the next ones, happen within the minute and on the same cores. The driver's own floor is measured in the same run, against
a server that does nothing.
"""

import random
import time
from collections.abc import Callable

from bench.arrivals import Arrival, Driven, drive, failures, poisson, split
from bench.cold import RUNS, deploy, invoke, wait_nothing_runs
from bench.contenders import Bare, baselines_python, cpu_us_per_call
from bench.origin import Tally
from bench.outcome import Outcome, Run, Series, alternate, quantile
from bench.processes import cpu_seconds, grown, kernel_threads
from tests.e2e.harness import Platform

RATES = (300, 500)
FUNCTIONS = 300  # so many that the next call of one comes long after its last instance has ended
SEED = 20_261_125
DRAIN_SECONDS = 30.0


def all_cold(quick: bool) -> Outcome:
    """p99 from the due time, in milliseconds; first row 300/s."""
    seconds = 3.0 if quick else 60.0
    tallies = {_name(rate): Tally() for rate in RATES}
    notes: dict[str, str] = {}
    with Platform() as platform:
        names = deploy(platform, FUNCTIONS, {})
        raws = [invoke(platform, name) for name in names]
        measures: dict[str, Callable[[int], Run]] = {
            _name(rate): lambda number, rate=rate: _run(platform, raws, (rate, seconds, number), tallies, notes)  # type: ignore[misc]
            for rate in RATES
        }
        series = alternate(measures, RUNS)
    notes |= _floor(seconds / 3)
    for one in series:
        notes[f"p50 from the due time at {one.name}, ms"] = ", ".join(f"{run.p50:.3g}" for run in one.runs)
    method = (
        f"{seconds:g} s a run, Poisson arrivals (seed {SEED} + run), {FUNCTIONS} functions in random order, keep-alive 0, timed from the "
        f"scheduled arrival, teardown and refill included; percentiles of the cold answers; value is the p99"
    )
    return Outcome(series, method, {"origins": {name: tally.document() for name, tally in tallies.items()}, "notes": notes}, _also(series))


def _also(series: list[Series]) -> tuple[str, ...]:
    return tuple(one.name for one in series[1:])


def _name(rate: int) -> str:
    return f"{rate}/s"


def _run(platform: Platform, raws: list[bytes], what: tuple[int, float, int], tallies: dict[str, Tally], notes: dict[str, str]) -> Run:
    rate, _, number = what
    wait_nothing_runs(platform)
    before, kernel = cpu_seconds([platform.pid]), kernel_threads()
    driven = drive(_plan(raws, platform.address, what), drain_seconds=DRAIN_SECONDS)
    replies, errors = split(driven)
    cold, warm = tallies[_name(rate)].take(replies)
    calls = len(driven.replies)
    kernel_us = grown(kernel, kernel_threads()) * 1e6 / max(1, calls)
    notes[f"at {rate}/s, run {number + 1}"] = (
        f"{calls} calls, {errors} not answered or refused{failures(driven)}, {warm} warm; "
        f"kernel threads {kernel_us:.0f} µs of CPU per call; driver {_said(driven)}"
    )
    p50, p99 = quantile(cold, 0.5), quantile(cold, 0.99)
    return Run(p99, p50, p99, errors, cpu_us_per_call([platform.pid], before, calls), tuple(cold))


def _plan(raws: list[bytes], address: tuple[str, int], what: tuple[int, float, int]) -> list[Arrival]:
    """The functions in shuffled rounds: at random, yet none again before all others."""
    rate, seconds, number = what
    dice, order = random.Random(SEED - number), list(raws)  # noqa: S311
    arrivals: list[Arrival] = []
    for i, due in enumerate(poisson(rate, seconds, SEED + number)):
        if i % len(order) == 0:
            half = len(order) // 2  # only within halves: the last of one round is never the first of the next
            first, second = order[:half], order[half:]
            dice.shuffle(first)
            dice.shuffle(second)
            order = first + second
        arrivals.append(Arrival(due, order[i % len(order)], address))
    return arrivals


def _said(driven: Driven) -> str:
    cost = driven.driver()
    return f"{cost['cpu_percent_of_a_core']} % of a core, sends {cost['late_ms_p50']} ms late at p50, {cost['late_ms_p99']} ms at p99"


def _floor(seconds: float) -> dict[str, str]:
    """What the driver itself measures: the same load on a bare process that answers at once."""
    if not baselines_python():
        return {}
    bare, said = Bare("direct"), {}
    try:
        bare.start()
        time.sleep(0.2)
        raw = bare.request().raw("127.0.0.1")
        for rate in RATES:
            driven = drive([Arrival(due, raw, bare.address) for due in poisson(rate, seconds, SEED)])
            times = [reply.milliseconds for reply in split(driven)[0]]
            said[f"the driver's floor at {rate}/s"] = (
                f"against a bare process p50 {quantile(times, 0.5):.3g} ms, p99 {quantile(times, 0.99):.3g} ms; driver {_said(driven)}"
            )
    finally:
        bare.stop()
    return said
