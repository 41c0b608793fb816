"""How calls are counted: the shared histogram's buckets, quantiles out of it, and what a call costs.

Every latency histogram of the platform has the same bounds, so that gateways' counts can be added up and a fleet's
quantile is as good as one machine's. The gateway calls `bucket` once per phase and call, so it is one bisection. Nothing
here knows a clock: durations come in as whole microseconds. Called by gateway (counting), control (usage), api (metrics).
"""

from bisect import bisect_left
from collections.abc import Sequence

from dayfly.core.model.errors import BY_CODE, Fault

# Five buckets a decade (the R5 series of preferred numbers, 1 1.6 2.5 4 6.3) from 10 µs to 900 s, the longest timeout.
BOUNDS_US: tuple[int, ...] = (
    *(step * 10**decade for decade in range(7) for step in (10, 16, 25, 40, 63)),
    100_000_000,
    160_000_000,
    250_000_000,
    400_000_000,
    630_000_000,
    900_000_000,
)
BUCKETS = len(BOUNDS_US) + 1  # the last one counts what is longer than the last bound

MB_MS_PER_GB_SECOND = 1024 * 1000

# Outcomes that are not billed and count as no call of the function, because it never ran: the caller's fault, or no capacity.
NOT_RUN = frozenset(code for code, kind in BY_CODE.items() if kind.fault in (Fault.CALLER, Fault.CAPACITY)) | {"start_failed"}


def bucket(us: int) -> int:
    """Index of the bucket that counts `us`: bucket i holds values ≤ BOUNDS_US[i], the last all longer ones."""
    return bisect_left(BOUNDS_US, us)


def empty() -> list[int]:
    """A histogram that has counted nothing."""
    return [0] * BUCKETS


def quantile(counts: Sequence[int], q: float) -> float:
    """The q-quantile (0 ≤ q ≤ 1) in microseconds, estimated inside its bucket on a logarithmic scale; 0.0 of nothing.

    The estimate is at most one bucket (a factor of 1.6) off. Whatever is longer than the last bound reads as that bound.
    """
    total = sum(counts)
    if total == 0:
        return 0.0
    rank = max(q, 0.0) * total
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            return _inside(index, (rank - seen) / count)
        seen += count
    return float(BOUNDS_US[-1])


def _inside(index: int, share: float) -> float:
    """The point `share` of the way through a bucket."""
    if index >= len(BOUNDS_US):
        return float(BOUNDS_US[-1])
    upper = float(BOUNDS_US[index])
    if index == 0:
        return upper * share
    lower = float(BOUNDS_US[index - 1])
    return lower * float((upper / lower) ** share)


def billed_ms(exec_us: int, round_ms: int) -> int:
    """Execution time rounded up to whole multiples of the tariff's `round_ms`; a call of no time costs one of them."""
    step_us = round_ms * 1000
    return max(1, -(-exec_us // step_us)) * round_ms


def billed(exec_us: int, memory_mb: int, round_ms: int) -> int:
    """What a call used, in MB·ms, after rounding: the unit that usage is kept in, so that sums stay whole numbers."""
    return billed_ms(exec_us, round_ms) * memory_mb


def gb_seconds(mb_ms: int) -> float:
    """MB·ms as the GB-seconds of a bill (1 GB = 1024 MB)."""
    return mb_ms / MB_MS_PER_GB_SECOND


def cost(calls: int, mb_ms: int, per_million_calls: float, per_gb_second: float) -> float:
    """Price of usage by a tariff, in the tariff's currency, unrounded."""
    return calls * per_million_calls / 1_000_000 + gb_seconds(mb_ms) * per_gb_second
