"""The command behind scripts/bench: lists the benchmarks, or runs one, prints it, and with --save keeps it.

`python -m bench [NAME] [--quick] [--json] [--save]`. Exit status 1 when a call failed: a figure with errors is none.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench import cold, crowd, density, deploy, footprint, heavy, keepalive, machine, neighbour, report, sustained, warm
from bench.contenders import baselines_python
from bench.outcome import Outcome


@dataclass(frozen=True)
class Benchmark:
    """A figure: what it says, its unit, its floor in words, and what takes it (`quick` → outcome)."""

    name: str
    about: str
    unit: str
    floor: str
    measure: Callable[[bool], Outcome]


BENCHMARKS = (
    Benchmark(
        "cold-trivial",
        "first call ever of a trivial function, whole HTTP call, full isolation",
        "ms",
        "p50 ≤ 6 ms, p99 ≤ 25 ms",
        cold.trivial,
    ),
    Benchmark(
        "cold-prepared",
        "the same from a prepared sandbox",
        "ms",
        "p50 ≤ 2.5 ms, p99 ≤ 8 ms; goal p50 ≤ 1.2 ms, p99 ≤ 4 ms",
        cold.prepared,
    ),
    Benchmark(
        "cold-fork",
        "the same forked on demand, no prepared sandbox on the machine",
        "ms",
        "p50 ≤ 5 ms, p99 ≤ 15 ms; goal p50 ≤ 3.5 ms, p99 ≤ 8 ms",
        cold.fork,
    ),
    Benchmark(
        "cold-template",
        "cold call of functions that import numpy, Flask, pandas, forked on demand from their templates",
        "ms",
        "p50 ≤ 7 / 9 / 12 ms; goal ≤ 4.5 / 6.5 / 9 ms",
        heavy.template,
    ),
    Benchmark(
        "cold-ahead",
        "the same from a template's child made ahead",
        "ms",
        "p50 ≤ 2.5 / 3 / 4 ms; goal ≤ 1.2 / 1.6 / 2.5 ms",
        heavy.ahead,
    ),
    Benchmark("cold-import", "the same with a fresh import, for comparison", "ms", "none: reported", heavy.fresh_import),
    Benchmark(
        "cold-sustained",
        "60 s in which every call is cold, Poisson arrivals, teardown and refill included; p99",
        "ms",
        "300/s at p99 ≤ 15 ms; goal 500/s at p99 ≤ 8 ms",
        sustained.all_cold,
    ),
    Benchmark(
        "cold-crowd",
        "200 different cold functions called at the same instant, until all are answered",
        "ms",
        "≤ 600 ms, 0 errors; goal ≤ 200 ms",
        crowd.at_once,
    ),
    Benchmark(
        "density",
        "1,000 (and 5,000) idle instances: seconds to start them all, memory of each, all in",
        "s",
        "≤ 4 s / ≤ 60 s, ≤ 1.7 MB each; goal ≤ 2.5 s / ≤ 25 s, ≤ 1.3 MB each",
        density.started,
    ),
    Benchmark("density-stop", "stop of a platform with 1,000 instances, nothing left behind", "s", "≤ 3 s; goal ≤ 1 s", density.stopped),
    Benchmark(
        "neighbour",
        "warm p99 of a function while another bursts 200 cold starts, against before",
        "times",
        "≤ 2 ×; goal ≤ 1.3 ×",
        neighbour.during_a_burst,
    ),
    Benchmark("warm-direct", "direct invoke, 100 B of JSON, 64 connections", "calls/s", "≥ 25,000/s, 0 errors", warm.direct),
    Benchmark("warm-event", "whole HTTP event in, proxy answer out, 64 connections", "calls/s", "≥ 15,000/s, 0 errors", warm.event),
    Benchmark("instance-memory", "own memory (USS) of an idle trivial instance, 200 alive", "MB", "≤ 2 MB", footprint.instance_memory),
    Benchmark("deploy", "`dayfly deploy` of a changed file to its first answer", "ms", "< 1000 ms", deploy.changed_file),
    Benchmark(
        "idle-platform",
        "memory (PSS) of all platform processes, nobody calling",
        "MB",
        "≤ 200 MB, ≤ 1 % of a core",
        footprint.idle_platform,
    ),
    Benchmark(
        "keepalive-sim",
        "cold share at the 75th percentile of applications, fixed 10 minutes ÷ learned, at equal wasted memory",
        "×",
        "≥ 2 ×",
        keepalive.simulated,
    ),
)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Takes one of Dayfly's figures, beside its baselines.")
    parser.add_argument("name", nargs="?", choices=[one.name for one in BENCHMARKS])
    parser.add_argument("--quick", action="store_true", help="within 40 seconds; figures are rougher")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", action="store_true", help="keep machine, method and every run in bench/results/")
    options = parser.parse_args()
    if options.name is None:
        for one in BENCHMARKS:
            print(f"{one.name:16} {one.about}; floor: {one.floor}")
        return 0
    benchmark = next(one for one in BENCHMARKS if one.name == options.name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `with` blocks, so that nothing stays behind
    before = machine.Busy.now()
    outcome = benchmark.measure(options.quick)
    document = outcome.document(benchmark.name, benchmark.unit)
    full = (
        document
        | outcome.more
        | {
            "floor": benchmark.floor,
            "quick": options.quick,
            "compared": bool(baselines_python()),
            "method": outcome.method,
            "machine": machine.facts() | before.until(machine.Busy.now()),
            "values": {one.name: [round(run.value, 3) for run in one.runs] for one in outcome.series},
        }
    )
    print(json.dumps(document | outcome.more) if options.json else report.text(full))
    if options.save:
        report.save(full)
    return 1 if outcome.errors() else 0


if __name__ == "__main__":
    sys.exit(main())
