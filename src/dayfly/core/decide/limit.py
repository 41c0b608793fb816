"""Does a call keep the limits of its function and of its namespace? None, or the refusal that says which limit, and when to come again.

A `Side` is one of the two: what is allowed, and what was used. Nothing is taken unless both sides let the call pass, so that a refused
call uses up nothing. `Allowance` is the one place where limits become numbers: a gateway among several would be given its share there.
Hard: rate, concurrency and calls per day are never exceeded. Soft: GB-seconds and bytes are known when a call is over, so calls that are
inside when the quota ends are finished; what has begun is never ended by a limit. Silent. Called by gateway/limits.py.
"""

from typing import NamedTuple

from dayfly.core.decide.bucket import NS, spacing, taken, wait_ns
from dayfly.core.decide.meter import MB_MS_PER_GB_SECOND
from dayfly.core.decide.quota import Days, day_of, seconds_left
from dayfly.core.model.errors import Refusal
from dayfly.core.model.limits import Limits

UNLIMITED = 1 << 62
TYPICAL_SECONDS = 1.0  # Retry-After while nothing is known of how long calls take
PAUSED_SECONDS = 60.0  # nobody knows when somebody will end a pause


class Allowance:
    """Limits as whole numbers that are compared without asking whether they are there."""

    __slots__ = ("bytes_out", "calls", "concurrency", "daily", "interval_ns", "limits", "mb_ms", "slack_ns")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.interval_ns, self.slack_ns = (0, 0) if limits.rate_per_second is None else spacing(limits.rate_per_second, limits.burst)
        self.concurrency = _or_unlimited(limits.concurrency)
        self.daily = limits.daily
        self.calls = _or_unlimited(limits.calls_per_day)
        gb_seconds = limits.gb_seconds_per_day
        self.mb_ms = UNLIMITED if gb_seconds is None else round(gb_seconds * MB_MS_PER_GB_SECOND)
        self.bytes_out = _or_unlimited(limits.response_bytes_per_day)


class Tally:
    """What one function or namespace has used."""

    __slots__ = ("days", "full_at_ns", "inside")

    def __init__(self) -> None:
        self.full_at_ns = 0  # core/decide/bucket.py
        self.inside = 0  # calls that entered and are not over
        self.days = Days()

    def __repr__(self) -> str:
        return f"<Tally inside={self.inside} {self.days.today!r}>"


class Side(NamedTuple):
    """One of the two that may have limits."""

    scope: str  # function | namespace
    name: str
    allowance: Allowance
    tally: Tally


Sides = tuple[Side, ...]


def refusal(sides: Sides, now_ns: int, at: float, mean_seconds: float) -> Refusal | None:
    """None when a call may enter. `now_ns`: monotonic; `at`: epoch seconds; `mean_seconds`: what a call takes, below 0 when unknown."""
    for side in sides:
        allowance, tally = side.allowance, side.tally
        if tally.inside >= allowance.concurrency:
            return _crowded(side, mean_seconds)
        if allowance.daily and (kind := _used_up(allowance, tally, day_of(at))):
            limit = getattr(allowance.limits, kind)
            return _refusal(side, "quota_exceeded", kind, f"has used up the {limit:g} {_NOUNS[kind]} of this day (UTC)", seconds_left(at))
        wait = wait_ns(tally.full_at_ns, allowance.slack_ns, now_ns)
        if wait > 0:
            return _refusal(side, "rate_limited", "rate", f"may be called {allowance.limits.rate_per_second:g} times a second", wait / NS)
    return None


def enter(sides: Sides, now_ns: int, at: float) -> None:
    """A call that `refusal` let pass, with the same times, is inside, and counts for its day."""
    for _, _, allowance, tally in sides:
        tally.inside += 1
        if allowance.daily:
            tally.days.on(day_of(at)).calls += 1
        if allowance.interval_ns:
            tally.full_at_ns = taken(tally.full_at_ns, allowance.interval_ns, now_ns)


def leave(sides: Sides) -> None:
    """A call that entered is over."""
    for side in sides:
        side.tally.inside -= 1


def use(sides: Sides, at: float, mb_ms: int, bytes_out: int) -> None:
    """What a call that entered had used when it was over."""
    for side in sides:
        used = side.tally.days.on(day_of(at))
        used.mb_ms += mb_ms
        used.bytes_out += bytes_out


def take_back(sides: Sides, at: float) -> None:
    """A call that entered never ran: it counts as none."""
    for side in sides:
        used = side.tally.days.on(day_of(at))
        used.calls = max(0, used.calls - 1)


def _or_unlimited(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit


_NOUNS = {"calls_per_day": "calls", "gb_seconds_per_day": "GB-seconds", "response_bytes_per_day": "bytes of answers"}


def _used_up(allowance: Allowance, tally: Tally, day: int) -> str:
    """The field of `Limits` of which nothing is left, or ""."""
    used = tally.days.on(day)
    if used.calls >= allowance.calls:
        return "calls_per_day"
    if used.mb_ms >= allowance.mb_ms:
        return "gb_seconds_per_day"
    return "response_bytes_per_day" if used.bytes_out >= allowance.bytes_out else ""


def _crowded(side: Side, mean_seconds: float) -> Refusal:
    if side.allowance.concurrency == 0:
        return _refusal(side, "paused", "paused", "takes no calls at present (concurrency = 0)", PAUSED_SECONDS)
    seconds = mean_seconds if mean_seconds >= 0 else TYPICAL_SECONDS
    return _refusal(side, "concurrency_limited", "concurrency", f"has as many calls inside as it may ({side.tally.inside})", seconds)


def _refusal(side: Side, code: str, kind: str, what: str, seconds: float) -> Refusal:
    """`reason` is for machines: which limit of which side."""
    subject = f"The {side.scope} {side.name!r} {what}."
    return Refusal(code, subject, retry_after_seconds=seconds, extra={"reason": f"{side.scope}_{kind}"})
