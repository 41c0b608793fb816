"""Which zygote an instance descends from: one for each namespace and interpreter, and one of each interpreter that is nobody's yet.

Forks of one zygote share its address layout and hash seed, so a leak in one of them tells about the others. Therefore a zygote belongs to
one namespace from its first fork on, and only for a while: after `renew_seconds` or `forks_max` forks another takes its place, and it
ends with its last instance. Because making one takes a quarter of a second, a spare stands ready; who comes first gets it.
Silent. Called by node/nursery.py.
"""

from typing import NamedTuple

FORKS_MAX = 100_000
RENEW_SECONDS = 3600.0
IDLE_SECONDS = 600.0  # of a namespace without instances and starts: then its zygote ends
ZYGOTES_MAX = 32  # of namespaces; beyond, those idle longest end at once


class Age(NamedTuple):
    """What is to be known of a zygote. Times in seconds on one clock."""

    born_at: float
    forks: int
    asked_at: float  # its last start
    instances: int


def is_due(age: Age, now: float) -> bool:
    """Whether the next start should come from a new zygote."""
    return age.forks >= FORKS_MAX or now - age.born_at >= RENEW_SECONDS


def idle_ones(ages: dict[str, Age], now: float) -> list[str]:
    """Which zygotes without instances should end: those idle for long, and the longest idle ones above ZYGOTES_MAX."""
    idle = sorted((name for name, age in ages.items() if age.instances == 0), key=lambda name: ages[name].asked_at)
    surplus = idle[: max(0, len(ages) - ZYGOTES_MAX)]
    return [name for name in idle if name in surplus or now - ages[name].asked_at > IDLE_SECONDS]
