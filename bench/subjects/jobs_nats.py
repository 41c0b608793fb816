"""NATS JetStream: jobs in a work-queue stream, results in a second one, both in files that are synced at every write. See jobs.py.

A worker fetches a batch, runs the handler for each, stores all results and then acknowledges the jobs. ADDRESS is a nats:// URL.
"""

import asyncio
import json
import sys
import time

import direct
import jobs
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StorageType

BATCH = 256


async def connected(address):
    connection = await nats.connect(address, max_reconnect_attempts=1)
    return connection, connection.jetstream(publish_async_max_pending=100_000)


async def prepare(address):
    connection, stream = await connected(address)
    await stream.add_stream(name="JOBS", subjects=["jobs.*"], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE)
    await stream.add_stream(name="RESULTS", subjects=["results.*"], storage=StorageType.FILE)
    for name in ("subject", "moment"):
        wanted = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_ack_pending=10_000, filter_subject=f"jobs.{name}")
        await stream.add_consumer("JOBS", wanted, durable_name=name)
    await connection.close()


async def work(address):
    connection, stream = await connected(address)
    await asyncio.gather(
        _work(stream, "subject", lambda body: direct.handler(json.loads(body), None)),
        _work(stream, "moment", lambda _: time.time()),
    )
    await connection.close()


async def _work(stream, name, handler):
    consumer = await stream.pull_subscribe_bind(durable=name, stream="JOBS")
    while True:
        try:
            batch = await consumer.fetch(BATCH, timeout=5)
        except TimeoutError:  # nothing there
            continue
        results = [json.dumps(handler(message.data)).encode() for message in batch]
        await asyncio.gather(*[await stream.publish_async(f"results.{name}", result) for result in results])
        for message in batch:
            await message.ack()


def produce(address, seconds, in_flight):
    times, body = [], json.dumps(jobs.EVENT).encode()

    async def repeat(stream, end):
        while (begun := time.monotonic()) < end:
            await stream.publish("jobs.subject", body, timeout=60)
            times.append((time.monotonic() - begun) * 1000)

    async def everybody():
        connection, stream = await connected(address)
        end = time.monotonic() + seconds
        await asyncio.gather(*[repeat(stream, end) for _ in range(in_flight)])
        await connection.close()

    asyncio.run(everybody())
    return times


def settled(address):
    async def look():
        connection, stream = await connected(address)
        info = await stream.stream_info("RESULTS")
        await connection.close()
        return info.state.messages

    return asyncio.run(look())


def one(address, count):
    async def ask():
        connection, stream = await connected(address)
        results, times = await stream.subscribe("results.moment", ordered_consumer=True, deliver_policy=DeliverPolicy.NEW), []
        for _ in range(count):
            begun = time.time()
            await stream.publish("jobs.moment", b"")
            times.append((float((await results.next_msg(timeout=60)).data) - begun) * 1000)
        await connection.close()
        return times

    return asyncio.run(ask())


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        asyncio.run(prepare(sys.argv[2]))
    elif sys.argv[1] == "work":
        asyncio.run(work(sys.argv[2]))
    else:
        jobs.main(produce, settled, one)
