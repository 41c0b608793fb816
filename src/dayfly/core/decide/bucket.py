"""May one more come, by a rate and a burst; else when? A token bucket kept as one number: the moment at which it is full again.

With an interval T between calls and `burst` tokens, taking a token moves that moment T into the future; a call may come while it is no
more than (burst − 1) × T away. (The generic cell rate algorithm, ITU-T I.371, in its virtual scheduling form.) Whole nanoseconds of a
monotonic clock, so nothing is rounded twice and nothing drifts; whoever jumps ahead in time finds the bucket full, never more than full.
Rate and burst are arguments: versions of one function with different limits share one bucket. Silent. Used by core/decide/limit.py.
"""

from math import ceil

NS = 1_000_000_000


def spacing(rate_per_second: float, burst: int | None) -> tuple[int, int]:
    """(interval, slack) in nanoseconds of a rate; without `burst` a second's worth may come at once, and one in any case."""
    interval = max(1, round(NS / rate_per_second))
    return interval, ((burst or max(1, ceil(rate_per_second))) - 1) * interval


def wait_ns(full_at: int, slack: int, now: int) -> int:
    """How long until a call may come; 0 or less: now."""
    return full_at - slack - now


def taken(full_at: int, interval: int, now: int) -> int:
    """When the bucket is full again after a token was taken now."""
    return (full_at if full_at > now else now) + interval
