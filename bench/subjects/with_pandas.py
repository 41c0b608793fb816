"""A function that imports pandas: ours, and behind the bare baseline."""

import os

import pandas


def handler(event, context):
    visits = pandas.Series(range(event["visits"] + 2))
    return {"greeting": f"Hello, {event['name']}!", "visits": int(visits.max()), "uid": os.getuid()}
