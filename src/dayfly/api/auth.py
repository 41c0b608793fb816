"""Who is asking, and whether they may: the one place of the control API that looks at a token.

A route says which verb it needs (`needs("read")`); the guard takes the bearer token apart, compares digests in constant time,
and asks for the namespace that the address names. It runs before anything is looked up, so a stranger cannot learn what exists.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter

from dayfly.control.plane import Control
from dayfly.core.decide.access import ALL_NAMESPACES, allowed, parse_token, verified, visible
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Token
from dayfly.core.model.names import DEFAULT_NAMESPACE, checked_name, split_qualified

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], None]
NamespaceQuery = Annotated[str, QueryParameter(name="namespace", required=False, description="Namespace; `default` when left out.")]
NamespacesQuery = Annotated[
    str, QueryParameter(name="namespace", required=False, description="Namespace, or `*` for every one the token may read.")
]
NAME_OPT = "name_is_function"  # routes whose path parameter `name` may carry a namespace, as in `NAME.NS`


class Target(msgspec.Struct, frozen=True):
    """What a request is about. `name` is "" where the address names only a namespace."""

    namespace: str
    name: str


def control_of(connection: Connection) -> Control:
    """The control plane behind this application."""
    control: Control = connection.app.state.control
    return control


def bearer(connection: Connection) -> Token | None:
    """The token of the Authorization header, when it is one of ours. The same work is done for ids that nobody has."""
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    parsed = parse_token(text.strip()) if scheme.lower() == "bearer" else None
    if parsed is None:
        return None
    token_id, secret = parsed
    return verified(control_of(connection).catalog.tokens.get(token_id), secret)


def needs_somewhere(verb: str) -> Guard:
    """A guard for lists of what a token may see: the bearer may use `verb` in any namespace at all."""

    def guard(connection: Connection, _handler: BaseRouteHandler) -> None:
        token = _known_bearer(connection)
        if not any(allowed(token, verb, namespace) for namespace in token.namespaces):
            raise Refusal("forbidden", f"Token {token.id} may not {verb} anywhere.")

    return guard


def needs(verb: str, *, everywhere: bool = False) -> Guard:
    """A guard: the bearer may use `verb` in the namespace the address names, or in all of them (`everywhere`)."""

    def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        token = _known_bearer(connection)
        namespace = ALL_NAMESPACES if everywhere else target_of(connection, named=bool(handler.opt.get(NAME_OPT))).namespace
        if namespace == ALL_NAMESPACES and not everywhere:
            return needs_somewhere(verb)(connection, handler)
        if allowed(token, verb, namespace):
            return None
        where = "all namespaces" if namespace == ALL_NAMESPACES else f"namespace {namespace!r}"
        raise Refusal("forbidden", f"Token {token.id} may not {verb} in {where}.")

    return guard


def _known_bearer(connection: Connection) -> Token:
    token = bearer(connection)
    if token is None:
        raise Refusal("unauthorized", "This needs a valid token.")
    return token


def target_of(connection: Connection, *, named: bool) -> Target:
    """Namespace and name that the address means: `?namespace=NS`, or `NAME.NS` in a function's place; both must agree."""
    asked = connection.query_params.get("namespace") or ""
    name = str(connection.path_params.get("name", "")) if named else ""
    namespace = ""
    if "." in name:
        namespace, name = split_qualified(name)
        if asked and asked != namespace:
            raise Refusal("bad_request", f"The name says namespace {namespace!r}, ?namespace= says {asked!r}.")
    namespace = namespace or asked or DEFAULT_NAMESPACE
    if namespace != ALL_NAMESPACES:
        checked_name(namespace, "namespace")
    elif named:
        raise Refusal("bad_request", "One function lives in one namespace: '*' is for lists.")
    if named:
        checked_name(name)
    return Target(namespace, name)


async def readable(connection: Connection, verb: str = "read") -> tuple[str, ...]:
    """The namespaces a list is about: the one asked for, or, for '*', all in which the bearer may use `verb`."""
    namespace = target_of(connection, named=False).namespace
    if namespace != ALL_NAMESPACES:
        return (namespace,)
    token = bearer(connection)
    assert token is not None, "the guard ran first"
    return visible(token, verb, tuple(await control_of(connection).access.namespaces()))
