"""instance-memory and idle-platform: what it costs to be there without being called."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench.contenders import Baseline, Dayfly, baselines
from bench.load import Client
from bench.outcome import Outcome, Run, alternate, quantile
from bench.processes import cpu_seconds, pss_bytes, uss_bytes
from tests.e2e.harness import Platform, descendants

MB = 1024 * 1024
INSTANCES = 200
# Every call holds its instance until all are there, so that none can serve two.
HOLDING = """import time


def handler(event, context):
    time.sleep(max(0.0, event["until"] - time.time()))
    return {"greeting": "Hello, Ada!"}
"""


def instance_memory(quick: bool) -> Outcome:
    """Private memory of each of 200 idle instances of a trivial function, all helpers of it included."""
    settings = {"instances_max": INSTANCES * 2}
    with Platform(settings=settings) as platform:
        path = platform.write("holding.py", HOLDING)
        platform.deploy(path, "--max-instances", str(INSTANCES), "--keep-alive-seconds", "600", "--timeout-seconds", "60")
        _hold(platform, 1, 0.1)  # whatever a first call brings to life for good is there before we count
        before = set(platform.processes())
        alive = _hold(platform, INSTANCES, 8.0)
        added = [pid for pid in platform.processes() if pid not in before]
        measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda _: _weigh(added, alive - 1)}
        others = baselines("direct")
        try:
            for other in others:
                other.start()
            measures |= {other.name: lambda _, other=other: _weigh_baseline(other) for other in others}  # type: ignore[misc]
            series = alternate(measures, 3)
        finally:
            for other in others:
                other.stop()
    method = "Private_Clean + Private_Dirty of smaps_rollup over every process that the instances brought, divided by their number"
    return Outcome(series, f"{method}; p50 and p99 over processes; baselines: all processes of one server", {"instances": alive})


def _hold(platform: Platform, count: int, seconds: float) -> int:
    """Call `count` times at once, each holding an instance; returns how many instances answered."""
    until = time.time() + seconds
    subject = Dayfly(platform, "holding", "direct")
    body = b'{"until": %f}' % until
    request = subject.request()
    raw = type(request)(request.method, request.path, request.headers, body).raw("127.0.0.1")

    def call(_: int) -> str:
        client = Client(platform.address)
        try:
            reply = client.call(raw)
        finally:
            client.close()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status} {reply.body[:300]!r}")
        return reply.header("x-dayfly-instance")

    with ThreadPoolExecutor(count) as pool:
        return len(set(pool.map(call, range(count))))


def _weigh(pids: list[int], instances: int) -> Run:
    sizes = [size / MB for size in map(uss_bytes, pids) if size]
    return Run(sum(sizes) / max(1, instances), quantile(sizes, 0.5), quantile(sizes, 0.99), errors=int(instances < INSTANCES - 1))


def _weigh_baseline(other: Baseline) -> Run:
    size = sum(uss_bytes(pid) for pid in _tree(other)) / MB
    return Run(size, size, size)


def _tree(other: Baseline) -> list[int]:
    return [pid for root in other.roots() for pid in descendants(root)]


def idle_platform(quick: bool) -> Outcome:
    """Memory (PSS) of all platform processes with a function deployed and nobody calling, and the CPU they still use."""
    seconds = 5.0 if quick else 10.0
    with Platform() as platform:
        path = platform.write("holding.py", HOLDING)
        platform.deploy(path, "--keep-alive-seconds", "0")
        platform.wait_until("no instance is left", "/api/v1/statistics", lambda d: not any(f.get("instances") for f in d["functions"]))
        others = baselines("direct")
        cpu: dict[str, list[float]] = {}
        try:
            for other in others:
                other.start()
            measures: dict[str, Callable[[int], Run]] = {"dayfly": lambda _: _idle("dayfly", platform.processes, seconds, cpu)}
            for other in others:
                measures[other.name] = lambda _, other=other: _idle(other.name, lambda: _tree(other), 1.0, cpu)  # type: ignore[misc]
            series = alternate(measures, 3)
        finally:
            for other in others:
                other.stop()
    percent = {name: round(sum(values) / len(values), 3) for name, values in cpu.items()}
    method = f"PSS of smaps_rollup over all processes; CPU of all of them over 3 windows of {seconds:g} s without a call"
    return Outcome(series, method, {"cpu_percent": percent["dayfly"], "cpu_percent_all": percent})


def _idle(name: str, tree: Callable[[], list[int]], seconds: float, cpu: dict[str, list[float]]) -> Run:
    roots = tree()[:1]
    before, begun = cpu_seconds(roots), time.monotonic()
    time.sleep(seconds)  # the thing that is measured: time in which nothing happens
    elapsed = time.monotonic() - begun
    cpu.setdefault(name, []).append((cpu_seconds(roots) - before) / elapsed * 100)
    size = sum(map(pss_bytes, tree())) / MB
    return Run(size, size, size)
