"""Whether a version is worth a template, and what has become of it. A table of states; silent.

    NONE ──wanted──▶ MAKING ──stood──▶ READY
      ▲                 │                │
      └─────lost────────┴───────lost─────┘        refused, from any: OFF, with the reason, for good

A template costs memory for as long as it stands, and a child of it a little more than an instance that comes out of a sandbox that stands
ready. So it is made for versions whose init takes more processor time than WORTH_US (not more time: on a busy machine every init takes
long, and templates would make it busier), after an instance has shown that, one at a time, while nothing waits for a start. One that
was lost (evicted, killed) is made again when an instance had to run init again. Used by gateway/templates.py.
"""

from dayfly.core.model.function import Snapshot

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


class IllegalStep(Exception):
    """A pair that is not in the table."""


def step(state: str, event: str) -> str:
    """The next state. Raises IllegalStep for a pair outside the table."""
    try:
        return STEPS[state][event]
    except KeyError:
        raise IllegalStep(f"{event} while {state}") from None


def is_wanted(setting: Snapshot, state: str, init_cpu_us: int, tries: int, since_seconds: float) -> bool:
    """Whether to make a template, now that an instance has run init in so much processor time. `since_seconds`: since it was made last."""
    worth = setting == "auto" and state == NONE and init_cpu_us >= WORTH_US
    return worth and tries < TRIES_MAX and since_seconds >= REMAKE_SECONDS
