"""One map in memory: its record as it was last written, how far its items are, its locks, and who waits for it. No verbs.

Made and changed by control/maps.py; looked at by map_results.py and api/.
"""

import asyncio
import time

from dayfly.control.map_track import Track
from dayfly.core.model.durable import map_lane
from dayfly.core.model.mapping import MapRecord


class Live:
    """A map in memory. `track` is there while it has not ended."""

    def __init__(self, record: MapRecord, version: int) -> None:
        self.record, self.version = record, version
        self.track: Track | None = None
        self.loaded = asyncio.Event()
        self.wake = asyncio.Event()
        self.lock = asyncio.Lock()  # around looking at the record and writing the next one
        self.putting = asyncio.Lock()  # around looking at the state and putting items
        self.feeding = asyncio.Lock()  # one upload at a time
        self.fed_at = time.time()
        self.swept = False
        self.waiters: set[asyncio.Future[None]] = set()
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Live {self.record.namespace}/{self.record.id} {self.record.state} {self.track!r}>"

    @property
    def lane(self) -> str:
        return map_lane(self.record.namespace, self.record.order.function, self.record.seed)

    @property
    def lanes(self) -> list[str]:
        """Its items', and its reducers' if it has a reducer."""
        reduce = self.record.order.reduce
        return [self.lane, *([map_lane(self.record.namespace, reduce, self.record.seed, reducing=True)] if reduce else [])]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Items accepted, done, dead."""
        track, record = self.track, self.record
        if track is None:
            done, dead = max(0, record.done), max(0, record.dead)
            return (record.total if record.total >= 0 else done + dead), done, dead
        return track.accepted, track.done, track.dead

    def moved(self) -> None:
        """Something is settled, or its state is another."""
        self.wake.set()
        waiters, self.waiters = self.waiters, set()
        for future in waiters:
            if not future.done():
                future.set_result(None)
