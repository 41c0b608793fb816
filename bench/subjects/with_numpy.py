"""A function that imports numpy: ours, and behind the bare baseline."""

import os

import numpy


def handler(event, context):
    visits = numpy.cumsum(numpy.ones(event["visits"] + 1))
    return {"greeting": f"Hello, {event['name']}!", "visits": int(visits[-1]), "uid": os.getuid()}
