"""Streamed text: a generator's pieces are sent as they are made, so the caller reads the first while the last is not yet written."""

import time

STORY = (
    "A function slept in a drawer of the machine. "
    "Somebody called. "
    "It woke in three milliseconds, put on a coat of its own, "
    "answered, "
    "and before anyone could thank it, "
    "it was asleep again."
)


def handler(event, context):
    pause = min(1.0, float(event.get("queryStringParameters", {}).get("pause", "0.05")))
    for word in STORY.split(" "):
        yield word + " "
        time.sleep(pause)
    yield "\n"
