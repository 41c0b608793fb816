"""The simulator: its books balance, simple traces give what arithmetic says, and it decides as the pool does under a ticking clock."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.pool import Pool
from dayfly.core.decide.simulate import POLICIES, SAMPLES, Policy, Result, simulate
from dayfly.core.model.trace import Arrival, Subject, Trace
from tests.core.test_keepalive import Hands

BY_NAME = {policy.name: policy for policy in POLICIES}
ONE = Subject("one", 100.0, 1.0)


def every(seconds: float, count: int, run: float = 0.5) -> Trace:
    """A timer's calls."""
    arrivals = [Arrival(seconds * number, 0, run) for number in range(count)]
    return Trace([ONE], arrivals, seconds * count)


def policy(name: str) -> Policy:
    return BY_NAME[name]


CALLS = st.lists(st.tuples(st.floats(0, 50_000), st.integers(0, 2), st.floats(0.001, 900)), min_size=1, max_size=60)


@hypothesis_settings(deadline=None)
@given(CALLS, st.sampled_from(POLICIES), st.sampled_from([float("inf"), 350.0, 1.0]))
def test_the_books_balance_under_every_policy(calls, chosen, bound):
    subjects = [ONE, Subject("two", 200.0, 0.005), Subject("three", 50.0, 3.0)]
    arrivals = [Arrival(*one) for one in sorted(calls)]
    result = simulate(Trace(subjects, arrivals, 60_000.0), chosen, bound)
    assert result.calls == len(calls)
    assert len({index for _, index, _ in calls}) <= result.cold <= result.calls
    assert len(result.shares) == len({index for _, index, _ in calls}) and list(result.shares) == sorted(result.shares)
    assert 0 <= result.wasted_mb_seconds <= 60_000.0 * 350.0 * len(calls)
    assert len(result.instances) == SAMPLES and min(result.instances) >= 0
    assert chosen.bounded or result.evicted == 0
    again = simulate(Trace(subjects, arrivals, 60_000.0), chosen, bound)
    assert again == result


def test_a_fixed_window_wastes_what_arithmetic_says():
    result = simulate(every(300.0, 10), policy("fixed-10min"))
    assert (result.cold, result.ahead) == (1, 0)
    assert result.wasted_mb_seconds == pytest.approx(100 * (10 * (300 - 0.5) - 1.0))  # less the one start, in which nothing is idle
    result = simulate(every(1200.0, 10), policy("fixed-10min"))
    assert result.cold == 10
    assert result.wasted_mb_seconds == pytest.approx(100 * 10 * 600)


def test_without_keeping_every_call_is_cold_and_nothing_is_wasted():
    result = simulate(every(2.0, 50), policy("none"))
    assert (result.cold, result.wasted_mb_seconds, result.cold_share) == (50, 0.0, 1.0)


def test_a_learned_timer_is_warm_and_cheaper_than_any_window_that_reaches_it():
    learned, fixed = simulate(every(3600.0, 100), policy("histogram")), simulate(every(3600.0, 100), policy("fixed-10min"))
    assert learned.cold <= 6 and learned.ahead >= 94 and fixed.cold == 100
    assert learned.wasted_mb_seconds < 0.2 * 100 * 3600 * 100


BOUNDED = Policy(name="bounded", about="", choose=policy("fixed-10min").choose, fixed_seconds=600.0, bounded=True)


def test_below_the_memory_bound_what_is_dear_to_start_stays():
    """Three functions take turns and there is room for two idle instances."""
    subjects = [Subject("cheap", 100.0, 0.005), Subject("dear", 100.0, 5.0), Subject("other", 100.0, 0.005)]
    turns = (1, 0, 1, 2)
    trace = Trace(subjects, [Arrival(20.0 * number, turns[number % 4], 0.1) for number in range(200)], 4000.0)
    result = simulate(trace, BOUNDED, 250.0)
    assert result.evicted > 50 and result.memory_mb_peak == 200.0
    assert result.shares == (0.01, 1.0, 1.0), "a hundred calls of the dear one, of which only the first was cold"
    assert simulate(trace, policy("fixed-10min")).cold == 3


def test_a_call_is_never_refused_when_nothing_idle_is_left_to_evict_the_bound_is_exceeded():
    both = Trace([ONE, Subject("two", 100.0, 1.0)], [Arrival(0.0, 0, 50.0), Arrival(1.0, 1, 50.0)], 100.0)
    result = simulate(both, BOUNDED, 150.0)
    assert (result.cold, result.evicted, result.memory_mb_peak) == (2, 0, 200.0)


@pytest.mark.parametrize("name", ["fixed-1min", "histogram"])
@pytest.mark.parametrize("period", [20.0, 55.0, 90.0, 300.0, 1000.0])
def test_it_decides_as_the_pool_does_under_a_ticking_clock(name, period):
    chosen = policy(name)
    calls = [period * number + (number % 3) for number in range(1, 16)]
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=chosen.fixed_seconds, keep_alive_learns=name == "histogram")))
    warm = sum(hands.call(at) for at in calls)
    # The pool learns what a start takes (a second, here) and the simulator is told; the first windows are chosen when that is settled.
    result = simulate(Trace([ONE], [Arrival(at, 0, 0.001) for at in calls], calls[-1] + 1), chosen)
    assert result.calls - result.cold == warm


def test_nothing_is_the_result_of_no_calls():
    result = simulate(Trace([ONE], [], 10.0), policy("histogram"))
    assert isinstance(result, Result) and (result.calls, result.cold_share, result.share_at(0.75)) == (0, 0.0, 0.0)
