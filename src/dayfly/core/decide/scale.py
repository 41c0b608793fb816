"""How many instances a demand is worth, and how many calls may lie on a version's socket: arithmetic for core/decide/pool.py. Silent.

A start is cheaper than a wait. With `demand` calls in the house and a mean run time, the newest call is expected to wait
`demand × mean ÷ slots`. Once that is longer than a start takes, as many are started as bring it below, never more than there are calls,
within the caps; when answers stop coming, one more (the pool sees that). A first burst, of whose run time nothing is known, gets one
instance a call up to the cap.
"""

from math import ceil

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.model.call import Call

CALL_OVERHEAD_SECONDS = 30e-6  # what an instance spends around the handler: receive, parse, answer
STALL_SECONDS = 0.01  # no answer for this long, with calls behind, is a reason to start one more instance
SHORT_CALL_SECONDS = 500e-6  # a mean below this allows more than one offered call per slot


def needed(demand: int, limits: PoolLimits, mean_seconds: float, start_seconds: float) -> int:
    """One instance each while nothing is known (`mean_seconds` below 0), else as many as keep the newest call's wait below a start."""
    most = ceil(demand / limits.concurrency)
    if mean_seconds < 0 or most <= 1:
        return most
    seconds = mean_seconds + CALL_OVERHEAD_SECONDS
    return min(most, ceil(demand * seconds / (max(start_seconds, 1e-4) * limits.concurrency)))


def depth(limits: PoolLimits, mean_seconds: float) -> int:
    """Calls on the socket for each free slot: one, and more when they are so short that round trips dominate. Only one where
    whoever takes a call may leave after it."""
    if 0 <= mean_seconds < SHORT_CALL_SECONDS and limits.keep_alive_seconds > 0:
        return min(limits.prefetch_max, 1 + int(SHORT_CALL_SECONDS / (mean_seconds + CALL_OVERHEAD_SECONDS)))
    return 1


def stalled(now: float, oldest: Call | None, last_finish_at: float, start_seconds: float) -> bool:
    """Nothing finished for longer than a start takes although more is offered than fits: a long call sits before short ones. One more
    instance is the answer to that, not many: on a busy machine a pause is often only the scheduler's. `oldest`: of the offered calls."""
    since = last_finish_at if oldest is None else max(last_finish_at, oldest.submitted_at)
    return now - since > max(STALL_SECONDS, 2 * start_seconds)
