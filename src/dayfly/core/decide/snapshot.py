"""Whether a version, or a set of packages, is worth a template, and what has become of it. A table of states; silent.

    NONE ──wanted──▶ MAKING ──stood──▶ READY
      ▲                 │                │
      └─────lost────────┴───────lost─────┘        refused, from any: OFF, with the reason, for good

A template costs memory for as long as it stands, and a child of it a little more than an instance that comes out of a sandbox that stands
ready. So it is made for versions whose init takes more processor time than WORTH_US (not more time: on a busy machine every init takes
long, and templates would make it busier), after an instance has shown that, one at a time, while nothing waits for a start. One that
was lost (evicted, killed) is made again when an instance had to run init again. Used by gateway/templates.py.

Below the versions' templates are those of packages: what has imported a layer's modules, as an instance's init was seen to import them,
and no user code. Any version that is the same to these modules (`packages_of`) may start from one.
"""

from typing import NamedTuple

from dayfly.core.model.egress import way_of
from dayfly.core.model.function import Snapshot, Version

NONE, MAKING, READY, OFF = "none", "making", "ready", "off"
WORTH_US = 5_000
TRIES_MAX = 3  # of making one that is lost on the way
REMAKE_SECONDS = 60.0  # between making one and making it again: what there is no room for is not made over and over

STEPS = {
    NONE: {"wanted": MAKING, "refused": OFF},
    MAKING: {"stood": READY, "lost": NONE, "refused": OFF},
    READY: {"lost": NONE, "refused": OFF},
    OFF: {"lost": OFF, "refused": OFF},
}


# A variable that brings modules which neither the layer nor the interpreter has: what stands at their names cannot be known beforehand.
MORE_MODULES = "PYTHONPATH"


class Packages(NamedTuple):
    """What must be equal for two versions to start from one template of packages: all that an imported module may have seen, and what a
    child cannot change any more. The rest (code, memory, processor time) it is given when it is given away."""

    namespace: str
    runtime: str
    layer: str
    tmp_mb: int
    egress: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


def packages_of(version: Version) -> Packages | None:
    """The packages whose template this version may start from; None: from none. Secrets must be there while a sandbox still has privileges,
    so a version that has some starts from nobody else's."""
    config = version.config
    if not version.layer_digest or config.snapshot != "auto" or config.secrets or MORE_MODULES in config.env:
        return None
    way, rules = way_of(config.egress)
    env = tuple(sorted(config.env.items()))
    return Packages(version.namespace, config.runtime, version.layer_digest, config.tmp_mb, (way, *rules), env)


class IllegalStep(Exception):
    """A pair that is not in the table."""


def step(state: str, event: str) -> str:
    """The next state. Raises IllegalStep for a pair outside the table."""
    try:
        return STEPS[state][event]
    except KeyError:
        raise IllegalStep(f"{event} while {state}") from None


def is_worth(init_cpu_us: int) -> bool:
    """Whether an init (or an import of packages) of so much processor time is dear enough to run once for all."""
    return init_cpu_us >= WORTH_US


def is_wanted(setting: Snapshot, state: str, init_cpu_us: int, tries: int, since_seconds: float) -> bool:
    """Whether to make a template, now that an instance has run init in so much processor time. `since_seconds`: since it was made last."""
    worth = setting == "auto" and state == NONE and is_worth(init_cpu_us)
    return worth and tries < TRIES_MAX and since_seconds >= REMAKE_SECONDS
