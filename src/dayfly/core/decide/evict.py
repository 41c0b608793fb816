"""Whose idle instance leaves when the machine has no room: the version's that was longest without a call.

Used by gateway/fleet.py at `instances_max`. A later issue weighs cost and use (greedy-dual).
"""

from collections.abc import Iterable

from dayfly.core.decide.pool import Pool


def longest_idle(pools: Iterable[Pool]) -> Pool | None:
    """The pool to ask, or None when nobody has an idle instance above its `min_instances`."""
    idle = [pool for pool in pools if pool.idle() > 0 and pool.ready > pool.limits.min_instances and not pool.closed]
    return min(idle, key=lambda pool: pool.last_demand_at, default=None)
