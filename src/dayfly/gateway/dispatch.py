"""What a request means: an invocation at one of two doors, a question the gateway answers itself, or something for control.

Called by gateway/server.py when headers are complete. Routes (core/decide/route.py), admits (core/decide/admit.py) and makes the `Reply`
that takes the body. The fast path is this file, reply.py, fleet.py and channel.py, in that order.
"""

import base64
import os
import random
import re

import msgspec

from dayfly.core.decide.admit import admit
from dayfly.core.decide.route import PREFIX, Target, parse_target, pick_version
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import CALL_ID, DEFAULT_NAMESPACE, LIVE, checked_name, split_qualified
from dayfly.core.model.settings import Settings
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.exchange import Request, Sink
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.reply import EventReply, InvokeReply, Reply

REMEMBERED_TARGETS_MAX = 4096
CLIENT_CONTEXT_BYTES_MAX = 3583
_EVENT_PREFIX = PREFIX.encode()
_INVOKE = re.compile(rb"/api/v1/functions/([^/?]+)/invoke(?:\?(.*))?")
_JSON_TEXT = b"content-type: application/json\r\n"
# Not passed to functions: hop-by-hop (RFC 9110 §7.6.1) and what the gateway has already acted on.
_DROPPED = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    )
)


class CallIds:
    """Random UUIDs for calls, bytes of them bought from the kernel in bulk."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def next(self) -> bytes:
        if self._at >= len(self._pool):
            self._pool = os.urandom(16 * 256)
            self._at = 0
        raw = bytearray(self._pool[self._at : self._at + 16])
        self._at += 16
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        text = raw.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


class Dispatch:
    """The gateway's answer to "what is this request?"."""

    def __init__(self, settings: Settings, catalog: CatalogMirror, fleet: Fleet, ledger: Ledger, forwarder: Forwarder) -> None:
        self.settings = settings
        self.catalog = catalog
        self.fleet = fleet
        self.ledger = ledger
        self._forwarder = forwarder
        self._targets: dict[bytes, Target] = {}
        self._ids = CallIds()
        self._die = random.Random(os.urandom(16))  # noqa: S311  (a coin between two versions, not a secret)

    def open(self, request: Request) -> Sink:
        target = request.target
        if target.startswith(_EVENT_PREFIX):
            return self._open_event(request)
        if (match := _INVOKE.fullmatch(target)) and request.method == b"POST":
            return self._open_invoke(request, match)
        if target == b"/healthz":
            return _Health(request)
        if not target.startswith(b"/"):
            raise Refusal("bad_request", "The request target must be a path that begins with '/'.")
        return self._forwarder.open(request)

    # ---- /function/NAME --------------------------------------------------------------------------------------------------------

    def _open_event(self, request: Request) -> Sink:
        target = self._targets.get(request.target) or self._parse_target(request.target)
        reply = self._admitted(request, EventReply, target.namespace, target.function, target.qualifier)
        reply.meta = self._head(request, target, private=reply.entry.version.config.auth == "token")
        return reply

    def _parse_target(self, raw: bytes) -> Target:
        try:
            target = parse_target(raw.decode("ascii"))
        except UnicodeDecodeError:
            raise Refusal("bad_request", "The request target holds bytes that must be percent-encoded.") from None
        if len(self._targets) >= REMEMBERED_TARGETS_MAX:
            self._targets.clear()
        self._targets[raw] = target
        return target

    def _head(self, request: Request, target: Target, private: bool) -> bytes:
        """The head lines of runtime/frames.py. A private function does not see the token that opened its door."""
        connection = request.connection
        lines = [request.method, target.path.encode(), target.query.encode(), connection.peer.encode(), b"http"]
        forwarded = b""
        for name, value in request.headers:
            if name in _DROPPED or (private and name == b"authorization"):
                continue
            if name == b"x-forwarded-for":
                forwarded = value + b", "
                continue
            lines.append(b"%b: %b" % (name, value))
        lines.append(b"x-forwarded-for: " + forwarded + connection.peer.encode())
        return b"\n".join(lines)

    # ---- POST /api/v1/functions/NAME/invoke ------------------------------------------------------------------------------------

    def _open_invoke(self, request: Request, match: re.Match[bytes]) -> Sink:
        namespace, function, qualifier = self._invoke_target(match[1].decode("latin-1"), match[2])
        reply = self._admitted(request, InvokeReply, namespace, function, qualifier)
        for name, value in request.headers:
            if name == b"x-amz-client-context":
                reply.meta = _client_context(value)
            elif name == b"x-amz-log-type":
                reply.wants_tail = value.lower() == b"tail"
        return reply

    def _invoke_target(self, name: str, query: bytes | None) -> tuple[str, str, str]:
        namespace, function = split_qualified(name)
        qualifier = LIVE
        for pair in (query or b"").decode("latin-1").split("&"):
            key, _, value = pair.partition("=")
            if key == "namespace":
                namespace = checked_name(value or DEFAULT_NAMESPACE, "namespace")
            elif key == "qualifier":
                qualifier = checked_name(value, "alias or version")
        return checked_name(namespace, "namespace"), checked_name(function), qualifier

    # ---- both ------------------------------------------------------------------------------------------------------------------

    def _admitted(self, request: Request, door: type[Reply], namespace: str, name: str, qualifier: str) -> Reply:
        authorization = given = b""
        for key, value in request.headers:
            if key == b"authorization":
                authorization = value
            elif key == b"x-call-id":
                given = value
        token = self.catalog.bearer(authorization) if authorization else None
        try:
            function = self.catalog.function(namespace, name)
        except Refusal:
            # Who has no business in a namespace is not told what exists there, except that public functions are public.
            if self.catalog.known and token is None and authorization:
                raise Refusal("unauthorized", "The token is unknown or was revoked.") from None
            raise
        version = pick_version(function, qualifier, self._die.random())
        refusal = admit(version, token, token_was_given=bool(authorization), stopping=self.fleet.stopping)
        if refusal is not None:
            raise refusal
        if request.length > self.settings.body_bytes_max:
            raise Refusal("body_too_large", f"The request's body is over {self.settings.body_bytes_max} bytes (body_bytes_max).")
        call_id = given if given and CALL_ID.fullmatch(given.decode("latin-1")) else self._ids.next()
        return door(self.fleet, request, self.fleet.entry(function, version), call_id)


def _client_context(value: bytes) -> bytes:
    """X-Amz-Client-Context → JSON text. Raises Refusal bad_request."""
    try:
        if len(value) > CLIENT_CONTEXT_BYTES_MAX:
            raise ValueError
        text = base64.b64decode(value, validate=True)
        msgspec.json.decode(text, type=dict[str, object])
    except (ValueError, msgspec.DecodeError):
        raise Refusal("bad_request", "X-Amz-Client-Context must be a base64 JSON object of at most 3583 bytes.") from None
    return text


class _Health:
    """GET /healthz: this gateway takes calls."""

    def __init__(self, request: Request) -> None:
        self._request = request
        if request.method not in (b"GET", b"HEAD"):
            raise Refusal("method_not_allowed", "Use GET.")

    def body(self, chunk: bytes) -> None:
        """Nothing to do with it."""

    def complete(self) -> None:
        self._request.respond(200, _JSON_TEXT, b'{"status":"ok"}')

    def left(self) -> None:
        """Nothing to clean up."""

    def writable(self, yes: bool) -> None:
        """One small answer."""
