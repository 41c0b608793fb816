"""How long would the newest call wait, and can it still begin in time? What cannot is refused at once instead of waiting for nothing.

With `ahead` calls before it and `slots` places to run (all that the version may ever have at once, those not started yet included), a
call waits until ahead − slots + 1 of them are over: mean ÷ slots each. So the estimate errs to one side: where fewer instances can be had
than `max_instances` the wait is longer than it says, and the call gets its queue_timeout later. Nobody is refused while a place is free or
an instance may still be started, nor while nothing is known of how long calls run.

How long they run is the smaller of two means: that of all calls, and, while calls wait, one (`usual`) in which a call counts for at most
four times what is usual. One call of minutes among thousands of milliseconds holds up the queue for once, and says nothing about how
fast it moves: by the plain mean, one call in a hundred would be refused that would have been in time.
Silent. Called by core/decide/pool.py.
"""

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.scale import CALL_OVERHEAD_SECONDS
from dayfly.core.model.call import Call

SMOOTHING = 0.2  # weight of the newest observation
OUTLIER = 4.0  # a call counts for at most so many times what is usual


def usual(before: float, seconds: float, mean_seconds: float) -> float:
    """What is usual after another call of `seconds`; `before` is below 0 at the first."""
    if before < 0:
        return min(seconds, mean_seconds)
    return before + SMOOTHING * (min(seconds, OUTLIER * before + CALL_OVERHEAD_SECONDS) - before)


def wait_seconds(ahead: int, limits: PoolLimits, mean_seconds: float, usual_seconds: float = -1.0) -> float:
    """Expected seconds until a call with `ahead` calls before it begins; 0 while `mean_seconds` is unknown (below 0)."""
    slots = limits.max_instances * limits.concurrency
    if mean_seconds < 0 or ahead < slots:
        return 0.0
    seconds = mean_seconds if usual_seconds < 0 else min(mean_seconds, usual_seconds)
    return (ahead - slots + 1) * (seconds + CALL_OVERHEAD_SECONDS) / slots


def hopeless(call: Call, by: float, now: float, wait: float) -> bool:
    """Whether a call that is to have begun `by` then cannot, when it waits for so many seconds; `by` may have passed already."""
    return now + wait > min(by, call.deadline) or by <= now
