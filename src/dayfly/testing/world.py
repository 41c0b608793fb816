"""A seeded world around one pool: virtual clock, instances that pull, start slowly, crash and hang. An hour takes milliseconds.

The same `Pool` that runs the platform runs here; this module plays the hands (gateway/fleet.py) and everything outside. One seed is one
history, exactly. Used by tests/core/test_world.py and open to users' own capacity questions.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dayfly.core.decide.autoscale import Autoscaler
from dayfly.core.decide.effects import Answer, Clear, Close, Effect, Kill, PoolLimits, Retire, Start
from dayfly.core.decide.pool import Pool
from dayfly.core.model.call import WAITING, Call
from dayfly.core.model.scale import BY_DEMAND, Scale

TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Weather:
    """How rough the world is. Times in seconds, chances in [0, 1]."""

    calls_per_second: float = 200.0
    seconds: float = 20.0
    run_seconds: float = 0.01
    timeout_seconds: float = 2.0
    start_seconds: float = 0.004
    crash_chance: float = 0.0
    hang_chance: float = 0.0
    start_failure_chance: float = 0.0
    leave_chance: float = 0.0
    hurry_chance: float = 0.0  # that a caller wants its call begun within `hurry_seconds`
    hurry_seconds: float = 0.1


class World:
    """Runs one history and keeps its books; `answers` maps seq → outcome, each exactly once. `scale` may have a target for calls inside
    or a second; `instances_seen`: (time, how many) at each tick."""

    def __init__(self, seed: int, limits: PoolLimits, weather: Weather, scale: Scale = BY_DEMAND) -> None:
        self.dice = random.Random(seed)  # noqa: S311  (a simulation is seeded on purpose)
        self.weather = weather
        self.pool = Pool(limits)
        self.now = 0.0
        self.answers: dict[int, str] = {}
        self.waits: list[float] = []
        self.instances_peak = 0
        self.instances_seen: list[tuple[float, int]] = []
        self._scale = scale
        self._scaler = Autoscaler(scale, limits.concurrency) if scale.metric != "demand" else None
        self._counted = 0
        self.closed = False
        self._socket: deque[Call | None] = deque()  # None: a request to leave
        self._idle: deque[str] = deque()
        self._running: dict[str, list[Call]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._names = 0
        self._submitted = 0

    def run(self) -> "World":
        """Play the weather's seconds, then let everything that is under way end."""
        self._at(0.0, self._arrive)
        self._at(0.0, self._tick)
        end = self.weather.seconds + self.weather.timeout_seconds * 3
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._carry_out()
            self.check()
        return self

    def check(self) -> None:
        """The first law, and that no call was answered twice."""
        pool = self.pool
        assert pool.submitted_count == len(pool.waiting) + len(pool.offered) + pool.answered_count == self._submitted, pool
        assert len(self.answers) == pool.answered_count, pool
        self.instances_peak = max(self.instances_peak, len(self._running))

    def _at(self, after: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + after, self._order, event))

    def _chance(self, share: float) -> bool:
        return self.dice.random() < share

    def _arrive(self) -> None:
        if self.now >= self.weather.seconds:
            return
        self._submitted += 1
        call = Call(self._submitted, self.now, self.now + self.weather.timeout_seconds)
        self.pool.submitted(call, self.now)
        self._carry_out()
        if self.weather.hurry_chance and call.state == WAITING and self._chance(self.weather.hurry_chance):
            self.pool.hurried(call, self.now + self.weather.hurry_seconds, self.now)
        if self._chance(self.weather.leave_chance):
            self._at(self.dice.expovariate(20.0), lambda: self._leave(call))
        self._at(self.dice.expovariate(self.weather.calls_per_second), self._arrive)

    def _leave(self, call: Call) -> None:
        if self.pool.abandoned(call):
            self._answered(call, "left")

    def _tick(self) -> None:
        holders = {call.seq: name for name, calls in self._running.items() for call in calls}
        self.pool.expired(holders, self.now)
        if self._scaler is not None:
            self._steer(self._scaler)
        self.pool.ticked(self.now)
        self.instances_seen.append((self.now, len(self._running)))
        self._at(TICK_SECONDS, self._tick)

    def _steer(self, scaler: Autoscaler) -> None:
        inside = len(self.pool.waiting) + len(self.pool.offered)
        counted, self._counted = self._counted, self.pool.submitted_count
        scaler.used(inside * TICK_SECONDS if self._scale.metric == "concurrency" else self._counted - counted, self.now)
        wanted = scaler.decide(self.pool.ready, self.now)
        self.pool.floor, self.pool.ceiling = wanted, max(1, wanted)

    def _answered(self, call: Call, outcome: str) -> None:
        assert call.seq not in self.answers, f"{call} was answered twice: {self.answers[call.seq]}, {outcome}"
        self.answers[call.seq] = outcome

    # ---- effects ---------------------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        for effect in self.pool.effects():
            self._do(effect)
        while calls := self.pool.take_offers():
            self._socket.extend(calls)
            self._pull()

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Start):
            for _ in range(effect.instances):
                self._start()
        elif isinstance(effect, Answer):
            self._answered(effect.call, effect.code)
        elif isinstance(effect, Retire):
            self._socket.extend([None] * effect.instances)
        elif isinstance(effect, Clear):
            self._socket.clear()
        elif isinstance(effect, Kill):
            self._die(effect.instance)
        elif isinstance(effect, Close):
            self.closed = True
            self._socket.extend([None] * len(self._running))
        self._pull()

    def _start(self) -> None:
        self._names += 1
        name = f"i{self._names}"
        self.pool.starting(name, self.now)
        fails = self._chance(self.weather.start_failure_chance)
        self._at(self.dice.expovariate(1 / self.weather.start_seconds), lambda: self._started(name, fails))

    def _started(self, name: str, fails: bool) -> None:
        if fails:
            self.pool.failed(name, self.now, "init_failed")
            return
        self._running[name] = []
        self._idle.append(name)
        self.pool.started(name, self.now)
        self._carry_out()
        self._pull()

    def _pull(self) -> None:
        """Whoever is free takes the next message."""
        while self._socket and self._idle:
            name = self._idle.popleft()
            call = self._socket.popleft()
            if call is None:
                del self._running[name]
                self.pool.retired(name, self.now)
                self._carry_out()
            elif call.deadline <= self.now:
                self._idle.append(name)
            else:
                self._running[name].append(call)
                self.waits.append(self.now - call.submitted_at)
                self._run(name, call)

    def _run(self, name: str, call: Call) -> None:
        seconds = self.dice.expovariate(1 / self.weather.run_seconds)
        if self._chance(self.weather.crash_chance):
            self._at(seconds, lambda: self._die(name))
        elif not self._chance(self.weather.hang_chance):
            self._at(seconds, lambda: self._finish(name, call, seconds))

    def _finish(self, name: str, call: Call, seconds: float) -> None:
        if name not in self._running:
            return  # it died first
        self._running[name].remove(call)
        if self.pool.finished(call.seq, self.now, seconds) is not None:
            self._answered(call, "ok")
        if call.last:
            self._at(self.dice.expovariate(1 / self.weather.start_seconds), lambda: self._left(name))
        else:
            self._idle.append(name)
        self._carry_out()
        self._pull()

    def _left(self, name: str) -> None:
        if self._running.pop(name, None) is not None:
            self.pool.retired(name, self.now)
            self._carry_out()

    def _die(self, name: str) -> None:
        calls = self._running.pop(name, None)
        if calls is None:
            return
        if name in self._idle:
            self._idle.remove(name)
        self.pool.lost(name, [call.seq for call in calls], self.now)
        self._carry_out()
