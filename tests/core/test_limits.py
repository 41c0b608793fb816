"""Limits: buckets that neither drift nor overflow, days that turn at midnight, and refusals that say which limit and when to come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import limit
from dayfly.core.decide.bucket import NS, spacing, taken, wait_ns
from dayfly.core.decide.limit import PAUSED_SECONDS, Allowance, Side, Tally
from dayfly.core.decide.quota import DAY_SECONDS, Days, day_of, seconds_left
from dayfly.core.manifest.limits import NUMBERS, checked_limits
from dayfly.core.model.limits import NO_LIMITS, Consumed, Limits
from dayfly.core.wire.throttle import throttled

MIDNIGHT = 20_000 * DAY_SECONDS


def side(scope: str = "function", **limits: float) -> Side:
    return Side(scope, "hello", Allowance(Limits(**limits)), Tally())


def call(sides: limit.Sides, seconds: float = 0.0, at: float = MIDNIGHT) -> str:
    """One call at this time: "" when it entered, else the reason."""
    refusal = limit.refusal(sides, int(seconds * NS), at, -1.0)
    if refusal is None:
        limit.enter(sides, int(seconds * NS), at)
        return ""
    assert refusal.retry_after_seconds is not None and refusal.retry_after_seconds > 0
    return str(refusal.extra["reason"])


# ---- the bucket --------------------------------------------------------------------------------------------------------------------


@given(
    rate=st.floats(0.001, 1_000_000),
    burst=st.integers(1, 1000) | st.none(),
    gaps=st.lists(st.integers(0, 3 * NS), max_size=200),
)
def test_no_span_of_time_ever_sees_more_than_its_rate_and_the_burst(rate: float, burst: int | None, gaps: list[int]) -> None:
    interval, slack = spacing(rate, burst)
    full_at = now = 0
    entered: list[int] = []
    for gap in gaps:
        now += gap
        wait = wait_ns(full_at, slack, now)
        if wait <= 0:
            full_at = taken(full_at, interval, now)
            entered.append(now)
        else:
            assert wait_ns(full_at, slack, now + wait) == 0, "who comes when told to is let in"
    most = slack // interval + 1
    for first in range(len(entered)):
        for last in range(first, len(entered), 7):
            assert last - first + 1 <= most + (entered[last] - entered[first]) // interval


def test_a_million_calls_at_the_rate_are_let_in_to_the_last_and_one_more_is_not() -> None:
    """Nothing drifts: after a day at exactly the rate the bucket is where it was."""
    interval, slack = spacing(1000.0, 1)
    full_at = start = 10**15
    for index in range(100_000):
        assert wait_ns(full_at, slack, start + index * interval) <= 0
        full_at = taken(full_at, interval, start + index * interval)
    assert wait_ns(full_at, slack, start + 99_999 * interval) == interval


def test_a_leap_of_the_clock_fills_the_bucket_and_never_more() -> None:
    one = (side(rate_per_second=10, burst=5),)
    assert [call(one) for _ in range(6)] == [""] * 5 + ["function_rate"]
    assert [call(one, 1e6) for _ in range(6)] == [""] * 5 + ["function_rate"], "a suspended machine wakes"


def test_without_a_burst_a_seconds_worth_may_come_at_once_and_one_in_any_case() -> None:
    for rate, at_once in ((10, 10), (2.5, 3), (0.01, 1)):
        one = (side(rate_per_second=rate),)
        assert [call(one) for _ in range(at_once + 1)] == [""] * at_once + ["function_rate"]


# ---- days --------------------------------------------------------------------------------------------------------------------------


def test_quotas_begin_anew_at_midnight_and_retry_after_says_so() -> None:
    one = (side(calls_per_day=2),)
    late = MIDNIGHT + DAY_SECONDS - 10.5
    assert [call(one, at=late) for _ in range(3)] == ["", "", "function_calls_per_day"]
    refusal = limit.refusal(one, 0, late, -1.0)
    assert refusal is not None and refusal.kind.code == "quota_exceeded" and refusal.retry_after_seconds == 10.5
    assert [call(one, at=late + 10.5) for _ in range(3)] == ["", "", "function_calls_per_day"]


def test_a_clock_put_back_over_midnight_finds_the_day_before_as_it_was() -> None:
    one = (side(calls_per_day=1),)
    assert call(one, at=MIDNIGHT - 1) == ""
    assert call(one, at=MIDNIGHT + 1) == ""
    assert call(one, at=MIDNIGHT - 1) == call(one, at=MIDNIGHT + 2) == "function_calls_per_day"


def test_what_control_knows_and_what_the_gateway_counted_meet_by_the_larger() -> None:
    days = Days()
    days.told(7, Consumed("ns", "f", calls=5, mb_ms=100, bytes_out=3))
    days.on(7).calls += 2
    days.told(7, Consumed("ns", "f", calls=6, mb_ms=90, bytes_out=9))
    assert (days.today.calls, days.today.mb_ms, days.today.bytes_out) == (7, 100, 9)
    days.told(8, Consumed("ns", "f", calls=1))
    assert (days.on(8).calls, days.on(7).calls) == (1, 7)


@given(at=st.floats(0, 4e9))
def test_every_moment_has_its_day_and_its_midnight(at: float) -> None:
    assert day_of(at) * DAY_SECONDS <= at < (day_of(at) + 1) * DAY_SECONDS
    assert 0 < seconds_left(at) <= DAY_SECONDS


def test_gb_seconds_and_bytes_end_the_day_for_new_calls_but_not_for_those_inside() -> None:
    for limits, mb_ms, bytes_out in (({"gb_seconds_per_day": 1.0}, 1024 * 1000, 0), ({"response_bytes_per_day": 1000}, 0, 1000)):
        one = (side(**limits),)
        assert call(one) == call(one) == ""
        limit.use(one, MIDNIGHT, mb_ms, bytes_out)
        assert call(one) == f"function_{next(iter(limits))}"
        assert one[0].tally.inside == 2


def test_a_call_that_never_ran_counts_as_none() -> None:
    one = (side(calls_per_day=1),)
    assert call(one) == ""
    limit.leave(one)
    limit.take_back(one, MIDNIGHT)
    assert call(one) == ""
    limit.take_back(one, MIDNIGHT + DAY_SECONDS)
    assert one[0].tally.days.today.calls == 0


# ---- both sides --------------------------------------------------------------------------------------------------------------------


def test_a_call_must_pass_both_sides_and_a_refused_one_takes_nothing_from_either() -> None:
    function, namespace = side(rate_per_second=1, burst=2), side("namespace", concurrency=1, calls_per_day=100)
    sides = (function, namespace)
    assert call(sides) == ""
    before = (function.tally.full_at_ns, namespace.tally.inside, namespace.tally.days.today.calls)
    assert call(sides) == "namespace_concurrency"
    assert before == (function.tally.full_at_ns, namespace.tally.inside, namespace.tally.days.today.calls)
    limit.leave(sides)
    assert call(sides) == ""
    limit.leave(sides)
    assert call(sides) == "function_rate"


def test_two_versions_of_a_function_share_what_was_used() -> None:
    tally = Tally()
    old, new = (Side("function", "hello", Allowance(Limits(concurrency=most)), tally) for most in (1, 2))
    assert call((old,)) == "" and call((old,)) == "function_concurrency" and call((new,)) == "" and call((new,)) == "function_concurrency"


def test_concurrency_zero_is_a_pause_and_more_is_told_how_long_a_call_takes() -> None:
    refusal = limit.refusal((side(concurrency=0),), 0, 0.0, 0.5)
    assert refusal is not None and refusal.kind.code == "paused" and refusal.retry_after_seconds == PAUSED_SECONDS
    full = (side("namespace", concurrency=1),)
    call(full)
    refusal = limit.refusal(full, 0, 0.0, 7.5)
    assert refusal is not None and (refusal.kind.code, refusal.retry_after_seconds) == ("concurrency_limited", 7.5)
    assert refusal.detail == "The namespace 'hello' has as many calls inside as it may (1)."


def test_the_time_until_a_token_is_what_retry_after_says() -> None:
    one = (side(rate_per_second=0.1),)
    call(one)
    refusal = limit.refusal(one, 4 * NS, 0.0, -1.0)
    assert refusal is not None and refusal.retry_after_seconds == 6.0 and refusal.detail.endswith("may be called 0.1 times a second.")


@pytest.mark.parametrize(
    ("scope", "limits", "reason"),
    [
        ("function", {"concurrency": 0}, "ReservedFunctionConcurrentInvocationLimitExceeded"),
        ("namespace", {"concurrency": 0}, "ConcurrentInvocationLimitExceeded"),
        ("function", {"calls_per_day": 0}, "ReservedFunctionInvocationRateLimitExceeded"),
        ("namespace", {"calls_per_day": 0}, "CallerRateLimitExceeded"),
    ],
)
def test_lambda_has_a_word_for_each(scope: str, limits: dict[str, float], reason: str) -> None:
    refusal = limit.refusal((side(scope, **limits),), 0, 0.0, -1.0)
    assert refusal is not None
    body = throttled(refusal, "id")
    assert (body["Reason"], body["Type"], body["message"]) == (reason, "User", "Rate Exceeded.")
    assert body["error"]["reason"] == refusal.extra["reason"]  # type: ignore[index]


# ---- as users write them -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", NUMBERS)
def test_every_limit_takes_its_bounds_and_nothing_beyond(key: str) -> None:
    kind, low, high, _ = NUMBERS[key]
    extra = {"rate_per_second": 1.0} if key == "burst" else {}
    for value in (low, high):
        problems: list[str] = []
        assert getattr(checked_limits(extra | {key: kind(value)}, problems), key) == value and not problems
    for value in (low - 1, high * 2 + 1, True, "1", float("nan"), 10**5000):
        problems = []
        assert checked_limits(extra | {key: value}, problems) is not None and len(problems) == 1 and key in problems[0], value


def test_wrong_limits_are_named() -> None:
    problems: list[str] = []
    assert checked_limits({"rate": 3}, problems) == NO_LIMITS
    assert checked_limits({"burst": 3}, problems) == NO_LIMITS
    assert checked_limits([], problems) == NO_LIMITS
    assert "did you mean 'rate_per_second'" in problems[0] and "without rate_per_second" in problems[1] and "table" in problems[2]
