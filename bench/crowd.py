"""cold-crowd: 200 different functions, none of which has an instance, are called at the same instant."""

from collections.abc import Callable

from bench.arrivals import Arrival, drive, failures, split
from bench.cold import RUNS, deploy, invoke, wait_nothing_runs
from bench.contenders import Bare, Baseline, baselines_python, cpu_us_per_call, free_ports
from bench.origin import Tally
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform

CROWD = 200
PROCESSES = 40  # of the baseline: as many as start within seconds


def at_once(quick: bool) -> Outcome:
    """Milliseconds from the instant until the last of them has its answer; p50 and p99 over the calls."""
    tally = Tally()
    drivers: list[str] = []
    with Platform() as platform:
        names = deploy(platform, CROWD * RUNS, {})
        batches = [names[number * CROWD : (number + 1) * CROWD] for number in range(RUNS)]
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda number: _call(platform, batches[number], tally, drivers)}
        if baselines_python():
            measures[f"{CROWD} bare processes"] = lambda _: processes_at_once(PROCESSES, CROWD)
        series = alternate(measures, RUNS)
    method = (
        f"{CROWD} connections made before, one call on each at the same instant, each of a function that was never called before; value "
        f"is the time until all are answered; baseline: {PROCESSES} bare handler processes started at once and called, "
        f"its time × {CROWD // PROCESSES}"
    )
    notes = {"driver, % of a core in each run": ", ".join(drivers)}
    return Outcome(series, method, {"origins": {"dayfly": tally.document()}, "notes": notes})


def _call(platform: Platform, names: list[str], tally: Tally, drivers: list[str]) -> Run:
    wait_nothing_runs(platform)
    arrivals = [Arrival(0.0, invoke(platform, name), platform.address) for name in names]
    before = cpu_seconds([platform.pid])
    driven = drive(arrivals, connections=len(arrivals))
    replies, errors = split(driven)
    cold, warm = tally.take(replies)
    drivers.append(f"{100 * driven.cpu_share:.0f}{failures(driven)}")
    each = of_latencies(cold, errors + warm, cpu_us_per_call([platform.pid], before, len(names)))
    return Run(max(cold, default=0.0), each.p50, each.p99, each.errors, each.cpu_us, each.samples)


def processes_at_once(count: int, crowd: int, weigh: Callable[[list[int]], None] = lambda _: None) -> Run:
    """The same crowd without us: a bare handler process each, all begun, then each called. The whole time is scaled from `count` processes
    to `crowd`. `weigh` sees their pids while they live."""
    processes: list[Baseline] = [Bare("direct") for _ in range(count)]
    try:
        begun = [process.begin(port) for process, port in zip(processes, free_ports(count), strict=True)]
        ends = [process.first_answer() for process in processes]
        pids = [pid for process in processes for pid in process.roots()]
        weigh(pids)
        cpu = cpu_seconds(pids)
    finally:
        for process in processes:
            process.stop()
    times = [(end - start) * 1000 for start, end in zip(begun, ends, strict=True)]
    each = of_latencies(times, cpu_us=cpu * 1e6 / count)
    return Run((max(ends) - begun[0]) * 1000 * crowd / count, each.p50, each.p99, 0, each.cpu_us)
