"""What bench/wild.py draws follows what is published, and what keepalive.py compares wastes the same."""

from itertools import groupby
from statistics import median

import pytest

from bench import guessed, keepalive, wild
from dayfly.core.decide.keepalive import IdleTimes
from dayfly.core.decide.simulate import simulate

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


@pytest.fixture(scope="module")
def drawn():
    return wild.trace(5, 200, 2)


def test_one_seed_is_one_trace_and_another_is_another(drawn):
    assert wild.trace(5, 200, 2) == drawn
    assert wild.trace(6, 20, 2) != wild.trace(5, 20, 2)
    assert guessed.trace(5, 20, 2, guessed.plain) == guessed.trace(5, 20, 2, guessed.plain) != guessed.trace(5, 20, 2, guessed.varied)


def test_of_all_applications_45_percent_are_called_once_an_hour_at_most_and_81_percent_once_a_minute():
    shares = [number / 1000 for number in range(1001)]
    rates = [wild.rate_at(share) for share in shares]
    assert rates == sorted(rates)
    assert sum(rate <= 24 for rate in rates) / 1000 == pytest.approx(0.45, abs=0.002)
    assert sum(rate <= 1440 for rate in rates) / 1000 == pytest.approx(0.81, abs=0.002)
    assert rates[-1] / rates[0] >= 1e8


def test_calls_of_one_minute_are_one_arrival_in_order_and_within_the_trace(drawn):
    assert drawn.arrivals == sorted(drawn.arrivals)
    assert drawn.arrivals[0].at >= 0 and drawn.arrivals[-1].at < drawn.seconds == 2 * DAY
    minutes = [(arrival.subject, arrival.at // MINUTE) for arrival in drawn.arrivals]
    assert len(set(minutes)) == len(minutes)


def test_triggers_are_shared_as_published():
    kinds = [subject.name.split("-")[0] for subject in wild.trace(7, 1500, 0).subjects]
    shares = {kind: len(list(group)) / 1500 for kind, group in groupby(sorted(kinds))}
    assert shares["timers"] == pytest.approx(0.13, abs=0.03)
    assert shares["mixed"] == pytest.approx(0.158, abs=0.03)


def test_memory_is_as_published():
    memory = [subject.memory_mb for subject in wild.trace(8, 1500, 0).subjects]
    assert median(memory) == pytest.approx(140, rel=0.05)  # the fit is of averages; half of the maxima are below 170 MB
    assert sum(one <= 400 for one in memory) / 1500 > 0.9


@pytest.mark.parametrize("shape", [wild.GAMMA, wild.LOGNORMAL])
def test_two_of_five_applications_vary_more_than_chance_and_some_are_regular(shape):
    found = wild.irregularity(9, 500, 14, shape)
    above = sum(cv > 1 for cv in found) / len(found)
    regular = sum(cv < 0.05 for cv in found) / len(found)
    assert above == pytest.approx(0.40, abs=0.06)
    assert 0.08 < regular < 0.25


def test_a_stream_of_which_only_each_kth_call_is_drawn_has_the_same_rate():
    assert wild.RATE_DRAWN_MAX == 720
    busy = [index for index, _ in enumerate(range(50))]
    trace = wild.trace(11, len(busy), 2)
    calls: dict[int, int] = {}
    for arrival in trace.arrivals:
        calls[arrival.subject] = calls.get(arrival.subject, 0) + arrival.calls
    arrivals = [sum(arrival.subject == index for arrival in trace.arrivals) for index in busy]
    assert max(arrivals) < 2 * 2 * wild.RATE_DRAWN_MAX
    assert max(calls.values()) > 20 * max(arrivals)


def test_every_policy_is_compared_at_the_same_waste():
    trace = wild.trace(3, 60, 3)
    compared = keepalive.compare(trace)
    for name, (knob, result) in compared.others.items():
        assert result.wasted_mb_seconds == pytest.approx(compared.fixed.wasted_mb_seconds, rel=keepalive.TOLERANCE), name
        assert keepalive.KNOB_SECONDS[0] <= knob <= keepalive.KNOB_SECONDS[1]
        assert result.calls == compared.fixed.calls
    assert compared.ratio(compared.fixed, 0.75) == 1.0


# ---- the paper's policy ----------------------------------------------------------------------------------------------------------------


def windows(range_seconds: float, *seconds: float):
    seen = IdleTimes()
    for one in seconds:
        seen.note(one)
    return keepalive.hybrid(seen, 600.0, 1.0, range_seconds=range_seconds)


def test_the_paper_keeps_as_long_as_its_range_while_it_knows_little_or_nothing_stands_out():
    assert windows(4 * HOUR, 60.0, 60.0) == (0.0, 4 * HOUR, False)
    assert windows(20 * MINUTE, *(MINUTE * (number + 0.5) for number in range(1, 19))) == (0.0, 20 * MINUTE, False)


def test_the_paper_expects_a_timer_within_its_range_and_forecasts_beyond_it():
    ahead, keep, learned = windows(4 * HOUR, *[HOUR] * 9)
    assert learned and 0.8 * HOUR < ahead < HOUR < ahead + keep < 1.25 * HOUR
    ahead, keep, learned = windows(4 * HOUR, *[DAY] * 9)
    assert learned and 0.8 * DAY < ahead < DAY < ahead + keep < 1.2 * DAY
    assert windows(4 * HOUR, *[3 * DAY] * 9) == (0.0, 4 * HOUR, False), "beyond our bins as well"


def test_the_papers_policy_spares_a_timer_its_cold_starts():
    trace = wild.Trace([wild.Subject("timer", 100.0, 1.0)], [wild.Arrival(HOUR * number, 0, 1.0) for number in range(100)], 100 * HOUR)
    result = simulate(trace, keepalive.paper(2 * HOUR))
    assert result.cold == 1
    assert result.wasted_mb_seconds < simulate(trace, keepalive.FIXED).wasted_mb_seconds * 3
