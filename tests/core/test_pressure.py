"""Processors that are pressed hold back who computes, by weight, and nobody else; each function weighs what it weighs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.effects import PoolLimits, Retire, Start
from dayfly.core.decide.fair import PERMILLE_MIN, Turns, permille
from dayfly.core.decide.pool import Pool
from dayfly.core.decide.pressure import Computes, Pressure, Reading, ceilings
from dayfly.core.decide.steer import Steering, hold
from dayfly.core.model.call import Call
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.scale import Scale


def pressed(cores: float = 2.0) -> Pressure:
    pressure = Pressure(cores)
    for look in range(4):
        pressure.looked(int(look * 0.1e6), 9, 10 + look * 0.1)
    return pressure


def test_pressure_begins_at_a_half_and_ends_below_a_quarter():
    pressure, stalled, said = Pressure(2), 0, []
    for look, share in enumerate([0.0, 0.0, 0.4, 0.4, 0.4, 0.9, 0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.0, 0.0]):
        stalled += int(share * 0.1e6)
        pressure.looked(stalled, 0, look * 0.1)
        said.append(pressure.high)
    assert said == [False] * 5 + [True] * 7 + [False] * 2


def test_a_look_after_a_long_pause_counts_as_one_and_a_counter_that_went_back_as_nothing():
    pressure = pressed()
    assert pressure.high
    pressure.looked(int(0.3e6), 0, 100.0)
    pressure.looked(0, 0, 101.0)
    assert pressure.share < 0.3


def test_without_the_kernels_account_the_threads_that_could_run_stand_in():
    pressure = Pressure(2)
    for look in range(3):
        pressure.looked(-1, 3, look * 0.1)
    assert pressure.high
    for look in range(3, 7):
        pressure.looked(-1, 2, look * 0.1)
    assert not pressure.high


def readings(computes: Computes, steps: list[tuple[float, float]], *, busy: bool = True) -> Computes:
    """Each step: processor time and waiting time of one instance within 0.1 s."""
    cpu = delay = 0.0
    computes.saw({"i": Reading(cpu, delay)}, 5.0, busy=busy)
    for number, (used, waited) in enumerate(steps, 1):
        cpu, delay = cpu + used, delay + waited
        computes.saw({"i": Reading(cpu, delay)}, 5.0 + number * 0.1, busy=busy)
    return computes


@pytest.mark.parametrize(
    ("used", "waited", "share"),
    [
        (0.1, 0.0, 1.0),  # alone on a processor
        (0.02, 0.08, 1.0),  # one of five on a processor
        (0.001, 0.0, 0.01),  # waits for a database
        (0.001, 0.06, 0.025),  # and does so on a busy machine
        (0.2, 0.0, 1.0),  # two threads
    ],
)
def test_who_computes_is_told_from_who_waits_on_a_busy_machine_as_on_a_quiet_one(used, waited, share):
    it = readings(Computes(), [(used, waited)] * 4)
    assert it.share == pytest.approx(share, rel=0.05)
    assert it.counts == (share > 0.2)


def test_only_time_between_two_busy_looks_says_what_it_computes():
    """An instance without calls does not compute, whatever its calls do."""
    assert readings(Computes(), [(0.1, 0.0)] * 4, busy=False).share < 0
    it = readings(Computes(), [(0.1, 0.0)] * 3)
    it.saw({"i": Reading(0.3, 0.0)}, 9.0, busy=False)
    it.saw({"i": Reading(0.3, 0.0)}, 9.1, busy=True)
    assert it.share == pytest.approx(1.0) and it.cores == 0.0


def test_readings_too_close_to_each_other_are_put_together():
    it = Computes()
    for step in range(11):
        it.saw({"i": Reading(step * 0.01, 0.0)}, 1 + step * 0.01, busy=True)
    assert it.share == pytest.approx(1.0)


def test_once_it_computes_it_does_so_until_it_hardly_does():
    it = readings(Computes(), [(0.03, 0.0)] * 4)
    assert it.counts
    it = readings(Computes(), [(0.02, 0.0)] * 4)
    assert not it.counts
    it = readings(Computes(), [(0.1, 0.0)] * 2 + [(0.02, 0.0)] * 6)
    assert it.counts and it.share < 0.25
    it = readings(Computes(), [(0.1, 0.0)] * 2 + [(0.005, 0.0)] * 8)
    assert not it.counts


def test_places_go_by_weight_and_everybody_has_one():
    assert ceilings(2, [(1, 1)]) == [4]
    assert ceilings(2, [(1, 0.5)]) == [8], "half of its time it waits"
    assert ceilings(2, [(1, 1), (1, 1)]) == [2, 2]
    assert ceilings(2, [(3, 1), (1, 1)]) == [3, 1]
    assert ceilings(2, [(1, 1)] * 1000) == [1] * 1000
    assert ceilings(8, [(1, 0.25), (1, 1)]) == [32, 8], "a ceiling of a quarter of a core"


@given(st.floats(0.1, 64), st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.25, 1)), min_size=1, max_size=20))
def test_all_together_fit_the_processors_or_have_one_each(cores, computing):
    found = ceilings(cores, computing)
    assert min(found) >= 1
    wanted = sum((most - 1) * each for most, (_, each) in zip(found, computing, strict=True))
    assert wanted <= 2 * cores + sum(each for _, each in computing) + 1e-6


def busy_pool(demand: int, ready: int) -> Pool:
    pool = Pool(PoolLimits(starts_max=100))
    pool.ensure(ready, 0.0)
    list(pool.effects())
    for number in range(ready):
        pool.starting(f"i{number}", 0.5)
        pool.started(f"i{number}", 0.5)
    for seq in range(1, demand + 1):
        pool.submitted(Call(seq, 1.0, 60.0), 1.0)
    return pool


def steering(share: float, **config) -> Steering:
    it = Steering(FunctionConfig(**config))
    it.computes = readings(Computes(), [(share * 0.1, 0.0)] * 4)
    return it


def started(pool: Pool) -> int:
    return sum(effect.instances for effect in pool.effects() if isinstance(effect, Start))


def test_while_pressed_a_version_that_computes_queues_and_one_that_waits_starts():
    pool, waiting = busy_pool(40, 1), busy_pool(40, 1)
    started(pool), started(waiting)
    hot, waiter = steering(1.0), steering(0.02)
    hold(pressed(), [(hot, pool), (waiter, waiting)])
    assert (hot.held_at, waiter.held_at) == (4, 0)
    for it, its in ((hot, pool), (waiter, waiting)):
        its._start_asked = 0  # the first burst came to nothing
        its.floor, its.ceiling = it.bounds(its)
        its.ticked(1.1)
    assert (started(pool), started(waiting)) == (3, 39)


def test_who_has_too_many_lets_them_go_after_their_calls_and_gets_them_back_when_it_is_quiet():
    pool = busy_pool(40, 20)
    list(pool.effects())
    hot = steering(1.0)
    hold(pressed(), [(hot, pool)])
    pool.floor, pool.ceiling = hot.bounds(pool)
    pool.ticked(1.1)
    assert [effect for effect in pool.effects() if isinstance(effect, Retire)] == [Retire(16)]
    for number in range(16):
        pool.retired(f"i{number}", 1.2)
    assert started(pool) == 0
    hold(Pressure(2.0), [(hot, pool)])
    pool.floor, pool.ceiling = hot.bounds(pool)
    pool.ticked(1.3)
    assert started(pool) == 16, "and twenty are on their way since the first burst"


def test_provisioned_instances_stay_and_a_target_bows_to_the_processors():
    pool = busy_pool(40, 20)
    list(pool.effects())
    pool.limits = PoolLimits(min_instances=10)
    hot = steering(1.0, scale=Scale(metric="concurrency"))
    hot.scaler.wanted = 30
    hold(pressed(), [(hot, pool)])
    assert hot.bounds(pool) == (4, 4)
    pool.floor, pool.ceiling = hot.bounds(pool)
    pool.ticked(1.1)
    assert [effect for effect in pool.effects() if isinstance(effect, Retire)] == [Retire(10)]


def test_who_has_no_calls_does_not_take_a_part():
    alone, quiet = steering(1.0), steering(1.0)
    hold(pressed(), [(alone, busy_pool(9, 1)), (quiet, busy_pool(0, 1))])
    assert (alone.held_at, quiet.held_at) == (4, 0)


def test_a_function_weighs_the_same_on_one_instance_and_on_forty_and_is_told_only_of_changes():
    it = Steering(FunctionConfig())
    alone, forty = busy_pool(1, 1), busy_pool(40, 40)
    assert it.weights(alone) == {}, "one instance weighs what it weighs from the beginning"
    for _ in range(6):
        it.weights(forty)
    weights = it._told
    assert set(weights) == {f"i{number}" for number in range(40)} and all(25 <= weight <= 25 * 1.4 for weight in weights.values())
    assert it.weights(forty) == {}
    for seq in range(1, 40):
        forty.finished(seq, 2.0, 0.01)
    for _ in range(10):
        it.weights(forty)
    assert min(it._told.values()) > 1000 / 1.5, "who is idle takes nothing from the one that is busy"
    dear = Steering(FunctionConfig(cpu_weight=3.0))
    assert dear.weights(alone) == {"i0": 3000}
    assert permille(1.0, 10**6) == PERMILLE_MIN


def test_dear_turns_are_seldom_and_who_joins_begins_where_the_others_are():
    turns = Turns[str]({"dear": 0.5, "cheap": 0.01, "late": 0.01}.__getitem__)
    taken = [turns.next(["dear", "cheap"]) for _ in range(102)]
    assert taken.count("dear") == 2
    joined = [turns.next(["dear", "cheap", "late"]) for _ in range(20)]
    assert 8 <= joined.count("late") <= 11, "it has not saved up turns"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True), st.integers(300, 600))
def test_over_time_everybody_has_used_the_same(names, count):
    cost = {"a": 0.5, "b": 0.03, "c": 0.01}
    turns = Turns[str](cost.__getitem__)
    used = dict.fromkeys(names, 0.0)
    for _ in range(count):
        chosen = turns.next(names)
        used[chosen] += cost[chosen]
    assert max(used.values()) - min(used.values()) <= 0.5 + 1e-6
