"""Routes of asynchronous calls: look, wait, list, cancel, redrive, purge. Parse, one verb of control, print.

Who may invoke in a call's namespace may look at it by its id, wait for it and cancel it; lists want `read`; redriving wants `invoke`,
purging `deploy`. To anybody else a call is not there.
"""

import asyncio
import re
from collections import Counter
from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from dayfly.api.auth import NamespaceQuery, NamespacesQuery, bearer, control_of, needs, readable, target_of
from dayfly.api.durable_shapes import (
    CallAnswer,
    CallbackKey,
    CallList,
    CallsChanged,
    CallsOrder,
    CallSummary,
    LaneAnswer,
    LaneList,
    call_of,
    headers_of,
    summary_of,
)
from dayfly.control.calls import IDS_MAX, Seen
from dayfly.core.decide.access import ALL_NAMESPACES, allowed
from dayfly.core.model.durable import split_lane
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import CALL_ID, checked_name
from dayfly.store.queue import STATES

AnyRequest = Request[Any, Any, Any]
LIST_MAX = 500
WAIT_SECONDS_MAX = 60.0
_WAIT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?)(s|m)?")
_CURSOR = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)_(.+)")

StateQuery = Annotated[str, QueryParameter(name="state", required=False, description="waiting, leased, done or dead.")]
WaitQuery = Annotated[str, QueryParameter(name="wait", required=False, description="Answer once it is settled, within 30s (at most 60s).")]
BeforeQuery = Annotated[str, QueryParameter(name="before", required=False, description="`next` of the page before.")]
LimitQuery = Annotated[int, QueryParameter(name="limit", required=False, ge=1, le=LIST_MAX, description="At most so many.")]


def _needs_any(connection: Any, _handler: Any) -> None:
    if bearer(connection) is None:
        raise Refusal("unauthorized", "This needs a valid token.")


@get("/api/v1/calls", guards=[needs("read")])
async def list_calls(
    request: AnyRequest,
    function: FromQuery[str] = "",
    wanted: StateQuery = "",
    tag: FromQuery[str] = "",
    before: BeforeQuery = "",
    limit: LimitQuery = 100,
    namespace: NamespacesQuery = "",
) -> CallList:
    """List asynchronous calls, newest first."""
    if wanted and wanted not in STATES:
        raise Refusal("bad_request", f"state={wanted[:40]}: must be one of {', '.join(STATES)}.")
    if function and function != "@callback":
        checked_name(function)
    cursor = _CURSOR.fullmatch(before) if before else None
    if before and (cursor is None or not CALL_ID.fullmatch(cursor[2])):
        raise Refusal("bad_request", "before= is no `next` of a page.")
    items = await control_of(request).calls.newest(
        await readable(request),
        function=function,
        states=(wanted,) if wanted else (),
        tag=tag[:255],
        before=(float(cursor[1]), cursor[2]) if cursor else None,
        limit=limit,
    )
    following = f"{items[-1].accepted_at!r}_{items[-1].id}" if len(items) == limit else ""
    return CallList(calls=[CallSummary(**summary_of(item)) for item in items], next=following)


@get("/api/v1/queues", guards=[needs("read")])
async def list_queues(request: AnyRequest, namespace: NamespacesQuery = "") -> LaneList:
    """How many calls wait, run, are done and dead, by function; those of its maps are among them."""
    counts = await control_of(request).calls.counts(await readable(request))
    sums: dict[tuple[str, str], Counter[str]] = {}
    for lane, states in counts.items():
        sums.setdefault(split_lane(lane), Counter()).update(states)
    return LaneList([LaneAnswer(*function, *(states[state] for state in STATES)) for function, states in sorted(sums.items())])


@get("/api/v1/calls/{call_id:str}", guards=[_needs_any])
async def show_call(request: AnyRequest, call_id: FromPath[str], wait: WaitQuery = "") -> CallAnswer:
    """A call: its state, attempts and result."""
    control = control_of(request)
    seen = await _seen(request, call_id, _seconds(wait) if wait else 0.0)
    return call_of(seen, await control.calls.result(seen), control.settings)


@get("/api/v1/calls/{call_id:str}/result", guards=[_needs_any])
async def call_result(request: AnyRequest, call_id: FromPath[str], wait: WaitQuery = "") -> Response[bytes]:
    """The body of a call's answer, as the function sent it."""
    seen = await _seen(request, call_id, _seconds(wait) if wait else 0.0)
    if seen.result is None:
        raise Refusal("conflict", f"The call is {seen.item.state}: it has no result{'' if seen.settled else ' yet'}.")
    kind = headers_of(seen.result.headers).get("content-type", "application/json" if seen.stored.kind == "direct" else "")
    headers = {"X-Dayfly-Status": str(seen.result.status), "X-Dayfly-Ok": "true" if seen.result.ok else "false"}
    body = await control_of(request).calls.result(seen)
    return Response(body, media_type=kind or "application/octet-stream", headers=headers)


@post("/api/v1/calls/{call_id:str}/cancel", guards=[_needs_any], status_code=200)
async def cancel_call(request: AnyRequest, call_id: FromPath[str]) -> CallsChanged:
    """Cancel a call that waits or runs."""
    words = await control_of(request).calls.cancel([call_id], _namespaces(request, "invoke"))
    if words == ["unknown"]:
        raise _not_found(call_id)
    if words == ["settled"]:
        raise Refusal("conflict", "The call is settled already.")
    return CallsChanged({call_id: words[0]})


@post("/api/v1/calls/{call_id:str}/redrive", guards=[_needs_any], status_code=200)
async def redrive_call(request: AnyRequest, call_id: FromPath[str]) -> CallsChanged:
    """Let a dead call run again."""
    await _seen(request, call_id, 0.0)
    if await control_of(request).calls.redrive([call_id], _namespaces(request, "invoke")) != [True]:
        raise Refusal("conflict", "Only a dead call can be redriven.")
    return CallsChanged({call_id: "waiting"})


@delete("/api/v1/calls/{call_id:str}", guards=[_needs_any], status_code=200)
async def purge_call(request: AnyRequest, call_id: FromPath[str]) -> CallsChanged:
    """Delete a call that does not run, with its result."""
    await _seen(request, call_id, 0.0)
    if await control_of(request).calls.purge([call_id], _namespaces(request, "deploy")) != [True]:
        raise Refusal("conflict", "The call runs, or this token may not purge it; cancel it first.")
    return CallsChanged({call_id: "purged"})


@post("/api/v1/calls/cancel", guards=[_needs_any], status_code=200)
async def cancel_calls(request: AnyRequest, data: JSONBody[CallsOrder]) -> CallsChanged:
    """Cancel several calls by their ids."""
    if data.function:
        raise Refusal("bad_request", "Calls are cancelled by their ids.")
    words = await control_of(request).calls.cancel(data.ids, _namespaces(request, "invoke"))
    return CallsChanged(dict(zip(data.ids, words, strict=True)))


@post("/api/v1/calls/redrive", guards=[_needs_any], status_code=200)
async def redrive_calls(request: AnyRequest, data: JSONBody[CallsOrder], namespace: NamespaceQuery = "") -> CallsChanged:
    """Let dead calls run again: those named, or a function's."""
    ids, more = await _ordered(request, data, "invoke")
    went = await control_of(request).calls.redrive(ids, _namespaces(request, "invoke"))
    return CallsChanged({id_: "waiting" if took else "not dead" for id_, took in zip(ids, went, strict=True)}, more)


@post("/api/v1/calls/purge", guards=[_needs_any], status_code=200)
async def purge_calls(request: AnyRequest, data: JSONBody[CallsOrder], namespace: NamespaceQuery = "") -> CallsChanged:
    """Delete calls that do not run: those named, or a function's dead ones."""
    ids, more = await _ordered(request, data, "deploy")
    went = await control_of(request).calls.purge(ids, _namespaces(request, "deploy"))
    return CallsChanged({id_: "purged" if took else "kept" for id_, took in zip(ids, went, strict=True)}, more)


@get("/api/v1/callback-key", guards=[needs("deploy")])
async def callback_key(request: AnyRequest, namespace: NamespaceQuery = "") -> CallbackKey:
    """The key that a namespace's callbacks are signed with."""
    target = target_of(request, named=False)
    return CallbackKey(control_of(request).callbacks.key(checked_name(target.namespace, "namespace")))


async def _ordered(request: AnyRequest, order: CallsOrder, verb: str) -> tuple[list[str], bool]:
    """The ids that an order means, and whether there are more."""
    if bool(order.ids) == bool(order.function):
        raise Refusal("bad_request", "Name either ids or a function.")
    if order.ids:
        return order.ids, False
    target = target_of(request, named=False)
    token = bearer(request)
    if not allowed(token, verb, target.namespace):
        raise Refusal("forbidden", f"This token may not {verb} in namespace {target.namespace!r}.")
    function = order.function if order.function == "@callback" else checked_name(order.function)
    items = await control_of(request).calls.newest((target.namespace,), function=function, states=("dead",), limit=IDS_MAX)
    return [item.id for item in items], len(items) == IDS_MAX


async def _seen(request: AnyRequest, call_id: str, seconds: float) -> Seen:
    control = control_of(request)
    namespaces = _namespaces(request, "invoke", "read")
    if not seconds:
        return await control.calls.get(call_id, namespaces)
    waiting = asyncio.create_task(control.calls.wait(call_id, namespaces, seconds))
    closing = asyncio.create_task(control.closing.wait())
    try:
        await asyncio.wait((waiting, closing), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    finally:
        closing.cancel()
        waiting.cancel()
    return await control.calls.get(call_id, namespaces)


def _namespaces(request: AnyRequest, *verbs: str) -> tuple[str, ...] | None:
    """Where the bearer may use one of `verbs`; None: everywhere."""
    token = bearer(request)
    if any(allowed(token, verb, ALL_NAMESPACES) for verb in verbs):
        return None
    return tuple(name for name in (token.namespaces if token else ()) if any(allowed(token, verb, name) for verb in verbs))


def _seconds(text: str) -> float:
    found = _WAIT.fullmatch(text)
    seconds = float(found[1]) * (60 if found[2] == "m" else 1) if found else -1.0
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise Refusal("bad_request", f"wait={text[:40]}: write for example 30s; at most {WAIT_SECONDS_MAX:g}s.")
    return seconds


def _not_found(call_id: str) -> Refusal:
    return Refusal("call_not_found", f"There is no call {call_id[:80]!r}, or no longer.")


ROUTES = Router(
    "/",
    route_handlers=[
        *(list_calls, list_queues, show_call, call_result, cancel_call, redrive_call, purge_call),
        *(cancel_calls, redrive_calls, purge_calls, callback_key),
    ],
    tags=["calls"],
)
