"""Call and instance: the two nouns with a life, each a machine written as a table.

A **call** is one request for one version. It is *waiting* (in the gateway's queue), *offered* (in the version's socket or taken by an
instance: from outside the two look alike, and that is the point of pulling), or *answered* (once, whatever the answer was).

    waiting ──offered──▶ offered ──answered──▶ answered
       │  ◀──returned────┘                        ▲
       └───────────────answered──────────────────┘

An **instance** is one sandboxed process of one version.

    starting ──started──▶ ready ──gone──▶ gone
        └──────────gone───────────────────▲

Which instance leaves when the pool asks for it is whoever takes the request from the socket; it then says so and is gone.

Every pair that is not in a table raises: a wrong step is a defect of ours, never the user's.
Called by core/decide/pool.py only; the gateway's hands read states, they never set them.
"""

from typing import Any

WAITING, OFFERED, ANSWERED = "waiting", "offered", "answered"
STARTING, READY, GONE = "starting", "ready", "gone"

CALL_STEPS: dict[str, dict[str, str]] = {
    WAITING: {"offered": OFFERED, "answered": ANSWERED},
    OFFERED: {"answered": ANSWERED, "returned": WAITING},
    ANSWERED: {},
}

INSTANCE_STEPS: dict[str, dict[str, str]] = {
    STARTING: {"started": READY, "gone": GONE},
    READY: {"gone": GONE},
    GONE: {},
}


class IllegalStep(RuntimeError):
    """A state machine was asked for a step that its table does not have."""


def step(table: dict[str, dict[str, str]], state: str, event: str) -> str:
    """The state after `event`; raises `IllegalStep` when the table has no such pair."""
    try:
        return table[state][event]
    except KeyError:
        raise IllegalStep(f"{event!r} is impossible in state {state!r}") from None


class Call:
    """One call on its way. Times are seconds on the gateway's monotonic clock.

    `seq` is unique within a gateway's life and grows. `reply` is the hand that answers (gateway/dispatch.py); the core never looks
    at it. Mutable and slotted: a hundred thousand of these are made every second.
    """

    __slots__ = ("deadline", "last", "reply", "returns", "seq", "state", "submitted_at")

    def __init__(self, seq: int, submitted_at: float, deadline: float, reply: Any = None) -> None:
        self.seq = seq
        self.submitted_at = submitted_at
        self.deadline = deadline
        self.last = False  # whoever takes it leaves after it
        self.reply = reply
        self.returns = 0  # how often it came back from instances that died without having begun it
        self.state = WAITING

    def __repr__(self) -> str:
        return f"<Call {self.seq} {self.state}>"


class Instance:
    """One instance as the pool sees it. `started_at` is when it was asked for, `ready_at` when it said READY (0 before)."""

    __slots__ = ("id", "ready_at", "started_at", "state")

    def __init__(self, id: str, started_at: float) -> None:
        self.id = id
        self.started_at = started_at
        self.ready_at = 0.0
        self.state = STARTING

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self.state}>"
