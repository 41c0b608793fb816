"""Why an instance came to nothing or ended, in the words its caller reads (Lambda's where Lambda has some). Pure functions.

Called by gateway/fleet.py with what the instance said (FAILED), what the node said (Exited) or what the clock said; by gateway/reply.py
with the error that a call was answered with.
"""

from typing import Any

import msgspec

from dayfly.core.model.errors import BY_CODE
from dayfly.core.wire.node import Exited
from dayfly.gateway.channel import Channel


def error_of(kind: str, message: str) -> dict[str, Any]:
    """The shape every failed start has, as Lambda reports it."""
    return {"errorType": kind, "errorMessage": message, "stackTrace": []}


def init_timed_out(seconds: float) -> dict[str, Any]:
    """Init took too long."""
    return error_of("Sandbox.Timedout", f"Initialisation did not end within {seconds:g} seconds (init_timeout_seconds).")


def init_error(meta: bytes) -> dict[str, Any]:
    """What a FAILED frame says, bounded: it is hostile input."""
    try:
        error = msgspec.json.decode(meta, type=dict[str, Any])
    except msgspec.DecodeError:
        return error_of("Runtime.ExitError", "The instance failed and could not say why.")
    return {
        "errorType": str(error.get("errorType", "Runtime.Unknown"))[:200],
        "errorMessage": str(error.get("errorMessage", ""))[:8000],
        "stackTrace": stack_of(error),
    }


def stack_of(error: dict[str, Any]) -> list[str]:
    """The stack trace of an error, bounded; [] when it has none."""
    frames_ = error.get("stackTrace")
    return [str(line)[:2000] for line in frames_[:100]] if isinstance(frames_, list) else []


def start_death(channel: Channel) -> tuple[dict[str, Any], str]:
    """Why a start came to nothing: (error as callers see it, code)."""
    exit_ = channel.exit
    if isinstance(exit_, Exited) and (exit_.reason == "refused" or exit_.refusal):
        code = exit_.refusal if exit_.refusal in BY_CODE else "start_failed"
        return error_of("Sandbox.Failure", exit_.detail or "The node refused the start.") | {"code": code}, code
    if exit_ is None:
        return error_of("Sandbox.Failure", "The node was lost while the instance started."), "start_failed"
    output = channel.tail.decode("utf-8", "replace").strip()
    return error_of("Runtime.ExitError", death_text(channel) + (f"\n{output}" if output else "")), "init_failed"


def death_text(channel: Channel) -> str:
    """Lambda's words for how a runtime ended."""
    exit_ = channel.exit
    if not isinstance(exit_, Exited):
        return "Runtime exited"
    if exit_.reason == "oom":
        return "Runtime exited with error: memory limit exceeded (signal: killed)"
    if exit_.reason == "signal":
        return f"Runtime exited with error: signal: {_signal_name(exit_.code)}"
    if exit_.code == 0:
        return "Runtime exited without providing a reason"
    return f"Runtime exited with error: exit status {exit_.code}"


def error_in(body: bytes) -> dict[str, Any]:
    """The error object that an instance answered with; {} when it is none."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def outcome_of(error: dict[str, Any]) -> str:
    """The code of core/model/errors.py for an error object of an instance."""
    return _OUTCOMES.get(str(error.get("errorType")), "function_error")


_OUTCOMES = {
    "Runtime.ExitError": "function_crashed",
    "Sandbox.Timedout": "function_timeout",
    "Runtime.BadAnswer": "function_bad_answer",
    "Runtime.MarshalError": "function_bad_answer",
    "Function.ResponseSizeTooLarge": "function_bad_answer",
}


def _signal_name(number: int) -> str:
    names = {9: "killed", 11: "segmentation fault", 6: "aborted", 15: "terminated", 7: "bus error", 8: "floating point exception"}
    return names.get(number, str(number))
