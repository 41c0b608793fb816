"""Waits foreseen and deadlines out of reach: nobody is refused while a place is free, the newest goes first, what began is protected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.effects import Answer, PoolLimits
from dayfly.core.decide.line import STALE_MAX, Line
from dayfly.core.decide.pool import Pool
from dayfly.core.decide.wait import hopeless, usual, wait_seconds
from dayfly.core.model.call import ANSWERED, WAITING, Call
from dayfly.core.wire.prefer import wait_preferred
from dayfly.testing.world import Weather, World

REFUSALS = ("queue_full", "deadline_out_of_reach")
OVERLOAD = Weather(calls_per_second=400, run_seconds=0.01, seconds=10.0, timeout_seconds=0.5)


class Watched(World):
    """Looks, at every refusal, at who was refused and who was free."""

    refused = 0

    def _answered(self, call: Call, outcome: str) -> None:
        super()._answered(call, outcome)
        if outcome in REFUSALS:
            self.refused += 1
            assert all(other.seq < call.seq for other in self.pool.waiting), "an older call waits on: the newest is refused"
            pool = self.pool
            assert len(pool.waiting) + len(pool.offered) >= pool.limits.max_instances, "a place was free, or could have been made"
            assert all(call not in running for running in self._running.values()), "it had begun"


@given(ahead=st.integers(0, 10_000), places=st.integers(1, 200), concurrency=st.integers(1, 255), mean=st.floats(-1, 900))
def test_nobody_is_foreseen_to_wait_while_a_place_is_free(ahead: int, places: int, concurrency: int, mean: float) -> None:
    limits = PoolLimits(max_instances=places, concurrency=concurrency)
    wait = wait_seconds(ahead, limits, mean)
    assert wait >= 0
    if ahead < places * concurrency or mean < 0:
        assert wait == 0 and not hopeless(Call(1, 0.0, 0.1), 0.1, 0.0, wait)
    assert wait_seconds(ahead + 1, limits, mean) >= wait


def test_the_foreseen_wait_is_the_queue_times_the_mean_over_the_places() -> None:
    limits = PoolLimits(max_instances=4)
    assert wait_seconds(3, limits, 2.0) == 0
    assert wait_seconds(4, limits, 2.0) == pytest.approx(0.5, rel=1e-3)
    assert wait_seconds(43, limits, 2.0) == pytest.approx(20.0, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_overload_refuses_the_newest_at_once_and_nearly_nobody_waits_for_nothing(seed: int) -> None:
    """Twice what two instances can do, with a queue longer than the deadline. Without foresight seven of ten callers wait half a second
    for nothing, and what is begun too late takes the places of what would have been in time: 1,100 are served, not 1,900."""
    world = Watched(seed, PoolLimits(max_instances=2, queue_max=1000), OVERLOAD).run()
    outcomes = list(world.answers.values())
    assert outcomes.count("deadline_out_of_reach") == world.refused > 0.3 * len(outcomes)
    assert outcomes.count("queue_timeout") < 0.4 * world.refused
    assert outcomes.count("ok") > 0.4 * len(outcomes)


@pytest.mark.parametrize("seed", range(4))
def test_callers_in_a_hurry_are_refused_or_served_in_time_and_the_others_notice_nothing(seed: int) -> None:
    limits = PoolLimits(max_instances=4, queue_max=100)
    weather = Weather(
        calls_per_second=600, run_seconds=0.01, seconds=10.0, timeout_seconds=2.0, crash_chance=0.01, leave_chance=0.05,
        start_failure_chance=0.05, hurry_chance=0.3, hurry_seconds=0.05,
    )  # fmt: skip
    world = Watched(seed, limits, weather).run()
    outcomes = list(world.answers.values())
    assert len(outcomes) == world.pool.submitted_count
    assert world.refused and outcomes.count("deadline_out_of_reach")
    assert outcomes.count("ok") > 0.5 * len(outcomes)


class Mixed(Watched):
    """One call in a hundred takes five seconds instead of ten milliseconds."""

    def _run(self, name: str, call: Call) -> None:
        seconds = 5.0 if self._chance(0.01) else self.dice.expovariate(100)
        self._at(seconds, lambda: self._finish(name, call, seconds))


@pytest.mark.parametrize("seed", range(4))
def test_a_long_call_among_short_ones_holds_up_the_queue_and_gets_nobody_refused(seed: int) -> None:
    """Every refusal here would be wrong: when the long call is over the queue is gone in a moment. The plain mean refused one in forty."""
    weather = Weather(calls_per_second=20, seconds=60.0, timeout_seconds=6.0)
    world = Mixed(seed, PoolLimits(max_instances=2, queue_max=1000), weather).run()
    assert world.refused == 0 and list(world.answers.values()).count("ok") > 0.98 * len(world.answers)


def test_what_is_usual_follows_a_lasting_change_and_hardly_an_outlier() -> None:
    assert usual(-1.0, 5.0, 0.5) == 0.5
    assert usual(0.01, 100.0, 5.0) < 0.02
    seconds = 0.01
    for _ in range(20):
        seconds = usual(seconds, 1.0, 1.0)
    assert seconds > 0.9
    for _ in range(30):
        seconds = usual(seconds, 0.01, 1.0)
    assert seconds < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_in_calm_weather_nobody_is_refused(seed: int) -> None:
    world = Watched(seed, PoolLimits(), Weather(seconds=10.0, hurry_chance=0.5, hurry_seconds=1.0)).run()
    assert set(world.answers.values()) == {"ok"}


def busy(limits: PoolLimits, mean: float, calls: int) -> Pool:
    """A pool whose one instance has seen calls of `mean` seconds and now has so many."""
    pool = Pool(limits)
    pool.ensure(1, 0.0)
    pool.starting("a", 0.0)
    pool.started("a", 0.0)
    pool.submitted(Call(0, 0.0, 99.0), 0.0)
    pool.finished(0, 1.0, mean)
    for seq in range(1, calls + 1):
        pool.submitted(Call(seq, 1.0, 31.0), 1.0)
    list(pool.effects())
    return pool


def test_a_call_that_cannot_begin_before_its_deadline_is_refused_with_the_time_the_queue_takes() -> None:
    """The example of docs/errors.md: one instance, three seconds a call, thirty seconds of patience."""
    pool = busy(PoolLimits(max_instances=1), 3.0, 9)
    last = Call(10, 1.0, 31.0)
    pool.submitted(last, 1.0)
    assert list(pool.effects()) == []
    too_late = Call(11, 1.0, 31.0)
    pool.submitted(too_late, 1.0)
    (answer,) = pool.effects()
    assert isinstance(answer, Answer) and answer.call is too_late and answer.code == "deadline_out_of_reach"
    assert answer.retry_after_seconds == pytest.approx(30.0, rel=1e-3)


def test_who_is_in_a_hurry_is_refused_at_once_or_forgotten_in_time() -> None:
    pool = busy(PoolLimits(max_instances=1), 1.0, 1)
    first, second, past = Call(2, 1.0, 31.0), Call(3, 1.0, 31.0), Call(4, 1.0, 31.0)
    pool.submitted(first, 1.0)
    pool.hurried(first, 2.5, 1.0)
    assert list(pool.effects()) == [] and pool.waiting.has_late(2.5) and not pool.waiting.has_late(2.4)
    pool.submitted(second, 1.0)
    pool.hurried(second, 2.5, 1.0)
    pool.submitted(past, 1.0)
    pool.hurried(past, 1.0, 1.0)
    codes = [(effect.call.seq, effect.code) for effect in pool.effects() if isinstance(effect, Answer)]
    assert codes == [(3, "deadline_out_of_reach"), (4, "deadline_out_of_reach")]
    pool.expired({}, 2.5)
    codes = [(effect.call.seq, effect.code) for effect in pool.effects() if isinstance(effect, Answer)]
    assert codes == [(2, "queue_timeout")]
    assert pool.submitted_count == len(pool.waiting) + len(pool.offered) + pool.answered_count


def test_the_line_keeps_no_more_of_the_past_than_it_may() -> None:
    line = Line()
    for seq in range(10 * STALE_MAX):
        call = Call(seq, 0.0, 9.0)
        line.append(call)
        line.hurry(call, 5.0)
        line.remove(call)
        call.state = ANSWERED
        assert len(line._hurried) <= STALE_MAX + 2
    waiting = Call(9999, 0.0, 9.0)
    line.append(waiting)
    line.hurry(waiting, 5.0)
    assert line.pop_late(4.0) is None
    assert line.pop_late(5.0) is waiting and waiting.state == WAITING and line.pop_late(9.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"wait=10", 10.0),
        (b"respond-async, wait=0.25", 0.25),
        (b'Wait = "3"; x=1', 3.0),
        (b"wait=0", 0.0),
        (b"", None),
        (b"wait", None),
        (b"wait=-1", None),
        (b"await=3", None),
        (b"wait=1e9", None),
        (b"wait=99999999999", None),
    ],
)
def test_how_long_a_caller_waits_is_read_from_prefer(text: bytes, seconds: float | None) -> None:
    assert wait_preferred(text) == seconds
