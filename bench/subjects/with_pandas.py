"""A function that imports pandas: ours, and behind the bare baseline."""

import os

import pandas


def handler(event, context):
    visits = pandas.Series(range(event["visits"] + 2))
    return {"greeting": f"Hello, {event['name']}!", "visits": int(visits.max()), "uid": os.getuid()}


try:  # What init leaves to the first request is done before the snapshot, as SnapStart's users do; the bare baseline has no such hook.
    from snapshot_restore_py import register_before_snapshot
except ImportError:
    pass
else:
    register_before_snapshot(handler, {"name": "Ada", "visits": 1}, None)
