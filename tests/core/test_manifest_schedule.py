"""`[[schedule]]` as users may write it, and what they get told when they write something else."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.manifest.schedule import KEYS, PAYLOADS_BYTES_MAX, SCHEDULES_MAX, checked_schedule, checked_schedules, rate_seconds
from dayfly.core.model.schedule import Schedule


def problems_of(table: object) -> list[str]:
    problems: list[str] = []
    made = checked_schedule(table, problems)
    assert not problems or made == Schedule()
    return problems


def test_a_schedule_has_what_its_author_said_and_quiet_defaults():
    problems: list[str] = []
    tables = [
        {"cron": "0 8 * * mon-fri", "timezone": "Europe/Berlin", "payload": {"b": [1, None, "ü"], "a": 0.5}, "name": "morning"},
        {"rate": "rate(5 minutes)", "jitter_seconds": 30, "overlap": "queue", "missed": "all", "enabled": False},
        {"at": "2026-12-24T18:00:00"},
    ]
    found = checked_schedules(tables, problems)
    assert problems == []
    assert found[0].payload == '{"b":[1,null,"ü"],"a":0.5}' and found[0].expression == "cron(0 8 * * mon-fri)"
    assert found[1] == Schedule(rate="rate(5 minutes)", jitter_seconds=30.0, overlap="queue", missed="all", enabled=False)
    assert found[2] == Schedule(at="2026-12-24T18:00:00") and (found[2].overlap, found[2].missed, found[2].timezone) == (
        "skip",
        "last",
        "UTC",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5 minutes", 300),
        ("rate(1 hour)", 3600),
        ("RATE( 1 Hour )", 3600),
        ("30 seconds", 30),
        ("30seconds", 30),
        ("366 days", 366 * 86_400),
        ("1 minute", 60),
        ("rate(5 minutes", 0),
        ("5 minutes)", 0),
        ("minutes", 0),
        ("5 weeks", 0),
        ("0 minutes", 0),
        ("-5 minutes", 0),
        ("1.5 hours", 0),
        ("5 minutess", 0),
        ("٣ minutes", 0),
        ("", 0),
    ],
)
def test_rates(text, seconds):
    assert rate_seconds(text) == seconds


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("cron", "must be a table"),
        ({}, "must have one of"),
        ({"cron": "* * * * *", "rate": "1 hour"}, "and only one"),
        ({"cron": 5}, "must be a text"),
        ({"cron": "*" * 257}, "at most 256"),
        ({"cron": "* * *\n* *"}, "must be a text"),
        ({"rate": "367 days"}, "up to a year"),
        ({"rate": "soon"}, "as in '5 minutes'"),
        ({"rate": "1 hour", "timezone": ""}, "timezone = ''"),
        ({"rate": "1 hour", "timezone": ["UTC"]}, "timezone = "),
        ({"rate": "1 hour", "name": "a b"}, "name = 'a b'"),
        ({"rate": "1 hour", "name": 5}, "name = 5"),
        ({"rate": "1 hour", "jitter_seconds": -1}, "from 0 to 86400"),
        ({"rate": "1 hour", "jitter_seconds": 86_401}, "from 0 to 86400"),
        ({"rate": "1 hour", "jitter_seconds": math.nan}, "from 0 to 86400"),
        ({"rate": "1 hour", "jitter_seconds": True}, "from 0 to 86400"),
        ({"rate": "1 hour", "jitter_seconds": 10**400}, "a huge number"),
        ({"rate": "1 hour", "overlap": "forbid"}, "'skip', 'queue', 'parallel'"),
        ({"rate": "1 hour", "missed": []}, "'none', 'last', 'all'"),
        ({"rate": "1 hour", "enabled": "yes"}, "true or false"),
        ({"rate": "1 hour", "over-lap": "skip"}, "did you mean 'overlap'"),
        ({"rate": "1 hour", "payload": datetime(2026, 1, 1, tzinfo=UTC)}, "must be JSON"),
        ({"rate": "1 hour", "payload": [math.inf]}, "must be JSON"),
        ({"rate": "1 hour", "payload": 1 << 65}, "must be JSON"),
        ({"rate": "1 hour", "payload": "\ud800"}, "must be JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(table, said):
    assert any(said in problem and problem.startswith("schedule") for problem in problems_of(table)), problems_of(table)


def test_a_payload_has_a_depth_and_all_of_a_manifest_a_size_and_a_number():
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    assert "deep" in problems_of({"rate": "1 hour", "payload": deep})[0]
    problems: list[str] = []
    assert checked_schedules([{"rate": "1 hour", "payload": "x" * (PAYLOADS_BYTES_MAX // 2)}] * 2, problems) == ()
    assert "together" in problems[0]
    for value in ([{"rate": "1 hour"}] * (SCHEDULES_MAX + 1), {"rate": "1 hour"}, "5 minutes", 5):
        problems = []
        assert checked_schedules(value, problems) == () and "[[schedule]]" in problems[0]
    problems = []
    checked_schedules([{"rate": "1 hour", "name": "a"}] * 2, problems)
    assert problems == ["schedule: two have the same name."]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), anything, max_size=6))
def test_nothing_that_a_stranger_writes_raises(table):
    problems: list[str] = []
    made = checked_schedule(table, problems)
    assert problems or sum(bool(text) for text in (made.cron, made.rate, made.at)) == 1
