"""core/decide/meter.py: buckets, quantiles, billing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import meter

durations = st.integers(0, 2_000_000_000)


def test_bounds_are_about_forty_from_ten_microseconds_to_the_longest_timeout() -> None:
    assert 35 <= len(meter.BOUNDS_US) <= 45
    assert meter.BOUNDS_US[0] == 10 and meter.BOUNDS_US[-1] == 900_000_000
    assert list(meter.BOUNDS_US) == sorted(set(meter.BOUNDS_US))


@given(durations)
def test_a_duration_falls_into_the_first_bucket_that_is_not_below_it(us: int) -> None:
    index = meter.bucket(us)
    assert index == len(meter.BOUNDS_US) or us <= meter.BOUNDS_US[index]
    assert index == 0 or us > meter.BOUNDS_US[index - 1]


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_at_most_one_bucket_off(values: list[int], q: float) -> None:
    counts = meter.empty()
    for value in values:
        counts[meter.bucket(value)] += 1
    rank = max(1, -(-int(q * len(values) * 1000) // 1000))
    exact = sorted(values)[min(rank, len(values)) - 1]
    found = meter.bucket(int(meter.quantile(counts, q)))
    neighbours = {meter.bucket(value) for value in sorted(values)[max(0, rank - 2) : rank + 1]}
    assert any(abs(found - it) <= 1 for it in neighbours | {meter.bucket(exact)})


def test_the_quantile_of_nothing_is_zero_and_of_endless_calls_the_last_bound() -> None:
    assert meter.quantile(meter.empty(), 0.5) == 0.0
    counts = meter.empty()
    counts[-1] = 3
    assert meter.quantile(counts, 0.99) == meter.BOUNDS_US[-1]


@pytest.mark.parametrize(
    ("exec_us", "round_ms", "expected"),
    [(0, 1, 1), (1, 1, 1), (1000, 1, 1), (1001, 1, 2), (99_999, 100, 100), (100_001, 100, 200)],
)
def test_billed_time_is_rounded_up_by_the_tariff_and_never_nothing(exec_us: int, round_ms: int, expected: int) -> None:
    assert meter.billed_ms(exec_us, round_ms) == expected
    assert meter.billed(exec_us, 128, round_ms) == expected * 128


def test_a_gigabyte_second_costs_what_the_tariff_says() -> None:
    assert meter.gb_seconds(1024 * 1000) == 1.0
    assert meter.cost(2_000_000, 1024 * 1000, 0.20, 0.5) == pytest.approx(0.9)
