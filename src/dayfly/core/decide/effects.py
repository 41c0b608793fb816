"""What a pool may do and what it may ask for: its limits and its effects. Data only; core/decide/pool.py decides, gateway/fleet.py does."""

from typing import NamedTuple

import msgspec

from dayfly.core.model.call import Call


class PoolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one version's pool may do. Times in seconds."""

    concurrency: int = 1
    min_instances: int = 0
    max_instances: int = 100
    queue_max: int = 1000
    keep_alive_seconds: float = 60.0
    keep_alive_learns: bool = False  # else the window is what it says, whatever was seen
    starts_max: int = 8
    prefetch_max: int = 16


class Start(NamedTuple):
    """Start this many instances; report each with `started` or `failed`, after naming it with `starting`."""

    instances: int


class Answer(NamedTuple):
    """Answer this call with an error code of core/model/errors.py; it is no longer in the pool. `retry_after_seconds`: how long what is
    ahead is expected to take, 0 when that is not known."""

    call: Call
    code: str
    retry_after_seconds: float = 0.0


class Retire(NamedTuple):
    """Ask this many instances, whichever are free, to leave."""

    instances: int


class Kill(NamedTuple):
    """End this instance now; `lost` will follow."""

    instance: str
    code: str


class Clear(NamedTuple):
    """No instance is left to take what lies in the version's socket: empty it, the calls are back in the queue."""


class Close(NamedTuple):
    """Drained: nothing waits and nothing runs. Close the version's socket; the instances leave."""


Effect = Start | Answer | Retire | Kill | Clear | Close
