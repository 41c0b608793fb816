"""The JSON of maps' routes, as msgspec structs, and how a map of control becomes it. Times are epoch seconds."""

import time
from typing import Any

import msgspec

from dayfly.api.shapes import Answer
from dayfly.control.map_live import Live
from dayfly.control.maps import Maps
from dayfly.core.model.names import LIVE


class NewMap(msgspec.Struct, forbid_unknown_fields=True):
    """A map to be made. The same `id` and order twice is one map. `concurrency`: items in hand at once, 0: as many as the pools take."""

    function: str
    id: str = ""
    qualifier: str = LIVE
    concurrency: int = 0
    reduce: str = ""
    fail_fast: bool = False


class MapAnswer(Answer):
    """A map. `accepted` items are there, `total` is -1 until all are; `running` are in gateways' hands; `rate` is items settled in a
    second of late; `result_call` is the call whose answer is the map's result."""

    id: str
    namespace: str
    function: str
    qualifier: str
    concurrency: int
    reduce: str
    fail_fast: bool
    state: str
    reason: str
    created_at: float
    ended_at: float
    total: int
    accepted: int
    done: int
    failed: int
    running: int
    rate: float
    result_call: str


class MapList(Answer):
    maps: list[MapAnswer]


class ItemAnswer(Answer):
    """A line of results: `result` of an item that succeeded, `error` (reason, code, message, what was raised) of one that did not."""

    index: int
    ok: bool
    attempts: int
    after: str
    result: Any = None
    error: dict[str, Any] | None = None


def map_of(live: Live, maps: Maps) -> MapAnswer:
    """A map as JSON has it."""
    record, order = live.record, live.record.order
    accepted, done, failed = live.counts
    return MapAnswer(
        id=record.id,
        namespace=record.namespace,
        function=order.function,
        qualifier=order.qualifier,
        concurrency=order.concurrency,
        reduce=order.reduce,
        fail_fast=order.fail_fast,
        state=record.state,
        reason=record.reason,
        created_at=record.created_at,
        ended_at=record.ended_at,
        total=record.total,
        accepted=accepted,
        done=done,
        failed=failed,
        running=maps.running(live),
        rate=round(live.track.rate(time.monotonic()), 1) if live.track is not None else 0.0,
        result_call=record.result,
    )
