"""Maps: one function called with each of many items, and a reducer with what came of them. Nouns only.

A *map* has *items*, each a durable call in the map's own lane; a *reducer* is given all results when the last item is settled, in a tree
when they do not fit into one event. What a map is to be and how far it is stands in one `MapRecord`; how many items are there and what
became of them is the queue's to say. Never decides (core/decide/mapping.py does), never reads a clock.
Used by control/maps.py and its neighbours, and api/maps.py.
"""

from typing import Literal

import msgspec

from dayfly.core.model.names import LIVE

CONCURRENCY_MAX = 100_000
MapState = Literal[
    "filling",  # items come, and run as they come
    "running",  # all items are there
    "redriving",  # those that failed are being put back
    "reducing",
    "ending",  # what waits is being cancelled; what runs is waited for
    "done",  # every item is settled, the reducer has answered
    "failed",  # ended by a failure: of an item that ends all (fail_fast), or of the reducer
    "cancelled",
]
ENDED: frozenset[MapState] = frozenset(("done", "failed", "cancelled"))


class MapOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a map is to be. `concurrency`: items that may be in hand at once, 0: as many as the function's pools take."""

    function: str
    qualifier: str = LIVE
    concurrency: int = 0
    reduce: str = ""  # the reducer's name
    fail_fast: bool = False  # the first item that is dead ends the map


class MapRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One map, as it is written down. Its items' ids are `seed.INDEX`, its reducers' `seed.rGENERATION.LEVEL.NUMBER`."""

    id: str
    namespace: str
    order: MapOrder
    seed: str  # rises with time, and is random: a later map of the same id has other items
    created_at: float
    state: MapState = "filling"
    reason: str = ""  # why it ends: cancelled, fail_fast, upload_abandoned, reduce_failed, reduce_too_large
    total: int = -1  # of items; unknown while it is being filled
    generation: int = 0  # of reducing: each redrive begins anew
    level: int = 0  # of the tree of reducers that is under way
    inputs: int = 0  # answers of the level below; at level 0 the items' results are
    calls: int = 0  # of this level; 0: not yet planned
    done: int = -1  # items, once it has ended
    dead: int = -1
    result: str = ""  # the id of the call whose answer is the map's
    ended_at: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def item_id(self, index: int) -> str:
        """The call that item `index` is. Ids rise: the queue's index of them is written at its end (store/queue.py)."""
        return f"{self.seed}.{index:08}"

    def reducer_id(self, level: int, number: int) -> str:
        """The `number`-th call of a level of this generation's tree."""
        return f"{self.seed}.r{self.generation}.{level}.{number}"


class ItemResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an item, as /results has it. `after` is where to go on behind it."""

    index: int
    ok: bool
    attempts: int
    after: str
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, object] | msgspec.UnsetType = msgspec.UNSET
