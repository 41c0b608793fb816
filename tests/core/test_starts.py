"""Whose start goes next: first starts before bursts, bursts in turns, never more than the slots, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.starts import FRESH_SECONDS, Starts


def begin_all(starts: Starts[str]) -> list[str]:
    """Begin whatever may begin, in order."""
    begun = []
    while (version := starts.next(0.0)) is not None:
        starts.begun(0.0)
        begun.append(version)
    return begun


def test_a_burst_leaves_slots_for_the_first_start_of_another() -> None:
    """Forty starts of one function are asked for, then another is called for the first time: it does not wait."""
    starts: Starts[str] = Starts(16)
    starts.ask("burst", 40, is_first=True)
    assert not starts.quiet
    assert begin_all(starts) == ["burst"] * 12
    starts.ask("other", 1, is_first=True)
    assert begin_all(starts) == ["other"]
    starts.ended()
    assert begin_all(starts) == [], "thirteen were under way: the slot that came free is the reserve's"
    starts.ended()
    assert begin_all(starts) == ["burst"]


def test_a_first_start_goes_before_those_that_were_asked_for_earlier() -> None:
    starts: Starts[str] = Starts(4)
    starts.ask("a", 9, is_first=False)
    starts.ask("b", 1, is_first=True)
    assert begin_all(starts) == ["b", "a", "a"]


def test_versions_that_want_more_take_turns() -> None:
    starts: Starts[str] = Starts(8)
    starts.ask("a", 4, is_first=False)
    starts.ask("b", 2, is_first=False)
    starts.ask("a", 1, is_first=False)
    assert begin_all(starts) == ["a", "b", "a", "b", "a", "a"]


def test_a_crowd_of_first_starts_uses_every_slot_in_order() -> None:
    starts: Starts[str] = Starts(4)
    for name in "abcdef":
        starts.ask(name, 1, is_first=True)
    assert begin_all(starts) == ["a", "b", "c", "d"]
    starts.ended()
    assert begin_all(starts) == ["e"]


def test_one_slot_serves_all() -> None:
    """A machine that starts one at a time has no reserve."""
    starts: Starts[str] = Starts(1)
    starts.ask("a", 2, is_first=False)
    assert begin_all(starts) == ["a"]
    starts.ended()
    assert begin_all(starts) == ["a"]


def test_what_is_dropped_is_everything_not_begun_as_often_as_it_was_asked_for() -> None:
    starts: Starts[str] = Starts(2)
    starts.ask("a", 3, is_first=True)
    starts.ask("b", 1, is_first=True)
    starts.ask("b", 1, is_first=True)  # still waiting for its first: one more of it
    assert begin_all(starts) == ["a", "b"]
    assert sorted(starts.drop_all()) == ["a", "a", "b"]
    starts.ended()
    assert begin_all(starts) == []


@given(
    st.integers(1, 20),
    st.lists(st.one_of(st.tuples(st.integers(0, 5), st.integers(1, 6), st.booleans()), st.none()), max_size=80),
)
def test_never_more_than_the_slots_and_none_is_lost(slots: int, events: list[tuple[int, int, bool] | None]) -> None:
    """Whatever is asked for and ends in whatever order: bursts stay out of the reserve, and at the end each start was begun once."""
    starts: Starts[int] = Starts(slots)
    asked, begun = [0] * 6, [0] * 6
    for event in events:
        if event is not None:
            version, count, is_first = event
            starts.ask(version, count, is_first=is_first)
            asked[version] += count
        elif starts.under_way:
            starts.ended()
        while (chosen := starts.next(0.0)) is not None:
            starts.begun(0.0)
            begun[chosen] += 1
            assert starts.under_way <= slots
    while True:
        while (chosen := starts.next(0.0)) is not None:
            starts.begun(0.0)
            begun[chosen] += 1
        if not starts.under_way:
            break
        starts.ended()
    assert begun == asked
    assert starts.quiet


def test_starts_that_have_just_begun_are_few_and_old_ones_make_room():
    starts: Starts[str] = Starts(16, fresh=4)
    starts.ask("busy", 20, is_first=False)
    for _ in range(3):  # the fourth place is for a first start
        assert starts.next(0.0) == "busy"
        starts.begun(0.0)
    assert not starts.may_begin(0.001)
    starts.ask("new", 1, is_first=True)
    assert starts.next(0.001) == "new"
    starts.begun(0.001)
    starts.ask("newer", 1, is_first=True)
    assert starts.next(0.002) is None
    starts.ended()
    assert starts.next(0.003) == "newer", "one that is over makes room at once"
    starts.begun(0.003)
    assert not starts.may_begin(0.004)
    assert starts.next(FRESH_SECONDS + 0.01) == "busy", "and so do those that only wait"


def test_imports_of_half_a_second_do_not_keep_short_starts_waiting() -> None:
    """Two functions want many starts: those of the one take fifty times as long, so it gets one for fifty of the other."""
    starts: Starts[str] = Starts(1000, cost=lambda version: 0.5 if version == "heavy" else 0.01)
    starts.ask("heavy", 300, is_first=False)
    starts.ask("light", 300, is_first=False)
    order = begin_all(starts)[:102]
    assert (order.count("heavy"), order.count("light")) == (2, 100)
