"""A trace of calls through the platform's own keep-alive and eviction, under a clock that jumps: a day of traffic takes seconds.

The decisions are those of the platform, the very objects: core/decide/keepalive.py and evict.py. What is simplified is the rest: an
instance runs one call at a time, a start takes what the trace says, every call finds or starts an instance at once (no queue, no cap).
Called by cli/simulating.py and bench/keepalive.py. Times in seconds since the trace's beginning.
"""

import heapq

import msgspec

from dayfly.core.decide.evict import GreedyDual, Item
from dayfly.core.decide.keepalive import WORTH_PER_START_SECOND, Choice, IdleTimes, KeepAlive, fixed, percentiles, priced
from dayfly.core.model.trace import Arrival, Subject, Trace

SAMPLES = 288  # of the number of instances: every five minutes of a day
MB = 1024 * 1024


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A way to keep instances. `bounded`: idle ones leave, least worth first, when the memory bound is reached."""

    name: str
    about: str
    choose: Choice
    fixed_seconds: float
    bounded: bool = False
    worth_per_start_second: float = WORTH_PER_START_SECOND


POLICIES = (
    Policy(name="fixed-10min", about="ten minutes after the last call, as Lambda and OpenWhisk do", choose=fixed, fixed_seconds=600.0),
    Policy(
        name="fixed-1min",
        about="one minute after the last call: keep_alive = 'fixed' with Dayfly's default",
        choose=fixed,
        fixed_seconds=60.0,
    ),
    Policy(name="none", about="every instance leaves after its call", choose=fixed, fixed_seconds=0.0),
    Policy(name="percentiles", about="the histogram as its paper decides: 5th to 99th percentile", choose=percentiles, fixed_seconds=600.0),
    Policy(name="histogram", about="Dayfly's: idle times against the price of a start", choose=priced, fixed_seconds=60.0),
    Policy(name="histogram-bounded", about="the same, greedy-dual below --memory-gb", choose=priced, fixed_seconds=60.0, bounded=True),
)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy made of a trace. `shares`: cold share of each function that was called, ascending. `instances`: sampled evenly."""

    policy: str
    calls: int
    cold: int
    ahead: int  # instances made before a call that was expected
    evicted: int
    shares: tuple[float, ...]
    wasted_mb_seconds: float  # memory × time of idle instances
    instances: tuple[int, ...]
    memory_mb_peak: float

    @property
    def cold_share(self) -> float:
        """Of all calls."""
        return self.cold / self.calls if self.calls else 0.0

    def share_at(self, percentile: float) -> float:
        """Cold share that this part of the functions does not exceed."""
        return self.shares[min(len(self.shares) - 1, int(percentile * len(self.shares)))] if self.shares else 0.0


def simulate(trace: Trace, policy: Policy, memory_mb_max: float = float("inf")) -> Result:
    """Replay `trace` under `policy`; the bound counts only for a policy that is bounded."""
    return _Machine(trace, policy, memory_mb_max if policy.bounded else float("inf")).run()


class _Function:
    """One function in the simulated machine. `idle`: since when each idle instance is; the last is taken first."""

    __slots__ = ("busy", "calls", "cold", "idle", "keep", "look_at", "memory_mb", "start_seconds")

    def __init__(self, subject: Subject, policy: Policy) -> None:
        self.memory_mb = subject.memory_mb
        self.start_seconds = subject.start_seconds
        self.keep = KeepAlive(policy.fixed_seconds, IdleTimes(), policy.choose)
        self.keep.worth_per_start_second = policy.worth_per_start_second
        self.idle: list[float] = []
        self.busy = self.calls = self.cold = 0
        self.look_at = float("inf")


class _Machine:
    """All functions, their instances, the clock and the books."""

    def __init__(self, trace: Trace, policy: Policy, memory_mb_max: float) -> None:
        self._trace, self._policy, self._memory_mb_max = trace, policy, memory_mb_max
        self._functions = [_Function(subject, policy) for subject in trace.subjects]
        self._events: list[tuple[float, int, int, bool]] = []  # time, order, function, whether a call ends (else: look again)
        self._order = self._instances = self._ahead = self._evicted = 0
        self._memory_mb = self._memory_mb_peak = self._wasted = 0.0
        self._samples: list[int] = []
        self._sample_at = 0.0
        self._eviction = GreedyDual[int]()
        self._there: set[int] = set()  # functions that may have instances

    def run(self) -> Result:
        """From the first arrival to the end of the trace; what is idle then was wasted until then."""
        for arrival in self._trace.arrivals:
            self._until(arrival.at)
            self._arrive(arrival)
        self._until(self._trace.seconds)
        for function in self._functions:
            self._wasted += sum(self._trace.seconds - since for since in function.idle) * function.memory_mb
        called = [function for function in self._functions if function.calls]
        return Result(
            policy=self._policy.name,
            calls=sum(function.calls for function in called),
            cold=sum(function.cold for function in called),
            ahead=self._ahead,
            evicted=self._evicted,
            shares=tuple(sorted(function.cold / function.calls for function in called)),
            wasted_mb_seconds=self._wasted,
            instances=tuple(self._samples),
            memory_mb_peak=self._memory_mb_peak,
        )

    def _until(self, now: float) -> None:
        events = self._events
        while events and events[0][0] <= now:
            at, _, index, ends = heapq.heappop(events)
            if at > self._sample_at:
                self._sample(at)
            function = self._functions[index]
            if ends:
                function.busy -= 1
                function.idle.append(at)
                function.keep.used(max(function.busy, 1), at)
                function.keep.seen.idle_since = at
                self._look(index, function, at)
            elif function.look_at == at:
                function.look_at = float("inf")
                self._look(index, function, at)
        self._sample(now)

    def _sample(self, now: float) -> None:
        """How many instances there were at each moment of looking before `now`."""
        while self._sample_at < now and len(self._samples) < SAMPLES:
            self._samples.append(self._instances)
            self._sample_at = len(self._samples) * self._trace.seconds / SAMPLES

    def _push(self, at: float, index: int, ends: bool) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, index, ends))

    def _arrive(self, arrival: Arrival) -> None:
        at, index, seconds, calls = arrival
        function = self._functions[index]
        if not function.busy:
            function.keep.ended_idle(at, function.start_seconds)
        function.busy += 1
        function.calls += calls
        if function.idle:
            self._wasted += (at - function.idle.pop()) * function.memory_mb
        else:
            function.cold += 1
            seconds += function.start_seconds
            self._start(index, at)
        function.keep.used(function.busy, at)
        self._push(at + seconds, index, True)

    def _start(self, index: int, at: float) -> None:
        function = self._functions[index]
        self._there.add(index)
        while self._memory_mb + function.memory_mb > self._memory_mb_max and self._evict(at):
            pass
        self._instances += 1
        self._memory_mb += function.memory_mb
        self._memory_mb_peak = max(self._memory_mb_peak, self._memory_mb)

    def _evict(self, at: float) -> bool:
        self._there = {index for index in self._there if self._functions[index].idle or self._functions[index].busy}
        there = ((index, self._functions[index]) for index in sorted(self._there))
        chosen = self._eviction.choose(Item(i, f.calls, f.start_seconds, int(f.memory_mb * MB), bool(f.idle)) for i, f in there)
        if chosen is None:
            return False
        self._evicted += 1
        self._leave(self._functions[chosen], at)
        return True

    def _leave(self, function: _Function, at: float) -> None:
        """The longest idle instance of a function leaves."""
        self._wasted += (at - function.idle.pop(0)) * function.memory_mb
        self._instances -= 1
        self._memory_mb -= function.memory_mb

    def _look(self, index: int, function: _Function, at: float) -> None:
        """What core/decide/pool.py does at every tick."""
        keep = function.keep
        if function.busy:
            keep.used(function.busy, at)
        wanted = keep.wanted(at)
        while len(function.idle) > max(0, wanted - function.busy):
            self._leave(function, at)
        if keep.ahead_due(at) and not function.busy and not function.idle:
            self._start(index, at)
            self._ahead += 1
            function.idle.append(at)
        if function.idle or keep.expects(at):
            again = keep.next_change_at(at)
            if again < function.look_at:
                function.look_at = again
                self._push(again, index, False)
