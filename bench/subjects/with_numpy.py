"""A function that imports numpy: ours, and behind the bare baseline."""

import os

import numpy


def handler(event, context):
    visits = numpy.cumsum(numpy.ones(event["visits"] + 1))
    return {"greeting": f"Hello, {event['name']}!", "visits": int(visits[-1]), "uid": os.getuid()}


try:  # What init leaves to the first request is done before the snapshot, as SnapStart's users do; the bare baseline has no such hook.
    from snapshot_restore_py import register_before_snapshot
except ImportError:
    pass
else:
    register_before_snapshot(handler, {"name": "Ada", "visits": 1}, None)
