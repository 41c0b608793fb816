"""The command behind scripts/bench: lists the benchmarks, or runs one, prints it, and with --save keeps it.

`python -m bench [NAME] [--quick] [--json] [--save]`. Exit status 1 when a call failed: a figure with errors is none.
"""

import argparse
import json
import signal
import sys

from bench import machine, report
from bench.contenders import baselines_python
from bench.figures import BENCHMARKS


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
            print(f"{one.name:18} {one.about}; floor: {one.floor}")
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
