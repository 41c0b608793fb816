"""Every error Dayfly can answer, as a table: whose fault, which status, what to do about it.

Whose fault is the first axis. A face (native, Lambda, OpenFaaS) translates a `Refusal` once, at its edge.
`docs/errors.md` has a heading for every code; a test compares the two.
"""

from enum import StrEnum

import msgspec


class Fault(StrEnum):
    """Who has to change something for the same request to succeed."""

    CALLER = "caller"
    FUNCTION = "function"
    CAPACITY = "capacity"
    PLATFORM = "platform"


class ErrorKind(msgspec.Struct, frozen=True):
    """One row of the table. `retryable` means: the same request may succeed later without anybody changing anything."""

    code: str
    fault: Fault
    status: int
    hint: str
    retryable: bool = False


_C, _F, _P = Fault.CALLER, Fault.FUNCTION, Fault.PLATFORM

KINDS: tuple[ErrorKind, ...] = (
    ErrorKind("bad_request", _C, 400, "Compare the request with the documentation of this route."),
    ErrorKind("bad_json", _C, 400, "Send valid JSON (UTF-8) with Content-Type: application/json."),
    ErrorKind("bad_name", _C, 400, "Use 1 to 63 letters, digits, '-' or '_', starting with a letter or digit."),
    ErrorKind("bad_config", _C, 400, "Correct the named setting in dayfly.toml or on the command line."),
    ErrorKind("bad_bundle", _C, 400, "Pack a plain folder of regular files: no absolute paths, '..', links or devices."),
    ErrorKind("bundle_too_large", _C, 413, "Remove what the function does not need; list dependencies in requirements.txt."),
    ErrorKind("build_failed", _C, 422, "Read the installer's output above; correct requirements.txt or the pins."),
    ErrorKind("init_failed", _F, 422, "Read the traceback: the module could not be imported, or its handler is missing."),
    ErrorKind("unauthorized", _C, 401, "Send 'Authorization: Bearer TOKEN'; `dayfly token create` makes one."),
    ErrorKind("forbidden", _C, 403, "Use a token whose scopes include this namespace and verb."),
    ErrorKind("not_found", _C, 404, "Check the address; `dayfly ls` lists functions."),
    ErrorKind("function_not_found", _C, 404, "`dayfly ls` lists the functions of a namespace."),
    ErrorKind("version_not_found", _C, 404, "`dayfly describe NAME` lists versions and aliases."),
    ErrorKind("schedule_not_found", _C, 404, "`dayfly schedules ls` lists the schedules of a namespace."),
    ErrorKind("method_not_allowed", _C, 405, "Use a method that the Allow header names."),
    ErrorKind("request_timeout", _C, 408, "Send the whole request without long pauses."),
    ErrorKind("conflict", _C, 409, "The message names what stands in the way: change that, then try again."),
    ErrorKind("length_required", _C, 411, "Send Content-Length or chunked transfer coding."),
    ErrorKind("body_too_large", _C, 413, "Send less, or raise `body_bytes_max`."),
    ErrorKind("uri_too_long", _C, 414, "Shorten the address."),
    ErrorKind("header_too_large", _C, 431, "Send fewer or shorter headers."),
    ErrorKind("call_not_found", _C, 404, "`dayfly calls ls` lists calls; settled ones are kept for `result_keep_seconds`."),
    ErrorKind("map_not_found", _C, 404, "`dayfly maps ls` lists maps; those that have ended are kept for `map_keep_seconds`."),
    ErrorKind("chain_too_deep", _C, 508, "A function calls itself, or others in a circle: end the chain, or raise `async_depth_max`."),
    ErrorKind("async_queue_full", Fault.CAPACITY, 429, "Wait until calls have run, purge some, or raise `async_waiting_max`.", True),
    ErrorKind(
        "acceptance_unknown", _P, 503, "The call may have been accepted: send it again with the same Idempotency-Key as before.", True
    ),
    ErrorKind("not_implemented", _C, 501, "Use a common method, and of all transfer codings only chunked."),
    ErrorKind("version_not_supported", _C, 505, "Speak HTTP/1.1; HTTP/2 and TLS are for a proxy in front."),
    ErrorKind("function_error", _F, 502, "The function raised: `dayfly logs NAME --call ID` shows the traceback."),
    ErrorKind("function_crashed", _F, 502, "The instance ended during the call (exit, crash or memory limit); the call may have run."),
    ErrorKind("gateway_lost", _P, 502, "A gateway ended during the call, which may have run; another takes its place."),
    ErrorKind("function_bad_answer", _F, 502, "The handler returned something that is no valid HTTP answer."),
    ErrorKind("function_timeout", _F, 504, "The function ran past its timeout: make it faster or raise `timeout_seconds`."),
    ErrorKind("rate_limited", Fault.CAPACITY, 429, "Slow down, or raise the `rate_per_second` or `burst` that `reason` names.", True),
    ErrorKind("concurrency_limited", Fault.CAPACITY, 429, "Fewer calls at once, or a higher `concurrency` in the limits.", True),
    ErrorKind("quota_exceeded", Fault.CAPACITY, 429, "Come again after midnight UTC, or have the quota raised.", True),
    ErrorKind("paused", Fault.CAPACITY, 429, "Somebody set `concurrency = 0` in the limits, and has to take it away."),
    ErrorKind("queue_timeout", Fault.CAPACITY, 504, "No instance was free before the deadline: raise `max_instances`.", True),
    ErrorKind("queue_full", Fault.CAPACITY, 429, "Slow down, or raise `max_instances` or `queue_max`.", True),
    ErrorKind("too_many_connections", Fault.CAPACITY, 429, "Close idle connections, or raise `connections_per_peer_max`.", True),
    ErrorKind("deadline_out_of_reach", Fault.CAPACITY, 503, "Wait longer, or raise `max_instances`: the queue is too long for it.", True),
    ErrorKind("overloaded", Fault.CAPACITY, 503, "The machine is at its limit: try again after Retry-After seconds.", True),
    ErrorKind("start_failed", _P, 503, "No instance could be started: `dayfly doctor` and the node's log say why.", True),
    ErrorKind("shutting_down", Fault.CAPACITY, 503, "The platform is stopping or restarting: try again.", True),
    ErrorKind("control_unavailable", _P, 503, "The control plane is restarting; calls keep working. Try again.", True),
    ErrorKind("storage_full", _P, 507, "Free disk space below the data directory."),
    ErrorKind(
        "data_unusable",
        _P,
        503,
        "Start the database server, or mend the data directory: the release that wrote it, its owner, mode or files.",
    ),
    ErrorKind("isolation_refused", _P, 503, "This machine lacks a wall that strict isolation demands: see `dayfly doctor`."),
    ErrorKind("internal", _P, 500, "This is a defect of Dayfly: report it with the incident id.", False),
)

BY_CODE: dict[str, ErrorKind] = {kind.code: kind for kind in KINDS}


class Refusal(Exception):
    """Something was refused or failed, with a code from the table above.

    `detail` says what happened in one sentence for the person who reads it; `extra` is shown with it (a traceback, a
    list of problems). `retry_after_seconds` is set for capacity errors.
    """

    def __init__(self, code: str, detail: str, *, retry_after_seconds: float | None = None, extra: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.kind = BY_CODE[code]
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}

    def body(self, call_id: str = "") -> dict[str, object]:
        """The error as every native answer shows it: {"error": {...}}."""
        kind = self.kind
        error: dict[str, object] = {
            "code": kind.code,
            "fault": kind.fault.value,
            "message": self.detail,
            "hint": kind.hint,
            "retryable": kind.retryable,
        }
        if call_id:
            error["call_id"] = call_id
        return {"error": error | self.extra}
