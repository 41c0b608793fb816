"""Asynchronous calls beside synchronous ones: a rate, in small turns, and nothing at all when nobody else is there."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.beside import SEEN_SECONDS, TURN_SECONDS, Beside


def begun(beside: Beside, now: float, most: int = 1_000_000) -> int:
    """How many may begin at this moment."""
    for count in range(most):
        if not beside.may_begin(now):
            return count
    return most


def test_alone_all_may_begin_at_once() -> None:
    beside = Beside(10)
    beside.saw(0, 0.0)
    assert begun(beside, 5.0, most=1000) == 1000


def test_beside_synchronous_calls_a_turns_worth_and_then_the_next() -> None:
    beside = Beside(2000)
    beside.saw(1, 0.0)
    assert begun(beside, 0.0) == 2000 * TURN_SECONDS
    assert begun(beside, TURN_SECONDS / 2) == 2000 * TURN_SECONDS / 2
    assert begun(beside, 0.5) == 2000 * TURN_SECONDS, "what was not begun is not made up for"


def test_a_rate_slower_than_turns_is_one_at_a_time() -> None:
    beside = Beside(10)
    beside.saw(1, 0.0)
    assert begun(beside, 0.0) == 1
    assert begun(beside, 0.05) == 0
    assert begun(beside, 0.11) == 1


def test_a_while_after_the_last_synchronous_call_all_may_begin() -> None:
    beside = Beside(10)
    beside.saw(7, 0.0)
    beside.saw(7, SEEN_SECONDS / 2)
    assert begun(beside, SEEN_SECONDS - 0.01) == 1
    assert begun(beside, SEEN_SECONDS, most=1000) == 1000


@given(st.floats(0.5, 100_000), st.lists(st.floats(0.0, 0.02), min_size=1, max_size=200))
def test_never_more_than_the_rate_and_one_turn(rate: float, pauses: list[float]) -> None:
    beside, now, total = Beside(rate), 0.0, 0
    for number, pause in enumerate(pauses, 1):
        now += pause
        beside.saw(number, now)
        total += begun(beside, now)
    assert total <= rate * (now + TURN_SECONDS) + 1.001


def test_looks_say_what_they_are() -> None:
    assert "2000/s" in repr(Beside(2000))
