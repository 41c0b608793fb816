"""core/decide/rollout.py and retain.py: where aliases point, where a rollback goes, what may be forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import retain, rollout
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Alias

LIVE3 = rollout.whole("live", 3)


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        ({}, "bad_request"),
        ({1: 0.5, 2: 0.3, 3: 0.2}, "bad_request"),
        ({1: 0.5, 2: 0.6}, "bad_request"),
        ({1: 1.5}, "bad_request"),
        ({1: 0.0, 2: 1.0}, "bad_request"),
        ({1: float("nan")}, "bad_request"),
        ({1: float("inf")}, "bad_request"),
        ({9: 1.0}, "version_not_found"),
    ],
)
def test_an_alias_points_at_one_or_two_kept_versions_with_weights_that_sum_to_one(weights: dict[int, float], code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        rollout.checked_alias("live", weights, {1, 2, 3})
    assert refusal.value.kind.code == code


def test_a_split_alias_is_taken_as_it_is() -> None:
    assert rollout.checked_alias("live", {2: 0.1, 1: 0.9}, {1, 2}).weights == ((1, 0.9), (2, 0.1))


def test_rollbacks_in_a_row_go_back_deploy_by_deploy_and_then_say_that_there_is_no_more() -> None:
    moves, live, seen = [1, 2, 3], LIVE3, []
    with pytest.raises(Refusal) as refusal:
        while True:
            target, keep = rollout.rollback(live, moves, {1, 2, 3}, None)
            moves = [*moves[:keep], target]
            live = rollout.whole("live", target)
            seen.append(target)
    assert seen == [2, 1]
    assert refusal.value.kind.code == "version_not_found"


def test_a_rollback_skips_versions_that_are_no_longer_kept() -> None:
    assert rollout.rollback(LIVE3, [1, 2, 3], {1, 3}, None)[0] == 1


def test_a_rollback_to_a_number_goes_there_or_says_that_it_is_not_kept() -> None:
    assert rollout.rollback(LIVE3, [1, 2, 3], {1, 2, 3}, 1) == (1, 3)
    with pytest.raises(Refusal) as refusal:
        rollout.rollback(LIVE3, [1, 2, 3], {2, 3}, 1)
    assert refusal.value.kind.code == "version_not_found"


def test_a_rollback_of_split_traffic_ends_the_split_in_favour_of_the_older_version() -> None:
    split = Alias(name="live", weights=((3, 0.1), (4, 0.9)))
    assert rollout.rollback(split, [1, 3, 4], {1, 3, 4}, None)[0] == 3


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60), max_size=4), st.integers(1, 20))
def test_the_newest_and_the_named_versions_are_never_dropped(numbers: set[int], named: set[int], kept: int) -> None:
    aliases = [rollout.whole(f"a{number}", number) for number in named & numbers]
    dropped = set(retain.versions_to_drop(numbers, aliases, kept))
    assert dropped <= numbers
    assert not dropped & named
    assert not dropped & set(sorted(numbers)[-kept:])
    assert len(numbers - dropped) <= kept + len(named & numbers)


def test_a_folder_goes_after_its_grace_unless_a_deploy_holds_it() -> None:
    marked = {("code", "a"): 0.0, ("code", "b"): 90.0, ("layer", "c"): 0.0}
    assert retain.folders_to_drop(marked, {("layer", "c")}, 100.0, grace_seconds=50.0) == [("code", "a")]


def test_the_grace_covers_the_longest_call() -> None:
    assert retain.GRACE_SECONDS > 900
