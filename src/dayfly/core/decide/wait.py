"""How long would the newest call wait, and can it still begin in time? What cannot is refused at once instead of waiting for nothing.

With `ahead` calls before it and `slots` places to run (all that the version may ever have at once, those not started yet included), a
call waits until ahead − slots + 1 of them are over: mean ÷ slots each. So the estimate errs to one side: where fewer instances can be had
than `max_instances` the wait is longer than it says, and the call gets its queue_timeout later. Nobody is refused while a place is free or
an instance may still be started, nor while nothing is known of how long calls run. Silent. Called by core/decide/pool.py.
"""

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.scale import CALL_OVERHEAD_SECONDS
from dayfly.core.model.call import Call


def wait_seconds(ahead: int, limits: PoolLimits, mean_seconds: float) -> float:
    """Expected seconds until a call with `ahead` calls before it begins; 0 while `mean_seconds` is unknown (below 0)."""
    slots = limits.max_instances * limits.concurrency
    if mean_seconds < 0 or ahead < slots:
        return 0.0
    return (ahead - slots + 1) * (mean_seconds + CALL_OVERHEAD_SECONDS) / slots


def hopeless(call: Call, by: float, now: float, wait: float) -> bool:
    """Whether a call that is to have begun `by` then cannot, when it waits for so many seconds; `by` may have passed already."""
    return now + wait > min(by, call.deadline) or by <= now
