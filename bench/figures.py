"""The benchmarks by name: what each says, its unit, its floor and goal in words, and what takes it. Run by bench/__main__.py.

docs/performance.md says of each what it means.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench import (
    asynchronous,
    backlog,
    cold,
    crowd,
    density,
    deploy,
    footprint,
    heavy,
    keepalive,
    mapping,
    million,
    mixed,
    neighbour,
    overload,
    registry,
    restart,
    schedule,
    stream,
    sustained,
    warm,
)
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
    Benchmark(
        "warm-direct",
        "direct invoke, 100 B of JSON, 64 connections",
        "calls/s",
        "≥ 45,000/s, p99 ≤ 4 ms, 0 errors; goal ≥ 70,000/s",
        warm.direct,
    ),
    Benchmark(
        "warm-strict",
        "the same with strictly one call in flight per instance, two instances",
        "calls/s",
        "≥ 22,000/s, 0 errors; goal ≥ 32,000/s",
        warm.strict,
    ),
    Benchmark(
        "warm-event",
        "whole HTTP event in, proxy answer out, 64 connections",
        "calls/s",
        "≥ 35,000/s, 0 errors; goal ≥ 60,000/s",
        warm.event,
    ),
    Benchmark("warm-one", "direct invoke on one connection; p50", "ms", "≤ 0.18 ms; goal ≤ 0.11 ms", warm.one),
    Benchmark(
        "warm-10k",
        "10 KB of JSON both ways, 64 connections",
        "calls/s",
        "≥ 9,000/s, 0 errors; goal ≥ 14,000/s",
        warm.ten_kilobytes,
    ),
    Benchmark("warm-20", "20 connections on one instance; p99", "ms", "≤ 3 ms; goal ≤ 1 ms", warm.twenty),
    Benchmark(
        "mixed",
        "1 % of calls take 20 ms, the rest nothing, 4 instances, 64 connections: good answers, p50 and p99 of the short",
        "calls/s",
        "no worse than strictly one in flight; goal ≥ 16,000/s at p50 ≤ 1 ms",
        mixed.beside_strict,
    ),
    Benchmark(
        "stream-100m",
        "100 MB down (and up) in one call, and the gateway's memory",
        "MB/s",
        "≥ 400 MB/s each way, ≤ 30 MB extra; goal ≥ 1,000 MB/s, ≤ 10 MB",
        stream.hundred_megabytes,
    ),
    Benchmark(
        "million-a-minute",
        "16,667 calls/s over 50 functions for ten minutes with deploys, then 50,000/s for one; mean",
        "ms",
        "≥ 99.99 % good, mean < 60 ms, memory flat; goal 100 %, < 3 ms, three million < 5 ms",
        million.over_fifty,
    ),
    Benchmark(
        "overload",
        "500 connections ask for five times a function's capacity: good answers, beside its peak",
        "calls/s",
        "≥ 85 % of peak, only 429 or 503 with Retry-After, no instance over its limit; goal ≥ 97 %",
        overload.five_times,
    ),
    Benchmark(
        "registry-10k",
        "10,000 idle functions: extra memory of all platform processes; cost of finding one",
        "MB",
        "≤ 60 MB, lookup flat; goal ≤ 20 MB",
        registry.idle_functions,
    ),
    Benchmark(
        "restart-under-load",
        "a deploy, a rolling restart and the end of the gateway under 5,000 calls/s",
        "calls lost",
        "0",
        restart.calls_lost,
    ),
    Benchmark("map", "map over 100,000 trivial items, from the first byte sent to the last result read", "s", "≤ 40 s", mapping.many_items),
    Benchmark("instance-memory", "own memory (USS) of an idle trivial instance, 200 alive", "MB", "≤ 2 MB", footprint.instance_memory),
    Benchmark("schedule", "from a schedule's due time to its handler, twenty due at once; p99", "ms", "p99 ≤ 50 ms", schedule.accuracy),
    Benchmark("deploy", "`dayfly deploy` of a changed file to its first answer", "ms", "< 1000 ms", deploy.changed_file),
    Benchmark(
        "idle-platform",
        "memory (PSS) of all platform processes, nobody calling",
        "MB",
        "≤ 200 MB, ≤ 1 % of a core",
        footprint.idle_platform,
    ),
    Benchmark(
        "async-accept",
        "asynchronous calls accepted, 64 connections: 202s after their fsync, nobody running them",
        "calls/s",
        "≥ 15,000/s, p99 ≤ 20 ms, 0 errors; goal ≥ 40,000/s",
        asynchronous.accept,
    ),
    Benchmark(
        "async-settle",
        "the same from accepting to the last result on disk, a trivial function",
        "calls/s",
        "≥ 4,000/s, 0 errors; goal ≥ 12,000/s",
        asynchronous.settle,
    ),
    Benchmark(
        "async-latency",
        "one asynchronous call, the queue idle: from sending it to the handler's first line; p50",
        "ms",
        "p50 ≤ 5 ms",
        asynchronous.latency,
    ),
    Benchmark(
        "async-interference",
        "p99 of synchronous calls beside a backlog of asynchronous ones, against before",
        "times",
        "≤ 2 ×",
        backlog.interference,
    ),
    Benchmark(
        "async-backlog",
        "10^6 calls wait: extra memory of all platform processes; start with them; time of a lease",
        "MB",
        "≤ 150 MB, ready to serve in < 2 s, lease time flat",
        backlog.waiting,
    ),
    Benchmark(
        "keepalive-sim",
        "cold share at the 75th percentile of applications, fixed 10 minutes ÷ learned, at equal wasted memory",
        "×",
        "≥ 2 ×",
        keepalive.simulated,
    ),
)
