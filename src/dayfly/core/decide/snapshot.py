"""Whether a version is worth a template, and what has become of it. A table of states; silent.

    NONE ──wanted──▶ MAKING ──stood──▶ READY
      ▲                 │                │
      └─────lost────────┴───────lost─────┘        refused, from any: OFF, with the reason, for good

A template costs memory for as long as it stands, and a child of it a little more than an instance that comes out of a sandbox that stands
ready. So it is made for versions whose init takes longer than WORTH_US, after the first instance has shown that. One that was
lost (evicted, killed) is made again when an instance had to run init again. Used by gateway/templates.py.
"""

from dayfly.core.model.function import Snapshot

NONE, MAKING, READY, OFF = "none", "making", "ready", "off"
WORTH_US = 4_000
TRIES_MAX = 3  # of making one that is lost on the way

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


def is_wanted(setting: Snapshot, state: str, init_us: int, tries: int) -> bool:
    """Whether to make a template now that an instance has run init."""
    return setting == "auto" and state == NONE and init_us >= WORTH_US and tries < TRIES_MAX
