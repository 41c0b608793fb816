"""Several gateways: whose is a function, who else may serve it, and may one more instance start?

Each function has a *home*: the gateway whose queue, limits and floor are the function's, so that a limit is one process's counter however
many gateways there are. Others pass its calls on. Where that would be much, they serve it themselves as *guests*, with instances of their
own: only functions of which nothing is counted, and each guest only so many instances that the home never goes without.

Which gateway is whose home is a matter of names alone (the highest of N hashes): nobody is asked, and when a gateway is away its functions
are shared out among the others, while no other function moves. (Rendezvous hashing: Thaler and Ravishankar, 1998.)
Silent. Called by gateway/elsewhere.py, gateway/commons.py and control/link.py.
"""

from hashlib import blake2b
from typing import NamedTuple

from dayfly.core.model.function import FunctionConfig

GUEST_CALLS_PER_SECOND = 100.0  # passing on so many costs as much as an instance or two that serve them here: about a hundredth of a core
LEAVE_PART = 0.25  # of that rate: below it, a guest is none any more


def order(namespace: str, function: str, gateways: int, *, together: bool) -> tuple[int, ...]:
    """All gateways, the function's home first, then who is its home while that one is away … `together`: the namespace has limits, which
    all of its functions share, so they live together."""
    name = namespace if together else f"{namespace}/{function}"
    return tuple(sorted(range(gateways), key=lambda slot: blake2b(f"{slot} {name}".encode(), digest_size=8).digest(), reverse=True))


def guest_max(max_instances: int, gateways: int) -> int:
    """Instances that each gateway but the home may have of a version. All guests together leave at least as many for the home."""
    return max_instances // gateways


def may_be_guest(config: FunctionConfig, gateways: int, *, together: bool) -> bool:
    """Whether other gateways than its home may serve a version. Not where something is counted, nor where sockets have ids."""
    holds_sockets = config.websocket and not config.is_application
    return not (together or config.limits.any or holds_sockets) and guest_max(config.max_instances, gateways) > 0


def is_busy(was_guest: bool, calls_per_second: float) -> bool:
    """Whether so many calls are worth instances beside the home's."""
    return calls_per_second >= GUEST_CALLS_PER_SECOND * (LEAVE_PART if was_guest else 1.0)


class Most(NamedTuple):
    """What all gateways of a machine may have together."""

    instances: int
    starting: int


class Used(NamedTuple):
    """What they have: instances, those of them that are starting, those of the version in question."""

    instances: int
    starting: int
    of_version: int


def lack(used: Used, most: Most, version_max: int) -> str:
    """Why one more instance of a version may not start now: "instances", "starts" or "version". "" when it may."""
    if used.instances >= most.instances:
        return "instances"
    if used.starting >= most.starting:
        return "starts"
    return "version" if used.of_version >= version_max else ""
