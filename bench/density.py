"""density and density-stop: a thousand and five thousand idle instances; what they cost to start, to have and to be rid of.

Instances are brought up the way a burst does: one call each, all at the same instant, of twenty functions; a call holds its instance until
all are there, so that none serves two, and each says when it began to serve. What holds them is a lock on their own code's file, which we
have and they wait for: it costs them nothing, it is ours to open as soon as the last one waits, and the kernel counts who does.
"""

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.arrivals import Arrival, drive, failures, split
from bench.contenders import baselines_python
from bench.crowd import processes_at_once
from bench.load import Reply, Request
from bench.outcome import Outcome, Run, alternate, quantile
from bench.processes import machine_memory, page_table_bytes, slab_memory, uss_bytes
from tests.e2e import leaks
from tests.e2e.harness import Platform

MB = 1024 * 1024
FUNCTIONS = 20
HOLD_SECONDS_MAX = 240.0  # four times what 5,000 may take: a slow machine is a slow figure, not an error
LOOK_SECONDS = 1.0  # a look costs some milliseconds for each thousand that wait
PROCESSES = 40  # of the baseline
GONE_SECONDS_MAX = 15.0
CACHES = 4  # of the kernel's objects: those that grew most
# When it began to serve, not when its module was imported: that may have happened in a template, for all of them at once. Each function has
# a gate of its own: at one for all, each who comes would be compared by the kernel with all who wait.
HOLDING = """# {number}
import fcntl
import os
import time


def handler(event, context):
    there = time.time()
    gate = os.open(__file__, os.O_RDONLY)
    fcntl.flock(gate, fcntl.LOCK_SH)
    os.close(gate)
    return {{"greeting": "Hello, Ada!", "there": there}}
"""
# What the kernel keeps for instances outside of their own pages and page tables, by the names of /proc/meminfo.
KERNEL = ("SUnreclaim", "SReclaimable", "KernelStack", "Percpu")


@dataclass
class Weight:
    """Memory of each instance, in MB. `machine` is the fall of MemAvailable: all of it, gateway's and node's part included."""

    uss: float
    page_tables: float
    kernel: float
    machine: float
    kernel_parts: dict[str, float]
    caches: dict[str, float]  # of the slabs, those that grew most; where only root may ask, none

    @property
    def all_in(self) -> float:
        return self.uss + self.page_tables + self.kernel

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:.3f}" for name, size in self.kernel_parts.items())
        parts += "; most in " + ", ".join(f"{name} {size:.3f}" for name, size in self.caches.items()) if self.caches else ""
        return (
            f"{self.all_in:.2f} MB each, all in: USS {self.uss:.2f}, page tables {self.page_tables:.2f}, "
            f"kernel {self.kernel:.2f} ({parts}); MemAvailable fell by {self.machine:.2f}"
        )


def started(quick: bool) -> Outcome:
    """Seconds from the first call until the last instance serves; p50 and p99 over instances, in milliseconds."""
    weights: dict[str, list[Weight]] = {}
    sizes = (1000,) if quick else (1000, 5000)
    bare: list[float] = []
    measures: dict[str, Callable[[int], Run]] = {
        f"{count:,}": lambda _, count=count: _start_and_weigh(count, weights.setdefault(f"{count:,}", []))  # type: ignore[misc]
        for count in sizes
    }
    if baselines_python():
        measures["1,000 bare processes"] = lambda _: _bare(bare)
    series = alternate(measures, 1 if quick else 3)
    method = (
        f"one call per instance, all at the same instant, of {FUNCTIONS} functions, each holding its instance until all are there; "
        f"kernel: growth of {', '.join(KERNEL)} in /proc/meminfo, and the slab caches that grew most (kmalloc-1k: a memory group has one "
        "for each 64 file systems that were ever mounted at once since boot, three by each instance); "
        f"baseline: {PROCESSES} bare handler processes at once, their time scaled to 1,000"
    )
    notes = {f"memory of {name}": "; ".join(map(str, each)) for name, each in weights.items()}
    if bare:
        notes["memory of a bare process"] = f"{quantile(bare, 0.5):.2f} MB (USS and page tables)"
    more = {"memory_mb_each": {name: [round(one.all_in, 3) for one in each] for name, each in weights.items()}, "notes": notes}
    return Outcome(series, method, more, tuple(f"{count:,}" for count in sizes[1:]))


def stopped(quick: bool) -> Outcome:
    """Seconds from SIGTERM until the platform has ended and nothing of it is left; an error is something that was left."""
    count = 1000
    notes: dict[str, str] = {}
    leaks.adopt_orphans()
    series = alternate({"dayfly": lambda number: _stop(count, number, notes)}, 1 if quick else 3)
    method = (
        f"{count:,} idle instances of {FUNCTIONS} functions; SIGTERM to the supervisor; from then until it has ended and no process, "
        "control group, mount or socket of it is left"
    )
    return Outcome(series, method, {"notes": notes})


def _platform(count: int) -> Platform:
    return Platform(settings={"instances_max": count + 100})


def _start_and_weigh(count: int, weights: list[Weight]) -> Run:
    with _platform(count) as platform:
        _prepare(platform, count)
        before, slabs, there = machine_memory(), slab_memory(), set(platform.processes())
        run = _fill(platform, count)
        time.sleep(1.0)  # what is made again for the next start is made
        after, grown = machine_memory(), {name: size - slabs.get(name, 0) for name, size in slab_memory().items()}
        weights.append(_weigh(before, after, grown, [pid for pid in platform.processes() if pid not in there]))
    return run


def _weigh(before: dict[str, int], after: dict[str, int], slabs: dict[str, int], pids: list[int]) -> Weight:
    """Of those that have come: each function had one instance already, which its deploy proved."""
    count = len(pids)
    most = sorted(slabs, key=lambda name: -slabs[name])[:CACHES]
    parts = {name: (after.get(name, 0) - before.get(name, 0)) / count / MB for name in KERNEL}
    return Weight(
        uss=sum(map(uss_bytes, pids)) / count / MB,
        page_tables=sum(map(page_table_bytes, pids)) / count / MB,
        kernel=sum(parts.values()),
        machine=(before["MemAvailable"] - after["MemAvailable"]) / count / MB,
        kernel_parts=parts,
        caches={name: slabs[name] / count / MB for name in most},
    )


def _prepare(platform: Platform, count: int) -> None:
    config = {"keep_alive_seconds": 3600, "timeout_seconds": 300, "queue_max": 10_000}
    for number in range(FUNCTIONS):
        platform.put(f"holding{number}", HOLDING.format(number=number), namespace="default", **config, max_instances=-(-count // FUNCTIONS))


def _fill(platform: Platform, count: int) -> Run:
    names = [f"holding{number % FUNCTIONS}" for number in range(count)]
    replies, begun_at, errors = _hold(platform, names)
    instances = len({reply.header("x-dayfly-instance") for reply in replies})
    times = [at - begun_at for at in _served_at(replies)]
    milliseconds = [1000 * seconds for seconds in times]
    missing = max(0, count - instances - errors)
    return Run(max(times, default=0.0), quantile(milliseconds, 0.5), quantile(milliseconds, 0.99), errors + missing)


def _hold(platform: Platform, names: list[str]) -> tuple[list[Reply], float, int]:
    """A call of each name at once, all held until the last one is there. Returns the answers, when they were sent, and how many failed."""
    headers = {"Authorization": f"Bearer {platform.token}", "Content-Type": "application/json"}
    raws = [Request("POST", f"/api/v1/functions/{name}/invoke", headers, b"{}").raw("127.0.0.1") for name in names]
    with _gate(platform, len(names)):
        driven = drive([Arrival(0.0, raw, platform.address) for raw in raws], connections=len(raws), drain_seconds=HOLD_SECONDS_MAX + 60)
    replies, errors = split(driven)
    if errors:
        sys.stderr.write(f"density: {errors} of {len(raws)} calls failed{failures(driven)}\n{platform.log_text()[-2000:]}\n")
    return replies, driven.begun_at, errors


@contextmanager
def _gate(platform: Platform, count: int) -> Iterator[None]:
    """Shut until `count` instances wait at it, HOLD_SECONDS_MAX at most."""
    left = threading.Event()

    def watch() -> None:
        until = time.monotonic() + HOLD_SECONDS_MAX
        while not left.wait(LOOK_SECONDS) and time.monotonic() < until and _waiting(inodes) < count:
            pass
        opened.close()  # and each lock with its file

    with ExitStack() as opened:
        files = [opened.enter_context(path.open("rb")) for path in (platform.data / "code").glob("*/handler.py")]
        for file in files:
            fcntl.flock(file, fcntl.LOCK_EX)
        inodes = {str(os.fstat(file.fileno()).st_ino) for file in files}
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            left.set()
            watcher.join()


def _waiting(inodes: set[str]) -> int:
    """Processes that wait for a lock on one of these files (proc_locks(5)), each once: what is read in parts may repeat itself."""
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return len({words[5] for words in lines if words[1:3] == ["->", "FLOCK"] and words[6].rpartition(":")[2] in inodes})


def _served_at(replies: Iterable[Reply]) -> list[float]:
    return [float(json.loads(reply.body)["there"]) for reply in replies]


def _bare(sizes: list[float]) -> Run:
    def weigh(pids: list[int]) -> None:
        sizes.extend((uss_bytes(pid) + page_table_bytes(pid)) / MB for pid in pids)

    run = processes_at_once(PROCESSES, 1000, weigh)
    return Run(run.value / 1000, run.p50, run.p99, 0, run.cpu_us)


def _stop(count: int, number: int, notes: dict[str, str]) -> Run:
    before = _network_namespaces()
    with _platform(count) as platform:
        _prepare(platform, count)
        filled = _fill(platform, count)
        process, alive, namespaces = platform.process, len(platform.processes()), _network_namespaces()
        assert process is not None
        begun = time.perf_counter()
        process.terminate()
        status = process.wait(60)
        ended = time.perf_counter() - begun
        left = [*leaks.wait_gone(platform.folder, seconds=GONE_SECONDS_MAX), *leaks.strays()]
        whole = time.perf_counter() - begun
        freed, last = _wait_namespaces(begun, before)
    notes[f"run {number + 1}"] = (
        f"{alive:,} processes; the supervisor ended after {ended:.2f} s with status {status}, nothing left after {whole:.2f} s; "
        f"network namespaces in the kernel {before} before, {namespaces} meanwhile, {last} after {freed:.2f} s"
        f"{'; left: ' if left else ''}{'; '.join(left[:5])}"
    )
    return Run(whole, whole * 1000, whole * 1000, filled.errors + len(left) + (status != 0))


def _network_namespaces() -> int:
    """Network namespaces that the kernel still holds, to within a few; -1 where only root may ask."""
    with suppress(OSError):
        for line in Path("/proc/slabinfo").read_text().splitlines():
            if line.startswith("net_namespace "):
                return int(line.split()[1])
    return -1


def _wait_namespaces(begun: float, before: int) -> tuple[float, int]:
    """Until they are as few as before. The kernel takes them apart after their processes have ended, and its count is of slabs."""
    slack = 16 * (os.cpu_count() or 1)
    while (now := _network_namespaces()) > before + slack and time.perf_counter() - begun < GONE_SECONDS_MAX:
        time.sleep(0.02)
    return time.perf_counter() - begun, now
