"""Routes of functions: list, deploy, describe, remove, roll back, aliases. Parse, one verb of control, print."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Router, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from dayfly.api.auth import NAME_OPT, NamespaceQuery, NamespacesQuery, Target, control_of, needs, readable, target_of
from dayfly.api.limits import states
from dayfly.api.numbers import statistics_of, usage_answer
from dayfly.api.openapi import DeployOperation
from dayfly.api.shapes import (
    AliasAnswer,
    AliasOrder,
    FunctionDescription,
    FunctionList,
    FunctionSummary,
    Removed,
    RollbackOrder,
    version_of,
    weights_of,
)
from dayfly.api.upload import receive
from dayfly.control.deploy import Order
from dayfly.control.events import Event
from dayfly.control.functions import Summary
from dayfly.core.model.limits import Consumed
from dayfly.core.model.names import checked_name
from dayfly.store.usage import UsageDay

AnyRequest = Request[Any, Any, Any]
NDJSON = "application/x-ndjson"
_encode = msgspec.json.Encoder().encode


@get("/api/v1/functions", guards=[needs("read")])
async def list_functions(request: AnyRequest, namespace: NamespacesQuery = "") -> FunctionList:
    """List functions."""
    found = await control_of(request).functions.list(await readable(request))
    return FunctionList(functions=[FunctionSummary(**_summary(summary)) for summary in found])


@put(
    "/api/v1/functions/{name:str}",
    guards=[needs("deploy")],
    request_max_body_size=None,
    media_type=NDJSON,
    operation_class=DeployOperation,
    responses={
        200: ResponseSpec(
            Event, media_type=NDJSON, generate_examples=False, description="One event a line; the last is deployed or failed."
        )
    },
    opt={NAME_OPT: True},
)
async def deploy(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> Stream:
    """Deploy a function."""
    control, target = control_of(request), _target(request)
    upload = await receive(
        request.headers.get("content-type", ""),
        request.stream(),
        Path(control.layout.builds),
        control.settings.upload_bytes_max,
    )
    order = Order(
        namespace=target.namespace,
        name=target.name,
        bundle=upload.bundle,
        overrides=upload.config,
        default_runtime=control.default_runtime,
    )
    return Stream(_lines(control.deploy(order)), media_type=NDJSON)


@get("/api/v1/functions/{name:str}", guards=[needs("read")], opt={NAME_OPT: True})
async def describe(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> FunctionDescription:
    """Describe a function."""
    control, target = control_of(request), _target(request)
    found = await control.functions.describe(target.namespace, target.name)
    config = found.summary.version.config
    limits = states("function", config.limits, _consumed(found.usage_today))
    return FunctionDescription(
        **_summary(found.summary),
        config=config,
        walls=list(found.walls),
        missing=list(found.missing),
        versions=[version_of(version) for version in found.versions],
        aliases={alias.name: weights_of(alias) for alias in found.aliases},
        statistics=statistics_of(found.statistics, found.summary.version.config.memory_mb, control.settings),
        usage_today=usage_answer(found.usage_today, control.settings),
        limits=limits + states("namespace", *control.access.limits(target.namespace)),
    )


@delete("/api/v1/functions/{name:str}", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def remove(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> Removed:
    """Remove a function."""
    target = _target(request)
    await control_of(request).functions.remove(target.namespace, target.name)
    return Removed(removed=target.name)


@post("/api/v1/functions/{name:str}/rollback", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def rollback(
    request: AnyRequest, name: FromPath[str], data: JSONBody[RollbackOrder | None] = None, namespace: NamespaceQuery = ""
) -> AliasAnswer:
    """Roll back."""
    target = _target(request)
    alias = await control_of(request).functions.rollback(target.namespace, target.name, data.to if data else None)
    return AliasAnswer(name=alias.name, weights=weights_of(alias))


@put("/api/v1/functions/{name:str}/aliases/{alias:str}", guards=[needs("deploy")], opt={NAME_OPT: True})
async def put_alias(
    request: AnyRequest, name: FromPath[str], alias: FromPath[str], data: JSONBody[AliasOrder], namespace: NamespaceQuery = ""
) -> AliasAnswer:
    """Point an alias."""
    target = _target(request)
    made = await control_of(request).functions.put_alias(target.namespace, target.name, checked_name(alias, "alias"), data.weights)
    return AliasAnswer(name=made.name, weights=weights_of(made))


@delete("/api/v1/functions/{name:str}/aliases/{alias:str}", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def drop_alias(request: AnyRequest, name: FromPath[str], alias: FromPath[str], namespace: NamespaceQuery = "") -> Removed:
    """Remove an alias."""
    target = _target(request)
    await control_of(request).functions.drop_alias(target.namespace, target.name, alias)
    return Removed(removed=alias)


def _consumed(day: UsageDay) -> Consumed:
    return Consumed(day.namespace, day.function, day.calls, day.mb_ms, day.bytes_out)


def _target(request: AnyRequest) -> Target:
    return target_of(request, named=True)


def _summary(summary: Summary) -> dict[str, Any]:
    config = summary.version.config
    return {
        "namespace": summary.namespace,
        "name": summary.name,
        "url": summary.url,
        "routes": [route.text for route in config.route],
        "version": summary.version.number,
        "live": weights_of(summary.live),
        "runtime": config.runtime,
        "memory_mb": config.memory_mb,
        "auth": config.auth,
        "created_at": summary.created_at,
        "updated_at": summary.version.created_at,
    }


async def _lines(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        yield _encode(event) + b"\n"


ROUTES = Router(
    "/",
    route_handlers=[list_functions, deploy, describe, remove, rollback, put_alias, drop_alias],
    tags=["functions"],
)
