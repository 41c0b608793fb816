"""What becomes of a call after an attempt: every outcome against every kind of policy."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.retry import MAYBE_BEGUN, POLICIES, UNBEGUN, Again, Dead, Done, Facts, Policy, failed, resolved, verdict
from dayfly.core.manifest.durable import checked_async
from dayfly.core.model.durable import Async, Outcome, Ran

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def facts(**more: Any) -> Facts:
    return Facts(**({"attempt": 1, "epoch": 1, "expires": 1e9, "now": 1000.0, "die": 0.5} | more))


def test_lambda_tries_again_after_one_and_two_minutes_and_then_never() -> None:
    policy = POLICIES["lambda"]
    said = [verdict("error", 0.0, policy, facts(attempt=number)) for number in (1, 2, 3)]
    assert said == [Again(1060.0, True), Again(1120.0, True), Dead("retries_exhausted")]


def test_lambda_takes_any_answer_for_an_answer_and_openfaas_does_not() -> None:
    ran = Ran(id="c", epoch=1, outcome="ok", status=503)
    assert failed(ran, POLICIES["lambda"]) == "ok"
    assert failed(ran, POLICIES["openfaas"]) == "status"
    assert failed(msgspec.structs.replace(ran, status=404), POLICIES["openfaas"]) == "ok"
    assert failed(msgspec.structs.replace(ran, status=404), POLICIES["knative"]) == "status"


def test_openfaas_backs_off_from_10_seconds_to_120_with_full_jitter() -> None:
    policy = POLICIES["openfaas"]
    most = [verdict("status", 0.0, policy, facts(attempt=number, die=0.999999)) for number in range(1, 7)]
    assert [round(it.at - 1000) for it in most if isinstance(it, Again)] == [10, 20, 40, 80, 120, 120]
    assert verdict("status", 0.0, policy, facts(die=0.0)) == Again(1000.0, True)


def test_retry_after_is_waited_for_and_too_long_a_wait_ends_the_call() -> None:
    policy = POLICIES["openfaas"]
    assert verdict("status", 500.0, policy, facts()) == Again(1500.0, True)
    assert verdict("status", 500.0, policy, facts(expires=1400.0)) == Dead("expired")


def test_a_throttle_is_not_counted_and_backs_off_from_one_second_to_five_minutes() -> None:
    policy = POLICIES["lambda"]
    waits = [verdict("throttled", 0.0, policy, facts(attempt=3, epoch=3 + times, die=0.999999)) for times in (0, 1, 2, 20)]
    assert [(round(it.at - 1000), it.counted) for it in waits if isinstance(it, Again)] == [
        (1, False),
        (2, False),
        (4, False),
        (300, False),
    ]


@pytest.mark.parametrize("outcome", ["lost", "crashed", "timeout"])
def test_what_may_have_begun_is_begun_again_only_where_the_function_allows_it(outcome: Outcome) -> None:
    policy = POLICIES["lambda"]
    assert isinstance(verdict(outcome, 0.0, policy, facts()), Again)
    careful = msgspec.structs.replace(policy, idempotent=False)
    assert verdict(outcome, 0.0, careful, facts()) == Dead("lost" if outcome == "lost" else "may_have_run")


@given(
    st.sampled_from(OUTCOMES),
    st.sampled_from(sorted(POLICIES)),
    st.booleans(),
    st.integers(1, 200),
    st.integers(0, 100),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1e5),
)
def test_every_call_ends_and_never_before_its_policy_says(
    outcome: Outcome, name: str, idempotent: bool, attempt: int, more: int, die: float, after: float
) -> None:
    policy = msgspec.structs.replace(POLICIES[name], idempotent=idempotent)
    it = facts(attempt=attempt, epoch=attempt + more, expires=1000.0 + policy.max_age_seconds, die=die)
    found = verdict(outcome, after, policy, it)
    if isinstance(found, Done):
        assert outcome == "ok"
    elif isinstance(found, Again):
        assert 1000.0 + after <= found.at < it.expires
        assert found.counted == (outcome not in UNBEGUN and outcome != "lost")
        assert not found.counted or attempt < policy.attempts
        assert idempotent or outcome not in MAYBE_BEGUN
    else:
        assert found.reason


def test_single_values_replace_the_policys_own() -> None:
    assert resolved(Async()) == POLICIES["lambda"]
    mine = resolved(Async(policy="knative", attempts=2, retry_on=(), idempotent=False))
    assert mine == msgspec.structs.replace(POLICIES["knative"], attempts=2, retry_on=(), idempotent=False)
    assert resolved(Async(policy="of a later release")) == POLICIES["own"]


def test_every_policy_is_a_policy_and_can_be_written_in_a_manifest() -> None:
    for name, policy in POLICIES.items():
        assert isinstance(policy, Policy)
        problems: list[str] = []
        assert checked_async({"policy": name}, problems) == Async(policy=name)
        assert not problems


@given(
    st.dictionaries(st.text(max_size=12) | st.sampled_from(Async.__struct_fields__), st.none() | st.integers() | st.floats() | st.text())
)
def test_whatever_a_table_holds_is_a_policy_or_a_list_of_problems(table: dict[str, object]) -> None:
    problems: list[str] = []
    found = checked_async(table, problems)
    assert problems or resolved(found).attempts >= 1
