"""The results of a map's items as a stream of JSON lines, in the order of the items or in which they were settled, as they come.

A line says where to go on behind it (`after`): in the order of items its index; in the order of settling "INCARNATION-POSITION", for a
restart of control makes another order, in which one who comes with the old one begins anew and passes over what he has. Between results a
line {"progress": …} tells how far the map is, for who asks. Woken by settlements; nobody asks the store while there is nothing.
Called by api/maps.py. Decides nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from dayfly.control.durable import Durable
from dayfly.control.map_live import Live
from dayfly.control.map_track import Track, load
from dayfly.control.maps import Maps
from dayfly.control.reducing import READ_ITEMS, answer_of, error_of
from dayfly.control.spill import Spill
from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import ItemResult
from dayfly.store.queue import Item

PROGRESS_SECONDS = 0.5
GATHER_SECONDS = 0.02  # results that come one by one are read together
_encode = msgspec.json.encode


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `seconds`: how long to wait for what is not there yet; the stream ends earlier when the map has."""

    completed: bool = False
    after: str = ""
    seconds: float = 0.0
    progress: bool = False


class Results:
    """Streams over maps."""

    def __init__(self, maps: Maps, durable: Durable, spill: Spill) -> None:
        self._maps, self._durable, self._spill = maps, durable, spill

    async def stream(self, live: Live, wish: Wish, told: Callable[[Live], object]) -> AsyncIterator[bytes]:
        """Lines, many at once. `told` makes the value of a progress line. Raises Refusal bad_request for an `after` that is none."""
        at, named = position(wish)
        await self._maps.ready(live)
        generation, track = live.record.generation, await self._track(live)
        if wish.completed and named and named != track.incarnation:
            at = 0
        until, shown = time.monotonic() + wish.seconds, 0.0
        while live.record.generation == generation:
            if wish.progress and time.monotonic() - shown >= PROGRESS_SECONDS:
                shown = time.monotonic()
                yield _encode({"progress": told(live)}) + b"\n"
            over = live.record.ended  # looked at before the results: none comes after it
            end = len(track.order) if wish.completed else live.counts[0] if over else track.settled_until(at)
            if at < end:
                end = min(end, at + READ_ITEMS)
                yield await self._lines(live, track, range(at, end), completed=wish.completed)
                at = end
                continue
            left = until - time.monotonic()
            if over or left <= 0:
                break
            await self._maps.wait(live, min(left, PROGRESS_SECONDS) if wish.progress else left)
            await asyncio.sleep(GATHER_SECONDS)
        if wish.progress:
            yield _encode({"progress": told(live)}) + b"\n"

    async def _track(self, live: Live) -> Track:
        """The live one, or one of what the queue has of a map that has ended, which is always the same."""
        if live.track is not None:
            return live.track
        track = Track(f"g{live.record.generation}")
        await load(self._durable, live.record, track)
        return track

    async def _lines(self, live: Live, track: Track, positions: range, *, completed: bool) -> bytes:
        indexes = [track.order[at] for at in positions] if completed else list(positions)
        ids = [live.record.item_id(index) for index in indexes]
        items = await self._durable(lambda queue: queue.get(ids))
        lines = []
        for at, index, item in zip(positions, indexes, items, strict=True):
            after = f"{track.incarnation}-{at + 1}" if completed else str(index)
            lines.append(_encode(await self._result(index, after, item)))
        return b"\n".join([*lines, b""])

    async def _result(self, index: int, after: str, item: Item | None) -> ItemResult:
        if item is None:
            return ItemResult(index=index, ok=False, attempts=0, after=after, error={"reason": "purged"})
        answer = await answer_of(item, self._spill)
        if item.state == "done":
            return ItemResult(index=index, ok=True, attempts=item.attempt, after=after, result=msgspec.Raw(answer))
        return ItemResult(index=index, ok=False, attempts=item.attempt, after=after, error=error_of(item, answer))


def position(wish: Wish) -> tuple[int, str]:
    """(the position to begin at, the incarnation it was said of). Raises Refusal bad_request."""
    incarnation, dash, number = wish.after.rpartition("-")
    if not wish.after:
        return 0, ""
    if not (number.isascii() and number.isdigit() and len(number) < 10) or bool(dash) is not wish.completed:
        raise Refusal("bad_request", f"after={wish.after[:40]!r} is no `after` of a line in this order.")
    return (int(number), incarnation) if wish.completed else (int(number) + 1, "")
