"""What a map does next. Its record and a few counts in, one step out; called by control/maps.py until the step is to wait.

    filling ──whole──▶ running ──all settled──▶ reducing ──one answer left──▶ done ─┐
       │                 │ │ └───(no reducer)───────│────────────────────────▶ done ─┤ redrive
       │ cancel,         │ │ fail_fast, cancel      │ a reducer is dead              ├─────────▶ redriving ──▶ running
       └─ abandoned ─▶ ending ◀─────────────────────┘                                │
                         └──nothing waits or runs──▶ cancelled | failed ─────────────┘

Facts are counts of what is settled, exact because they are rebuilt from the queue; a step may be carried out twice (control was killed
before it wrote down that it had been), so each is such that the second time changes nothing: ids of calls follow from the record.
Never reads a clock, never touches a store.
"""

from typing import NamedTuple

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import MapRecord, MapState

_CANCELLED = frozenset(("cancelled", "upload_abandoned"))
REDRIVABLE: frozenset[MapState] = frozenset(("done", "failed", "cancelled"))


class Facts(NamedTuple):
    """Items accepted, done and dead; answers of the present level of reducers; and whether what waited has been cancelled (ending), or
    what was dead put back (redriving)."""

    now: float
    accepted: int
    done: int
    dead: int
    reduced: int = 0
    reducers_dead: int = 0
    swept: bool = False
    fed_at: float = 0.0  # when items last came


class Bounds(NamedTuple):
    """Of settings."""

    upload_seconds: float
    keep_seconds: float


class Wait(NamedTuple):
    """Nothing to do before something is settled, or `until`."""

    until: float = float("inf")


class Become(NamedTuple):
    """Write this record down."""

    record: MapRecord


class Cancel(NamedTuple):
    """Cancel what waits or runs."""


class PutBack(NamedTuple):
    """Let all dead items wait again."""


class Plan(NamedTuple):
    """Put the reducers of the present level."""


class Forget(NamedTuple):
    """Delete it, with all that it has in the queue."""


Step = Wait | Become | Cancel | PutBack | Plan | Forget


def step(record: MapRecord, facts: Facts, bounds: Bounds) -> Step:
    """What to do now."""
    if record.ended:
        until = record.ended_at + bounds.keep_seconds
        return Forget() if facts.now >= until else Wait(until)
    if record.state == "ending":
        return _ending(record, facts)
    if record.state == "redriving":
        return Become(_with(record, state="running")) if facts.swept else PutBack()
    if record.state == "reducing":
        return _reducing(record, facts)
    if record.order.fail_fast and facts.dead:
        return Become(ending(record, "fail_fast"))
    if record.state == "filling":
        until = facts.fed_at + bounds.upload_seconds
        return Become(ending(record, "upload_abandoned")) if facts.now >= until else Wait(until)
    if facts.done + facts.dead < record.total:
        return Wait()
    if record.order.reduce:
        return Become(_with(record, state="reducing", level=0, inputs=0, calls=0))
    return Become(_ended(record, "done", facts))


def _ending(record: MapRecord, facts: Facts) -> Step:
    if not facts.swept:
        return Cancel()
    if facts.done + facts.dead < facts.accepted or facts.reduced + facts.reducers_dead < record.calls:
        return Wait()
    return Become(_ended(record, "cancelled" if record.reason in _CANCELLED else "failed", facts))


def _reducing(record: MapRecord, facts: Facts) -> Step:
    if not record.calls:
        return Plan()
    if facts.reducers_dead:
        return Become(ending(record, "reduce_failed"))
    if facts.reduced < record.calls:
        return Wait()
    if record.calls == 1:
        return Become(_with(_ended(record, "done", facts), result=record.reducer_id(record.level, 0)))
    return Become(_with(record, level=record.level + 1, inputs=record.calls, calls=0))


def ending(record: MapRecord, reason: str) -> MapRecord:
    """It is to end."""
    return _with(record, state="ending", reason=reason)


def whole(record: MapRecord, accepted: int) -> MapRecord:
    """No more items come. Raises Refusal bad_request when there are none."""
    if not accepted:
        raise Refusal("bad_request", "There is no item: a map needs one at least.")
    return _with(record, state="running", total=accepted)


def planned(record: MapRecord, calls: int) -> MapRecord:
    """The reducers of the present level are there. Above the items each must bring several answers together, or there would be no end."""
    if record.level and calls >= record.inputs:
        return _with(ending(record, "reduce_too_large"), calls=calls)
    return _with(record, calls=calls)


def cancelled(record: MapRecord) -> MapRecord:
    """Somebody cancels it. Raises Refusal conflict."""
    if record.ended:
        raise Refusal("conflict", f"The map has ended already: it is {record.state}.")
    return record if record.state == "ending" else ending(record, "cancelled")


def redriven(record: MapRecord) -> MapRecord:
    """Its failed items are to run again, and then its reducer. Raises Refusal conflict."""
    if record.state not in REDRIVABLE:
        raise Refusal("conflict", f"The map is {record.state}: only one that has ended is redriven.")
    if record.total < 0:
        raise Refusal("conflict", "The map never had all its items: send them again as another map.")
    if record.state == "done" and not record.dead:
        raise Refusal("conflict", "No item of the map has failed.")
    fresh = _with(record, state="redriving", reason="", generation=record.generation + 1, level=0, inputs=0, calls=0)
    return _with(fresh, done=-1, dead=-1, result="", ended_at=0.0)


class Chunks:
    """Where one reducer's inputs end and the next one's begin. At least one for each, however large it is."""

    def __init__(self, bytes_max: int, items_max: int) -> None:
        self._bytes_max, self._items_max = bytes_max, items_max
        self._count = self._bytes = 0

    def begins(self, size: int) -> bool:
        """Whether the next input, of this size, is the first of another reducer's."""
        another = bool(self._count) and (self._count >= self._items_max or self._bytes + size > self._bytes_max)
        if another:
            self._count = self._bytes = 0
        self._count += 1
        self._bytes += size
        return another


def _ended(record: MapRecord, state: MapState, facts: Facts) -> MapRecord:
    return _with(record, state=state, done=facts.done, dead=facts.dead, ended_at=facts.now)


def _with(record: MapRecord, **changes: object) -> MapRecord:
    return msgspec.structs.replace(record, **changes)
