"""The node's own log lines, in the same JSON as the other roles', without the weight of telemetry.py: every instance is a fork of what
the node starts, and the node itself should stay small. Must never be given what a user wrote.
"""

import sys
import time

import msgspec

LEVELS = ("debug", "info", "warning", "error")
_threshold = [1]


def configure(level: str) -> None:
    _threshold[0] = LEVELS.index(level)


def log(level: str, event: str, **fields: object) -> None:
    """One line on standard error. `level`: debug, info, warning or error."""
    if LEVELS.index(level) < _threshold[0]:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = msgspec.json.encode({"timestamp": stamp, "level": level, "role": "node", "event": event, **fields})
    sys.stderr.write(line.decode() + "\n")
    sys.stderr.flush()
