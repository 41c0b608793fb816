"""A day's calls wait: what others notice of them while they are run, and what it costs that they are there.

`interference`: synchronous calls, once with nothing else to do and once beside a backlog that is being run as fast as it goes; half of
them call the very function that has the backlog. `waiting`: the platform is started with many calls in its file, all of them due, for one
function that begins at once and is slow enough for most of them to wait on. Both put the backlog into the file while the platform is
stopped, by the store's own verb, in batches.
"""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.arrivals import Arrival, drive, poisson, split
from bench.asynchronous import queued
from bench.contenders import SUBJECTS, Dayfly
from bench.outcome import Outcome, Run, Series, quantile
from bench.processes import uss_bytes
from dayfly.control.spill import encode
from dayfly.core.model.durable import Stored, lane_of
from dayfly.core.model.layout import Layout
from dayfly.store.queue import BATCH_MAX, NewItem
from dayfly.store.queue_sqlite import SqliteQueue
from tests.e2e.harness import Platform

START_SECONDS = 4.0  # from the last put to the first steady call, at most
PUT_SECONDS = 25e-6  # one call, at most
RATE = 500.0  # synchronous calls a second, half of them to each function
RUNS = 3
SEED = 5
OTHERS, ITS_OWN = "dayfly", "calls of the function that has the backlog"
MANY, QUICK, FEW = 1_000_000, 100_000, 10_000
LEASED = 256  # by one order
ORDERS = 20
REST_SECONDS = 2.0
LANE = lane_of("default", "backlog")
SLOW = """import time


def handler(event, context):
    time.sleep(0.02)
"""  # at one a time it does not get through them while they are measured
MB = 1024 * 1024


def interference(quick: bool) -> Outcome:
    """p99 of synchronous calls beside a backlog ÷ p99 without."""
    many, calm, loud = (BATCH_MAX * 8, 1.5, 2.0) if quick else (BATCH_MAX * 40, 8.0, 8.0)
    notes: dict[str, str] = {}
    pairs = [_beside(number, (many, calm, loud), notes) for number in range(RUNS)]
    series = [Series(name, [pair[at] for pair in pairs]) for at, name in enumerate((OTHERS, ITS_OWN))]
    method = (
        f"{RATE:g} synchronous calls/s (Poisson, from the due time), half to a function without and half to the one with a backlog of "
        f"{many:,} trivial calls; {calm:g} s while none of them is due, then {loud:g} s while they are run; a platform of its own for each "
        "run; a backlog that did not last counts as an error; p50 and p99 in ms, beside it"
    )
    return Outcome(series, method, {"notes": notes}, (ITS_OWN,))


def _beside(number: int, plan: tuple[int, float, float], notes: dict[str, str]) -> tuple[Run, Run]:
    many, calm, loud = plan
    with Platform() as platform:
        for name in ("quiet", "backlog"):
            platform.put(name, (SUBJECTS / "direct.py").read_text())
        platform.stop()
        begun, due = time.monotonic(), time.time() + calm + many * PUT_SECONDS + START_SECONDS
        _fill(platform, many, due)
        notes["put"] = f"{many:,} calls in {time.monotonic() - begun:.1f} s"
        platform.start()
        _steady(platform, 0.5)
        before = _steady(platform, calm)
        begun_early = queued(platform)["done"]
        time.sleep(max(0.0, due + 0.5 - time.time()))  # it has begun
        beside = _steady(platform, loud)
        left = queued(platform)
    runs = []
    for (quiet, errors_before), (times, errors) in zip(before, beside, strict=True):
        p99 = quantile(times, 0.99)
        runs.append(
            Run(
                p99 / max(1e-6, quantile(quiet, 0.99)),
                quantile(times, 0.5),
                p99,
                errors + errors_before + bool(begun_early or not left["waiting"]),
            )
        )
    notes[f"run {number + 1}"] = (
        f"{left['done']} of the backlog had been run at the end, {left['waiting']} waited, {begun_early} were run too early; p99 without "
        f"them {' and '.join(f'{quantile(times, 0.99):.3g}' for times, _ in before)} ms"
    )
    return runs[0], runs[1]


def _steady(platform: Platform, seconds: float) -> list[tuple[list[float], int]]:
    """(times in ms, errors) of each of the two functions."""
    raws = [Dayfly(platform, name, "direct").request().raw("127.0.0.1") for name in ("quiet", "backlog")]
    arrivals = [Arrival(due, raws[number % 2], platform.address) for number, due in enumerate(poisson(RATE, seconds, SEED))]
    driven = drive(arrivals)
    found = []
    for which in range(2):
        replies, errors = split(driven, [number for number in range(len(arrivals)) if number % 2 == which])
        found.append(([reply.milliseconds for reply in replies], errors))
    return found


def waiting(quick: bool) -> Outcome:
    """Extra memory of the platform's processes, MB; seconds to the first synchronous answer and ms of one lease in series beside."""
    many = QUICK if quick else MANY
    notes: dict[str, str] = {}
    with Platform() as few, Platform() as full:
        for platform in (few, full):
            platform.put("quiet", (SUBJECTS / "direct.py").read_text())
            platform.put("backlog", SLOW, max_instances=1)
        _restarted(full, lambda: _fill(full, many))
        sizes: dict[str, list[float]] = {}
        starts: dict[str, list[float]] = {}
        for _ in range(RUNS):
            for name, platform in ((f"{many:,} waiting", full), ("none waiting", few)):
                starts.setdefault(name, []).append(_restarted(platform))
                time.sleep(REST_SECONDS)  # what is taken for a moment while starting is given back
                sizes.setdefault(name, []).append(_size(platform))
        left = queued(full)
        for platform in (full, few):
            platform.stop()
        _fill(few, FEW)
        leases = {f"{count:,}": _leases(platform) for count, platform in ((many, full), (FEW, few))}
    notes["while it was measured"] = f"{left['done']:,} of them were run, {left['waiting']:,} still waited"
    notes["memory, MB"] = ", ".join(f"{median(those):.1f} with {name}" for name, those in sizes.items())
    lost = many - sum(left.values())
    extra = [one - other for one, other in zip(*sizes.values(), strict=True)]
    series = [
        Series("dayfly", [Run(size, size, size, lost) for size in extra]),
        *[Series(f"s to the first answer, {name}", [Run(took, took, took) for took in those]) for name, those in starts.items()],
        *[Series(f"ms to lease {LEASED} among {name}", [Run(median(ms), median(ms), max(ms))]) for name, ms in leases.items()],
    ]
    _, start, start_without, lease, lease_among_few = (one.name for one in series)
    method = (
        f"{many:,} calls of 100 bytes in the store, all due, of a function that runs some 50 a second; memory: USS of supervisor and roles "
        f"(no zygotes, no instances) {REST_SECONDS:g} s after the start, beside a platform without them; start: `dayfly up` to the first "
        f"synchronous answer of another function, command included; lease: the store's verb for {LEASED} calls, {ORDERS} times, platform "
        "stopped"
    )
    return Outcome(series, method, {"notes": notes}, (start, lease), {start_without: start, lease_among_few: lease})


def _restarted(platform: Platform, between: Callable[[], None] = lambda: None) -> float:
    """Seconds from the command to the first answer."""
    platform.stop()
    between()
    begun = time.monotonic()
    platform.start()
    Dayfly(platform, "quiet", "direct").check()
    return time.monotonic() - begun


def _size(platform: Platform) -> float:
    return sum(uss_bytes(pid) for pid in (platform.pid, *platform.roles().values())) / MB


def _file(platform: Platform) -> Path:
    return Path(Layout(str(platform.data), "").durable_database)


def _fill(platform: Platform, count: int, due: float = 0.0) -> None:
    """So many more calls wait; the platform does not run."""
    body = Dayfly(platform, "backlog", "direct").request().body
    item = encode(Stored(body=body, size=len(body)))
    queue = SqliteQueue(_file(platform))
    try:
        for _ in range(count // BATCH_MAX):
            now = time.time()
            queue.put(
                [NewItem(id=str(uuid.uuid4()), lane=LANE, body=item, accepted_at=now, due=due or now, expires=now + 86_400, priority=4)
                 for _ in range(BATCH_MAX)]
            )  # fmt: skip
    finally:
        queue.close()


def _leases(platform: Platform) -> list[float]:
    """Milliseconds of each order; what is leased stays so, the platform does not run any more."""
    queue, times = SqliteQueue(_file(platform)), []
    try:
        for _ in range(ORDERS):
            now, begun = time.time(), time.perf_counter()
            if len(queue.lease([(LANE, LEASED)], now, now + 60, "bench")) < LEASED:
                raise RuntimeError("the backlog has been run already")
            times.append((time.perf_counter() - begun) * 1000)
    finally:
        queue.close()
    return times
