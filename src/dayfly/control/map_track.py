"""What became of a map's items so far, in memory: a byte and a number for each. Built from the queue, then told of every settlement.

The queue stays the truth: after a restart it is read again, page by page, while settlements are already being noted, which may be done
twice. The order in which items were settled is a track's own (`incarnation` names it): a restart makes another one. Decides nothing.
Used by control/maps.py and map_results.py.
"""

import secrets
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence

from dayfly.control.durable import Durable
from dayfly.core.model.durable import map_lane
from dayfly.core.model.mapping import MapRecord
from dayfly.store.queue import LIST_MAX, Item, State

DONE, DEAD = 1, 2
SAMPLES = 64  # of the rate
SAMPLE_SECONDS = 0.2


class Track:
    """`states` has 0 for an item that is not settled. `order`: indexes as they were settled."""

    def __init__(self, incarnation: str = "") -> None:
        self.incarnation = incarnation or secrets.token_hex(4)
        self.states = bytearray()
        self.order = array("I")
        self.accepted = self.done = self.dead = 0
        self.reducers: dict[str, dict[str, bool]] = {}  # "rGENERATION.LEVEL" → number → whether it has an answer
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def __repr__(self) -> str:
        return f"<Track {self.incarnation}: {self.done} done, {self.dead} dead of {self.accepted}>"

    def accept(self, count: int) -> None:
        """So many items are there."""
        self.accepted = max(self.accepted, count)
        self.states.extend(bytes(max(0, count - len(self.states))))

    def note(self, index: int, *, ok: bool) -> None:
        """An item is settled; known already, it changes nothing."""
        if index >= len(self.states):
            self.states.extend(bytes(index + 1 - len(self.states)))
        if self.states[index]:
            return
        self.states[index] = DONE if ok else DEAD
        self.order.append(index)
        if ok:
            self.done += 1
        else:
            self.dead += 1

    def note_reducer(self, name: str, *, ok: bool) -> None:
        """A call of a reducer, `rGENERATION.LEVEL.NUMBER`, is settled."""
        level, _, number = name.rpartition(".")
        self.reducers.setdefault(level, {})[number] = ok

    def reduced(self, record: MapRecord) -> tuple[int, int]:
        """Calls of the record's level that have an answer, and that are dead."""
        told = self.reducers.get(f"r{record.generation}.{record.level}", {})
        ok = sum(told.values())
        return ok, len(told) - ok

    def settled_until(self, index: int) -> int:
        """The first item from `index` on that is not settled."""
        found = self.states.find(0, index)
        return len(self.states) if found < 0 else found

    def sample(self, now: float) -> None:
        """Remember how far it is, for the rate."""
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, len(self.order)))

    def rate(self, now: float) -> float:
        """Items settled in a second, of late."""
        if not self._samples or now <= self._samples[0][0]:
            return 0.0
        at, count = self._samples[0]
        return (len(self.order) - count) / (now - at)


async def load(durable: Durable, record: MapRecord, track: Track) -> None:
    """Bring `track` up to what the queue has. Of items that were settled at one time, in the order of their indexes."""
    lane = map_lane(record.namespace, record.order.function, record.seed)
    counts = (await durable(lambda queue: queue.counts([lane]))).get(lane, {})
    track.accept(sum(counts.values()))
    settled: list[tuple[float, int, bool]] = []
    async for item in pages(durable, lane, ("done", "dead")):
        settled.append((item.settled_at, int(item.id.rpartition(".")[2]), item.state == "done"))
    for _, index, ok in sorted(settled):
        track.note(index, ok=ok)
    if record.order.reduce:
        lane = map_lane(record.namespace, record.order.reduce, record.seed, reducing=True)
        async for item in pages(durable, lane, ("done", "dead")):
            track.note_reducer(item.id.partition(".")[2], ok=item.state == "done")


async def pages(durable: Durable, lane: str, states: Sequence[State]) -> AsyncIterator[Item]:
    """The items of a lane in some states, newest first, without bodies and results, a page of the queue at a time."""
    before: tuple[float, str] | None = None
    while True:
        page = await durable(lambda queue: queue.list(lanes=[lane], states=states, before=before, limit=LIST_MAX))  # noqa: B023 (awaited here)
        for item in page:
            yield item
        if len(page) < LIST_MAX:
            return
        before = (page[-1].accepted_at, page[-1].id)
