"""registry-10k: ten thousand functions are registered and nobody calls them. What do they cost the processes that are there anyway, and
the calls of others: is a name among ten thousand found as soon as one among ten?

Each has code of its own and a route of its own beside /function/NAME. A quick run registers fewer, and one whose platform takes too long
as many as it can; memory is then scaled, and the report says how many there were. Scaled from few it is too much: pages that processes take
once, whatever the number, are scaled, too.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench.contenders import SUBJECTS, Dayfly, cpu_us_per_call
from bench.load import Request, closed_loop
from bench.outcome import Outcome, Run, Series, alternate
from bench.processes import cpu_seconds, uss_bytes
from tests.e2e.harness import Platform

MANY, FEW = 10_000, 10
QUICK = 600
FIRST = 100  # of the many: what the first deploys bring to life for good is there before memory is weighed
DEPLOYERS = 8
REGISTER_SECONDS_MAX = 180.0
CONNECTIONS = 64
RUNS = 3
MB = 1024 * 1024
SETTLE_SECONDS = 6.0  # after the last instance: the gateway lets go of a proved version after two seconds, of its numbers after two reports
IDLE_SECONDS = 3.0

Measures = dict[str, Callable[[int], Run]]


def idle_functions(quick: bool) -> Outcome:
    """Extra memory of all platform processes, MB. Lookup: the gateway's CPU µs per call in series beside."""
    wanted, seconds = (QUICK, 1.0) if quick else (MANY, 2.0)
    notes: dict[str, str] = {}
    with ExitStack() as stack:
        few, full = (stack.enter_context(Platform()) for _ in range(2))
        _register(few, 0, FEW)
        _register(full, 0, FIRST)
        before = _settled_sizes(full)
        begun = time.monotonic()
        many = _register(full, FIRST, wanted)
        took = time.monotonic() - begun
        scale = MANY / (many - FIRST)
        memory = Series("dayfly", [_extra(full, before, scale, notes) for _ in range(RUNS)])
        names = [f"CPU µs of a call {how}, {count:,} functions" for how in ("by name", "by route") for count in (many, FEW)]
        measures: Measures = dict(
            zip(
                names,
                (
                    lambda _: _call(full, _by_name(full, many), seconds),
                    lambda _: _call(few, _by_name(few, FEW), seconds),
                    lambda _: _call(full, _by_route(full, many), seconds),
                    lambda _: _call(few, _by_route(few, FEW), seconds),
                ),
                strict=True,
            )
        )
        lookups = alternate(measures, RUNS)
    scaled = f"; memory is that of all but the first {FIRST}, scaled by {scale:.3g}"
    notes["registered"] = f"{many:,} in {took:.0f} s through the API, {1000 * took / (many - FIRST):.3g} ms each{scaled}"
    method = (
        f"{many:,} functions with code and a route of their own, none with an instance; memory: USS of supervisor and roles (no zygotes, "
        f"no sandboxes), after − before, {SETTLE_SECONDS:g} s after the last instance that proved a deploy has ended: what goes by the "
        f"clock is gone by then; lookup: {CONNECTIONS} connections, {seconds:g} s a run, the value is CPU of the *gateway* per "
        f"call, of a platform with {many:,} beside one with {FEW}; p50 and p99 in ms"
    )
    return Outcome([memory, *lookups], method, {"notes": notes}, (names[0], names[2]), {names[1]: names[0], names[3]: names[2]})


def _register(platform: Platform, first: int, end: int) -> int:
    """Functions f<first> to f<end - 1>, as far as the time goes. Returns the number of the first that is not there."""
    source, last = (SUBJECTS / "proxy.py").read_text(), time.monotonic() + REGISTER_SECONDS_MAX

    def put(number: int) -> bool:
        if time.monotonic() > last:
            return False
        route = [{"path": f"/f{number}/{{rest+}}"}]
        platform.put(f"f{number}", f"{source}\n# f{number}: no two share their code\n", route=route, keep_alive_seconds=0)
        return True

    with ThreadPoolExecutor(DEPLOYERS) as pool:
        there = list(pool.map(put, range(first, end)))
    return first + (there.index(False) if False in there else len(there))


def _settled_sizes(platform: Platform) -> dict[str, float]:
    """MB by role, when instances that proved the deploys have ended and the roles let go what is let go by the clock."""
    nothing = "no instance is left of the deploys"
    platform.wait_until(nothing, "/api/v1/statistics", lambda said: not any(one.get("instances") for one in said["functions"]), seconds=60)
    time.sleep(SETTLE_SECONDS)
    return {role: uss_bytes(pid) / MB for role, pid in ({"supervisor": platform.pid} | platform.roles()).items()}


def _extra(platform: Platform, before: dict[str, float], scale: float, notes: dict[str, str]) -> Run:
    extra = {role: (size - before.get(role, 0.0)) * scale for role, size in _settled_sizes(platform).items()}
    notes["CPU while nobody calls, % of a core"] = ", ".join(f"{role} {percent:.2g}" for role, percent in _idle(platform).items())
    notes["extra memory, MB"] = ", ".join(f"{role} {size:.3g}" for role, size in extra.items())
    size = sum(extra.values())
    return Run(size, size, size)


def _idle(platform: Platform) -> dict[str, float]:
    """What the roles do while nobody calls: a walk through all functions every now and then would show here."""
    roles = platform.roles()
    before = {role: cpu_seconds([pid]) for role, pid in roles.items()}
    time.sleep(IDLE_SECONDS)  # the thing that is measured: time in which nothing happens
    return {role: 100 * (cpu_seconds([pid]) - before[role]) / IDLE_SECONDS for role, pid in roles.items()}


def _by_name(platform: Platform, count: int) -> Request:
    return Dayfly(platform, f"f{count - 1}", "proxy").request()


def _by_route(platform: Platform, count: int) -> Request:
    named = _by_name(platform, count)
    return Request(named.method, f"/f{count - 1}/greet/ada?name=Ada&lang=en", named.headers)


def _call(platform: Platform, request: Request, seconds: float) -> Run:
    gateway = [platform.roles()["gateway"]]
    closed_loop(platform.address, request, CONNECTIONS, 1.0)  # an instance is there
    before = cpu_seconds(gateway)
    run, calls = closed_loop(platform.address, request, CONNECTIONS, seconds)
    cpu_us = cpu_us_per_call(gateway, before, calls)
    return Run(cpu_us, run.p50, run.p99, run.errors, cpu_us)
