"""Routes of maps: make, fill, look, results as they come, cancel, redrive, delete. Parse, one verb of control, print.

Who may invoke in a namespace may make maps there, fill, cancel and redrive them; who may invoke or read may look; deleting wants `deploy`,
as purging calls does.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from dayfly.api.auth import Guard, NamespaceQuery, NamespacesQuery, bearer, control_of, needs, readable, target_of
from dayfly.api.map_shapes import ItemAnswer, MapAnswer, MapList, NewMap, map_of
from dayfly.api.openapi import LinesOperation
from dayfly.api.shapes import Removed
from dayfly.control.map_live import Live
from dayfly.control.map_results import Wish, position
from dayfly.control.plane import Control
from dayfly.core.decide.access import ALL_NAMESPACES, allowed
from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import MapOrder

AnyRequest = Request[Any, Any, Any]
NDJSON = "application/x-ndjson"
WAIT_SECONDS_MAX = 3600.0
_WAIT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?)(s|m)?")

FirstQuery = Annotated[int, QueryParameter(name="first", required=False, ge=0, description="Index of the first item that is sent.")]
LastQuery = Annotated[bool, QueryParameter(name="last", required=False, description="No items come after these.")]
OrderQuery = Annotated[str, QueryParameter(name="order", required=False, description="input or completed.")]
AfterQuery = Annotated[str, QueryParameter(name="after", required=False, description="`after` of the last line that you have.")]
WaitQuery = Annotated[str, QueryParameter(name="wait", required=False, description="Go on with what comes, for 30s, 10m (at most 60m).")]
ProgressQuery = Annotated[bool, QueryParameter(name="progress", required=False, description='With lines {"progress": …} between.')]


def needs_one_of(*verbs: str) -> Guard:
    """A guard: the bearer may use one of these in the namespace that the address names."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        token = bearer(connection)
        if token is None:
            raise Refusal("unauthorized", "This needs a valid token.")
        namespace = target_of(connection, named=False).namespace
        if not any(allowed(token, verb, namespace) for verb in verbs):
            raise Refusal("forbidden", f"Token {token.id} may not {' or '.join(verbs)} in namespace {namespace!r}.")

    return guard


@get("/api/v1/maps", guards=[needs("read")])
async def list_maps(request: AnyRequest, namespace: NamespacesQuery = "") -> MapList:
    """List maps, newest first."""
    control = control_of(request)
    return MapList([map_of(live, control.maps) for live in control.maps.all(await readable(request))])


@post("/api/v1/maps", guards=[needs("invoke")], status_code=201)
async def make_map(request: AnyRequest, data: JSONBody[NewMap], namespace: NamespaceQuery = "") -> Response[MapAnswer]:
    """Make a map, without items. The same id and order again is the same map, and 200."""
    control = control_of(request)
    order = MapOrder(
        function=data.function, qualifier=data.qualifier, concurrency=data.concurrency, reduce=data.reduce, fail_fast=data.fail_fast
    )
    live, made = await control.maps.make(_namespace(request), data.id, order)
    await control.maps.ready(live)
    return Response(map_of(live, control.maps), status_code=201 if made else 200)


@post(
    "/api/v1/maps/{map_id:str}/items",
    guards=[needs("invoke")],
    status_code=200,
    request_max_body_size=None,
    operation_class=LinesOperation,
)
async def send_items(
    request: AnyRequest, map_id: FromPath[str], first: FirstQuery = 0, last: LastQuery = False, namespace: NamespaceQuery = ""
) -> MapAnswer:
    """Send items, one JSON value a line. They run as they come; what was sent before is passed over."""
    control, live = _found(request, map_id)
    await control.maps.feed(live, first, _bounded(request, control.settings.upload_bytes_max), whole=last)
    return map_of(live, control.maps)


@get("/api/v1/maps/{map_id:str}", guards=[needs_one_of("invoke", "read")])
async def show_map(request: AnyRequest, map_id: FromPath[str], wait: WaitQuery = "", namespace: NamespaceQuery = "") -> MapAnswer:
    """A map: its state and how far it is. With `wait`, answered once it has ended."""
    control, live = _found(request, map_id)
    await control.maps.ready(live)
    loop = asyncio.get_running_loop()
    until = loop.time() + _seconds(wait)
    while not live.record.ended and (left := until - loop.time()) > 0 and not control.closing.is_set():
        await control.maps.wait(live, min(left, 1.0))
    return map_of(live, control.maps)


@get(
    "/api/v1/maps/{map_id:str}/results",
    guards=[needs_one_of("invoke", "read")],
    media_type=NDJSON,
    responses={200: ResponseSpec(ItemAnswer, media_type=NDJSON, generate_examples=False, description="One result a line.")},
)
async def map_results(
    request: AnyRequest,
    map_id: FromPath[str],
    order: OrderQuery = "input",
    after: AfterQuery = "",
    wait: WaitQuery = "",
    progress: ProgressQuery = False,
    namespace: NamespaceQuery = "",
) -> Stream:
    """What became of the items."""
    if order not in ("input", "completed"):
        raise Refusal("bad_request", f"order={order[:40]}: must be input or completed.")
    control, live = _found(request, map_id)
    wish = Wish(completed=order == "completed", after=after, seconds=_seconds(wait), progress=progress)
    position(wish)
    lines = control.results.stream(live, wish, lambda it: map_of(it, control.maps))
    return Stream(_until_closing(control, lines), media_type=NDJSON)


@get("/api/v1/maps/{map_id:str}/result", guards=[needs_one_of("invoke", "read")])
async def map_result(request: AnyRequest, map_id: FromPath[str], namespace: NamespaceQuery = "") -> Response[bytes]:
    """What the reducer answered."""
    control, live = _found(request, map_id)
    record = live.record
    if not record.result:
        why = "it has no reducer" if not record.order.reduce else f"it is {record.state}"
        raise Refusal("conflict", f"The map has no result: {why}.")
    seen = await control.calls.get(record.result, (record.namespace,))
    return Response(await control.calls.result(seen), media_type="application/json")


@post("/api/v1/maps/{map_id:str}/cancel", guards=[needs("invoke")], status_code=200)
async def cancel_map(request: AnyRequest, map_id: FromPath[str], namespace: NamespaceQuery = "") -> MapAnswer:
    """Cancel a map: what waits never runs, what runs is ended where that is possible."""
    control, live = _found(request, map_id)
    await control.maps.cancel(live)
    return map_of(live, control.maps)


@post("/api/v1/maps/{map_id:str}/redrive", guards=[needs("invoke")], status_code=200)
async def redrive_map(request: AnyRequest, map_id: FromPath[str], namespace: NamespaceQuery = "") -> MapAnswer:
    """Let the items that failed run again, and then the reducer."""
    control, live = _found(request, map_id)
    await control.maps.redrive(live)
    await control.maps.ready(live)
    return map_of(live, control.maps)


@delete("/api/v1/maps/{map_id:str}", guards=[needs("deploy")], status_code=200)
async def delete_map(request: AnyRequest, map_id: FromPath[str], namespace: NamespaceQuery = "") -> Removed:
    """Delete a map that has ended, with its results."""
    control, live = _found(request, map_id)
    await control.maps.delete(live)
    return Removed(removed=live.record.id)


def _found(request: AnyRequest, map_id: str) -> tuple[Control, Live]:
    control = control_of(request)
    return control, control.maps.get(_namespace(request), map_id)


def _namespace(request: AnyRequest) -> str:
    namespace = target_of(request, named=False).namespace
    if namespace == ALL_NAMESPACES:
        raise Refusal("bad_request", "A map is in one namespace: '*' is for lists.")
    return namespace


async def _bounded(request: AnyRequest, bytes_max: int) -> AsyncIterator[bytes]:
    total = 0
    async for data in request.stream():
        total += len(data)
        if total > bytes_max:
            raise Refusal("body_too_large", f"The upload is over {bytes_max} bytes (upload_bytes_max): send the rest by itself.")
        yield data


async def _until_closing(control: Control, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines until they end, the client leaves or control ends."""
    closing = asyncio.create_task(control.closing.wait())
    try:
        while True:
            following = asyncio.ensure_future(anext(lines, None))
            await asyncio.wait((following, closing), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                return
            data = following.result()
            if data is None:
                return
            yield data
    finally:
        closing.cancel()


def _seconds(text: str) -> float:
    if not text:
        return 0.0
    found = _WAIT.fullmatch(text)
    seconds = float(found[1]) * (60 if found[2] == "m" else 1) if found else -1.0
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise Refusal("bad_request", f"wait={text[:40]}: write for example 30s or 10m; at most {WAIT_SECONDS_MAX / 60:g}m.")
    return seconds


ROUTES = Router(
    "/",
    route_handlers=[
        *(list_maps, make_map, send_items, show_map, map_results, map_result),
        *(cancel_map, redrive_map, delete_map),
    ],
    tags=["maps"],
)
