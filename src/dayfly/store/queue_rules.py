"""What both queues decide alike, without SQL: bounds of what is put, and what a settlement makes of a lease. Silent."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from dayfly.store.queue import BATCH_MAX, BODY_BYTES_MAX, CANCELLED_KEPT_SECONDS, STATES, TEXT_MAX, Item, NewItem, Put, Settlement, State

WAITING, LEASED, DONE, DEAD = range(4)
CODES: dict[State, int] = {"waiting": WAITING, "leased": LEASED, "done": DONE, "dead": DEAD}
FREE, BEHIND, ASIDE = range(3)  # an item's place: leasable or running | behind another of its group | leased by `expire`, will not run
RANK_MAX = 9  # rank = 9 - priority, so that an index in rising order has the highest priority first


class Row(msgspec.Struct):
    """What a verb must know of an item to change it. `lane` is the database's key of the lane."""

    seq: int
    id: str
    lane: int | str
    state: int
    place: int
    epoch: int
    attempt: int
    records: int
    group: str
    cancelling: bool
    keep_until: float

    def held(self, epoch: int) -> bool:
        """Whether this is the lease of that epoch."""
        return self.state == LEASED and self.epoch == epoch


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease becomes: the columns of its row, and the bytes beside it. `due` is None when it stays as it was."""

    row: Row
    state: int
    attempt: int
    due: float | None = None
    reason: str = ""
    settled_at: float = 0.0
    keep_until: float = 0.0
    record: bytes = b""
    result: bytes = b""


class Admission(msgspec.Struct, frozen=True):
    """What a put comes to: an answer for every item, the items to insert, the dedup keys to write: (lane, key) → (id, until)."""

    answers: list[Put]
    items: list[NewItem]
    keys: dict[tuple[str, str], tuple[str, float]]


def admitted(items: Sequence[NewItem], known: set[str], holders: dict[tuple[str, str], tuple[str, float]]) -> Admission:
    """Tell new items from known ones. `known`: those of their ids that are there; `holders`: those of their dedup keys."""
    told = Admission([], [], {})
    fresh: set[str] = set()
    for item in items:
        key = (item.lane, item.dedup)
        first, until = told.keys.get(key) or holders.get(key, ("", 0.0))
        if item.id in known or item.id in fresh:
            first = item.id
        elif not item.dedup or until <= item.accepted_at:
            first = ""
        told.answers.append(Put(id=first or item.id, duplicate=bool(first)))
        if not first:
            fresh.add(item.id)
            told.items.append(item)
            if item.dedup:
                told.keys[key] = (item.id, item.dedup_until)
    return told


def merged(wanted: Sequence[tuple[str, int]]) -> dict[str, int]:
    """What is asked of each lane, in order of first mention. Raises ValueError for more than BATCH_MAX in all."""
    check_size(wanted)
    lanes: dict[str, int] = {}
    for lane, most in wanted:
        lanes[lane] = lanes.get(lane, 0) + max(0, most)
    if sum(lanes.values()) > BATCH_MAX:
        raise ValueError(f"{sum(lanes.values())} leases wanted at once, more than {BATCH_MAX}")
    return lanes


def settled(row: Row, told: Settlement) -> Change:
    """What `told` makes of a lease that it holds. A cancelled item does not wait again."""
    attempt = row.attempt if told.counted or row.place == ASIDE else max(0, row.attempt - 1)
    if told.state == "waiting" and row.cancelling:
        return Change(
            row=row, state=DEAD, attempt=attempt, reason="cancelled", settled_at=told.now, record=told.record, keep_until=row.keep_until
        )
    if told.state == "waiting":
        return Change(row=row, state=WAITING, attempt=attempt, due=told.due, record=told.record)
    return Change(
        row=row,
        state=CODES[told.state],
        attempt=attempt,
        reason=told.reason,
        settled_at=told.now,
        keep_until=told.keep_until,
        record=told.record,
        result=told.result,
    )


def ended(settlements: Sequence[Settlement], rows: dict[str, Row]) -> tuple[list[bool], list[Change], list[NewItem]]:
    """Which settlements hold their lease (each lease once), what they change, and what they bring. Takes what it settles out of `rows`."""
    held, changes, items = [], list[Change](), list[NewItem]()
    for told in settlements:
        row = rows.get(told.id)
        held.append(row is not None and row.held(told.epoch))
        if row is not None and held[-1]:
            changes.append(settled(rows.pop(told.id), told))
            items.extend(told.items)
    return held, changes, items


def returned(row: Row, now: float, due: float) -> Change:
    """What giving a lease back makes of it."""
    return settled(row, Settlement(id=row.id, epoch=row.epoch, now=now, state="waiting", due=due, counted=False))


def cancelled(row: Row, now: float, until: float) -> Change:
    """What cancelling makes of an item that waits."""
    return Change(row=row, state=DEAD, attempt=row.attempt, reason="cancelled", settled_at=now, keep_until=until)


def kept_until(now: float, keep_until: float) -> float:
    """Until when a cancelled item is kept."""
    return keep_until or now + CANCELLED_KEPT_SECONDS


def check(items: Sequence[NewItem]) -> None:
    """Raise ValueError for what breaks a bound, before anything is written."""
    check_size(items)
    for item in items:
        if not 0 <= item.priority <= RANK_MAX:
            raise ValueError(f"the priority of {item.id!r} is {item.priority}, not 0 to {RANK_MAX}")
        if len(item.body) > BODY_BYTES_MAX:
            raise ValueError(f"the body of {item.id!r} has {len(item.body)} bytes, more than {BODY_BYTES_MAX}")
        if not item.id or not item.lane:
            raise ValueError("an item needs an id and a lane")
        for text in (item.id, item.lane, item.group, item.dedup, item.tag):
            if len(text) > TEXT_MAX or "\0" in text:
                raise ValueError(f"{text[:60]!r} is longer than {TEXT_MAX} characters, or holds a NUL")


def check_settlements(settlements: Sequence[Settlement]) -> None:
    """The same for settlements and what they bring."""
    check_size(settlements)
    for told in settlements:
        if len(told.record) > BODY_BYTES_MAX or len(told.result) > BODY_BYTES_MAX:
            raise ValueError(f"record or result of {told.id!r} is larger than {BODY_BYTES_MAX} bytes")
    check(list(chain.from_iterable(told.items for told in settlements)))


def check_size(batch: Sequence[object]) -> None:
    """One verb takes at most BATCH_MAX."""
    if len(batch) > BATCH_MAX:
        raise ValueError(f"a batch of {len(batch)}, more than {BATCH_MAX}")


def item_of(row: tuple[Any, ...], attempts: Sequence[bytes]) -> Item:
    """An item from its row, as both databases read it, and its records."""
    (
        _, id, lane, body, accepted_at, due, expires, priority, group, dedup, dedup_until, tag, state, epoch, attempt, reason, result,
        settled_at, keep_until, cancelling,
    ) = row  # fmt: skip
    return Item(
        id=id,
        lane=lane,
        body=body,
        accepted_at=accepted_at,
        due=due,
        expires=expires,
        priority=priority,
        group=group,
        dedup=dedup,
        dedup_until=dedup_until,
        tag=tag,
        state=STATES[state],
        epoch=epoch,
        attempt=attempt,
        attempts=tuple(attempts),
        reason=reason,
        result=result,
        settled_at=settled_at,
        keep_until=keep_until,
        cancelling=bool(cancelling),
    )
