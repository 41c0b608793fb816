"""The job queues that ours is compared with: Celery on Redis, and NATS JetStream, each asked to be as durable as we are.

Both are private processes on a Unix socket or the loopback, their files in a folder of their own, all gone with `stop`. Redis is Debian's,
fetched and unpacked by scripts/bench (DAYFLY_BENCH_REDIS: its program); NATS comes from PyPI into the baselines' environment. Jobs are
made and counted by bench/subjects/jobs*.py in that environment. Used by bench/asynchronous.py.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contenders import START_SECONDS_MAX, SUBJECTS, baselines_python, cpu_us_per_call, free_port
from bench.outcome import Run, of_latencies
from bench.processes import cpu_seconds
from tests.e2e.harness import descendants, end_with_parent

DRIVER_SECONDS_MAX = 600.0
NATS = """
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{folder}/store", sync_interval: always }}
"""


class JobQueue:
    """Somebody else's queue and its workers. Subclasses say how they are started."""

    name = ""
    script = ""

    def __init__(self) -> None:
        self.folder = Path()
        self.address = ""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.notes: dict[str, str] = {}

    def start(self, *, workers: bool) -> None:
        """Its server and, if wanted, its workers. Raises RuntimeError."""
        self.folder = Path(tempfile.mkdtemp(prefix="jobs-"))
        try:
            self.serve()
            if workers:
                self.work(len(os.sched_getaffinity(0)))
                self.driven("latency", "3")  # they take jobs
        except BaseException:
            self.stop()
            raise

    def serve(self) -> None:
        """Start the server; returns when it answers."""
        raise NotImplementedError

    def work(self, cores: int) -> None:
        """Start the workers."""
        raise NotImplementedError

    def accept(self, seconds: float, in_flight: int) -> Run:
        """Jobs made durable a second, nobody running any."""
        return self._measured("accept", seconds, in_flight)

    def settle(self, seconds: float, in_flight: int, limit: float) -> Run:
        """The same with workers: results kept a second, from the first job made to the last result, or until `limit` seconds are over."""
        return self._measured("settle", seconds, in_flight, limit)

    def latency(self, count: int) -> Run:
        """One job after the other: from sending it to the handler's first line."""
        before = cpu_seconds(self.roots())
        times = self.driven("latency", str(count))["times"]
        return of_latencies(times, cpu_us=cpu_us_per_call(self.roots(), before, count))

    def _measured(self, verb: str, seconds: float, in_flight: int, *more: float) -> Run:
        before = cpu_seconds(self.roots())
        said = self.driven(verb, str(seconds), str(in_flight), *map(str, more))
        if any(process.poll() is not None for process in self.processes):
            raise RuntimeError(f"a process of {self.name} has ended: {self.log()}")
        self.notes[f"{self.name}'s producers"] = f"{said['producers_cpu_us']:.0f} µs of processor time a job, not in the table"
        cpu_us = cpu_us_per_call(self.roots(), before, said["calls"])
        return Run(said["calls"] / said["seconds"], said["p50"], said["p99"], 0, cpu_us)

    def driven(self, verb: str, *arguments: str) -> dict[str, Any]:
        """What the script says of one verb. Raises RuntimeError."""
        command = [baselines_python(), self.script, verb, self.address, *arguments]
        done = subprocess.run(
            command,
            cwd=SUBJECTS,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS_MAX,
            preexec_fn=end_with_parent,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}
        return said

    def begin(self, *command: str) -> subprocess.Popen[bytes]:
        """One process of it. What it says is kept until `stop`."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=SUBJECTS,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        """The end of what its processes said."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"JOBS_ADDRESS": self.address}

    def reached(self, family: socket.AddressFamily, address: str | tuple[str, int]) -> None:
        """Wait until somebody listens there. Raises RuntimeError."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            with suppress(OSError), socket.socket(family) as probe:
                probe.connect(address)
                return
            time.sleep(0.01)  # a server that is not listening yet tells nobody when it does
        raise RuntimeError(f"{self.name} does not start: {self.log()}")

    def roots(self) -> list[int]:
        """Pids whose trees are all that it runs."""
        return [process.pid for process in self.processes]

    def stop(self) -> None:
        """End all of it and remove its files; safe to call again."""
        for process in self.processes:
            for pid in reversed(list(descendants(process.pid))):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait(10)
        self.processes.clear()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()


class Celery(JobQueue):
    """The usual one: prefork workers, one per core; Redis writes and syncs its file before it answers."""

    name = "Celery + Redis"
    script = "jobs_celery.py"

    def serve(self) -> None:
        self.address = str(self.folder / "redis.sock")
        durable = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--save", "")
        self.begin(redis(), "--port", "0", "--unixsocket", self.address, "--dir", str(self.folder), *durable)
        self.reached(socket.AF_UNIX, self.address)

    def work(self, cores: int) -> None:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
        worker = ("-m", "celery", "-A", "jobs_celery", "worker", "--pool", "prefork", "--concurrency", str(cores), *quiet)
        self.begin(baselines_python(), *worker)


class Nats(JobQueue):
    """A log server in Go with a client in Python; every message is synced by itself."""

    name = "NATS JetStream"
    script = "jobs_nats.py"

    def serve(self) -> None:
        port = free_port()
        self.address = f"nats://127.0.0.1:{port}"
        configuration = self.folder / "nats.conf"
        configuration.write_text(NATS.format(port=port, folder=self.folder))
        self.begin(nats_server(), "--config", str(configuration))
        self.reached(socket.AF_INET, ("127.0.0.1", port))
        self.driven("prepare")

    def work(self, cores: int) -> None:
        for _ in range(cores):
            self.begin(baselines_python(), self.script, "work", self.address)


def redis() -> str:
    """Its program; scripts/bench fetches it where Debian's archive can be had."""
    return os.environ.get("DAYFLY_BENCH_REDIS", "")


def nats_server() -> str:
    """Its program, '' where it is not."""
    beside = Path(baselines_python()).parent / "nats-server"
    return str(beside) if baselines_python() and beside.exists() else ""


def job_queues() -> list[JobQueue]:
    """Those that can be run here."""
    return [*([Celery()] if baselines_python() and redis() else []), *([Nats()] if nats_server() else [])]


def missing() -> dict[str, str]:
    """For the report: which of them could not be had."""
    gone = [*([] if redis() else ["Redis (apt-get could not fetch it)"]), *([] if nats_server() else ["NATS"])]
    return {"without": ", ".join(gone)} if baselines_python() and gone else {}
