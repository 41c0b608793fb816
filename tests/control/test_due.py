"""control/due.py: when expressions come, daylight saving and all, held against a clock that is walked through minute by minute."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dayfly.control.due import Cron, Rate, check, check_all, on_wall, times_of, zone_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.schedule import Schedule

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 26, 7, tzinfo=UTC).timestamp()


def shown(expression: str, zone: str, since: str, count: int) -> list[str]:
    """Local times with their offset, from the local time `since` on."""
    here = zone_of(zone)
    moment = datetime.fromisoformat(since).replace(tzinfo=here).timestamp()
    return [str(datetime.fromtimestamp(due, here)) for due in islice(Cron(expression, here).after(moment), count)]


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
def test_what_a_spring_night_skips_comes_right_after_the_gap(expression):
    found = shown(expression, "Europe/Berlin", "2026-03-28T00:00", 3)
    assert found == ["2026-03-28 02:30:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-30 02:30:00+02:00"]


def test_of_several_times_that_a_spring_night_skips_one_firing_is_left():
    found = shown("0,20,40 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00", 4)
    assert found == ["2026-03-29 03:00:00+02:00", "2026-03-29 03:20:00+02:00", "2026-03-29 03:40:00+02:00", "2026-03-30 02:00:00+02:00"]


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
def test_what_an_autumn_night_repeats_comes_the_first_time(expression):
    found = shown(expression, "Europe/Berlin", "2026-10-24T03:00", 2)
    assert found == ["2026-10-25 02:30:00+02:00", "2026-10-26 02:30:00+01:00"]
    for fold in (0, 1):  # asked in the middle of the repeated hour
        moment = datetime(2026, 10, 25, 2, 45, tzinfo=BERLIN, fold=fold).timestamp()
        assert next(Cron(expression, BERLIN).after(moment)) == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN).timestamp()
        assert next(Cron(expression, BERLIN).upto(moment)) == datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN).timestamp()


def test_a_star_in_minute_or_hour_means_real_time_in_both_nights():
    spring = shown("*/30 * * * *", "Europe/Berlin", "2026-03-29T01:29", 3)
    assert spring == ["2026-03-29 01:30:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-29 03:30:00+02:00"]
    autumn = shown("0 */30 * * * *", "Europe/Berlin", "2026-10-25T01:59", 5)
    assert [text[11:] for text in autumn] == ["02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00", "03:00:00+01:00"]
    assert len(shown("*/30 2 * * *", "Europe/Berlin", "2026-10-25T01:00", 4)) == 4


def test_a_day_that_never_was_fires_when_the_next_begins():
    found = shown("30 10 30 12 *", "Pacific/Apia", "2011-01-01T00:00", 2)
    assert found == ["2011-12-31 00:00:00+14:00", "2012-12-30 10:30:00+14:00"]


@pytest.mark.parametrize(
    ("expression", "since", "expected"),
    [
        ("0 0 29 2 *", "2026-01-01", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 29 2 *", "2096-03-01", ["2104-02-29"]),  # 2100 is no leap year
        ("0 0 1 1 *", "2026-12-31", ["2027-01-01", "2028-01-01"]),
        ("0 0 L * *", "2028-01-31", ["2028-02-29", "2028-03-31"]),
        ("0 0 * * 7", "2026-12-26", ["2026-12-27", "2027-01-03"]),
    ],
)
def test_leap_days_and_the_ends_of_years(expression, since, expected):
    assert [text[:10] for text in shown(expression, "UTC", since, len(expected))] == expected


def test_seconds():
    found = shown("*/20 59 23 31 12 *", "Europe/Berlin", "2026-12-31T23:58", 4)
    assert [text[:19] for text in found] == ["2026-12-31 23:59:00", "2026-12-31 23:59:20", "2026-12-31 23:59:40", "2027-12-31 23:59:00"]
    assert list(islice(Cron("* * * * * *", UTC).after(1000.5), 3)) == [1001.0, 1002.0, 1003.0]


ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Africa/Cairo", "UTC", "Asia/Kolkata")
minutes = st.one_of(st.just("*"), st.sampled_from(["*/15", "0", "30", "0,30", "5-59/20", "59"]))
hours = st.one_of(st.just("*"), st.sampled_from(["0", "1", "2", "1-3", "0,2,23", "*/2", "23"]))
days = st.sampled_from(["*", "*", "*", "1", "29", "*/2"])
weekdays = st.sampled_from(["*", "*", "*", "sun", "6,0"])
moments = st.sampled_from(
    [
        datetime(2026, *date, tzinfo=UTC).timestamp()
        for date in ((3, 7), (3, 28), (4, 4), (4, 23), (10, 3), (10, 24), (10, 29), (10, 31), (7, 1))
    ]
)


def walked(expression: str, zone: str, since: float, until: float) -> list[float]:
    """The same by the rules as docs/schedules.md tells them: every minute is looked at."""
    here, (minute, hour, _, _, _) = zone_of(zone), expression.split()
    first = datetime.fromtimestamp(since - 86_400, UTC).replace(second=0)
    steps = (first + timedelta(minutes=number) for number in range(int((until - since) / 60) + 2 * 1440))
    if zone == "UTC" or minute.startswith("*") or hour.startswith("*"):
        found: Iterable[float] = (moment.timestamp() for moment in steps if _matches(expression, moment.astimezone(here)))
    else:
        found = (on_wall(wall.replace(tzinfo=None), here) for wall in steps if _matches(expression, wall))
    return sorted({due for due in found if since < due <= until})


def _matches(expression: str, moment: datetime) -> bool:
    minute, hour, day, _, weekday = expression.split()
    both = day.startswith("*") or weekday.startswith("*")
    on_day, on_weekday = _has(day, moment.day, 1, 31), _has(weekday, moment.isoweekday() % 7, 0, 7)
    return (
        _has(minute, moment.minute, 0, 59)
        and _has(hour, moment.hour, 0, 23)
        and ((on_day and on_weekday) if both else (on_day or on_weekday))
    )


def _has(field: str, value: int, low: int, high: int) -> bool:
    found: set[int] = set()
    for part in field.replace("sun", "0").split(","):
        span, _, step = part.partition("/")
        begin, _, end = span.partition("-")
        first, last = (low, high) if span == "*" else (int(begin), int(end or begin))
        found |= set(range(first, last + 1, int(step or 1)))
    return value in found


@given(minutes, hours, days, weekdays, st.sampled_from(ZONES), moments)
@settings(max_examples=150, deadline=None)
def test_due_times_are_those_of_a_clock_that_is_walked_through(minute, hour, day, weekday, zone, since):
    expression, until = f"{minute} {hour} {day} * {weekday}", since + 2.5 * 86_400
    cron = Cron(expression, zone_of(zone))
    found = list(takewhile(lambda due: due <= until, cron.after(since)))
    assert found == walked(expression, zone, since, until)
    assert all(before < after for before, after in pairwise(found))
    assert list(takewhile(lambda due: due > since, cron.upto(until))) == found[::-1]


@given(st.integers(1, 100_000), st.floats(0, 4e9), st.floats(0, 4e9))
def test_a_rate_counts_from_its_anchor(period, anchor, moment):
    rate = Rate(float(int(anchor)), period)
    after = list(islice(rate.after(moment), 3))
    assert after[0] > moment and after[0] > anchor and [later - due for due, later in pairwise(after)] == [period] * 2
    assert list(islice(rate.upto(after[2]), 3)) == after[::-1]
    assert list(rate.upto(anchor)) == []


def when(**fields: str) -> Schedule:
    return Schedule(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (when(at="2026-12-24T18:00:00"), "2026-12-24T18:00:00+00:00"),
        (when(at="at(2026-12-24T18:00:00)"), "2026-12-24T18:00:00+00:00"),
        (when(at="2026-12-24T18:00:00", timezone="Europe/Berlin"), "2026-12-24T17:00:00+00:00"),
        (when(at="2026-12-24T18:00:00.250-05:00", timezone="Europe/Berlin"), "2026-12-24T23:00:00.250000+00:00"),
        (when(at="2026-12-24 18:00Z"), "2026-12-24T18:00:00+00:00"),
        (when(at="2027-03-28T02:30", timezone="Europe/Berlin"), "2027-03-28T01:00:00+00:00"),  # in the gap
        (when(at="2027-10-31T02:30", timezone="Europe/Berlin"), "2027-10-31T00:30:00+00:00"),  # the first of two
    ],
)
def test_a_moment_is_in_its_time_zone_unless_it_names_one(schedule, expected):
    times = times_of(schedule, 0.0)
    (due,) = times.after(NOW)
    assert datetime.fromtimestamp(due, UTC).isoformat() == expected
    assert list(times.after(due)) == [] and list(times.upto(due)) == [due] and list(times.upto(due - 0.001)) == []


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (when(cron="* * * *"), "five or six fields, not 4"),
        (when(cron="0 0 * * * * 2026"), "five or six fields, not 7"),
        (when(cron="60 * * * *"), "Bad minute"),
        (when(cron="* 24 * * *"), "Bad hour"),
        (when(cron="* * 0 * *"), "Bad day-of-month"),
        (when(cron="* * 32 * *"), "Bad day-of-month"),
        (when(cron="* * * 13 *"), "Bad month"),
        (when(cron="* * * 0 *"), "Bad month"),
        (when(cron="* * * * 8"), "Bad day-of-week"),
        (when(cron="60 * * * * *"), "Bad second"),
        (when(cron="*/0 * * * *"), "Bad minute"),
        (when(cron="5-1 * * * *"), "Bad minute"),
        (when(cron="-1 * * * *"), "Bad minute"),
        (when(cron="1,,2 * * * *"), "Bad minute"),
        (when(cron="? * * * *"), "Bad minute"),
        (when(cron="٣ * * * *"), "Bad minute"),
        (when(cron="@daily"), "fields"),
        (when(cron="cron nonsense"), "fields"),
        (when(cron="every day at noon please"), "Bad"),
        (when(cron="0 0 30 2 *"), "Bad day-of-month"),
        (when(cron="0 0 */29 2 MON#4"), "never comes"),
        (when(cron="1" * 250 + " * * * *"), "Bad minute"),
        (when(cron="*" + "/1" * 100 + " * * * *"), "Bad minute"),
        (when(rate="1 hour", timezone="Mars/Olympus"), "unknown"),
        (when(rate="1 hour", timezone="../../etc/passwd"), "unknown"),
        (when(rate="1 hour", timezone="/etc/localtime"), "unknown"),
        (when(rate="1 hour", timezone="Europe"), "unknown"),
        (when(at="tomorrow"), "must be a moment"),
        (when(at="2026-02-30T00:00:00"), "must be a moment"),
        (when(at="9999-12-31T23:59:59-12:00"), "must be a moment"),
        (when(at="0001-01-01T00:00:00+12:00"), "must be a moment"),
        (when(at="1969-12-31T00:00:00"), "must be a moment"),
        (when(at="at(2026-12-24"), "must be a moment"),
    ],
)
def test_nonsense_is_refused_in_words_and_in_time(schedule, said):
    begun = time.process_time()
    with pytest.raises(Refusal) as refusal:
        check(schedule, NOW, 1.0)
    assert refusal.value.kind.code == "bad_config" and said in refusal.value.detail
    assert time.process_time() - begun < 1.0, "an expression must not keep control busy"


def test_the_shortest_period_is_the_administrators():
    check(when(cron="* * * * * *"), NOW, 1.0)
    check(when(rate="1 minute"), NOW, 60.0)
    for schedule in (when(cron="0,59 * * * * *"), when(rate="59 seconds"), when(cron="*/30 * * * * *")):
        with pytest.raises(Refusal, match="oftener than every 60 seconds"):
            check(schedule, NOW, 60.0)


def test_an_at_that_is_over_is_no_mistake_of_a_manifest_and_all_problems_of_one_are_told():
    check(when(at="2020-01-01T00:00:00"), NOW, 1.0)
    with pytest.raises(Refusal) as refusal:
        check_all([when(cron="x"), when(rate="1 hour"), when(at="y")], NOW, 1.0)
    problems = refusal.value.extra["problems"]
    assert isinstance(problems, list) and [text[:12] for text in problems] == ["schedule[0]:", "schedule[2]:"]
