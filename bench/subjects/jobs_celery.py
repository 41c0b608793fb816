"""Celery on Redis: tasks acknowledged late, results kept in Redis too. ADDRESS is the path of Redis's socket. See jobs.py.

Each producer is a thread: `apply_async` returns when Redis has answered, and Redis answers when the task is in its file (appendfsync
always; what comes within one turn of its loop shares one fsync).
"""

import os
import threading
import time

import direct
import jobs
from celery import Celery
from redis import Redis


def application(path):
    app = Celery("jobs", broker=f"redis+socket://{path}?virtual_host=0", backend=f"redis+socket://{path}?virtual_host=1")
    app.conf.update(
        task_acks_late=True, worker_prefetch_multiplier=64, broker_pool_limit=128, worker_send_task_events=False,
        broker_connection_retry_on_startup=True, result_expires=86_400,
    )  # fmt: skip
    return app


app = application(os.environ["JOBS_ADDRESS"])


@app.task(name="subject")
def subject(event):
    return direct.handler(event, None)


@app.task(name="moment")
def moment():
    return time.time()


def produce(path, seconds, in_flight):
    mine, times, end = application(path), [], time.monotonic() + seconds
    task = mine.signature("subject", args=(jobs.EVENT,))

    def repeat():
        while (begun := time.monotonic()) < end:
            task.apply_async()
            times.append((time.monotonic() - begun) * 1000)

    threads = [threading.Thread(target=repeat) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def settled(path):
    return Redis(unix_socket_path=path, db=1).dbsize()


def one(path, count):
    times = []
    for _ in range(count):
        begun = time.time()
        times.append((moment.delay().get(timeout=60) - begun) * 1000)
    return times


if __name__ == "__main__":
    jobs.main(produce, settled, one)
