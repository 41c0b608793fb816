"""What a pool tells of itself: questions without consequences, asked by gateway/fleet.py, entry.py and by the pool's own decisions.

The state is core/decide/pool.py's, which explains it; nothing here changes any of it. Silent.
"""

from math import ceil

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.keepalive import KeepAlive
from dayfly.core.decide.line import Line
from dayfly.core.decide.wait import wait_seconds
from dayfly.core.model.call import Call, Instance


class PoolView:
    """A pool, looked at."""

    limits: PoolLimits
    waiting: Line
    offered: dict[int, Call]
    instances: dict[str, Instance]
    keep: KeepAlive
    submitted_count: int
    answered_count: int
    last_demand_at: float
    mean_seconds: float
    ready: int
    draining: bool
    closed: bool
    _usual_seconds: float
    _starting: int
    _start_asked: int
    _leaving: int

    @property
    def leaving(self) -> bool:
        """Whether instances of this pool are on their way out."""
        return self.closed or self._leaving > 0

    def wait(self, behind: int = 0) -> float:
        """Seconds that a call which came now would wait; so many of those inside are not before it."""
        return wait_seconds(len(self.waiting) + len(self.offered) - behind, self.limits, self.mean_seconds, self._usual_seconds)

    @property
    def busy_starting(self) -> int:
        """Starts asked for or under way."""
        return self._starting + self._start_asked

    def hopeful(self) -> list[Call]:
        """Calls that no instance has taken as far as is known here: what a failed start is to be told to."""
        return [*self.waiting, *(self.offered.values() if self.ready == 0 else ())]

    def dormant(self, now: float, seconds: float) -> bool:
        """Nothing here, nothing coming, and no call for so long."""
        empty = not (self.instances or self.waiting or self.offered or self._start_asked)
        return empty and now - self.last_demand_at > seconds and not self.closed and not self.keep.expects(now)

    def idle(self) -> int:
        """Instances that could be asked to leave without anybody waiting."""
        return max(0, self.ready - self._leaving - ceil(len(self.offered) / self.limits.concurrency))

    def __repr__(self) -> str:
        calls = f"submitted={self.submitted_count} answered={self.answered_count} waiting={len(self.waiting)} offered={len(self.offered)}"
        return f"<Pool {calls} ready={self.ready} starting={self.busy_starting} leaving={self._leaving} draining={self.draining}>"

    def _free_slots(self) -> int:
        return (self.ready - self._leaving) * self.limits.concurrency
