"""May this call enter? Facts about caller, function and house → nothing, or the refusal that says whose fault it is and when to retry.

What a pool itself refuses (queue_full) is decided in pool.py; this is what can be said before the call exists. Called by
gateway/dispatch.py for every call: the common case is three comparisons.
"""

from dayfly.core.decide.access import allowed
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Token, Version

INVOKE = "invoke"


def admit(version: Version, token: Token | None, *, token_was_given: bool, stopping: bool) -> Refusal | None:
    """None when the call may enter. `token` is a verified token or None; public functions need none and ignore it."""
    if stopping:
        return Refusal("shutting_down", "This gateway is finishing its calls and takes no more.", retry_after_seconds=1.0)
    if version.config.auth == "none" or allowed(token, INVOKE, version.namespace):
        return None
    if token is not None:
        return Refusal("forbidden", f"This token may not invoke functions in namespace {version.namespace!r}.")
    if token_was_given:
        return Refusal("unauthorized", "The token is unknown or was revoked.")
    return Refusal("unauthorized", "This function is private: a token is needed.")
