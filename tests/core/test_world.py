"""Histories of a pool in rough weather, each exactly repeatable by its seed: the conservation law after every event, and sense overall."""

import pytest

from dayfly.core.decide.effects import PoolLimits
from dayfly.testing.world import Weather, World

ROUGH = Weather(crash_chance=0.01, hang_chance=0.002, start_failure_chance=0.05, leave_chance=0.05, timeout_seconds=0.5, seconds=10.0)


@pytest.mark.parametrize("seed", range(12))
def test_in_rough_weather_every_call_is_answered_exactly_once(seed: int) -> None:
    limits = PoolLimits(max_instances=20, queue_max=50, keep_alive_seconds=1.0)
    world = World(seed, limits, ROUGH).run()
    assert len(world.answers) == world.pool.submitted_count > 1000
    assert not world.pool.waiting and not world.pool.offered
    assert sum(outcome == "ok" for outcome in world.answers.values()) > 0.8 * len(world.answers)


@pytest.mark.parametrize("seed", range(4))
def test_concurrent_instances_share_their_calls_and_the_law_holds(seed: int) -> None:
    limits = PoolLimits(max_instances=6, concurrency=1, min_instances=2, keep_alive_seconds=0.0)
    world = World(seed, limits, Weather(run_seconds=0.02, calls_per_second=150, seconds=8.0, crash_chance=0.02)).run()
    assert len(world.answers) == world.pool.submitted_count


@pytest.mark.parametrize(("seed", "most"), [(1, 20), (2, 20), (3, 4), (4, 1)])
def test_where_nobody_is_kept_whoever_answers_leaves_and_every_call_is_answered_once(seed: int, most: int) -> None:
    """Also when there are too few instances for the calls: then those that wait are taken by who is there."""
    limits = PoolLimits(max_instances=most, queue_max=50, keep_alive_seconds=0.0)
    world = World(seed, limits, ROUGH).run()
    assert len(world.answers) == world.pool.submitted_count > 1000
    assert world.pool.ready == 0 and not world.pool.waiting and not world.pool.offered
    assert sum(outcome == "ok" for outcome in world.answers.values()) > (0.8 if most == 20 else 0.2) * len(world.answers)


def test_calm_weather_answers_everything_and_ends_with_no_instance() -> None:
    world = World(1, PoolLimits(keep_alive_seconds=1.0), Weather(seconds=5.0)).run()
    assert set(world.answers.values()) == {"ok"}
    assert world.pool.ready == 0


def test_instances_follow_the_demand_and_stay_near_what_littles_law_needs() -> None:
    """200 calls a second of 10 ms keep 2 instances busy on average; bursts need more, but not dozens."""
    world = World(2, PoolLimits(), Weather(seconds=20.0)).run()
    assert 2 <= world.instances_peak <= 16
    assert sorted(world.waits)[int(len(world.waits) * 0.99)] < 0.02


def test_overload_refuses_the_newest_and_serves_the_rest() -> None:
    limits = PoolLimits(max_instances=2, queue_max=20)
    world = World(3, limits, Weather(calls_per_second=1000, run_seconds=0.01, seconds=5.0)).run()
    outcomes = list(world.answers.values())
    assert set(outcomes) == {"ok", "queue_full"}
    assert outcomes.count("ok") > 0.15 * len(outcomes)


def test_the_same_seed_is_the_same_history() -> None:
    one, two = (World(7, PoolLimits(), ROUGH).run() for _ in range(2))
    assert one.answers == two.answers and one.waits == two.waits
