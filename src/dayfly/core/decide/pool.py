"""Who runs the calls of one version: a pool of instances that pull from one socket.

Facts in (`submitted`, `hurried`, `starting`, `started`, `failed`, `finished`, `retired`, `lost`, `doubted`, `blocked`, `abandoned`,
`expired`, `ensure`, `ticked`, `drain`), effects out: `effects()` (core/decide/effects.py), and `take_offers()`, the calls that are to be
put on the version's socket, which is the one effect of every call and so has no object of its own. Nothing here does anything:
gateway/fleet.py carries the effects out. Between two awaits a decision is atomic, so there is no lock.

What queued calls and answers change is decided on when effects are asked for (`unsettled`), so that a gateway which reads sixty of them in
one turn of its loop weighs them together.

How it works. Calls wait in a bounded queue here and are *offered* to the version's socket, from which whichever instance is free takes
the next. Only as many are offered as instances can take at once; when calls are very short a few more (`prefetch_max` per slot), so
that an instance finds its next call without a round trip. A call that still waits here can be abandoned for free; late binding holds
because nobody owns an offered call before running it. While no instance is there yet, calls are offered to those that are starting:
the first thing that an instance finds when it is ready is its call. Only when nobody is left who might have taken an offered call, neither
ready nor starting, is it taken back.

How many instances so many calls are worth: core/decide/scale.py. How long the newest would wait: wait.py. When to let go, and when to
start one ahead of a call: keepalive.py. `floor` and `ceiling` are set from outside (autoscale.py, pressure.py) and heard by the clock.

Law: submitted = waiting + offered + answered, always. tests/core/test_pool.py and the seeded world hold it to that.
"""

from collections.abc import Iterable, Iterator
from math import ceil

from dayfly.core.decide.effects import Answer, Clear, Close, Effect, Kill, PoolLimits, Retire, Start
from dayfly.core.decide.keepalive import IDLE_SECONDS_MIN, IdleTimes, KeepAlive, fixed, priced
from dayfly.core.decide.late import overdue, stuck
from dayfly.core.decide.line import Line
from dayfly.core.decide.pool_view import PoolView
from dayfly.core.decide.scale import depth, needed, stalled
from dayfly.core.decide.wait import hopeless, usual
from dayfly.core.model.call import ANSWERED, CALL_STEPS, INSTANCE_STEPS, OFFERED, STARTING, WAITING, Call, Instance, step

START_SECONDS_GUESS = 0.005  # until the first start was seen
LOOK_SECONDS = 0.001  # between two looks at whether calls already on the socket want another instance
STALL_HOLD_SECONDS = 2.0
RETURNS_MAX = 16  # of one call
SMOOTHING = 0.2  # weight of the newest observation in moving means


class Pool(PoolView):
    """The decisions of one version's pool. `repr` tells the story."""

    def __init__(self, limits: PoolLimits, seen: IdleTimes | None = None) -> None:
        self.limits = limits
        self.waiting = Line()
        self.offered: dict[int, Call] = {}  # by seq, in the order of offering
        self.instances: dict[str, Instance] = {}
        self.submitted_count = 0
        self.answered_count = 0
        self.draining = self.closed = False
        self.floor, self.ceiling = 0, limits.max_instances
        self.last_demand_at = 0.0  # also when a proof asked for an instance
        self.mean_seconds = self._usual_seconds = -1.0  # unknown
        self.start_seconds = START_SECONDS_GUESS
        self.ready = 0  # instances that take calls
        self._starting = 0
        self._leaving = 0  # asked to leave, still ready or leaving
        self._start_asked = 0  # Start effects not yet named by `starting`
        self._blocked = False  # the socket was full: wait for an answer before offering again
        self._room = 0  # how many calls may be offered at once; follows instances and mean
        self._last_finish_at = self._look_again_at = 0.0
        learns = limits.keep_alive_learns and limits.keep_alive_seconds > 0  # `seen`: idle times that shall outlive this pool
        self.keep = KeepAlive(limits.keep_alive_seconds, seen or IdleTimes(), priced if learns else fixed)
        self._stalled_at = float("-inf")
        self.offers: list[Call] = []  # offered, and nobody has taken them out yet to send them
        self.unsettled = False  # calls were queued, or answered while others wait, and what that is worth was not yet decided
        self._faster = False  # answers came while calls waited: more may be offered, or fewer
        self.urgent: list[Effect] = []  # effects that should not wait until others have told their facts, too

    def submitted(self, call: Call, now: float) -> None:
        """A call wants in. Offered at once when there is room, else it waits; refused when the queue is full or would take too long."""
        self.submitted_count += 1
        self.last_demand_at = now
        if now - self._last_finish_at >= IDLE_SECONDS_MIN and not self.offered and not self.waiting:
            self.keep.ended_idle(now, self.start_seconds)
        if not self.waiting and len(self.offered) < self._room and not self._blocked:
            self._offer(call)
            if now >= self._look_again_at and len(self.offered) > self._free_slots():
                self._look_again_at = now + LOOK_SECONDS
                self._start_if_worth_it(now)
            return
        ahead = len(self.waiting)
        wait = self.wait() if ahead + len(self.offered) >= self.limits.max_instances else 0.0
        if ahead >= self.limits.queue_max:
            self._answer(call, "queue_full", wait)
        elif wait and hopeless(call, call.deadline, now, wait):
            self._answer(call, "deadline_out_of_reach", wait)
        else:
            self.waiting.append(call)
            self.unsettled = True

    def hurried(self, call: Call, by: float, now: float) -> None:
        """The caller of the newest call, which waits, wants it begun by then: refused at once when that cannot be."""
        wait = self.wait(behind=1)
        if hopeless(call, by, now, wait):
            self.waiting.remove(call)
            self._answer(call, "deadline_out_of_reach", wait)
        else:
            self.waiting.hurry(call, by)

    def starting(self, instance: str, now: float) -> None:
        """The hand carries out one of the asked starts under this name."""
        self._start_asked -= 1
        self._starting += 1
        self.instances[instance] = Instance(instance, now)
        if self._free_slots() <= 0:
            self._resize()
            self._offer_waiting()

    def started(self, instance: str, now: float) -> None:
        """An instance said READY: it pulls from now on."""
        it = self.instances[instance]
        it.state = step(INSTANCE_STEPS, it.state, "started")
        it.ready_at = now
        self._starting -= 1
        self.ready += 1
        self.start_seconds += SMOOTHING * (now - it.started_at - self.start_seconds)
        self._resize()
        self._offer_waiting()
        self._start_if_worth_it(now)

    def failed(self, instance: str | None, now: float, code: str) -> None:
        """A start came to nothing (`instance` is None when it was never named). Calls that hoped for it and for nobody else get `code`."""
        if instance is None:
            self._start_asked -= 1
        else:
            it = self.instances.pop(instance)
            it.state = step(INSTANCE_STEPS, it.state, "gone")
            self._starting -= 1
            self._resize()
        if self.offered and self.ready == 0 and self._starting == 0:
            self._take_back(code)  # who never was ready has taken none
        if self.ready - self._leaving <= 0 and self._starting + self._start_asked == 0:
            while self.waiting:
                self._answer(self.waiting.popleft(), code)
            self._close_if_drained()
        elif instance is not None:  # a start that was refused is asked for again by the clock, not at once: nothing has changed
            self._start_if_worth_it(now)

    def finished(self, seq: int, now: float, exec_seconds: float) -> Call | None:
        """An instance answered. Returns the call, or None when it was already answered (late): then there is nothing to say."""
        call = self.offered.pop(seq, None)
        if call is None:
            return None
        call.state = ANSWERED  # by the table: offered + answered; spelled out because this line runs for every call
        self.answered_count += 1
        self._last_finish_at = now
        mean = self.mean_seconds
        self.mean_seconds = exec_seconds if mean < 0 else mean + SMOOTHING * (exec_seconds - mean)
        self._blocked = False
        if self.waiting:
            self._usual_seconds = usual(self._usual_seconds, exec_seconds, self.mean_seconds)
            self.unsettled = self._faster = True
            self._leaving += call.last
        elif self.draining or self.limits.keep_alive_seconds <= 0:
            self._leaving += call.last
            self._resize()
            self._let_go(now)
        return call

    def retired(self, instance: str, now: float) -> None:
        """An instance left because it was asked to (or because its code ended it after an answer)."""
        self._gone(instance)
        if self.waiting or self.offered:
            self._start_if_worth_it(now)
        self._close_if_drained()

    def lost(self, instance: str, taken: Iterable[int], now: float) -> None:
        """An instance died. `taken`: the calls it had begun; they may have run, so they are answered, not repeated."""
        for seq in taken:
            call = self.offered.pop(seq, None)
            if call is not None:
                self._answer(call, "function_crashed")
        self._gone(instance)
        if self.waiting or self.offered:
            self._start_if_worth_it(now)
        self._close_if_drained()

    def doubted(self, seqs: Iterable[int], now: float) -> None:
        """Offered calls that somebody took, and nobody will say whether they ran: answered, not repeated."""
        for seq in seqs:
            call = self.offered.pop(seq, None)
            if call is not None:
                self._answer(call, "function_crashed")
        self._blocked = False
        self._offer_waiting()
        self._start_if_worth_it(now)

    def blocked(self, call: Call) -> None:
        """The socket would not take this offered call: it waits at the front until something finishes."""
        del self.offered[call.seq]
        call.state = step(CALL_STEPS, call.state, "returned")
        self.waiting.appendleft(call)
        self._blocked = bool(self.offered)

    def abandoned(self, call: Call) -> bool:
        """The caller left. True when the call still waited and is now out; False when it may be running (its answer is dropped later)."""
        if call.state != WAITING:
            return False
        self.waiting.remove(call)
        call.state = step(CALL_STEPS, call.state, "answered")
        self.answered_count += 1
        return True

    def expired(self, holders: dict[int, str], now: float) -> None:
        """Deadlines: calls past theirs are answered; an instance that holds one is ended. `holders`: seq → instance for each offered call
        that was taken and so may have run; '' where nobody knows by whom."""
        while (waited := self.waiting.pop_late(now)) is not None:
            self._answer(waited, "queue_timeout", self.wait())
        late = overdue(self.offered.values(), now)
        for call in late:
            del self.offered[call.seq]
            holder = holders.get(call.seq)
            self._answer(call, "queue_timeout" if holder is None else "function_timeout")
            if holder:
                self.urgent.append(Kill(holder, "function_timeout"))
            else:
                self.urgent += [Kill(name, "function_timeout") for name in stuck(self.instances.values(), call, self._last_finish_at)]
        if late:
            self._close_if_drained()

    def ensure(self, count: int, now: float) -> None:
        """At least `count` instances shall be there or on their way (proving, min_instances)."""
        missing = count - (self.ready - self._leaving + self._starting + self._start_asked)
        if missing > 0 and not self.closed:
            self.last_demand_at = now
            self._ask(min(missing, self.limits.starts_max))

    def ticked(self, now: float) -> None:
        """Time passed: scale down to what the keep-alive window needed, up to what waits."""
        if self.closed:
            return
        self._remember_demand(now)
        if self.waiting or len(self.offered) > self._free_slots():
            self._blocked = False
            self._resize()
            self._offer_waiting()
            self._start_if_worth_it(now)
        if not self.draining and (floor := max(min(self.floor, self.limits.max_instances), self.limits.min_instances)):
            self.ensure(floor, now)
        if self.keep.ahead_due(now) and not self.draining and self.ready - self._leaving + self.busy_starting == 0:
            self._ask(1)
        self._let_go(now)

    def drain(self, now: float) -> None:
        """No further call will come: finish those here, then close."""
        self.draining = True
        self._start_if_worth_it(now)
        self._close_if_drained()

    def effects(self) -> Iterator[Effect]:
        """What to do now, in order, beside sending `take_offers()`. Carrying one out may add more; they come in the same loop."""
        if self.unsettled:
            self.unsettled = False
            if self._faster:
                self._faster = False
                self._resize()
            self._offer_waiting()
            self._start_if_worth_it(max(self.last_demand_at, self._last_finish_at))
        pending = self.urgent
        while pending:
            self.urgent = []
            yield from pending
            pending = self.urgent

    def take_offers(self) -> list[Call]:
        """Calls to put on the version's socket now, in order. What cannot be sent comes back by `blocked`."""
        taken, self.offers = self.offers, []
        if self.limits.keep_alive_seconds <= 0:
            self._mark_last(taken)
        return [call for call in taken if call.state == OFFERED]  # the others were answered meanwhile

    def _mark_last(self, calls: list[Call]) -> None:
        """Where nobody is kept, whoever takes a call leaves after it, unless others wait. (Asked afterwards, by a RETIRE for any of them,
        a new instance might take that message, and the old one the next call.)"""
        last = not (self.waiting or self.floor or self.limits.min_instances) and self.limits.concurrency == 1
        for call in calls:
            call.last = last

    def release(self, count: int) -> None:
        """The machine needs room: ask idle instances to leave."""
        self._retire(min(count, self.idle()))

    def kept(self, count: int) -> None:
        """So many of those asked to leave could not be told: they stay."""
        self._leaving = max(0, self._leaving - count)
        self._resize()

    def _offer(self, call: Call) -> None:
        call.state = OFFERED
        self.offered[call.seq] = call
        self.offers.append(call)

    def _offer_waiting(self) -> None:
        room = self._room - len(self.offered)
        while room > 0 and self.waiting and not self._blocked:
            self._offer(self.waiting.popleft())
            room -= 1

    def _answer(self, call: Call, code: str, retry_after_seconds: float = 0.0) -> None:
        call.state = step(CALL_STEPS, call.state, "answered")
        self.answered_count += 1
        self.urgent.append(Answer(call, code, retry_after_seconds))

    def _resize(self) -> None:
        """How many calls may be on the socket at once."""
        free = self._free_slots()
        self._room = free * depth(self.limits, self.mean_seconds) if free > 0 else self._starting * self.limits.concurrency

    def _start_if_worth_it(self, now: float) -> None:
        coming = self._starting + self._start_asked
        usable = self.ready - self._leaving
        limits = self.limits
        room = min(limits.starts_max, min(limits.max_instances, self.ceiling) - self.ready) - coming
        demand = len(self.waiting) + len(self.offered)
        if room <= 0 or demand <= (usable + coming) * limits.concurrency or self.closed:
            return
        wanted = needed(demand, limits, self.mean_seconds, self.start_seconds)
        oldest = next(iter(self.offered.values()), None)
        crowded = len(self.offered) > self._free_slots() or bool(self.waiting)
        if usable > 0 and crowded and stalled(now, oldest, self._last_finish_at, self.start_seconds):
            self._stalled_at = now
            wanted = min(max(wanted, usable + coming + 1), ceil(demand / limits.concurrency))
        missing = wanted - usable - coming
        if missing > 0:
            self._ask(min(missing, room))

    def _ask(self, count: int) -> None:
        self._start_asked += count
        self.urgent.append(Start(count))

    def _remember_demand(self, now: float) -> None:
        demand = len(self.waiting) + len(self.offered)
        if demand:
            self.keep.used(needed(demand, self.limits, self.mean_seconds, self.start_seconds), now)
            self.keep.seen.idle_since = now
        elif self.last_demand_at > self.keep.used_at:
            self.keep.used(1, self.last_demand_at)

    def _let_go(self, now: float) -> None:
        if self.draining:
            self._close_if_drained()
            return
        if self.offered and now - self._stalled_at < STALL_HOLD_SECONDS:
            keep = self.ready  # what a long call made us start is not let go while such calls come
        elif self.limits.keep_alive_seconds <= 0:
            keep = ceil((len(self.waiting) + len(self.offered)) / self.limits.concurrency)
        else:
            keep = self.keep.wanted(now)
        keep = max(min(keep, self.ceiling), self.floor, self.limits.min_instances)
        self._retire(self.ready - self._leaving - keep)

    def _retire(self, count: int) -> None:
        if count > 0:
            self._leaving += count
            self._resize()
            self.urgent.append(Retire(count))

    def _gone(self, instance: str) -> None:
        it = self.instances.pop(instance)
        was = it.state
        it.state = step(INSTANCE_STEPS, it.state, "gone")
        if was == STARTING:
            self._starting -= 1
        else:
            self.ready -= 1
            # Whoever leaves settles one request to leave, whether it took that message or died beside it.
            self._leaving = max(0, min(self._leaving - 1, self.ready))
        if self.ready == 0 and self._starting == 0:
            self._take_back()
        self._resize()

    def _take_back(self, code: str = "function_crashed") -> None:
        """The last instance is gone, and none is starting that may have taken a call: what is still offered was begun by nobody."""
        self._leaving, self._blocked = 0, False
        for call in reversed(self.offered.values()):
            self._put_back(call, code)
        self.offered.clear()
        self.offers.clear()  # or one that is offered again before these are sent would be sent twice
        self.urgent.append(Clear())

    def _put_back(self, call: Call, code: str = "function_crashed") -> None:
        """To the front of the queue, but not for ever: then `code`. What one instance after another dies of unmarked is the function's
        doing; what keeps one after another from starting, the last start has said."""
        call.state = step(CALL_STEPS, call.state, "returned")
        call.returns += 1
        if call.returns > RETURNS_MAX:
            self._answer(call, code)
        else:
            self.waiting.appendleft(call)

    def _close_if_drained(self) -> None:
        if self.draining and not self.waiting and not self.offered and not self.closed:
            self.closed = True
            self.urgent.append(Close())
