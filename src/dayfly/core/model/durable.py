"""Durable calls: what is accepted, what a gateway is given to run, what became of it. Nouns only.

A *durable call* is a call that was written down before anybody was told that it was accepted. It is *waiting* (for its time, or for
somebody to run it), *leased* (a gateway has it), *done* or *dead*; which of these, its attempts and its result are rows of the queue
(store/queue.py). Its *lane* is `namespace/function`, or a
map's: `namespace/function~SEED`. Times are epoch seconds. Never decides, never reads a clock.
Used by gateway/asynchronous.py, gateway/leased.py, control/calls.py, core/decide/retry.py, api/calls.py; and by whoever puts calls from
inside control (schedules, maps, destinations), through control/calls.py `Calls.accept`.
"""

from typing import Literal

import msgspec

from dayfly.core.model.names import LIVE

PRIORITIES = 10  # 0 … 9, higher first within a lane
DEFAULT_PRIORITY = 4
MAP_MARK = "~"  # in a lane, between a function's name and the map whose items these are; no function's name has it
CALLBACK = "@callback"  # stands for a function's name in the lane of a namespace's HTTP callbacks; no function can be called so

Kind = Literal["direct", "http", "callback"]
State = Literal["waiting", "leased", "done", "dead"]
Outcome = Literal[
    "ok",  # the function answered, and its answer is none of `retry_on`
    "status",  # it answered with a status of `retry_on`
    "error",  # it raised, or its answer is none
    "timeout",
    "crashed",  # its instance ended; it may have run
    "init_failed",
    "throttled",  # over a limit, or no room: it did not begin
    "platform",  # could not be started, for no fault of the function's
    "gone",  # there is no such function or version any more
    "cancelled",
    "returned",  # nobody had room for it, it was not begun
    "lost",  # nobody knows: its gateway ended, or its lease
]


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Which call made this one: the first of the chain, the one before, and how many are before it."""

    root: str = ""
    parent: str = ""
    depth: int = 0

    @property
    def text(self) -> str:
        """As the header X-Dayfly-Lineage has it."""
        return f"root={self.root};parent={self.parent};depth={self.depth}"


class NewCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call to be accepted. `meta` and `body` are what an instance is sent for its kind (runtime/frames.py): `direct`: the client context
    and the JSON event; `http`: the head lines and the request's body. An `id` is given by whoever makes the call: putting the same id
    twice puts it once."""

    id: str
    namespace: str
    function: str
    qualifier: str = LIVE
    kind: Kind = "direct"
    meta: bytes = b""
    body: bytes = b""
    due: float = 0.0  # not begun before; 0 = now
    expires: float = 0.0  # not begun after; 0 = the function's `async.max_age_seconds` after it is due
    priority: int = DEFAULT_PRIORITY
    group: str = ""  # calls of one function and group run one after the other, in the order of acceptance
    dedup: str = ""  # idempotency key, unique within the function for `async_dedup_seconds`
    tag: str = ""  # what lists filter by: "map:ID", "schedule:ID"
    lineage: Lineage = Lineage()
    callback: str = ""  # URL that is told how it ended, beside the function's own destinations
    source: str = "native"  # which door: native, prefer, lambda, openfaas, schedule, map, destination


class Accepted(msgspec.Struct, frozen=True):
    """It is durable. `duplicate`: the key (or id) was known; `id` is that of the first call."""

    id: str
    duplicate: bool = False


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a queue's item: what of a NewCall has no column of its own. `blob` names the body when it is a large one."""

    qualifier: str = LIVE
    kind: Kind = "direct"
    meta: bytes = b""
    body: bytes = b""
    blob: str = ""
    size: int = 0  # of the body
    lineage: Lineage = Lineage()
    callback: str = ""
    source: str = "native"


class LeasedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call on its way to a gateway. (id, epoch) is the lease: what comes back under another epoch is not believed."""

    id: str
    epoch: int
    attempt: int
    namespace: str
    function: str
    qualifier: str
    kind: Kind
    meta: bytes
    body: bytes
    expires: float


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a lease. `status`, `headers` and `body` are the function's answer where there is one (for a failure: its error as
    JSON); `began_at` is 0 when it was not begun."""

    id: str
    epoch: int
    outcome: Outcome
    code: str = ""  # of core/model/errors.py, "" for ok
    detail: str = ""
    status: int = 0
    headers: bytes = b""
    body: bytes = b""
    retry_after_seconds: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    version: int = 0
    instance: str = ""
    cold: bool = False
    exec_us: int = 0
    memory_mb: int = 0


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record of one attempt, kept with the call."""

    number: int
    outcome: Outcome
    leased_at: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    code: str = ""
    detail: str = ""
    status: int = 0
    version: int = 0
    gateway: str = ""
    instance: str = ""
    cold: bool = False
    exec_us: int = 0
    memory_mb: int = 0
    counted: bool = True
    again_at: float = 0.0  # when it is tried again; 0 = this was the last


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last answer, visible together with the settlement. `blob` names the body when it is a large one."""

    ok: bool
    status: int = 0
    headers: bytes = b""
    body: bytes = b""
    blob: str = ""
    size: int = 0


class Async(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[async]` of a function's dayfly.toml. A policy by name (core/decide/retry.py POLICIES), of which single values may be other ones:
    those that are None are the policy's. What it may hold: core/manifest/durable.py."""

    policy: str = "lambda"
    attempts: int | None = None
    concurrency: int | None = None  # of these calls at once in one gateway; None: the platform's async_concurrency
    backoff_seconds: float | None = None
    backoff_max_seconds: float | None = None
    jitter: Literal["none", "full", "equal"] | None = None
    retry_on: tuple[int, ...] | None = None  # statuses of answers that are tried again
    max_age_seconds: float | None = None
    idempotent: bool = True  # whether what may have begun may be begun again
    result_keep_seconds: float | None = None  # None: the platform's async_result_keep_seconds
    on_success: str = ""  # a function's name, or a URL
    on_failure: str = ""


def lane_of(namespace: str, function: str) -> str:
    """The queue's lane of a function's calls."""
    return f"{namespace}/{function}"


def map_lane(namespace: str, function: str, seed: str, *, reducing: bool = False) -> str:
    """The lane of a map's items, or of its calls of the reducer."""
    return f"{namespace}/{function}{MAP_MARK}{seed}" + (f"{MAP_MARK}r" if reducing else "")


def split_lane(lane: str) -> tuple[str, str]:
    """(namespace, function), whether these are its own calls or a map's."""
    namespace, _, function = lane.partition("/")
    return namespace, function.partition(MAP_MARK)[0]


def map_seed(lane: str) -> str:
    """The seed (core/model/mapping.py) of the map whose lane this is; "" when it is no map's."""
    return lane.partition(MAP_MARK)[2].partition(MAP_MARK)[0]
