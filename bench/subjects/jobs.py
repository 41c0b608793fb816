"""What the two job queues beside us have in common: producers with so many jobs in flight, over as many processes as there are cores.

Run by bench/queues.py in the baselines' environment: `python jobs_celery.py VERB ADDRESS …`. Every verb but `work` says what came of it
in one line of JSON: calls (those settled within `limit` seconds, for `settle`), seconds, p50 and p99 of making one in ms, and the processor
time of the producers themselves by job.
"""

import json
import multiprocessing
import os
import resource
import sys
import time

EVENT = {"name": "Ada", "visits": 41, "note": "a direct event of one hundred bytes, as small callers send it"}


def main(produce, settled, one):
    """`produce(address, seconds, in_flight) → times in ms`; `settled(address) → results there are`; `one(address, count) → times in ms`."""
    verb, address, *rest = sys.argv[1:]
    if verb == "latency":
        print(json.dumps({"times": one(address, int(rest[0]))}))
        return
    seconds, in_flight = float(rest[0]), int(rest[1])
    before = settled(address) if verb == "settle" else 0
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        parts = pool.starmap(_part, [(produce, address, seconds, in_flight // cores)] * cores)
    times, begun = sorted(took for part in parts for took in part[0]), min(part[1] for part in parts)
    calls, took = len(times), max(part[2] for part in parts) - begun
    if verb == "settle":
        calls, took = wait_settled(lambda: settled(address) - before, calls, begun, float(rest[2]))
    said = {"calls": calls, "seconds": took, "p50": at(times, 0.5), "p99": at(times, 0.99)}
    print(json.dumps(said | {"producers_cpu_us": sum(part[3] for part in parts) * 1e6 / max(1, len(times))}))


def _part(produce, address, seconds, in_flight):
    used, begun = cpu(), time.time()
    times = produce(address, seconds, in_flight)
    return times, begun, time.time(), cpu() - used


def at(times, share):
    return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def wait_settled(count, wanted, begun, limit):
    """(how many, after how many seconds), once all are there or the time is up. Nobody tells: look, seldom enough to cost nothing."""
    while (there := count()) < wanted and time.time() < begun + limit:
        time.sleep(0.05)
    return there, time.time() - begun
