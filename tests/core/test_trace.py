"""core/wire/trace.py: both formats, and what is no trace says in which line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.wire import trace
from dayfly.core.wire.trace import BadTrace, Defaults, parse_trace

AZURE_HEADS = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(str(minute) for minute in range(1, 1441))


def azure(counts: dict[int, int], name: str = "f") -> str:
    return f"o,a,{name},http," + ",".join(str(counts.get(minute, 0)) for minute in range(1, 1441))


def test_calls_line_by_line_in_any_order_begin_at_zero():
    lines = ["time,function,duration_ms,memory_mb,start_ms", "105,b,20,256,300", "100,a,10,64,", "107.5,b,30,512,1"]
    parsed = parse_trace(lines, Defaults(start_ms=7.0))
    assert [(one.name, one.memory_mb, one.start_seconds) for one in parsed.subjects] == [
        ("b", 256.0, 0.3),
        ("a", 64.0, pytest.approx(0.007)),
    ]
    assert [(one.at, one.subject, one.seconds) for one in parsed.arrivals] == [(0, 1, 0.01), (5, 0, 0.02), (7.5, 0, 0.03)]
    assert parsed.seconds == pytest.approx(7.53)


def test_only_time_and_function_must_be_there():
    parsed = parse_trace(["Function, TIME ", "a,3", "", "a,4"], Defaults())
    assert [(one.at, one.seconds) for one in parsed.arrivals] == [(0.0, 0.1), (1.0, 0.1)]
    assert parsed.subjects[0].memory_mb == 128.0


def test_azures_minutes_are_spread_and_beyond_six_stand_for_several():
    parsed = parse_trace([AZURE_HEADS, azure({1: 2, 3: 13}), azure({1440: 1}, "g")], Defaults())
    assert [subject.name for subject in parsed.subjects] == ["a/f", "a/g"]
    assert [(one.at, one.calls) for one in parsed.arrivals] == [
        (0.0, 1), (30.0, 1), (120.0, 3), (130.0, 2), (140.0, 2), (150.0, 2), (160.0, 2), (170.0, 2), (86_340.0, 1),
    ]  # fmt: skip
    assert parsed.seconds == 86_400.0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "line 1: the headings"),
        (["when,what", "1,a"], "line 1: the headings"),
        (["time,function"], "no call"),
        (["time,function", "1,a", "x,a"], "line 3: time = 'x'"),
        (["time,function", "nan,a"], "line 2: time = 'nan'"),
        (["time,function", "-1,a"], "line 2: time = '-1'"),
        (["time,function,memory_mb", "1,a,lots"], "line 2: memory_mb = 'lots'"),
        (["time,function", "1"], "line 2: 1 values below 2 headings"),
        ([AZURE_HEADS, "o,a,f,http,1"], "line 2: 5 values"),
        ([AZURE_HEADS, azure({5: -1})], "line 2: 5 = '-1'"),
        ([AZURE_HEADS], "no call"),
        ([AZURE_HEADS.replace(",700,", ",699,"), azure({})], "line 1: there must be a column for each"),
    ],
)
def test_what_is_no_trace_says_where(lines, said):
    with pytest.raises(BadTrace, match=said):
        parse_trace(lines, Defaults())


def test_more_calls_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(trace, "ARRIVALS_MAX", 3)
    assert parse_trace(["time,function", *["1,a"] * 3], Defaults())
    with pytest.raises(BadTrace, match="more than 3 calls"):
        parse_trace(["time,function", *["1,a"] * 4], Defaults())
    with pytest.raises(BadTrace, match="more than 3 calls"):
        parse_trace([AZURE_HEADS, azure({1: 4})], Defaults())


@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_text_is_a_trace_or_says_why_not(lines):
    for heads in ([], ["time,function"]):
        try:
            assert parse_trace([*heads, *lines], Defaults()).arrivals
        except BadTrace as problem:
            assert str(problem)
