"""The reducer's calls of one level of a map: read what the level below brought, make events of it, put them. Called by control/maps.py.

An event has as many results as fit into a body (`body_bytes_max`, `map_reduce_items_max`); when there are several, their answers are the
results of the next level, and so on until one is left: a reducer is given its own answers and must be associative. The same level planned
twice is the same calls with the same ids: results that are settled do not change. Decides nothing but where an event ends.
"""

from collections.abc import AsyncIterator, Sequence

import msgspec

from dayfly.control.calls import Calls
from dayfly.control.durable import Durable
from dayfly.control.spill import Spill, decode_result
from dayfly.core.decide.mapping import Chunks
from dayfly.core.model.durable import Attempt, Stored, map_lane
from dayfly.core.model.mapping import MapRecord
from dayfly.core.model.settings import Settings
from dayfly.store.queue import Item

READ_ITEMS = 128  # at once, with bodies and results
ROOM_BYTES = 1024  # of an event, beside the results
_attempt = msgspec.msgpack.Decoder(Attempt).decode
_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Reducing:
    """Plans levels."""

    def __init__(self, settings: Settings, durable: Durable, calls: Calls, spill: Spill) -> None:
        self._settings, self._durable, self._calls, self._spill = settings, durable, calls, spill

    async def plan(self, record: MapRecord, failed: int) -> int:
        """Put all calls of the record's level; how many they are."""
        chunks = Chunks(self._settings.body_bytes_max - ROOM_BYTES, self._settings.map_reduce_items_max)
        chunk: list[bytes] = []
        number = 0
        async for answer in self._inputs(record):
            if chunks.begins(len(answer) + 1):
                await self._put(record, number, chunk, failed, last=False)
                number, chunk = number + 1, []
            chunk.append(answer)
        await self._put(record, number, chunk, failed, last=number == 0)
        return number + 1

    async def _put(self, record: MapRecord, number: int, results: Sequence[bytes], failed: int, *, last: bool) -> None:
        head = {"map_id": record.id, "level": record.level, "last": last, "failed": failed}
        body = _encode(head)[:-1] + b',"results":[' + b",".join(results) + b"]}"
        lane = map_lane(record.namespace, record.order.reduce, record.seed, reducing=True)
        expires = record.created_at + self._settings.map_seconds_max
        call = (record.reducer_id(record.level, number), body)
        await self._calls.put_aside(lane, [call], Stored(source="map"), expires, f"map:{record.id}")

    async def _inputs(self, record: MapRecord) -> AsyncIterator[bytes]:
        """What this level is given, in order: the items that succeeded, or the answers of the level below."""
        total = record.inputs if record.level else record.total
        for first in range(0, total, READ_ITEMS):
            numbers = range(first, min(first + READ_ITEMS, total))
            ids = [record.reducer_id(record.level - 1, n) if record.level else record.item_id(n) for n in numbers]
            for item in await self._durable(lambda queue: queue.get(ids)):  # noqa: B023 (awaited here)
                if item is not None and item.state == "done":
                    yield await answer_of(item, self._spill)


async def answer_of(item: Item, spill: Spill) -> bytes:
    """A settled call's answer as one JSON value on one line; what is no JSON, as text."""
    result = decode_result(item.result) if item.result else None
    if result is None:
        return b"null"
    body = await spill.fetch(result.blob) if result.blob else result.body
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _encode(body.decode("utf-8", "replace")) if body else b"null"
    return _encode(value) if b"\n" in body else body.strip()


def error_of(item: Item, answer: bytes) -> dict[str, object]:
    """Why a call is dead: its reason, the code and words of its last attempt, and the error that the function raised."""
    last = _attempt(item.attempts[-1]) if item.attempts and item.attempts[-1] else None
    raised = _decode(answer)
    error: dict[str, object] = {"reason": item.reason}
    if last is not None:
        error |= {"code": last.code, "message": last.detail}
    return error | raised if isinstance(raised, dict) and "errorType" in raised else error
