"""How many calls to lease from which lane: fair between namespaces, then between their functions, and no more than pools can take.

Fair is who has least in hand: a namespace with long calls and one with short ones have equally many at once. Each round gives one call
after the other to the namespace, and in it to the function, that has the fewest; of equals the one served longest ago. What a lane may
have in hand is its *window*: it grows with successes (doubling at first, then by one a window, as TCP's does) and halves when a pool
refuses. Facts in, numbers out; called by control/leasing.py.
"""

import heapq
from collections.abc import Mapping
from math import ceil

from dayfly.core.model.durable import split_lane

WINDOW_FIRST = 8.0
HALVING_SECONDS = 0.25  # refusals within this are one
AHEAD_SECONDS = 0.03  # the way to control's disk and back: for so long a pool is given work in advance
AHEAD_FACTOR_MAX = 64
SMOOTHING = 0.1


class Window:
    """One lane's: how many of its calls may be in gateways' hands at once."""

    __slots__ = ("_grows_fast", "_halved_at", "in_hand", "mean_seconds", "size")

    def __init__(self) -> None:
        self.size = WINDOW_FIRST
        self.in_hand = 0
        self.mean_seconds = -1.0  # of an execution; unknown
        self._grows_fast = True
        self._halved_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Window {self.in_hand} of {self.size:.1f}>"

    def room(self, slots: int, *, ahead: bool) -> int:
        """How many more may go out, where pools have so many slots for them. `ahead`: more than they run at once, when calls are short."""
        most = slots
        if ahead and self.mean_seconds >= 0:
            most = ceil(slots * min(AHEAD_FACTOR_MAX, max(1.0, AHEAD_SECONDS / max(self.mean_seconds, 1e-6))))
        self.size = min(self.size, float(max(1, most)))
        return max(0, int(self.size) - self.in_hand)

    def succeeded(self, exec_seconds: float) -> None:
        """A pool took one and ran it."""
        mean = self.mean_seconds
        self.mean_seconds = exec_seconds if mean < 0 else mean + SMOOTHING * (exec_seconds - mean)
        self.size += 1.0 if self._grows_fast else 1.0 / self.size

    def refused(self, now: float) -> None:
        """A pool had no room."""
        self._grows_fast = False
        if now - self._halved_at >= HALVING_SECONDS:
            self._halved_at = now
            self.size = max(1.0, self.size / 2)


class Shares:
    """Whose turn it is. Remembers only the order in which lanes and namespaces were served last."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}  # lane or namespace → when, in turns
        self._turn = 0

    def wanted(self, rooms: Mapping[str, int], in_hand: Mapping[str, int], budget: int) -> list[tuple[str, int]]:
        """(lane, how many to lease), `budget` in all. `rooms`: lanes that have something due → how many more each may have out."""
        lines: dict[str, list[tuple[int, int, str]]] = {}
        for lane, room in rooms.items():
            if room > 0:
                lines.setdefault(split_lane(lane)[0], []).append((in_hand.get(lane, 0), self._served.get(lane, 0), lane))
        total: dict[str, int] = {}
        for lane, count in in_hand.items():
            namespace = split_lane(lane)[0]
            total[namespace] = total.get(namespace, 0) + count
        for line in lines.values():
            heapq.heapify(line)
        spaces = [(total.get(namespace, 0), self._served.get(namespace, 0), namespace) for namespace in lines]
        heapq.heapify(spaces)
        given: dict[str, int] = {}
        while spaces and budget > 0:
            held, _, namespace = heapq.heappop(spaces)
            line = lines[namespace]
            mine, _, lane = heapq.heappop(line)
            budget -= 1
            self._turn += 1
            given[lane] = given.get(lane, 0) + 1
            self._served[lane] = self._served[namespace] = self._turn
            if given[lane] < rooms[lane]:
                heapq.heappush(line, (mine + 1, self._turn, lane))
            if line:
                heapq.heappush(spaces, (held + 1, self._turn, namespace))
        return list(given.items())

    def forget(self, lanes: set[str]) -> None:
        """Keep only what these lanes need."""
        keep = lanes | {split_lane(lane)[0] for lane in lanes}
        self._served = {name: turn for name, turn in self._served.items() if name in keep}
