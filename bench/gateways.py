"""What several gateways share, and what that costs: `python -m bench.gateways`. Processor time: it moves less with other load than rates.

Not one of the figures of `scripts/bench` (those may be taken with `gateways=2`): it measures the parts that docs/performance.md reckons
with when it says what happens on 16 and 64 cores.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dayfly.control.statistics import Sums
from dayfly.core.decide.share import Most
from dayfly.core.model.records import FunctionStatistics, GatewayStatistics
from dayfly.core.wire import link
from dayfly.gateway.commons import Commons
from tests.e2e.harness import Platform

HANDLER = "def handler(event, context):\n    return event\n"
TICKS = os.sysconf("SC_CLK_TCK")


def per_call(work: Callable[[], object], times: int) -> float:
    """Microseconds of this process's time."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


def of_places(instances: int) -> float:
    """Taking a place and giving it back on a machine that is full but for one."""
    fd = os.memfd_create("commons")
    commons = Commons(fd, 0, Most(instances, instances))
    for number in range(instances - 1):
        commons.take(("default", f"f{number % 50}", 1), instances)

    def work() -> None:
        place, _ = commons.take(("default", "f", 1), instances)
        assert place is not None
        commons.give(place)

    return per_call(work, 300)


def of_statistics(functions: int) -> float:
    """What control does with one gateway's word of a second: all of its functions."""
    numbers = [FunctionStatistics(namespace="default", function=f"f{number}", calls=number) for number in range(functions)]
    statistics = GatewayStatistics(gateway="g", at=time.time(), functions=numbers)
    message, sums = link.encode(link.Statistics(statistics))[link.LENGTH_BYTES :], Sums()

    def work() -> None:
        found = link.decode_to_control(message)
        assert isinstance(found, link.Statistics)
        sums.put(("g", 1), found.statistics)

    return per_call(work, 20)


def of_calls(platform: Platform, name: str, seconds: int) -> tuple[float, float]:
    """(calls a second, microseconds of all gateways for each) under wrk with 64 connections."""
    lines = ('wrk.method = "POST"', """wrk.body = '{"a": 1}'""", f'wrk.headers["Authorization"] = "Bearer {platform.token}"')
    script = platform.write("load.lua", "\n".join(lines))
    pids = [pid for role, pid in platform.roles().items() if role.startswith("gateway")]
    before = sum(map(ticks, pids))
    command = ["wrk", "-t1", "-c64", f"-d{seconds}", "-s", str(script), f"{platform.url}/api/v1/functions/{name}/invoke"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    calls = next(int(line.split()[0]) for line in said.splitlines() if "requests in" in line)
    return calls / seconds, (sum(map(ticks, pids)) - before) / TICKS / calls * 1e6


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def of_connections(platform: Platform, seconds: float) -> float:
    """Microseconds of all gateways for a connection that carries one /healthz."""
    pids = [pid for role, pid in platform.roles().items() if role.startswith("gateway")]

    async def one(count: list[int], until: float) -> None:
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection(*platform.address)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            await reader.read()
            writer.close()
            count[0] += 1

    async def main() -> int:
        count = [0]
        until = time.monotonic() + seconds
        await asyncio.gather(*(one(count, until) for _ in range(16)))
        return count[0]

    before = sum(map(ticks, pids))
    connections = asyncio.run(main())
    return (sum(map(ticks, pids)) - before) / TICKS / connections * 1e6


def of_starts(platform: Platform, calls: int) -> float:
    """Microseconds of the node itself (not of its zygotes, which fork, nor of the instances) for a start."""
    platform.put("cold", HANDLER, keep_alive_seconds=0)
    node = platform.roles()["node"]
    before = ticks(node)
    cold = sum("start" in platform.invoke("cold", {}).headers.get("server-timing", "") for _ in range(calls))
    return (ticks(node) - before) / TICKS / max(1, cold) * 1e6


def report(seconds: int = 6) -> None:
    for instances in (1000, 16_000):
        print(f"a place of {instances}: {of_places(instances):.0f} µs")
    for functions in (50, 10_000):
        us = of_statistics(functions)
        print(f"one gateway's statistics of {functions} functions, at control: {us / 1000:.2f} ms")
    for count in (1, 2, 4):
        with Platform(settings={"gateways": count}) as platform:
            platform.put("free", HANDLER)
            platform.put("counted", HANDLER, limits={"concurrency": 1000})
            of_calls(platform, "free", 2)
            for name in ("free", "counted"):
                rate, us = of_calls(platform, name, seconds)
                print(f"{count} gateways, {name}: {rate:.0f} calls/s, {us:.1f} µs of the gateways for each", flush=True)
            print(f"{count} gateways, a start: {of_starts(platform, 200):.0f} µs of the node", flush=True)
            print(f"{count} gateways, a connection with one request: {of_connections(platform, 3.0):.0f} µs", flush=True)


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
