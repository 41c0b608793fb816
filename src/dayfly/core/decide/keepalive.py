"""How many idle instances a version keeps, and when one is made ahead of a call that is expected.

Two ways. *fixed*: the most instances that demand was worth within the last `keep_alive_seconds`. *auto*: the same, until the function's
idle times say better. Learned is the histogram of "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020), for starts of milliseconds:

- Each time a call ends an idle time of a second or more, its length is counted in one of 250 bins, each 5 % wider than the one before,
  from a second to two days (`IdleTimes`). Aged by halving, so that a function may change its ways.
- The windows are chosen by their price (`priced`): of all pairs "away for A seconds, then there until B" the one at which the idle seconds
  spent, less what the spared starts are worth, are fewest in this histogram; widened by the paper's margin of 10 % on either side. So an
  instance of a timer's function leaves after the call and one is made ahead of the next; where calls come in bursts it stays as long as a
  burst's pauses; and where nothing can be foreseen and starts are cheap, it does not stay at all.
- What a spared start is worth: 14,400 times its measured seconds, init included. That is the paper's four hours for a start of a second; a
  fork of 5 ms is worth 72 seconds of an idle instance, and no more.
- With fewer than five idle times seen, or most of them beyond the last bin: the fixed window.

`percentiles` is the choice of the paper itself (5th to 99th percentile where the counts are concentrated, else fixed), for comparison in
core/decide/simulate.py. docs/decisions/0012-keep-alive.md says why the other one serves.

Learned windows decide whether the *last* instance stays. Those above the first follow the peaks of the fixed window, in either way.
Times are seconds on any clock that never goes back. Used by core/decide/pool.py and core/decide/simulate.py.
"""

from array import array
from collections.abc import Callable
from math import log, sqrt
from typing import NamedTuple

SLOTS = 8
SLOT_SECONDS_MIN = 0.01

IDLE_SECONDS_MIN = 1.0  # a shorter pause is no idle time; so long an instance lingers in any case
BINS = 250
BIN_GROWTH = 1.05
LOG_GROWTH = log(BIN_GROWTH)
EDGES = tuple(IDLE_SECONDS_MIN * BIN_GROWTH**index for index in range(BINS + 1))
OBSERVATIONS_MIN = 5
OBSERVATIONS_MAX = 1000  # then every count is halved
NEW_PART = 32  # windows are chosen anew when a 32nd of what was seen is new
HEAD, TAIL = 0.05, 0.99
MARGIN = 0.10
SPREAD_MIN = 2.0
BEYOND_SHARE_MAX = 0.5
AHEAD_SECONDS_MIN = 30.0  # an instance is not taken down and made again for less
WORTH_PER_START_SECOND = 14_400.0
NEVER = float("-inf")


class Windows(NamedTuple):
    """After the last call: away for `ahead_seconds`, then there for `keep_seconds`. `learned` is False for the fixed window."""

    ahead_seconds: float
    keep_seconds: float
    learned: bool = False


class IdleTimes:
    """One function's idle times in 250 counters of two bytes. Outlives pools: gateway/ledger.py holds it while the function is there."""

    __slots__ = ("_beyond", "_counts", "idle_since", "total")

    def __init__(self) -> None:
        self._counts = array("H", bytes(2 * BINS))
        self._beyond = 0
        self.total = 0  # those beyond the last bin included
        self.idle_since = NEVER  # when the function was last seen at work

    def ended(self, now: float) -> None:
        """A call came: the idle time since `idle_since` is over."""
        seconds = now - self.idle_since
        if seconds >= IDLE_SECONDS_MIN and self.idle_since > NEVER:
            self.note(seconds)
        self.idle_since = now

    def note(self, seconds: float) -> None:
        """Count one idle time of at least a second."""
        index = int(log(seconds / IDLE_SECONDS_MIN) / LOG_GROWTH)
        if index < BINS:
            self._counts[index] += 1
        else:
            self._beyond += 1
        self.total += 1
        if self.total >= OBSERVATIONS_MAX:
            self._age()

    def bins(self) -> list[tuple[int, int]]:
        """(index, count) of every bin that is not empty, in order. Bin `i` reaches from EDGES[i] to EDGES[i + 1] seconds."""
        return [(index, count) for index, count in enumerate(self._counts) if count]

    @property
    def clear(self) -> bool:
        """Whether there is enough to decide by: not too few, and most of them within the bins."""
        return self.total >= OBSERVATIONS_MIN and self._beyond <= BEYOND_SHARE_MAX * self.total

    @property
    def spread(self) -> float:
        """Coefficient of variation of the bins' counts: 15.8 when one bin has all, 0 of none. 2 means about a decade of idle times."""
        within = self.total - self._beyond
        if within == 0:
            return 0.0
        mean = within / BINS
        return sqrt(max(0.0, sum(count * count for count in self._counts) / BINS - mean * mean)) / mean

    def percentile(self, share: float) -> int:
        """Index of the bin that holds it, of what lies within the bins; there must be something."""
        wanted, passed = share * (self.total - self._beyond), 0
        for index, count in self.bins():
            passed += count
            if passed >= wanted:
                return index
        return BINS - 1

    def _age(self) -> None:
        self._counts = array("H", (count // 2 for count in self._counts))
        self._beyond //= 2
        self.total = sum(self._counts) + self._beyond

    def __repr__(self) -> str:
        return f"<IdleTimes {self.total} seen, {self._beyond} beyond two days, spread {self.spread:.1f}>"


Choice = Callable[[IdleTimes, float, float], Windows]


def priced(seen: IdleTimes, fixed_seconds: float, worth_seconds: float) -> Windows:
    """The cheapest windows when a spared start is worth `worth_seconds` of an idle instance; the fixed one while little is known.

    With S(t) idle times longer than t and I(t) the integral of S up to t, keeping from a to b costs I(b) − I(a) idle seconds and leaves
    total − S(a) + S(b) starts. So with f(t) = worth × S(t) + I(t) the best pair makes f(b) − f(a) smallest: the deepest fall of f, found
    in one pass.
    """
    if not seen.clear:
        return Windows(0.0, fixed_seconds)
    longer, spent, at = seen.total, 0.0, 0.0
    highest, highest_at = worth_seconds * longer, 0.0
    deepest, ahead, until = 0.0, 0.0, 0.0
    for index, count in seen.bins():
        low, high = EDGES[index], EDGES[index + 1]
        spent += longer * (low - at)
        if worth_seconds * longer + spent > highest:
            highest, highest_at = worth_seconds * longer + spent, low
        spent += (longer - count / 2) * (high - low)
        longer, at = longer - count, high
        if worth_seconds * longer + spent - highest < deepest:
            deepest, ahead, until = worth_seconds * longer + spent - highest, highest_at, high
    return _windows(ahead, until)


def percentiles(seen: IdleTimes, fixed_seconds: float, worth_seconds: float) -> Windows:
    """The paper's choice: from the 5th to the 99th percentile if the counts are concentrated, else the fixed window."""
    if not seen.clear or seen.spread < SPREAD_MIN:
        return Windows(0.0, fixed_seconds)
    windows = _windows(EDGES[seen.percentile(HEAD)], EDGES[seen.percentile(TAIL) + 1])
    return windows if windows.keep_seconds <= worth_seconds else Windows(0.0, fixed_seconds)


def fixed(seen: IdleTimes, fixed_seconds: float, worth_seconds: float) -> Windows:
    """What was promised, whatever was seen."""
    return Windows(0.0, fixed_seconds)


def _windows(ahead: float, until: float) -> Windows:
    """With margins; never away for less than taking down and making again is worth, never gone before it has lingered."""
    ahead, until = ahead * (1 - MARGIN), until * (1 + MARGIN)
    if ahead < AHEAD_SECONDS_MIN:
        ahead = 0.0
    return Windows(ahead, max(until - ahead, IDLE_SECONDS_MIN), learned=True)


class KeepAlive:
    """What one pool keeps. Told of its use (`ended_idle`, `used`), asked by the clock (`wanted`, `ahead_due`)."""

    __slots__ = (
        "_ahead_at", "_ahead_for", "_choose", "_crowd_seconds", "_crowd_until", "_fixed_seconds", "_known", "_peaks", "_until",
        "seen", "used_at", "windows", "worth_per_start_second",
    )  # fmt: skip

    def __init__(self, fixed_seconds: float, seen: IdleTimes, choose: Choice = fixed) -> None:
        self.seen = seen
        self.used_at = NEVER
        self.windows = Windows(0.0, fixed_seconds)  # what happens after the present or last call
        self.worth_per_start_second = WORTH_PER_START_SECOND
        self._fixed_seconds = fixed_seconds
        self._choose = choose
        self._known = -1  # how many idle times the windows were chosen by
        self._peaks = Peaks(fixed_seconds)
        self._crowd_seconds = fixed_seconds * (1 + 1 / SLOTS) + SLOT_SECONDS_MIN
        self._crowd_until = NEVER  # more than one instance was needed within the fixed window
        self._ahead_at = self._until = NEVER
        self._ahead_for = NEVER  # the `used_at` for which one instance was already made ahead

    def ended_idle(self, now: float, start_seconds: float) -> None:
        """A call came where nothing waited or ran. Decides anew what happens after it."""
        self.seen.ended(now)
        if self._choose is not fixed and not self._known <= self.seen.total <= self._known + self._known // NEW_PART:
            self._known = self.seen.total
            self.windows = self._choose(self.seen, self._fixed_seconds, self.worth_per_start_second * start_seconds)

    def used(self, needed: int, now: float) -> None:
        """Demand was worth so many instances at `now`."""
        self.used_at = now
        self._ahead_at = now + self.windows.ahead_seconds
        self._until = self._ahead_at + self.windows.keep_seconds
        if needed > 1:
            self._peaks.note(needed, now)
            self._crowd_until = now + self._crowd_seconds

    def wanted(self, now: float) -> int:
        """How many instances shall be there although nobody may need them."""
        lingers = self._ahead_at > self.used_at and now < self.used_at + IDLE_SECONDS_MIN
        if not lingers and not self._ahead_at <= now < self._until:
            return 0
        if now >= self._crowd_until:
            return 1
        self._peaks.note(0, now)
        return max(1, self._peaks.highest())

    def ahead_due(self, now: float) -> bool:
        """True once after each use: the call is expected soon and an instance shall be made ahead of it."""
        if self._ahead_at > self.used_at and self._ahead_for < self.used_at and self._ahead_at <= now < self._until:
            self._ahead_for = self.used_at
            return True
        return False

    def expects(self, now: float) -> bool:
        """Whether an instance is still to be made ahead, so that the pool must not be forgotten."""
        return self._ahead_at > self.used_at and now < self._until

    def next_change_at(self, now: float) -> float:
        """When `wanted` may next be different if nothing happens; infinity when it stays 0. For a clock that jumps (the simulator)."""
        lingers_until = self.used_at + IDLE_SECONDS_MIN if self._ahead_at > self.used_at else NEVER
        slot = self._peaks.next_slot_at(now) if now < self._crowd_until else NEVER
        return min((edge for edge in (lingers_until, self._ahead_at, self._until, slot) if edge > now), default=float("inf"))


class Peaks:
    """The highest number noted within the last `window_seconds` (up to one slot longer), in eight slots of a ring."""

    __slots__ = ("_highest", "_slot", "_slot_seconds")

    def __init__(self, window_seconds: float) -> None:
        self._slot_seconds = max(window_seconds / SLOTS, SLOT_SECONDS_MIN)
        self._highest = [0] * SLOTS
        self._slot = -1

    def note(self, needed: int, now: float) -> None:
        """So many are needed at `now`; times never go back."""
        slot = int(now / self._slot_seconds)
        if slot != self._slot:
            for passed in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
                self._highest[passed % SLOTS] = 0
            self._slot = slot
        self._highest[slot % SLOTS] = max(self._highest[slot % SLOTS], needed)

    def highest(self) -> int:
        """The most that was noted within the window, as of the last `note`."""
        return max(self._highest)

    def next_slot_at(self, now: float) -> float:
        """When the next slot begins."""
        return (int(now / self._slot_seconds) + 1) * self._slot_seconds
