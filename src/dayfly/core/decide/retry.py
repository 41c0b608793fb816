"""Again, done or dead: what becomes of a durable call after an attempt.

Facts in (how the attempt ended, which it was, the call's age, the policy, one die), a verdict out. Policies are data, named for the
platforms whose users know them (facts: Lambda's asynchronous invocation, OpenFaaS Pro's queue-worker, Knative's broker defaults); each of
their values may be replaced. Told apart:

    the function failed      error, timeout, crashed, init_failed, an answer's status of `retry_on`: counted, backs off as the policy says
    it could not begin       throttled, platform: not counted, 1 s doubling to 5 minutes until the call is too old (Lambda's rule)
    nobody had room          returned: not counted, tried again soon
    nobody knows             lost: not counted, tried again soon, unless the function says that what may have begun may not begin again
    it makes no sense        gone, cancelled: dead

Backoff and jitter: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): full is anything up to the wait, equal its upper half.
Called by control/settling.py.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from dayfly.core.model.durable import Async, Outcome, Ran

THROTTLE_SECONDS_MIN, THROTTLE_SECONDS_MAX = 1.0, 300.0
SOON_SECONDS = 0.25  # for calls that were handed back unbegun
LOST_SECONDS = 1.0
MAYBE_BEGUN: frozenset[Outcome] = frozenset(("lost", "crashed", "timeout"))  # how far the handler came, nobody knows
UNBEGUN: frozenset[Outcome] = frozenset(("throttled", "platform", "returned"))
DEFAULT_STATUSES = (408, 429, 500, 502, 503, 504)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how long apart, for what, and until when. `attempts` counts the first one, too."""

    attempts: int
    backoff_seconds: float
    backoff_max_seconds: float
    jitter: Literal["none", "full", "equal"]
    retry_on: tuple[int, ...]
    max_age_seconds: float
    idempotent: bool = True


_SIX_HOURS = 21_600.0

POLICIES: Mapping[str, Policy] = {
    "lambda": Policy(
        attempts=3, backoff_seconds=60, backoff_max_seconds=120, jitter="none", retry_on=(), max_age_seconds=_SIX_HOURS
    ),  # two more, one and then two minutes later; an answer is an answer, whatever its status
    "openfaas": Policy(
        attempts=10, backoff_seconds=10, backoff_max_seconds=120, jitter="full", retry_on=DEFAULT_STATUSES, max_age_seconds=_SIX_HOURS
    ),
    "knative": Policy(
        attempts=11, backoff_seconds=0.2, backoff_max_seconds=300, jitter="none",
        retry_on=(404, 408, 409, 429, *range(500, 600)), max_age_seconds=_SIX_HOURS,
    ),
    "own": Policy(
        attempts=3, backoff_seconds=1, backoff_max_seconds=300, jitter="full", retry_on=DEFAULT_STATUSES, max_age_seconds=_SIX_HOURS
    ),  # what the function's own values stand on
}  # fmt: skip


class Again(NamedTuple):
    """Run it again at `at`. `counted`: whether this attempt was one of the policy's."""

    at: float
    counted: bool


class Done(NamedTuple):
    """It succeeded."""


class Dead(NamedTuple):
    """It never runs again by itself; `reason` says why."""

    reason: str


Verdict = Again | Done | Dead


class Facts(NamedTuple):
    """Where a call stands after an attempt. `attempt` and `epoch` are the lease's: every lease has an epoch, only some are counted."""

    attempt: int
    epoch: int
    expires: float
    now: float
    die: float  # in [0, 1)


def resolved(config: Async) -> Policy:
    """The policy that a function's `[async]` means. An unknown name (of a release that knew more) is read as "own"."""
    base = POLICIES.get(config.policy, POLICIES["own"])
    said = {name: value for name in Policy.__struct_fields__ if (value := getattr(config, name)) is not None}
    return msgspec.structs.replace(base, **said)


def failed(ran: Ran, policy: Policy) -> Outcome:
    """The outcome by this policy: an answer whose status it tries again is no success."""
    return "status" if ran.outcome == "ok" and ran.status in policy.retry_on else ran.outcome


def verdict(outcome: Outcome, retry_after_seconds: float, policy: Policy, facts: Facts) -> Verdict:
    """What becomes of the call. `retry_after_seconds`: how long who refused or answered asked to wait, 0 when it did not."""
    if outcome == "ok":
        return Done()
    if outcome == "cancelled":
        return Dead("cancelled")
    if outcome == "gone":
        return Dead("function_not_found")
    if outcome in MAYBE_BEGUN and not policy.idempotent:
        return Dead("lost" if outcome == "lost" else "may_have_run")
    counted = outcome not in UNBEGUN and outcome != "lost"
    if counted and facts.attempt >= policy.attempts:
        return Dead("retries_exhausted")
    wait = max(_wait(outcome, policy, facts), retry_after_seconds)
    if facts.now + wait >= facts.expires:
        return Dead("expired")
    return Again(facts.now + wait, counted)


def _wait(outcome: Outcome, policy: Policy, facts: Facts) -> float:
    if outcome == "returned":
        return SOON_SECONDS * (0.5 + facts.die)
    if outcome == "lost":
        return LOST_SECONDS * facts.die
    if outcome in UNBEGUN:
        uncounted = max(0, facts.epoch - facts.attempt)
        return _jittered(_doubled(THROTTLE_SECONDS_MIN, THROTTLE_SECONDS_MAX, uncounted), "equal", facts.die)
    return _jittered(_doubled(policy.backoff_seconds, policy.backoff_max_seconds, facts.attempt - 1), policy.jitter, facts.die)


def _doubled(base: float, most: float, times: int) -> float:
    return float(min(most, base * 2.0 ** min(times, 64)))


def _jittered(wait: float, jitter: str, die: float) -> float:
    if jitter == "full":
        return wait * die
    return wait * (0.5 + 0.5 * die) if jitter == "equal" else wait
