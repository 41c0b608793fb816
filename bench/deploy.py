"""deploy: a file was changed; how long until the first answer of the new code, through the command line."""

import subprocess
import time

from bench.contenders import SUBJECTS, Baseline, Dayfly, baselines, cpu_us_per_call
from bench.load import Client
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform


def changed_file(quick: bool) -> Outcome:
    """From starting `dayfly deploy` to the last byte of an answer that only the new code gives."""
    times = 2 if quick else 5
    with Platform() as platform:
        path = platform.write("subject.py", _source(0))
        platform.deploy(path)
        measures = {"dayfly": lambda number: _deploy(platform, [1 + number * times + i for i in range(times)])}
        measures |= {other.name: lambda _, other=other: _restart(other, times) for other in baselines("direct")}  # type: ignore[misc]
        series = alternate(measures, 3)
    method = f"{times} deploys a run of a one-file function through the command line; baselines: ended, started again, first answer"
    return Outcome(series, method)


def _source(revision: int) -> str:
    return (SUBJECTS / "direct.py").read_text().replace("Hello, ", f"Revision {revision}: Hello, ")


def _deploy(platform: Platform, revisions: list[int]) -> Run:
    samples, errors = [], 0
    subject = Dayfly(platform, "subject", "direct")
    raw = subject.request().raw("127.0.0.1")
    before = cpu_seconds([platform.pid])
    for revision in revisions:
        path = platform.write("subject.py", _source(revision))
        begun = time.perf_counter()
        command = [platform.python, "-m", "dayfly", "deploy", str(path)]
        done = subprocess.run(command, env=platform.environment, cwd=platform.folder, capture_output=True, text=True, timeout=60)
        client = Client(platform.address)
        reply = client.call(raw)
        client.close()
        samples.append((time.perf_counter() - begun) * 1000)
        errors += done.returncode != 0 or f"Revision {revision}:".encode() not in reply.body
    return of_latencies(samples, errors, cpu_us_per_call([platform.pid], before, len(revisions)))


def _restart(other: Baseline, times: int) -> Run:
    samples = []
    try:
        other.start()
        for _ in range(times):
            begun = time.perf_counter()
            other.stop()
            other.start()
            samples.append((time.perf_counter() - begun) * 1000)
    finally:
        other.stop()
    return of_latencies(samples)
