"""Who is leased how many: never more than there is room, and nobody behind anybody's backlog."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.lanes import AHEAD_FACTOR_MAX, WINDOW_FIRST, Shares, Window

LANES = st.sampled_from(["a/x", "a/y", "a/z", "b/x", "b/y", "c/x"])


@given(st.dictionaries(LANES, st.integers(0, 50)), st.dictionaries(LANES, st.integers(0, 50)), st.integers(0, 200))
def test_no_lane_gets_more_than_its_room_and_nothing_is_left_while_somebody_has_room(
    rooms: dict[str, int], in_hand: dict[str, int], budget: int
) -> None:
    given_ = dict(Shares().wanted(rooms, in_hand, budget))
    assert all(0 < count <= rooms[lane] for lane, count in given_.items())
    assert sum(given_.values()) == min(budget, sum(rooms.values()))


@given(st.dictionaries(LANES, st.integers(1, 50), min_size=1), st.integers(1, 200))
def test_namespaces_with_work_differ_by_one_at_most(rooms: dict[str, int], budget: int) -> None:
    given_ = dict(Shares().wanted(rooms, {}, budget))
    total, most = Counter[str](), Counter[str]()
    for lane, room in rooms.items():
        total[lane[0]] += given_.get(lane, 0)
        most[lane[0]] += room
    hungry = [total[name] for name in total if total[name] < most[name]]
    assert not hungry or max(total.values()) - min(hungry) <= 1


def test_a_backlog_that_holds_everything_waits_for_who_comes_new() -> None:
    given_ = dict(Shares().wanted({"big/f": 100, "new/f": 100}, {"big/f": 60}, 50))
    assert given_ == {"new/f": 50}


def test_of_equals_the_one_served_longest_ago_is_next() -> None:
    shares = Shares()
    rooms = {f"n{number}/f": 1 for number in range(5)}
    assert {lane for _ in range(5) for lane, _ in shares.wanted(rooms, {}, 1)} == set(rooms)


def test_a_window_grows_with_successes_and_halves_once_for_one_crowd_of_refusals() -> None:
    window = Window()
    for _ in range(100):
        window.succeeded(1.0)
    assert window.size == WINDOW_FIRST + 100
    for _ in range(20):
        window.refused(10.0)
    assert window.size == (WINDOW_FIRST + 100) / 2
    before = window.size
    window.succeeded(1.0)
    assert window.size == before + 1 / before  # no longer doubling
    for number in range(100):
        window.refused(20.0 + number)
    assert window.size == 1.0 and window.room(10, ahead=False) == 1


def test_short_calls_are_given_ahead_and_long_ones_are_not() -> None:
    short, long = Window(), Window()
    for _ in range(10_000):
        short.succeeded(0.0001)
        long.succeeded(1.0)
    assert short.room(4, ahead=True) == 4 * AHEAD_FACTOR_MAX
    assert long.room(4, ahead=True) == 4
    assert short.room(4, ahead=False) == 4
