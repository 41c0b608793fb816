"""core/decide/schedule.py: which due times fire, with a clock that jumps as it likes; and core/decide/firing.py: what is sent."""

import json
from collections.abc import Iterator
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.firing import call_for, call_now, event
from dayfly.core.decide.schedule import CLOCK_BACK_SECONDS, Bounds, allowed, plan
from dayfly.core.model.schedule import Kept, Schedule

BOUNDS = Bounds(late_seconds=5.0, missed_max=100, missed_seconds_max=86_400.0)
BEGUN = 1_000_000.0


class Every:
    """Due times at whole multiples of a period."""

    def __init__(self, period: float) -> None:
        self.period = period

    def after(self, moment: float) -> Iterator[float]:
        number = int(moment // self.period)
        while True:
            number += 1
            yield number * self.period

    def upto(self, moment: float) -> Iterator[float]:
        number = int(moment // self.period)
        while number > 0:
            yield number * self.period
            number -= 1


class Nothing:
    def after(self, moment: float) -> Iterator[float]:
        return iter(())

    def upto(self, moment: float) -> Iterator[float]:
        return iter(())


@pytest.mark.parametrize(
    ("policy", "away", "expected", "missed"),
    [
        ("none", 60.0, (60.0,), 0),  # in time
        ("none", 64.9, (60.0,), 0),  # late, but not too late
        ("none", 65.1, (), 1),
        ("last", 65.1, (60.0,), 0),
        ("all", 65.1, (60.0,), 0),
        ("none", 250.0, (), 4),
        ("last", 250.0, (240.0,), 3),
        ("all", 250.0, (60.0, 120.0, 180.0, 240.0), 0),
        ("none", 241.0, (240.0,), 3),
        ("last", 241.0, (240.0,), 3),  # one on time is enough for those before
        ("all", 59.9, (), 0),
    ],
)
def test_what_was_due_while_nobody_looked_is_dropped_fired_once_or_fired_each_time(policy, away, expected, missed):
    made = plan(Every(60.0), policy, BEGUN * 60, 0.0, BEGUN * 60 + away, BOUNDS)
    assert tuple(due - BEGUN * 60 for due in made.firings) == expected and made.missed == missed
    assert made.next_at is not None and made.next_at - BEGUN * 60 == (away // 60 + 1) * 60


def test_a_jitter_delays_every_firing_by_the_same_time():
    before, at = (plan(Every(60.0), "none", BEGUN * 60, 20.0, BEGUN * 60 + moment, BOUNDS) for moment in (79.9, 80.0))
    assert before.firings == () and before.next_at == BEGUN * 60 + 80
    assert at.firings == (BEGUN * 60 + 60,) and at.next_at == BEGUN * 60 + 140


def test_a_jitter_longer_than_the_period_and_than_an_hour_loses_nothing_and_fires_nothing_from_before_it_began():
    offset, decided, fired = 7300.0, BEGUN * 60, []
    for step in range(0, 9000, 10):
        made = plan(Every(60.0), "none", decided, offset, BEGUN * 60 + step, BOUNDS)
        fired += made.firings
        decided = made.decided
    assert fired == [BEGUN * 60 + 60 * number for number in range(1, 29)]


def test_a_long_absence_costs_no_more_than_its_bound():
    bounds = Bounds(late_seconds=5.0, missed_max=10, missed_seconds_max=4.0)
    made = plan(Every(1.0), "all", BEGUN, 0.0, BEGUN + 1e9, Bounds(late_seconds=0.5, missed_max=10, missed_seconds_max=1e9))
    assert made.firings == tuple(BEGUN + 1e9 - number for number in range(9, -1, -1)) and made.decided == BEGUN + 1e9
    assert len(plan(Every(1.0), "all", BEGUN, 0.0, BEGUN + 1e9, bounds).firings) == 6, "age bounds it, too, but not what is on time"


def test_what_never_comes_again_is_not_looked_at_again():
    assert plan(Nothing(), "all", BEGUN, 0.0, BEGUN + 5, BOUNDS) == plan(Nothing(), "none", BEGUN, 0.0, BEGUN, BOUNDS)
    assert plan(Nothing(), "all", BEGUN, 0.0, BEGUN, BOUNDS).next_at is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.floats(0.001, 20.0)),
        st.tuples(st.just("forward"), st.floats(20.0, 3000.0)),
        st.tuples(st.just("back"), st.floats(0.001, 3000.0)),
        st.tuples(st.just("back"), st.floats(3000.0, 20_000.0)),
        st.tuples(st.just("crash"), st.floats(0.0, 100.0)),
    ),
    max_size=40,
)


@given(steps, st.sampled_from(["none", "last", "all"]), st.sampled_from([0.0, 0.7, 90.0, 5000.0]), st.sampled_from([1.0, 7.0, 60.0]))
def test_no_due_time_is_fired_twice_and_none_is_lost_but_by_the_policy_whatever_the_clock_does(happened, policy, offset, period):
    bounds = Bounds(late_seconds=5.0, missed_max=1_000_000, missed_seconds_max=1e9)
    times, now, decided = Every(period), BEGUN, BEGUN
    queue: set[float] = set()  # the slots that are taken
    again = False  # a slot may be offered a second time: somebody died, or the clock went far back
    for what, seconds in happened:
        now += -seconds if what == "back" else seconds
        if now < decided - CLOCK_BACK_SECONDS:
            again = True
        made = plan(times, policy, decided, offset, now, bounds)
        assert list(made.firings) == sorted(set(made.firings)) and all(due <= now - offset for due in made.firings)
        offered = [due for due in made.firings if due in queue]
        assert again or not offered, "the mark alone keeps them from being offered again"
        if policy == "none":
            assert all(due >= now - offset - bounds.late_seconds for due in made.firings)
        queue |= set(made.firings)
        assert made.next_at is None or made.next_at > now
        assert made.missed == 0 or policy != "all"
        if what == "crash":
            again = True  # put, but the mark did not move
            continue
        newest = next(times.upto(now - offset))
        if policy != "none" and decided < newest:
            assert newest in queue, "whoever was away makes up for the last one"
        decided = made.decided
    if policy == "all":
        made = plan(times, policy, decided, offset, now, bounds)
        queue |= set(made.firings)
        every = set(takewhile(lambda due: due <= now - offset, times.after(BEGUN)))
        assert every <= queue


@pytest.mark.parametrize(
    ("overlap", "unfinished", "expected"),
    [
        ("parallel", 5, (1.0, 2.0, 3.0)),
        ("skip", 0, (3.0,)),
        ("skip", 1, ()),
        ("queue", 0, (1.0, 2.0, 3.0)),
        ("queue", 2, (1.0, 2.0)),
        ("queue", 4, ()),
        ("queue", 9, ()),
    ],
)
def test_an_overlap_skips_queues_or_runs_beside(overlap, unfinished, expected):
    assert allowed(overlap, (1.0, 2.0, 3.0), unfinished, 4) == expected


def kept(**fields: object) -> Kept:
    return Kept(namespace="shop", function="report", schedule=Schedule(name="daily", rate="1 hour", **fields), declared=True)  # type: ignore[arg-type]


def test_a_firing_is_a_call_with_its_due_time_as_key():
    call = call_for(kept(overlap="queue"), "id-1", 1_790_000_000.0)
    assert (call.namespace, call.function, call.qualifier, call.kind, call.source) == ("shop", "report", "live", "direct", "schedule")
    assert call.dedup == "schedule/daily/1790000000.000" and call.tag == "schedule:daily" == call.group
    assert json.loads(call.meta) == {"custom": {"schedule": "daily", "due": "2026-09-21T14:13:20Z"}}
    assert call_for(kept(), "id-1", 1.0).group == "" and call_now(kept(), "id-2", 1.5).dedup == ""
    assert json.loads(call_now(kept(), "id-2", 1.5).meta)["custom"]["due"] == "1970-01-01T00:00:01.500Z"


def test_without_a_payload_the_function_gets_eventbridges_scheduled_event():
    said = json.loads(call_for(kept(), "id-1", 1_790_000_000.0).body)
    assert said == {
        "version": "0",
        "id": "id-1",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "000000000000",
        "time": "2026-09-21T14:13:20Z",
        "region": "local",
        "resources": ["arn:aws:events:local:000000000000:rule/daily"],
        "detail": {},
    }
    assert json.loads(event("x", "y", 0.0))["time"] == "1970-01-01T00:00:00Z"


def test_with_a_payload_it_gets_that_and_nothing_around_it():
    assert call_for(kept(payload='{"a":[1,null]}'), "id-1", 1.0).body == b'{"a":[1,null]}'
