"""core/decide/pace.py: over any span no more passes than the rate allows plus one burst and what was under way."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.pace import BURST_SECONDS, Pace


def test_a_second_is_free_then_the_rate_holds_and_idling_saves_no_more_than_a_second() -> None:
    pace = Pace(1000)
    assert pace.passed(1000, 50.0) == 0
    assert pace.passed(500, 50.0) == 0.5
    assert pace.passed(0, 50.5) == 0
    assert pace.passed(1000, 1000.0) == 0
    assert pace.passed(1000, 1000.0) == 1
    assert Pace(0).passed(10**12, 0.0) == 0


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 3)), max_size=60), st.integers(1, 10_000))
def test_whoever_waits_as_told_never_exceeds_the_rate(steps: list[tuple[int, float]], rate: int) -> None:
    """Chunks as they come, each after the wait of the one before and some idling: the sum up to now is bounded."""
    pace, now, total = Pace(rate), 100.0, 0
    for count, idle in steps:
        total += count
        wait = pace.passed(count, now)
        assert wait >= 0
        assert total <= rate * (now + wait - 100.0 + BURST_SECONDS) + 1e-6 * (total + 1)
        now += wait + idle
