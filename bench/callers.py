"""The load driver of the figures with a fixed rate or with several kinds of calls: processes of bench/caller.py, begun together.

wrk keeps no rate, knows one kind of call's times only and forgets why a call failed; one process of ours makes some 50,000 calls a
second at most, so the work is split. Used by mixed.py, million.py, overload.py and restart.py.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.caller import Plan
from bench.tally import Tally
from tests.e2e.harness import end_with_parent

LEAD_SECONDS = 0.1  # from "go" to the first call
START_SECONDS_MAX = 60.0


class Callers:
    """Drivers that run. `wait()` for what came of it."""

    def __init__(self, plan: Plan, processes: int) -> None:
        self.plans = shares(plan, processes)
        self.running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start the processes, let all connect, and let them go at the same instant. Raises RuntimeError."""
        for plan in self.plans:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.caller"],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=end_with_parent,
            )
            self.running.append(process)
            self._say(process, msgspec.json.encode(plan) + b"\n")
        for process in self.running:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a driver could not connect to {self.plans[0].address}")
        begin_at = time.monotonic() + LEAD_SECONDS
        for process in self.running:
            self._say(process, b"%f\n" % begin_at)

    @staticmethod
    def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()

    def wait(self) -> Tally:
        """All of them together, when the last has ended. Raises RuntimeError, subprocess.TimeoutExpired."""
        merged, plan = Tally(), self.plans[0]
        for process in self.running:
            said, _ = process.communicate(timeout=plan.seconds + plan.drain_seconds + START_SECONDS_MAX)
            if process.returncode:
                raise RuntimeError(f"a driver ended with status {process.returncode}")
            merged.merge(msgspec.json.decode(said, type=Tally))
        return merged

    def end(self) -> None:
        """Safe to call again."""
        for process in self.running:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self.running.clear()


@contextmanager
def calling(plan: Plan, processes: int = 1) -> Iterator[Callers]:
    """The drivers run while the body does something else; it ends with `wait()`."""
    callers = Callers(plan, processes)
    try:
        callers.begin()
        yield callers
    finally:
        callers.end()


def call_all(plan: Plan, processes: int = 1) -> Tally:
    """The same with nothing else to do."""
    with calling(plan, processes) as callers:
        return callers.wait()


def shares(plan: Plan, processes: int) -> list[Plan]:
    """A plan of `processes` parts that take turns: together they keep the rate, evenly spaced, on as many connections."""
    parts = []
    for number in range(processes):
        connections = plan.connections // processes + (number < plan.connections % processes)
        offset = number / plan.per_second if plan.per_second else 0.0
        per_second = plan.per_second / processes
        changed = {"connections": connections, "per_second": per_second, "offset_seconds": offset, "seed": plan.seed + number}
        parts.append(msgspec.structs.replace(plan, **changed))
    return parts
