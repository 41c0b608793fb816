"""The handler of overload: takes ten milliseconds without a processor, and fails when its instance runs more calls than it may."""

import asyncio

CONCURRENCY = 4  # what bench/overload.py deploys it with
running = 0


async def handler(event, context):
    global running
    running += 1
    try:
        if running > CONCURRENCY:
            raise RuntimeError(f"{running} calls at once in one instance")
        await asyncio.sleep(0.01)
    finally:
        running -= 1
    return {"greeting": f"Hello, {event['name']}!"}
