"""The pool: tables of single facts, then every order of facts that Hypothesis can think of, holding the first law throughout."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dayfly.core.decide.effects import Answer, Clear, Close, Kill, PoolLimits, Retire, Start
from dayfly.core.decide.pool import RETURNS_MAX, Pool
from dayfly.core.model.call import ANSWERED, CALL_STEPS, INSTANCE_STEPS, OFFERED, WAITING, Call, IllegalStep, step


def kinds(pool: Pool) -> list[str]:
    """The effects' names, then one "Offer" for each call to send."""
    return [type(effect).__name__ for effect in pool.effects()] + ["Offer" for _ in pool.take_offers()]


def call(seq: int, now: float = 0.0, timeout: float = 10.0) -> Call:
    return Call(seq, now, now + timeout)


def warm(pool: Pool, *names: str, now: float = 0.0) -> None:
    """Bring up instances without calls."""
    pool.ensure(len(names), now)
    list(pool.effects())
    for name in names:
        pool.starting(name, now)
        pool.started(name, now + 0.003)
    list(pool.effects())


def test_every_pair_outside_the_tables_raises():
    events = {event for table in (CALL_STEPS, INSTANCE_STEPS) for row in table.values() for event in row}
    for table in (CALL_STEPS, INSTANCE_STEPS):
        for state, row in table.items():
            for event in events:
                if event in row:
                    assert step(table, state, event) == row[event]
                else:
                    try:
                        step(table, state, event)
                    except IllegalStep:
                        continue
                    raise AssertionError((state, event))


def test_the_first_call_starts_one_instance_and_is_offered_to_it_at_once():
    pool = Pool(PoolLimits())
    first = call(1)
    pool.submitted(first, 0.0)
    assert kinds(pool) == ["Start"]
    pool.starting("a", 0.0)
    assert list(pool.effects()) == [] and pool.take_offers() == [first]
    pool.started("a", 0.003)
    assert list(pool.effects()) == []
    assert pool.finished(1, 0.004, 0.001) is first
    assert first.state == ANSWERED


def test_a_call_offered_to_a_start_that_fails_is_answered():
    pool = Pool(PoolLimits())
    first = call(1)
    pool.submitted(first, 0.0)
    pool.starting("a", 0.0)
    kinds(pool)
    assert pool.hopeful() == [first]
    pool.failed("a", 0.1, "init_failed")
    assert list(pool.effects()) == [Clear(), Answer(first, "init_failed")]


def test_an_offered_call_is_not_taken_back_while_a_start_that_may_have_it_is_under_way():
    pool = Pool(PoolLimits())
    first, second = call(1), call(2)
    for it in (first, second):
        pool.submitted(it, 0.0)
    for name in ("a", "b"):
        pool.starting(name, 0.0)
    pool.started("a", 0.003)
    kinds(pool)
    pool.lost("a", [1], 0.004)  # "b" may be ready and running the second call, its word still on the way
    assert list(pool.effects()) == [Answer(first, "function_crashed")]
    assert second.state == OFFERED
    pool.failed("b", 0.005, "init_failed")
    assert list(pool.effects()) == [Clear(), Answer(second, "init_failed")]


def test_a_burst_shares_starts_up_to_the_cap():
    pool = Pool(PoolLimits(starts_max=4))
    for seq in range(20):
        pool.submitted(call(seq), 0.0)
    assert sum(effect.instances for effect in pool.effects() if isinstance(effect, Start)) == 4


def test_short_calls_are_offered_ahead_and_long_ones_are_not():
    for seconds, expected in ((0.00001, 12), (0.005, 1)):
        pool = Pool(PoolLimits(max_instances=1, prefetch_max=16))
        warm(pool, "a")
        pool.submitted(call(0), 1.0)
        pool.finished(0, 1.0, seconds)
        pool.ticked(1.0)
        pool._resize()
        for seq in range(1, 40):
            pool.submitted(call(seq, 1.0), 1.0)
        assert abs(len(pool.offered) - expected) <= 1, (seconds, pool)


def test_no_instance_is_started_for_calls_that_will_be_over_sooner():
    pool = Pool(PoolLimits(prefetch_max=16))
    warm(pool, "a")
    for seq in range(50):
        pool.submitted(call(seq, 1.0), 1.0)
        pool.finished(seq, 1.0, 0.00001)
    kinds(pool)
    for seq in range(100, 164):
        pool.submitted(call(seq, 1.0), 1.0)
    assert "Start" not in kinds(pool)


def test_long_calls_start_as_many_instances_as_there_are_calls():
    pool = Pool(PoolLimits(starts_max=100))
    warm(pool, "a")
    pool.submitted(call(0, 1.0), 1.0)
    pool.finished(0, 1.1, 0.1)
    kinds(pool)
    for seq in range(1, 11):
        pool.submitted(call(seq, 1.1), 1.1)
    assert sum(effect.instances for effect in pool.effects() if isinstance(effect, Start)) == 9


def test_a_call_that_hangs_makes_the_next_one_start_an_instance():
    pool = Pool(PoolLimits())
    warm(pool, "a")
    for seq in range(10):
        pool.submitted(call(seq, 1.0), 1.0)
        pool.finished(seq, 1.0, 0.00001)
    kinds(pool)
    pool.submitted(call(10, 2.0), 2.0)
    pool.submitted(call(11, 2.0), 2.0)
    assert "Start" not in kinds(pool)
    pool.ticked(2.05)
    if pool.waiting:
        assert "Start" in kinds(pool)
    else:
        pool.submitted(call(12, 2.05), 2.05)
        assert "Start" in kinds(pool)


def test_a_full_queue_refuses_the_newest():
    pool = Pool(PoolLimits(queue_max=2, max_instances=1))
    calls = [call(seq) for seq in range(3)]
    for it in calls:
        pool.submitted(it, 0.0)
    assert Answer(calls[2], "queue_full") in list(pool.effects())
    assert len(pool.waiting) == 2


def test_a_lost_instance_answers_what_it_had_begun_and_keeps_the_rest():
    pool = Pool(PoolLimits(concurrency=2))
    warm(pool, "a", "b")
    one, two = call(1), call(2)
    pool.submitted(one, 1.0)
    pool.submitted(two, 1.0)
    kinds(pool)
    pool.lost("a", [1], 1.1)
    effects = list(pool.effects())
    assert effects == [Answer(one, "function_crashed")]
    assert two.state == OFFERED  # it may still lie in the socket, or "b" runs it


def test_a_call_that_instance_after_instance_dies_of_is_answered_in_the_end():
    pool = Pool(PoolLimits(max_instances=1))
    it = call(1)
    pool.submitted(it, 0.0)
    answers = []
    for number in range(RETURNS_MAX + 1):
        assert not answers, number
        list(pool.effects())
        pool.starting(f"i{number}", float(number))
        pool.started(f"i{number}", number + 0.1)
        pool.lost(f"i{number}", [], number + 0.2)  # it had overwritten the mark
        answers += [effect for effect in pool.effects() if isinstance(effect, Answer)]
    assert answers == [Answer(it, "function_crashed")]


def test_when_the_last_instance_is_gone_the_socket_is_emptied_and_its_calls_wait_again():
    pool = Pool(PoolLimits(concurrency=2))
    warm(pool, "a")
    one, two = call(1), call(2)
    pool.submitted(one, 1.0)
    pool.submitted(two, 1.0)
    kinds(pool)
    pool.lost("a", [1], 1.1)
    assert [type(effect) for effect in pool.effects()] == [Answer, Clear, Start]
    assert two.state == WAITING


def test_a_call_that_waits_for_one_failing_start_after_another_is_told_what_keeps_them_from_starting():
    """There is always another start under way, so it is never the last hope that fails: no reason to blame the function."""
    pool = Pool(PoolLimits(max_instances=4))
    one = call(1, 0.0, 1e9)
    pool.submitted(one, 0.0)
    said = []
    for turn in range(100):
        now = turn * 1.0
        pool.ensure(1, now)
        for effect in pool.effects():
            said += [effect.code] if isinstance(effect, Answer) else []
        pool.starting(f"i{turn}", now)
        pool.ensure(2, now)
        kinds(pool)
        pool.failed(f"i{turn}", now, "overloaded")
    assert said == ["overloaded"] and pool.answered_count == 1


def test_deadlines_tell_queue_from_function_and_end_the_holder():
    pool = Pool(PoolLimits(max_instances=1))
    warm(pool, "a")
    running, waiting = call(1, 0.0, 1.0), call(2, 0.0, 1.0)
    pool.submitted(running, 0.0)
    pool.submitted(waiting, 0.0)
    kinds(pool)
    pool.expired({1: "a"}, 1.0)
    assert list(pool.effects()) == [Answer(waiting, "queue_timeout"), Answer(running, "function_timeout"), Kill("a", "function_timeout")]


def test_a_call_that_was_taken_by_nobody_knows_whom_may_have_run():
    pool = Pool(PoolLimits(max_instances=1))
    warm(pool, "a")
    taken = call(1, 0.0, 1.0)
    pool.submitted(taken, 0.0)
    kinds(pool)
    pool.expired({1: ""}, 1.0)
    assert list(pool.effects())[:1] == [Answer(taken, "function_timeout")]


def test_idle_instances_leave_after_the_keep_alive_window_and_not_before():
    pool = Pool(PoolLimits(keep_alive_seconds=8.0, min_instances=1))
    warm(pool, "a", "b", "c")
    for seq in range(3):
        pool.submitted(call(seq, 1.0), 1.0)
    kinds(pool)
    pool.ticked(1.0)
    for seq in range(3):
        pool.finished(seq, 1.1, 0.1)
    for second in range(2, 9):
        pool.ticked(float(second))
        assert kinds(pool) == []
    asked = 0
    for second in range(9, 20):
        pool.ticked(float(second))
        asked += sum(effect.instances for effect in pool.effects() if isinstance(effect, Retire))
    assert asked == 2


def test_draining_finishes_everything_then_closes_once():
    pool = Pool(PoolLimits(max_instances=1))
    warm(pool, "a")
    pool.submitted(call(1), 0.0)
    pool.submitted(call(2), 0.0)
    kinds(pool)
    pool.drain(0.1)
    assert kinds(pool) == []
    pool.finished(1, 0.2, 0.1)
    assert kinds(pool) == ["Offer"]
    pool.finished(2, 0.3, 0.1)
    pool.ticked(0.4)
    assert kinds(pool) == ["Close"]


def test_a_refused_start_is_asked_for_again_by_the_clock_and_not_at_once():
    pool = Pool(PoolLimits())
    warm(pool, "a")
    for seq in range(3):
        pool.submitted(call(seq, 1.0), 1.0)
    asked = sum(effect.instances for effect in pool.effects() if isinstance(effect, Start))
    assert asked == 2
    for _ in range(asked):
        pool.failed(None, 1.0, "overloaded")
    assert kinds(pool) == ["Offer"] and len(pool.waiting) == 2  # the first call's
    pool.ticked(1.05)
    assert "Start" in kinds(pool)


def test_instances_that_could_not_be_asked_to_leave_go_on_taking_calls():
    pool = Pool(PoolLimits(keep_alive_seconds=0.0))
    warm(pool, "a", "b")
    pool.ticked(1.0)
    assert list(pool.effects()) == [Retire(2)]
    pool.kept(2)
    pool.submitted(call(1, 1.0), 1.0)
    assert kinds(pool) == ["Offer"]


def test_where_nobody_is_kept_each_call_is_the_last_of_its_instance_unless_others_wait():
    """Nobody is asked to leave afterwards: a new instance might take that message, and the old one the next call."""
    pool = Pool(PoolLimits(keep_alive_seconds=0.0, max_instances=2))
    first, second, third = call(1), call(2), call(3)
    pool.submitted(first, 0.0)
    assert list(pool.effects()) == [Start(1)]
    pool.starting("a", 0.0)
    assert pool.take_offers() == [first] and first.last
    pool.started("a", 0.003)
    assert pool.finished(1, 0.004, 0.001) is first and not kinds(pool)
    pool.submitted(second, 0.005)  # "a" is on its way out
    pool.submitted(third, 0.005)
    assert list(pool.effects()) == [Start(1)]
    pool.starting("b", 0.005)
    assert pool.take_offers() == [second] and not second.last, "a third waits"
    pool.retired("a", 0.006)
    pool.started("b", 0.007)
    pool.finished(2, 0.008, 0.001)
    assert "Retire" not in kinds(pool)


@pytest.mark.parametrize("kept", [{"keep_alive_seconds": 0.0, "min_instances": 1}, {"keep_alive_seconds": 0.0, "concurrency": 2}, {}])
def test_no_call_is_the_last_of_an_instance_that_is_kept_or_has_others(kept: dict[str, float]):
    pool = Pool(PoolLimits(**kept))
    warm(pool, "a")
    pool.submitted(call(1, 1.0), 1.0)
    assert [offered.last for offered in pool.take_offers()] == [False]


class PoolWorld(RuleBasedStateMachine):
    """Any order of facts: the law holds, nothing is answered twice, caps hold, and what was promised can still happen."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = PoolLimits(concurrency=2, max_instances=4, queue_max=5, starts_max=3, keep_alive_seconds=1.0, min_instances=1)
        self.pool = Pool(self.limits)
        self.now = 0.0
        self.seq = 0
        self.names = 0
        self.calls: list[Call] = []
        self.answered: list[int] = []
        self.asked = 0
        self.starting: list[str] = []
        self.ready: list[str] = []
        self.closes = 0

    def carry_out(self) -> None:
        for effect in self.pool.effects():
            if isinstance(effect, Start):
                assert effect.instances > 0
                self.asked += effect.instances
            elif isinstance(effect, Answer):
                self.answered.append(effect.call.seq)
            elif isinstance(effect, Close):
                self.closes += 1
            elif isinstance(effect, Kill):
                assert effect.instance in self.ready
        for it in self.pool.take_offers():
            assert it.state == OFFERED and self.pool.offered[it.seq] is it

    @precondition(lambda self: not self.pool.draining)
    @rule(timeout=st.floats(0.01, 5.0))
    def submit(self, timeout: float) -> None:
        self.seq += 1
        it = Call(self.seq, self.now, self.now + timeout)
        self.calls.append(it)
        self.pool.submitted(it, self.now)
        self.carry_out()

    @precondition(lambda self: self.pool.waiting)
    @rule(seconds=st.floats(-0.1, 2.0))
    def hurry(self, seconds: float) -> None:
        it, by = self.pool.waiting[-1], self.now + seconds
        self.pool.hurried(it, by, self.now)
        self.carry_out()
        assert it.state == WAITING or min(by, it.deadline) <= self.now or self.pool.wait() > 0

    @precondition(lambda self: self.asked)
    @rule()
    def begin_start(self) -> None:
        self.asked -= 1
        self.names += 1
        self.starting.append(f"i{self.names}")
        self.pool.starting(self.starting[-1], self.now)
        self.carry_out()

    @precondition(lambda self: self.starting)
    @rule(fine=st.booleans())
    def end_start(self, fine: bool) -> None:
        name = self.starting.pop(0)
        if fine:
            self.ready.append(name)
            self.pool.started(name, self.now)
        else:
            self.pool.failed(name, self.now, "init_failed")
        self.carry_out()

    @precondition(lambda self: self.asked)
    @rule()
    def refuse_start(self) -> None:
        self.asked -= 1
        self.pool.failed(None, self.now, "overloaded")
        self.carry_out()

    @precondition(lambda self: self.pool.offered)
    @rule(pick=st.integers(0, 100), seconds=st.floats(0, 1.0))
    def finish(self, pick: int, seconds: float) -> None:
        seqs = list(self.pool.offered)
        it = self.pool.finished(seqs[pick % len(seqs)], self.now, seconds)
        assert it is not None
        self.answered.append(it.seq)
        self.carry_out()

    @rule(seq=st.integers(1, 50))
    def finish_late_or_unknown(self, seq: int) -> None:
        if seq not in self.pool.offered:
            assert self.pool.finished(seq, self.now, 0.1) is None

    @precondition(lambda self: self.ready)
    @rule(pick=st.integers(0, 100), share=st.integers(0, 2), asked=st.booleans())
    def lose(self, pick: int, share: int, asked: bool) -> None:
        name = self.ready.pop(pick % len(self.ready))
        if asked:
            self.pool.retired(name, self.now)
        else:
            self.pool.lost(name, list(self.pool.offered)[:share], self.now)
        self.carry_out()

    @precondition(lambda self: self.pool.offered)
    @rule()
    def doubt(self) -> None:
        self.pool.doubted(list(self.pool.offered)[:1], self.now)
        self.carry_out()

    @precondition(lambda self: self.pool.offered)
    @rule()
    def socket_full(self) -> None:
        self.pool.blocked(list(self.pool.offered.values())[-1])
        self.carry_out()

    @precondition(lambda self: self.calls)
    @rule(pick=st.integers(0, 1000))
    def abandon(self, pick: int) -> None:
        it = self.calls[pick % len(self.calls)]
        if self.pool.abandoned(it):
            self.answered.append(it.seq)

    @rule(seconds=st.floats(0, 2.0), held=st.booleans())
    def time_passes(self, seconds: float, held: bool) -> None:
        self.now += seconds
        holders = dict(zip(self.pool.offered, self.ready, strict=False)) if held else {}
        self.pool.expired(holders, self.now)
        self.pool.ticked(self.now)
        self.carry_out()

    @precondition(lambda self: self.seq > 10)
    @rule()
    def drain(self) -> None:
        self.pool.drain(self.now)
        self.carry_out()

    @invariant()
    def law(self) -> None:
        pool = self.pool
        assert pool.submitted_count == len(pool.waiting) + len(pool.offered) + pool.answered_count == len(self.calls)
        assert len(self.answered) == len(set(self.answered)) == pool.answered_count
        assert {it.seq for it in self.calls if it.state == ANSWERED} == set(self.answered)

    @invariant()
    def caps(self) -> None:
        pool = self.pool
        assert len(pool.waiting) <= self.limits.queue_max + len(self.calls)  # returned calls may exceed it, submitted ones may not
        assert pool.ready == len(self.ready) and pool.ready + pool.busy_starting <= self.limits.max_instances
        assert pool.busy_starting == self.asked + len(self.starting) <= self.limits.starts_max
        assert self.closes <= 1

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        pool = self.pool
        if pool.waiting and not pool.offered:
            assert pool.ready or pool.busy_starting, "calls wait and nothing is coming"

    def teardown(self) -> None:
        """From any state: with instances that work, every call is answered."""
        for _ in range(200):
            if not self.pool.waiting and not self.pool.offered:
                break
            while self.asked:
                self.begin_start()
            while self.starting:
                self.end_start(fine=True)
            if self.pool.offered:
                self.finish(0, 0.0)
            self.pool.ticked(self.now)
            self.carry_out()
        assert not self.pool.waiting and not self.pool.offered, self.pool
        self.law()


PoolWorld.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPoolWorld = PoolWorld.TestCase
