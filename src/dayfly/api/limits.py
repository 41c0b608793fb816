"""Routes of a namespace's limits, and limits as people and scrapers read them: value, and what was used of it today."""

from typing import Any

import msgspec
from litestar import Request, Router, get, put
from litestar.params import FromPath, JSONBody

from dayfly.api.auth import bearer, control_of, needs, needs_somewhere
from dayfly.api.shapes import LimitAnswer, NamespaceLimits
from dayfly.control import quotas
from dayfly.control.plane import Control
from dayfly.core.decide.access import visible
from dayfly.core.manifest.limits import checked_limits
from dayfly.core.model.errors import Refusal
from dayfly.core.model.limits import Consumed, Limits
from dayfly.core.model.names import checked_name

AnyRequest = Request[Any, Any, Any]


@get("/api/v1/namespaces/{name:str}/limits", guards=[needs_somewhere("read")])
async def namespace_limits(request: AnyRequest, name: FromPath[str]) -> NamespaceLimits:
    """Show a namespace's limits and what was used of them today."""
    token = bearer(request)
    assert token is not None, "the guard ran first"
    if not visible(token, "read", (checked_name(name, "namespace"),)):
        raise Refusal("forbidden", f"Token {token.id} may not read in namespace {name!r}.")
    control = control_of(request)
    if name not in await control.access.namespaces():
        raise Refusal("not_found", f"There is no namespace {name!r}.")
    return _answer(control, name)


@put("/api/v1/namespaces/{name:str}/limits", guards=[needs("admin", everywhere=True)])
async def put_namespace_limits(request: AnyRequest, name: FromPath[str], data: JSONBody[Limits]) -> NamespaceLimits:
    """Replace a namespace's limits."""
    problems: list[str] = []
    limits = checked_limits(msgspec.to_builtins(data), problems)
    if problems:
        raise Refusal("bad_request", " ".join(problems[:3]), extra={"problems": problems})
    control = control_of(request)
    await control.access.put_limits(checked_name(name, "namespace"), limits)
    return _answer(control, name)


def _answer(control: Control, namespace: str) -> NamespaceLimits:
    limits, today = control.access.limits(namespace)
    return NamespaceLimits(namespace=namespace, limits=limits, state=states("namespace", limits, today))


def states(scope: str, limits: Limits, today: Consumed) -> list[LimitAnswer]:
    """What is limited, one answer each."""
    return [
        LimitAnswer(scope=scope, limit=name, value=value, used_today=used if used is None else round(used, 3))
        for name, value, used in quotas.rows(limits, today)
    ]


ROUTES = Router("/", route_handlers=[namespace_limits, put_namespace_limits], tags=["limits"])
