"""A durable queue with leases: its nouns and its verbs. `queue_sqlite.py` and `queue_postgres.py` are the two that do it.

Called by control's one writer thread (control/durable.py). Every verb takes a batch and is one transaction, durable when it
returns. Times are epoch seconds and always arguments. The queue does not know what its items are and decides no retry.

An item waits, is leased, and is settled as done or dead:

    put ─▶ waiting ──lease──▶ leased ──settle──▶ done
              ▲  ▲──settle, give_back──┘ └─settle──▶ dead
              └──────────────redrive──────────────────┘      cancel and expire make waiting items dead; purge and forget delete

A lease is (id, epoch). Whatever hands an item to somebody raises its epoch, and a verb with another epoch changes nothing. What is
done never changes again; what is dead only by `redrive`. A result is there only together with done or dead.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import msgspec

BATCH_MAX = 10_000  # items of one verb
LIST_MAX = 1_000  # items of one answer of `list`
RECLAIM_MAX = 256  # leases of one answer of `reclaim`: ask again until it is empty
ATTEMPTS_KEPT = 50  # newest records of one item's attempts
TEXT_MAX = 1_024  # characters of an id, lane, group, dedup key or tag
BODY_BYTES_MAX = 1024 * 1024  # of a body or result; control keeps what is large elsewhere and stores a reference
HANDED_SECONDS = 60.0  # how long a lease handed out by `reclaim` or `expire` is left alone
CANCELLED_KEPT_SECONDS = 86_400.0  # how long a cancelled item is kept, when nobody says

State = Literal["waiting", "leased", "done", "dead"]
STATES: tuple[State, ...] = ("waiting", "leased", "done", "dead")


class NewItem(msgspec.Struct, frozen=True, kw_only=True):
    """What is put. `due`: not leased before; `expires`: not leased from then on, but handed out by `expire`.

    An `id` that rises with time (UUIDv7) is best: a million random ones took three times the processor time to put, each lands elsewhere
    in the index.
    `priority` is 0 to 9, higher first within a lane. Items of one lane and `group` are leased one at a time in the order in which they were
    accepted, whatever their priorities and due times. `dedup` is unique within its lane until `dedup_until`.
    """

    id: str
    lane: str
    body: bytes
    accepted_at: float
    due: float
    expires: float
    priority: int = 0
    group: str = ""
    dedup: str = ""
    dedup_until: float = 0.0
    tag: str = ""


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one NewItem: `id` is the first item's when its dedup key (or id) was known already."""

    id: str
    duplicate: bool


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """An item in somebody's hands. `attempt` is 1 for the first; from `expire`, which is no attempt, how many there were."""

    id: str
    lane: str
    epoch: int
    attempt: int
    body: bytes
    accepted_at: float
    expires: float
    group: str
    priority: int
    tag: str


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How a lease ended. `record` is appended to the item's attempts; `result` is kept only with done and dead; `items` are put in
    the same transaction, if this takes effect. An item that was cancelled while leased is dead instead of waiting again."""

    id: str
    epoch: int
    now: float
    state: Literal["done", "dead", "waiting"]
    due: float = 0.0
    counted: bool = True
    reason: str = ""
    record: bytes = b""
    result: bytes = b""
    keep_until: float = 0.0
    items: tuple[NewItem, ...] = ()


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """An item as it is now. `attempts` are the records, oldest first; `attempt` is how many count."""

    id: str
    lane: str
    body: bytes
    accepted_at: float
    due: float
    expires: float
    priority: int
    group: str
    dedup: str
    dedup_until: float
    tag: str
    state: State
    epoch: int
    attempt: int
    attempts: tuple[bytes, ...]
    reason: str
    result: bytes
    settled_at: float
    keep_until: float
    cancelling: bool


class Page(msgspec.Struct, frozen=True):
    """What `list` asks for."""

    lanes: tuple[str, ...]
    lane_prefixes: tuple[str, ...]
    states: tuple[State, ...]
    tag: str
    before: tuple[float, str] | None
    limit: int


class Queue(Protocol):
    """The verbs. They raise Refusal storage_full or data_unusable (nothing was changed then), ValueError for what breaks a bound."""

    def together(self) -> AbstractContextManager[None] | None:
        """The verbs inside are one transaction, durable when the context has ended; after an exception nothing was done. None: here every
        verb has its own."""

    def put(self, items: Sequence[NewItem]) -> list[Put]:
        """Accept items, in this order."""

    def lease(self, wanted: Sequence[tuple[str, int]], now: float, until: float, owner: str) -> list[Lease]:
        """From each (lane, how many at most): by priority, then due, then acceptance. Call `expire` first: what has expired
        is passed over, and many of them cost time."""

    def lanes(self, now: float) -> dict[str, float]:
        """Lanes that have something to lease, now or later → the earliest due time in them."""

    def extend(self, leases: Sequence[tuple[str, int]], until: float) -> list[bool]:
        """Move the end of leases (id, epoch); False: it is no longer yours."""

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """End leases; False: it was no longer yours and nothing changed."""

    def give_back(self, leases: Sequence[tuple[str, int]], now: float, due: float) -> list[bool]:
        """Leased → waiting, as if the attempt had not been (cancelled ones → dead)."""

    def reclaim(self, now: float, owner: str = "") -> list[Lease]:
        """Leases past their end; given an owner, all leases that are not its own. They come under a new epoch, still leased (to that owner,
        for HANDED_SECONDS), so that the caller's policy settles them. At most RECLAIM_MAX: ask until it is empty."""

    def expire(self, now: float, limit: int, owner: str = "") -> list[Lease]:
        """Waiting items past `expires`, handed out as leases to be settled as dead. They may be several of a group, since none will run."""

    def cancel(self, ids: Sequence[str], now: float, keep_until: float = 0.0) -> list[str]:
        """Per id: "cancelled" (it waited; dead now, kept until `keep_until` or for CANCELLED_KEPT_SECONDS), "cancelling" (leased;
        will not wait again), "settled" or "unknown"."""

    def redrive(self, ids: Sequence[str], now: float, expires: float) -> list[bool]:
        """Dead → waiting and due, with no attempt counted; the records stay, the result goes. False: not dead."""

    def purge(self, ids: Sequence[str]) -> list[bool]:
        """Delete waiting and settled items. False: leased or unknown. Dedup keys stay."""

    def get(self, ids: Sequence[str]) -> list[Item | None]:
        """Items with their bodies and results."""

    def list(
        self,
        *,
        lanes: Sequence[str] = (),
        lane_prefixes: Sequence[str] = (),
        states: Sequence[State] = (),
        tag: str = "",
        before: tuple[float, str] | None = None,
        limit: int,
    ) -> list[Item]:
        """Newest accepted first (then by id, descending), without bodies and results: in one of `lanes` or below one of `lane_prefixes` (if
        either is given), in one of `states` (if given), with that tag (if given), after the item (accepted_at, id) of the page before."""

    def counts(self, lane_prefixes: Sequence[str] = ()) -> dict[str, dict[str, int]]:
        """Lane → state → how many, exactly, for lanes that have any; all lanes, or those below a prefix."""

    def forget(self, now: float, limit: int) -> int:
        """Delete at most `limit` settled items past keep_until, and as many dedup keys past theirs; how many went."""

    def tidy(self) -> bool:
        """One short step of giving free room back to the disk; whether there is more to do. For idle moments, between verbs."""

    def close(self) -> None:
        """Afterwards nothing may be called."""
