"""Targets instead of demand: Knative's two windows as tables, its laws under Hypothesis, and whole afternoons around a real pool."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.autoscale import Autoscaler, Sums
from dayfly.core.decide.effects import PoolLimits
from dayfly.core.manifest.scale import checked_scale
from dayfly.core.model.scale import BY_DEMAND, Scale
from dayfly.testing.world import Weather, World

TICK = 0.05


def play(scaler: Autoscaler, loads: list[tuple[float, float]], ready: int | None = None, now: float = 100.0) -> tuple[list[int], float]:
    """Loads as (seconds, level). `ready` follows what is wanted unless given. What was wanted at the end of each, and the time."""
    ends = []
    there = ready or 0
    for seconds, level in loads:
        for _ in range(round(seconds / TICK)):
            now += TICK
            scaler.used(level * TICK, now)
            wanted = scaler.decide(there, now)
            there = wanted if ready is None else ready
        ends.append(scaler.wanted)
    return ends, now


def by(metric: str = "concurrency", **more: float) -> Scale:
    return checked_scale({"metric": metric, **more}, [])


@pytest.mark.parametrize(
    ("scale", "concurrency", "loads", "expected"),
    [
        # a target of 10 is aimed at to 70 %: 7 for each
        (by(target=10), 1, [(12, 6.9), (12, 7.1), (12, 20.5), (12, 69)], [1, 2, 3, 10]),
        # all places of an instance, when no target is given
        (by(), 20, [(12, 13.9), (12, 14.1)], [1, 2]),
        (by("rps"), 1, [(12, 130), (12, 1380)], [1, 10]),
        (by("cpu"), 1, [(12, 0.69), (12, 1.9)], [1, 3]),
        (by(target=10, utilisation=1), 1, [(12, 9.8), (12, 10.1)], [1, 2]),
        (by(target=1), 1, [(12, 0)], [0]),
        # up by a stage: a panic sees it within a second, and nothing goes down until ten seconds after the last time above
        (by(target=1, utilisation=1), 1, [(24, 1.9), (1.5, 39.5), (8, 1.9), (14, 1.9)], [2, 40, 40, 2]),
        # in a panic ten times the instances at most by each decision: three decisions a second are enough for a thousand
        (by(target=1, utilisation=1, scale_up_rate=10), 1, [(2, 0.9), (2.5, 1000)], [1, 1000]),
        # down as far as the average goes, and no slower
        (by(target=1, utilisation=1), 1, [(24, 63.5), (12, 0)], [64, 0]),
        # the most of half a minute
        (by(target=1, utilisation=1, scale_down_delay_seconds=30), 1, [(24, 7.9), (25, 0), (24, 0)], [8, 8, 0]),
    ],
)  # fmt: skip
def test_levels_are_worth_instances(scale: Scale, concurrency: int, loads: list[tuple[float, float]], expected: list[int]) -> None:
    assert play(Autoscaler(scale, concurrency), loads)[0] == expected


def test_a_short_peak_that_is_no_panic_is_averaged_away() -> None:
    """One second at 19 of twenty: with ten instances there, that is not twice as many."""
    scaler = Autoscaler(by(target=1, utilisation=1))
    (before, _), now = play(scaler, [(20, 10), (11, 10)])
    assert before == 10 and not scaler.panics
    (during,), _ = play(scaler, [(1, 15)], now=now, ready=10)
    assert 10 <= during <= 12 and not scaler.panics


def test_one_decision_takes_at_most_half_away_and_gives_at_most_its_rate() -> None:
    down = Autoscaler(by(target=1, utilisation=1, stable_window_seconds=1))
    play(down, [(5, 0)], ready=1)
    assert down.decide(40, 500.0) == 20
    up = Autoscaler(by(target=1, utilisation=1, scale_up_rate=3))
    up.used(1000.0, 1.0)
    up.used(1000.0, 2.0)
    assert up.decide(1, 2.0) == 3


def test_who_begins_with_instances_does_not_let_them_go_before_it_has_seen_a_window() -> None:
    scaler = Autoscaler(by(target=1, utilisation=1))
    (early, late), _ = play(scaler, [(9.5, 1), (4, 1)], ready=8)
    assert (early, scaler.panics) == (8, False) and late < 8


def test_an_average_is_of_its_window_and_of_nothing_before() -> None:
    sums = Sums(10.0, 0.1)
    for step in range(1, 201):
        sums.add(0.1 * (1.0 if step <= 100 else 3.0), 50 + step * 0.1)
    assert sums.mean(1.0, 70.0) == pytest.approx(3.0, rel=0.15)
    assert sums.mean(10.0, 70.0) == pytest.approx(3.0, rel=0.05)
    assert sums.mean(10.0, 75.0) == pytest.approx(1.5, rel=0.05)
    assert sums.mean(10.0, 1000.0) == 0.0, "a long pause leaves nothing"


LEVELS = st.lists(st.tuples(st.sampled_from([0.2, 1.0, 4.0]), st.floats(0, 500)), min_size=1, max_size=12)
SCALES = st.builds(
    lambda target, utilisation, window, percent, threshold, up, down, delay: by(
        target=target, utilisation=utilisation, stable_window_seconds=window, panic_window_percent=percent, panic_threshold=threshold,
        scale_up_rate=up, scale_down_rate=down, scale_down_delay_seconds=delay,
    ),
    st.floats(0.5, 50), st.floats(0.1, 1), st.floats(1, 20), st.floats(1, 100), st.floats(1.1, 5), st.floats(1.1, 1000),
    st.floats(1.1, 100), st.sampled_from([0.0, 1.0, 5.0]),
)  # fmt: skip


@given(SCALES, LEVELS, st.integers(0, 60))
def test_decisions_stay_within_their_rates_and_a_panic_never_goes_down(scale: Scale, loads: list[tuple[float, float]], ready: int) -> None:
    scaler, now, before = Autoscaler(scale), 10.0, 0
    highest = max(ready, 1)
    for seconds, level in loads:
        for _ in range(round(seconds / TICK)):
            now += TICK
            panicked = scaler.panics
            scaler.used(level * TICK, now)
            wanted = scaler.decide(ready, now)
            highest = max(highest, max(1, ready) * scale.scale_up_rate + 1)
            assert int(max(1, ready) / scale.scale_down_rate) <= wanted <= highest
            if panicked and scaler.panics:
                assert wanted >= before, "a panic went down"
            before = wanted


@given(SCALES, LEVELS, st.floats(1, 4), st.integers(0, 60))
def test_more_load_never_wants_fewer(scale: Scale, loads: list[tuple[float, float]], times: float, ready: int) -> None:
    less, more, now = Autoscaler(scale), Autoscaler(scale), 10.0
    for seconds, level in loads:
        for _ in range(round(seconds / TICK)):
            now += TICK
            less.used(level * TICK, now)
            more.used(level * TICK * times, now)
            assert less.decide(ready, now) <= more.decide(ready, now)


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_follows_its_target_through_a_surge_and_back(seed: int) -> None:
    """A real pool on the virtual clock: 40 calls inside on average, aimed at 0.8 for each instance, so about fifty."""
    limits = PoolLimits(max_instances=80, keep_alive_seconds=5.0)
    weather = Weather(calls_per_second=400.0, seconds=40.0, run_seconds=0.1, timeout_seconds=10.0)
    world = World(seed, limits, weather, scale=by(target=1, utilisation=0.8)).run()
    assert set(world.answers.values()) == {"ok"}
    settled = [count for at, count in world.instances_seen if 25 < at < 40]
    assert min(settled) >= 40 and max(settled) <= 65, (min(settled), max(settled))
    assert world.pool.ready <= 1, "what is left is the keep-alive's"
    quiet = World(seed, limits, Weather(calls_per_second=20.0, seconds=30.0, run_seconds=0.01), scale=by(target=4)).run()
    assert max(count for at, count in quiet.instances_seen if at > 12) == 1


def test_the_first_call_starts_its_instance_whatever_the_target_says() -> None:
    world = World(1, PoolLimits(), Weather(calls_per_second=1.0, seconds=20.0, run_seconds=0.001), scale=by("rps", target=1000)).run()
    assert set(world.answers.values()) == {"ok"}
    assert max(world.waits) < 0.1


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (7, "must be a table"),
        ({"metric": "qps"}, "must be one of"),
        ({"metric": ["cpu"]}, "must be one of"),
        ({"metric": "rps", "target": 0}, "scale: target = 0: must be a number from 0.001"),
        ({"metric": "rps", "target": True}, "target"),
        ({"metric": "rps", "target": float("nan")}, "target"),
        ({"metric": "rps", "target": 10**6000}, "a huge number"),
        ({"metric": "rps", "utilization": 0.5}, "did you mean 'utilisation'"),
        ({"metric": "rps", "scale_down_rate": 1}, "scale_down_rate"),
        ({"target": 10}, "target mean nothing with metric = 'demand'"),
    ],
)
def test_what_is_wrong_in_the_table_is_said(table: object, says: str) -> None:
    problems: list[str] = []
    assert checked_scale(table, problems) == BY_DEMAND
    assert len(problems) == 1 and says in problems[0], problems
