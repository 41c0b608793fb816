"""A refusal with status 429 as Lambda's Invoke words it: TooManyRequestsException and its `Reason`. Used at the door of direct invokes.

The members that Lambda's clients read (`Type`, `message`, `Reason`; botocore's service model, Lambda 2015-03-31) stand beside our own
`error`. Lambda knows no quotas by the day; they are worded as the rate limit of the same side.
"""

from dayfly.core.model.errors import Refusal

ERROR_TYPE = "TooManyRequestsException"
MESSAGE = "Rate Exceeded."

_OF_FUNCTION = {
    "concurrency_limited": "ReservedFunctionConcurrentInvocationLimitExceeded",
    "paused": "ReservedFunctionConcurrentInvocationLimitExceeded",
    "queue_full": "ReservedFunctionConcurrentInvocationLimitExceeded",
    "rate_limited": "ReservedFunctionInvocationRateLimitExceeded",
    "quota_exceeded": "ReservedFunctionInvocationRateLimitExceeded",
}
_OF_NAMESPACE = {
    "concurrency_limited": "ConcurrentInvocationLimitExceeded",
    "paused": "ConcurrentInvocationLimitExceeded",
    "rate_limited": "CallerRateLimitExceeded",
    "quota_exceeded": "CallerRateLimitExceeded",
}


def throttled(refusal: Refusal, call_id: str) -> dict[str, object]:
    """The body of such a refusal."""
    words = _OF_NAMESPACE if str(refusal.extra.get("reason", "")).startswith("namespace_") else _OF_FUNCTION
    reason = words.get(refusal.kind.code, "ConcurrentInvocationLimitExceeded")
    return refusal.body(call_id) | {"Type": "User", "message": MESSAGE, "Reason": reason}
