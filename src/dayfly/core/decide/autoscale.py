"""How many instances does a function want by a target: so many calls inside, calls a second or cores for each instance?

The alternative to demand (core/decide/scale.py), for those who know it from Knative, whose rules these are (pkg/autoscaler/scaling):

- Two averages of one figure: over the stable window, and over a short part of its end. Each is worth ⌈average ÷ (target × utilisation)⌉
  instances, by one decision at most `scale_up_rate` times as many as are there, and at least one in `scale_down_rate`.
- The short one worth `panic_threshold` times what is there is a *panic*, until a whole stable window has passed without. In a panic the
  larger of both counts, and the number never goes down. Who begins with several instances begins in a panic, for it knows of no past.
- `scale_down_delay_seconds`: the most that was wanted within it.

Other than there: a start takes milliseconds, so the stable window is 10 seconds instead of 60, and as a decision is made thirty times a
window, every third of a second. What is averaged are integrals (calls inside × seconds, calls, seconds of processor time), so that
it does not matter how regularly the clock ticks.

Facts in (`used`, with times that never go back), a number out (`decide`). Silent. Fed by gateway/scaling.py and dayfly.testing's world.
"""

from array import array
from math import ceil, floor

from dayfly.core.decide.keepalive import NEVER, Peaks
from dayfly.core.model.scale import Metric, Scale

DECISIONS_PER_WINDOW = 30
PANIC_BUCKETS = 10
BUCKETS_MAX = 200
RPS_TARGET = 200.0
CPU_TARGET = 1.0  # cores
_DUST = 1e-9  # what sums of floats are wrong by


def target_of(metric: Metric, concurrency: int) -> float:
    """Of one instance, when the user says none: all its places, 200 calls a second, a core."""
    return {"concurrency": float(concurrency), "rps": RPS_TARGET, "cpu": CPU_TARGET}.get(metric, 1.0)


class Sums:
    """What was used, in buckets of equal width, as far back as `seconds`."""

    __slots__ = ("_amounts", "_at", "_began_at", "_until", "_width")

    def __init__(self, seconds: float, width: float) -> None:
        self._width = width
        self._amounts = array("d", bytes(8 * (ceil(seconds / width - _DUST) + 1)))
        self._at = -1  # the present bucket, counted from the clock's 0
        self._began_at = self._until = NEVER

    def add(self, amount: float, now: float) -> None:
        """So much was used until now since the last time, evenly; the first time there is no last, and it does not count."""
        since, self._until = self._until, now
        self._advance(now)
        if now <= since or since == NEVER:
            return
        width, size = self._width, len(self._amounts)
        for bucket in range(max(int(since / width), self._at - size + 1), self._at + 1):
            within = min(now, (bucket + 1) * width) - max(since, bucket * width)
            self._amounts[bucket % size] += amount * max(0.0, within) / (now - since)

    def mean(self, seconds: float, now: float) -> float:
        """Used per second, within the last `seconds` or as long as there is something to know."""
        self._advance(now)
        count = min(len(self._amounts), max(1, round(seconds / self._width)))
        used = sum(self._amounts[bucket % len(self._amounts)] for bucket in range(self._at - count + 1, self._at + 1))
        covered = min(now - self._began_at, now - (self._at - count + 1) * self._width)
        return used / max(covered, self._width)

    def _advance(self, now: float) -> None:
        at = int(now / self._width)
        if self._began_at == NEVER:
            self._at, self._began_at = at, now
        for passed in range(max(self._at + 1, at - len(self._amounts) + 1), at + 1):
            self._amounts[passed % len(self._amounts)] = 0.0
        self._at = max(self._at, at)


class Autoscaler:
    """One version's. `wanted` is what was decided last."""

    __slots__ = ("_decide_at", "_delay", "_panic_seconds", "_panic_until", "_scale", "_sums", "target", "wanted")

    def __init__(self, scale: Scale, concurrency: int = 1) -> None:
        self._scale = scale
        self.target = (scale.target or target_of(scale.metric, concurrency)) * scale.utilisation
        self._panic_seconds = scale.stable_window_seconds * scale.panic_window_percent / 100
        width = max(self._panic_seconds / PANIC_BUCKETS, scale.stable_window_seconds / BUCKETS_MAX)
        self._sums = Sums(scale.stable_window_seconds, width)
        self._delay = Peaks(scale.scale_down_delay_seconds) if scale.scale_down_delay_seconds > 0 else None
        self._panic_until = NEVER
        self._decide_at = NEVER
        self.wanted = 0

    def __repr__(self) -> str:
        return f"<Autoscaler {self._scale.metric} wants {self.wanted} {'in a panic' if self.panics else ''}>"

    @property
    def panics(self) -> bool:
        return self._panic_until > NEVER

    def used(self, amount: float, now: float) -> None:
        """So much since the last time: calls inside × seconds, calls, or seconds of processor time."""
        self._sums.add(amount, now)

    def decide(self, ready: int, now: float) -> int:
        """How many instances are wanted, with so many ready. Between two decisions it is what it was."""
        if now < self._decide_at:
            return self.wanted
        scale, there = self._scale, max(1, ready)
        if self._decide_at == NEVER and ready > 1:
            self._panic_until, self.wanted = now + scale.stable_window_seconds, ready
        self._decide_at = now + scale.stable_window_seconds / DECISIONS_PER_WINDOW
        least, most = floor(there / scale.scale_down_rate), ceil(there * scale.scale_up_rate)
        worth_now = self._worth(self._panic_seconds, now)
        wanted = min(self._worth(scale.stable_window_seconds, now), most)
        if worth_now / there >= scale.panic_threshold:
            self._panic_until = now + scale.stable_window_seconds
        elif self.panics and now >= self._panic_until:
            self._panic_until = NEVER
        if self.panics:
            wanted = max(wanted, min(worth_now, most), self.wanted)
        if self._delay is not None:
            self._delay.note(wanted, now)
            wanted = self._delay.highest()
        wanted = max(wanted, least)
        self.wanted = wanted
        return wanted

    def _worth(self, seconds: float, now: float) -> int:
        return ceil(self._sums.mean(seconds, now) / self.target - _DUST)
