"""Routes of the platform itself: status, doctor, namespaces, tokens, secrets, logs. Parse, one verb of control, print."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from dayfly import __version__
from dayfly.api import shapes
from dayfly.api.auth import NamespaceQuery, NamespacesQuery, bearer, control_of, needs, needs_somewhere, readable, target_of
from dayfly.api.openapi import RawBodyOperation
from dayfly.control.access import SECRET_VALUE_BYTES_MAX
from dayfly.control.plane import Control
from dayfly.core.decide.access import visible
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Token
from dayfly.core.model.names import CALL_ID, checked_name
from dayfly.core.model.records import LogRecord
from dayfly.store.logs import READ_MAX, LogQuery

AnyRequest = Request[Any, Any, Any]
NDJSON = "application/x-ndjson"
SinceQuery = Annotated[float, QueryParameter(name="since", required=False, ge=0, description="Epoch seconds; older ones are left out.")]
LimitQuery = Annotated[int, QueryParameter(name="limit", required=False, ge=0, le=READ_MAX, description="The newest so many.")]
FollowQuery = Annotated[bool, QueryParameter(name="follow", required=False, description="Go on with new records as they come.")]

_encode = msgspec.json.Encoder().encode


@get("/api/v1/status", guards=[needs("read")])
async def status(request: AnyRequest, namespace: NamespaceQuery = "") -> shapes.Status:
    """The platform as control sees it."""
    control = control_of(request)
    try:
        await control.node.facts()
        node = "ok"
    except Refusal as error:
        node = error.detail
    latest = {gateway.gateway: gateway for gateway in control.sums.gateways()}
    return shapes.Status(
        version=__version__,
        python=sys.version.split()[0],
        installation_id=control.installation_id,
        isolation=control.settings.isolation,
        uptime_seconds=round(time.time() - control.started_at, 3),
        node=node,
        gateways=[
            shapes.GatewayAnswer(
                name=name,
                pid=pid,
                connections=latest[name].connections if name in latest else 0,
                requests=latest[name].requests if name in latest else 0,
                cpu_pressure=round(latest[name].cpu_pressure, 3) if name in latest else 0.0,
            )
            for name, pid in control.link.peers
        ],
        functions=len(control.catalog.functions),
        instances=sum(numbers.instances for numbers in control.sums.by_function().values()),
        deploys_running=control.deploys_running,
        logs_dropped=control.logs.dropped,
        usage_dropped=control.usage.dropped,
    )


@get("/api/v1/doctor", guards=[needs("read")])
async def doctor(request: AnyRequest, namespace: NamespaceQuery = "") -> shapes.Doctor:
    """What this machine offers."""
    control = control_of(request)
    facts = await control.node.facts()
    return shapes.Doctor(isolation=control.settings.isolation, runtimes=facts.runtimes, features=facts.features, instances=facts.instances)


@get("/api/v1/namespaces", guards=[needs_somewhere("read")])
async def list_namespaces(request: AnyRequest) -> shapes.NamespaceList:
    """Namespaces the token may read."""
    token = bearer(request)
    assert token is not None, "the guard ran first"
    names = visible(token, "read", tuple(await control_of(request).access.namespaces()))
    return shapes.NamespaceList(namespaces=[shapes.NamespaceAnswer(name=name) for name in names])


@post("/api/v1/namespaces", guards=[needs("admin", everywhere=True)])
async def make_namespace(request: AnyRequest, data: JSONBody[shapes.NamespaceOrder]) -> shapes.NamespaceAnswer:
    """Make a namespace."""
    await control_of(request).access.make_namespace(data.name)
    return shapes.NamespaceAnswer(name=data.name)


@delete("/api/v1/namespaces/{name:str}", guards=[needs("admin", everywhere=True)], status_code=200)
async def drop_namespace(request: AnyRequest, name: FromPath[str]) -> shapes.Removed:
    """Remove an empty namespace."""
    await control_of(request).access.drop_namespace(name)
    return shapes.Removed(removed=name)


@get("/api/v1/tokens", guards=[needs("admin", everywhere=True)])
async def list_tokens(request: AnyRequest) -> shapes.TokenList:
    """List tokens, without their texts."""
    tokens = control_of(request).catalog.tokens.values()
    return shapes.TokenList(tokens=[shapes.TokenAnswer(**_token(token)) for token in tokens])


@post("/api/v1/tokens", guards=[needs("admin", everywhere=True)])
async def make_token(request: AnyRequest, data: JSONBody[shapes.TokenOrder]) -> shapes.TokenMade:
    """Make a token; its text is shown once."""
    token, text = await control_of(request).access.make_token(data.name, tuple(data.namespaces), tuple(data.verbs))
    return shapes.TokenMade(**_token(token), token=text)


@delete("/api/v1/tokens/{token_id:str}", guards=[needs("admin", everywhere=True)], status_code=200)
async def drop_token(request: AnyRequest, token_id: FromPath[str]) -> shapes.Removed:
    """Remove a token."""
    await control_of(request).access.drop_token(token_id)
    return shapes.Removed(removed=token_id)


@get("/api/v1/secrets", guards=[needs("deploy")])
async def list_secrets(request: AnyRequest, namespace: NamespaceQuery = "") -> shapes.SecretList:
    """Names of secrets."""
    found = await control_of(request).access.secrets(_one_namespace(request))
    return shapes.SecretList(secrets=[shapes.SecretAnswer(name=name, updated_at=at) for name, at in found])


@put(
    "/api/v1/secrets/{name:str}",
    guards=[needs("deploy")],
    request_max_body_size=SECRET_VALUE_BYTES_MAX,
    operation_class=RawBodyOperation,
)
async def put_secret(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> shapes.SecretSet:
    """Set a secret; the body is its value."""
    await control_of(request).access.put_secret(_one_namespace(request), name, await request.body())
    return shapes.SecretSet(secret=name)


@delete("/api/v1/secrets/{name:str}", guards=[needs("deploy")], status_code=200)
async def drop_secret(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> shapes.Removed:
    """Remove a secret."""
    await control_of(request).access.drop_secret(_one_namespace(request), name)
    return shapes.Removed(removed=name)


@get(
    "/api/v1/logs",
    guards=[needs("read")],
    media_type=NDJSON,
    responses={
        200: ResponseSpec(shapes.LogLine, media_type=NDJSON, generate_examples=False, description="One record a line, oldest first.")
    },
)
async def logs(
    request: AnyRequest,
    function: FromQuery[str] = "",
    call: FromQuery[str] = "",
    since: SinceQuery = 0.0,
    limit: LimitQuery = 1000,
    follow: FollowQuery = False,
    namespace: NamespacesQuery = "",
) -> Stream:
    """Log records. A function that is not there, and of which no record is left, is an error and not an empty answer."""
    if function:
        checked_name(function)
    if call and not CALL_ID.fullmatch(call):
        raise Refusal("bad_request", f"{call[:80]!r} is no call id.")
    query = LogQuery(namespaces=await readable(request), function=function, call_id=call, since=since, limit=limit)
    control = control_of(request)
    if function and not await _known(control, query.namespaces, function):
        raise Refusal("function_not_found", f"There is no function {function!r}, and no logs of one that was removed.")
    return Stream(_followed(control, query) if follow else _read(control, query), media_type=NDJSON)


async def _known(control: Control, namespaces: tuple[str, ...], function: str) -> bool:
    """Whether the function is there, or was and left records."""
    if any((namespace, function) in control.catalog.functions for namespace in namespaces):
        return True
    return bool(await control.logs.read(LogQuery(namespaces=namespaces, function=function, limit=1)))


async def _read(control: Control, query: LogQuery) -> AsyncIterator[bytes]:
    yield _lines(await control.logs.read(query))


async def _followed(control: Control, query: LogQuery) -> AsyncIterator[bytes]:
    """Records until the client leaves or control ends."""
    batches = control.logs.follow(query)
    closing = asyncio.create_task(control.closing.wait())
    try:
        while True:
            batch = asyncio.ensure_future(anext(batches))
            await asyncio.wait((batch, closing), return_when=asyncio.FIRST_COMPLETED)
            if not batch.done():
                batch.cancel()
                return
            yield _lines(batch.result())
    finally:
        closing.cancel()


def _lines(records: list[LogRecord]) -> bytes:
    return b"".join(_encode(shapes.LogLine(**msgspec.structs.asdict(record))) + b"\n" for record in records)


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "namespaces": list(token.namespaces),
        "verbs": list(token.verbs),
        "created_at": token.created_at,
    }


def _one_namespace(request: AnyRequest) -> str:
    namespace = target_of(request, named=False).namespace
    return checked_name(namespace, "namespace")


ROUTES = Router(
    "/",
    route_handlers=[
        *(status, doctor, logs, list_secrets, put_secret, drop_secret, list_namespaces, make_namespace, drop_namespace),
        *(list_tokens, make_token, drop_token),
    ],
    tags=["platform"],
)
