"""Keep-alive: what the histogram holds, that the chosen windows are the cheapest there are, and what a pool does with them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import keepalive
from dayfly.core.decide.effects import PoolLimits, Retire, Start
from dayfly.core.decide.keepalive import EDGES, IdleTimes, KeepAlive, Windows, fixed, percentiles, priced
from dayfly.core.decide.pool import Pool
from dayfly.core.model.call import Call

IDLE_SECONDS = st.floats(1.0, 10 * 86_400.0)
TICK_SECONDS = 0.05
ROUNDING = 1 + 1e-12


def seen(*seconds: float) -> IdleTimes:
    times = IdleTimes()
    for one in seconds:
        times.note(one)
    return times


@given(st.lists(IDLE_SECONDS, max_size=60))
def test_every_idle_time_lies_in_its_bin_or_is_counted_as_beyond(seconds):
    times = seen(*seconds)
    assert times.total == len(seconds)
    for index, count in times.bins():
        low, high = EDGES[index], EDGES[index + 1]
        assert count == sum(low * (1 - 1e-9) <= one < high * (1 + 1e-9) and int_bin(one) == index for one in seconds)
    assert sum(count for _, count in times.bins()) == sum(int_bin(one) < keepalive.BINS for one in seconds)


def int_bin(seconds: float) -> int:
    alone = seen(seconds).bins()
    return alone[0][0] if alone else keepalive.BINS


def test_the_counters_are_bounded_and_forget_by_halves():
    times = seen(*[60.0] * 900)
    for _ in range(5000):
        times.note(3600.0)
        assert times.total < keepalive.OBSERVATIONS_MAX
    ((hour, _),) = times.bins()
    assert EDGES[hour] < 3600.0 < EDGES[hour + 1], "the minutes of long ago are forgotten"


@given(st.lists(IDLE_SECONDS, min_size=5, max_size=40), st.floats(1.0, 1e6))
def test_no_pair_of_bin_edges_is_cheaper_than_the_chosen_one(seconds, worth):
    """By the definition: idle seconds spent, less what the spared starts are worth, over all idle times (each in the middle of its bin)."""
    times = seen(*seconds)
    if not times.clear:
        assert priced(times, 60.0, worth) == Windows(0.0, 60.0)
        return
    bins = times.bins()
    beyond = times.total - sum(count for _, count in bins)

    def price(ahead: float, until: float) -> float:
        spared = sum(count for index, count in bins if ahead <= EDGES[index] * ROUNDING and EDGES[index + 1] <= until * ROUNDING)
        middles = [((EDGES[index] + EDGES[index + 1]) / 2, count) for index, count in bins] + [(float("inf"), beyond)]
        return sum(max(0.0, min(middle, until) - ahead) * count for middle, count in middles) - worth * spared

    edges = sorted({0.0, *(EDGES[index] for index, _ in bins), *(EDGES[index + 1] for index, _ in bins)})
    cheapest = min(price(ahead, until) for ahead, until in itertools.combinations_with_replacement(edges, 2))
    ahead, keep, learned = exact(times, worth)
    assert learned
    assert price(ahead, ahead + keep) == pytest.approx(cheapest, rel=1e-6, abs=1e-3)


def exact(times: IdleTimes, worth: float) -> Windows:
    """The choice before margins and the least lengths are put on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keepalive, "_windows", lambda ahead, until: Windows(ahead, until - ahead, learned=True))
        return priced(times, 60.0, worth)


def test_a_timer_is_expected_and_its_instance_waits_seconds_instead_of_an_hour():
    ahead, keep, learned = priced(seen(*[3600.0] * 5), 60.0, 14_400.0)
    assert learned
    assert 3600 * 0.80 < ahead < 3600 * 0.95
    assert 3600 * 1.05 < ahead + keep < 3600 * 1.20


def test_where_a_start_is_cheap_a_daily_call_is_not_waited_for():
    daily = seen(*[86_400.0] * 10)
    assert priced(daily, 60.0, keepalive.WORTH_PER_START_SECOND * 0.005).keep_seconds == keepalive.IDLE_SECONDS_MIN
    assert priced(daily, 60.0, keepalive.WORTH_PER_START_SECOND * 2.0).ahead_seconds > 60_000


def test_between_the_calls_of_a_burst_the_instance_stays_and_then_it_goes():
    ahead, keep, _ = priced(seen(*[3.0, 4.0, 5.0, 4.0, 7200.0] * 8), 600.0, 300.0)
    assert ahead == 0.0
    assert 5.0 < keep < 10.0


@pytest.mark.parametrize("choose", [priced, percentiles])
@pytest.mark.parametrize("seconds", [[], [60.0] * 4, [1e6] * 9 + [60.0] * 3])
def test_what_says_too_little_leaves_the_fixed_window(choose, seconds):
    assert choose(seen(*seconds), 77.0, 14_400.0) == Windows(0.0, 77.0)


def test_the_papers_choice_wants_concentrated_counts():
    spread = seen(*[edge * 1.01 for edge in EDGES[:200:2]])
    assert spread.spread < keepalive.SPREAD_MIN
    assert percentiles(spread, 77.0, 1e9) == Windows(0.0, 77.0)
    assert percentiles(seen(*[3600.0] * 9), 77.0, 1e9).ahead_seconds > 3000


@given(st.lists(IDLE_SECONDS, max_size=30), st.one_of(st.just(0.0), st.floats(0.01, 1000.0)))
def test_a_fixed_window_is_a_promise(seconds, promised):
    keep = KeepAlive(promised, IdleTimes(), fixed)
    now = 0.0
    for pause in seconds:
        keep.ended_idle(now, 1.0)
        keep.used(1, now)
        assert keep.windows == Windows(0.0, promised)
        assert promised == 0 or keep.wanted(now + promised * 0.999) == 1
        assert keep.wanted(now + promised) == 0 and not keep.ahead_due(now + promised)
        now += promised + pause


@given(st.lists(IDLE_SECONDS, min_size=6, max_size=20))
def test_a_clock_that_jumps_to_the_named_moments_misses_no_change(seconds):
    keep = KeepAlive(60.0, seen(*seconds), priced)
    keep.seen.idle_since = 0.0
    keep.ended_idle(seconds[0], 1.0)
    keep.used(2, 1000.0)
    now, wanted = 1000.0, keep.wanted(1000.0)
    for _ in range(30):
        then = keep.next_change_at(now)
        if then == float("inf"):
            break
        assert then > now
        assert keep.wanted(now + (then - now) * 0.5) == wanted
        now, wanted = then, keep.wanted(then)
    assert wanted == 0


# ---- in a pool -------------------------------------------------------------------------------------------------------------------------


class Hands:
    """Carries out a pool's starts and retirements at once and calls it at given moments, between ticks of 50 ms."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.alive: list[str] = []
        self.ticks = self.seq = 0
        self.log: list[tuple[float, int]] = []

    @property
    def now(self) -> float:
        return self.ticks * TICK_SECONDS

    def carry_out(self) -> None:
        for effect in self.pool.effects():
            if isinstance(effect, Start):
                for _ in range(effect.instances):
                    name = f"i{len(self.log)}"
                    self.alive.append(name)
                    self.pool.starting(name, self.now)
                    self.pool.started(name, self.now + 1.0)
                    self.log.append((self.now, len(self.alive)))
            elif isinstance(effect, Retire):
                for _ in range(effect.instances):
                    self.pool.retired(self.alive.pop(), self.now)
                    self.log.append((self.now, len(self.alive)))

    def until(self, moment: float) -> None:
        while self.now < moment:
            self.ticks += 1
            self.pool.ticked(self.now)
            self.carry_out()

    def call(self, moment: float) -> bool:
        """True when it found an instance."""
        self.until(moment)
        self.seq += 1
        warm = bool(self.alive)
        self.pool.submitted(Call(self.seq, self.now, self.now + 30), self.now)
        self.carry_out()
        self.pool.finished(self.seq, self.now, 0.001)
        self.carry_out()
        return warm


def test_a_pool_learns_a_timer_leaves_between_its_calls_and_starts_ahead_of_them():
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=60.0, keep_alive_learns=True)))
    warm = [hands.call(300.0 * number) for number in range(1, 12)]
    assert warm == [False] * 6 + [True] * 5
    hands.log.clear()
    assert hands.call(300.0 * 12)
    (left, none), (ahead, one) = hands.log
    assert (none, one) == (0, 1)
    assert left < 300 * 11 + 2 and 300 * 12 - 60 < ahead < 300 * 12 - 10


def test_when_the_expected_call_does_not_come_the_instance_goes_and_the_pool_may_be_forgotten():
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=60.0, keep_alive_learns=True)))
    for number in range(1, 8):
        hands.call(300.0 * number)
    hands.until(300.0 * 7 + 200)
    assert not hands.alive and not hands.pool.dormant(hands.now, 30.0), "a call is still expected"
    hands.until(300.0 * 8)
    assert hands.alive
    hands.until(300.0 * 8 + 120)
    assert not hands.alive and hands.pool.dormant(hands.now, 30.0)


def test_what_was_learned_outlives_the_pool():
    seen_by_all = IdleTimes()
    limits = PoolLimits(keep_alive_seconds=60.0, keep_alive_learns=True)
    first = Hands(Pool(limits, seen_by_all))
    for number in range(1, 7):
        first.call(300.0 * number)
    second = Hands(Pool(limits, seen_by_all))
    second.ticks = first.ticks
    second.call(300.0 * 7)
    assert second.pool.keep.windows.learned and seen_by_all.total == 6


def test_an_explicit_keep_alive_means_exactly_that_whatever_was_seen():
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=20.0)))
    for number in range(1, 12):
        hands.log.clear()
        hands.call(300.0 * number)
        hands.until(300.0 * number + 19.9)
        assert len(hands.alive) == 1
        hands.until(300.0 * number + 20.2)
        assert not hands.alive


def test_zero_means_not_at_all_also_for_a_timer_and_with_auto():
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=0.0, keep_alive_learns=True)))
    assert not any(hands.call(300.0 * number) for number in range(1, 12))
    assert not hands.alive and len(hands.log) == 2 * 11


def test_a_start_ahead_that_fails_is_not_asked_for_again():
    hands = Hands(Pool(PoolLimits(keep_alive_seconds=60.0, keep_alive_learns=True)))
    for number in range(1, 8):
        hands.call(300.0 * number)
    asked = 0
    while hands.now < 300.0 * 8 + 100:
        hands.ticks += 1
        hands.pool.ticked(hands.now)
        for effect in hands.pool.effects():
            if isinstance(effect, Start):
                asked += 1
                hands.pool.failed(None, hands.now, "start_failed")
            elif isinstance(effect, Retire):
                hands.pool.retired(hands.alive.pop(), hands.now)
    assert asked == 1
