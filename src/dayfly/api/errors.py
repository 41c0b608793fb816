"""Errors of the control API, translated once: Refusal and the framework's own exceptions → {"error": {…}} with our codes.

Anything else is a defect of ours: answered 500 `internal` with an incident id, logged with its traceback under the same id,
and never with a body or a header of the request, which may hold secrets.
"""

from math import ceil
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException

from dayfly.control.plane import defect
from dayfly.core.model.errors import Refusal

AnyRequest = Request[Any, Any, Any]

DEEP = "while deserializing"  # msgspec's words

_BY_STATUS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "body_too_large",
    414: "uri_too_long",
    431: "header_too_large",
}


def refused(_request: AnyRequest, refusal: Refusal) -> Response[dict[str, object]]:
    """A Refusal as an answer."""
    headers: dict[str, str] = {}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, ceil(refusal.retry_after_seconds)))
    if refusal.kind.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(refusal.body(), status_code=refusal.kind.status, headers=headers, media_type="application/json")


def framework_refused(request: AnyRequest, error: HTTPException) -> Response[dict[str, object]]:
    """What the framework found wrong: routing, methods, JSON, parameters."""
    if error.status_code >= 500:
        return failed(request, error)
    code = _BY_STATUS.get(error.status_code, "bad_request")
    if isinstance(error.__cause__, SerializationException):
        code = "bad_json"
    answer = refused(request, Refusal(code, _detail(error)))
    if error.headers and "allow" in {name.lower() for name in error.headers}:
        answer.headers["Allow"] = next(value for name, value in error.headers.items() if name.lower() == "allow")
    return answer


def failed(request: AnyRequest, error: Exception) -> Response[dict[str, object]]:
    """A defect of ours; but a body that is nested deeper than a decoder goes is the caller's."""
    if isinstance(error, RecursionError) and DEEP in str(error):
        return refused(request, Refusal("bad_json", "The body is nested too deep."))
    return refused(request, defect("request_defect", error))


def _detail(error: HTTPException) -> str:
    """One sentence; for parameters and bodies, the first thing that is wrong and where."""
    extra = error.extra if isinstance(error.extra, list) else []
    found = extra[0] if extra and isinstance(extra[0], dict) else {}
    if found:
        where = str(found.get("key", "")) or str(found.get("source", ""))
        return f"{where}: {found.get('message', 'is not valid')}".removeprefix(": ")
    return {404: "There is nothing at this address.", 405: "This address does not take this method."}.get(
        error.status_code, error.detail or "The request is not valid."
    )
