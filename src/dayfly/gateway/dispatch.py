"""What a request means: an invocation at one of two doors or by a function's own route, a question the gateway answers itself, or
something for control.

Called by gateway/server.py when headers are complete. Routes (core/decide/route.py), admits (core/decide/admit.py) and makes the `Reply`
that takes the body. The fast path is this file, reply.py, fleet.py and channel.py, in that order.
"""

import base64
import contextlib
import os
import random
import re
import struct
import time

import msgspec

from dayfly.core.decide.access import allowed
from dayfly.core.decide.admit import INVOKE, admit
from dayfly.core.decide.cors import answer_lines, preflight_lines
from dayfly.core.decide.forwarded import Proxies, last, told
from dayfly.core.decide.route import PREFIX, Target, parse_target, pick_version
from dayfly.core.decide.routes import DEFAULT_KEY
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import CALL_ID, DEFAULT_NAMESPACE, LIVE, checked_name, split_qualified
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import prefers_async
from dayfly.gateway.asynchronous import AsyncReply, Door, Manner
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.conversation import Socket, SocketReply, Sockets
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import ALLOWED, Request, Sink
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.forward import Forwarder
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.limited import LIMITED
from dayfly.gateway.management import Management
from dayfly.gateway.reply import EventReply, InvokeReply, Reply
from dayfly.gateway.session import SessionReply
from dayfly.gateway.upload import StreamReply
from dayfly.gateway.websocket import NO_HANDSHAKE, SWITCHING_PROTOCOLS, handshake, is_upgrade
from dayfly.runtime.frames import ROOT_LINE, ROUTE_LINE

REMEMBERED_TARGETS_MAX = 4096
REMEMBERED_TOKENS_MAX = 64  # of one address
CLIENT_CONTEXT_BYTES_MAX = 3583
EVENT_PREFIX = PREFIX.encode()
ASYNC_PREFIX = b"/async-function/"
ASYNC = "async"
DRY_RUN = b"DryRun"
INVOKE_PATH = re.compile(rb"/api/v1/functions/([^/?]+)/invoke(?:\?(.*))?")
CONNECTION_PATH = re.compile(rb"/api/v1/connections/([A-Za-z0-9_-]{1,64})")
_JSON_TEXT = b"content-type: application/json\r\n"


class CallIds:
    """Random UUIDs (version 4) for calls; randomness is bought from the kernel in bulk."""

    BATCH = 256
    _PARTS = struct.Struct("8s4sx3sx3s12s")  # of 32 hexadecimal digits, without the two that say version and variant

    def __init__(self) -> None:
        self._ids: list[bytes] = []

    def next(self) -> bytes:
        if not self._ids:
            digits = os.urandom(16 * self.BATCH).hex().encode()
            self._ids = [b"%b-%b-4%b-a%b-%b" % parts for parts in self._PARTS.iter_unpack(digits)]
        return self._ids.pop()


class Way:
    """Where an address leads, and, while the catalog stays as it is: the version's entry, and the tokens that were let in there."""

    __slots__ = ("admitted", "changes", "entry", "public", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.entry: Entry | None = None
        self.changes = -1  # of the catalog, when that was found out
        self.public = False
        self.admitted: set[bytes] = set()  # Authorization headers


class Dispatch:
    """The gateway's answer to "what is this request?"."""

    def __init__(
        self, settings: Settings, catalog: CatalogMirror, fleet: Fleet, ledger: Ledger, forwarder: Forwarder, asynchronous: Door
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.fleet = fleet
        self.ledger = ledger
        self._forwarder = forwarder
        self._asynchronous = asynchronous
        self._proxies = Proxies(settings.trusted_proxies)
        self.sockets = Sockets()
        self._ways: dict[bytes, Way] = {}
        self._ids = CallIds()
        self._die = random.Random(os.urandom(16))  # noqa: S311  (a coin between two versions, not a secret)

    def open(self, request: Request) -> Sink:
        raw = request.target
        way = self._ways.get(raw)
        if way is None:
            if raw.startswith(EVENT_PREFIX):
                way = self._remember(raw, event_target(raw))
            elif raw.startswith(ASYNC_PREFIX):
                return self._open_event(request, Way(event_target(EVENT_PREFIX + raw[len(ASYNC_PREFIX) :])), "openfaas")
            elif match := INVOKE_PATH.fullmatch(raw):
                way = self._remember(raw, invoke_target(match[1].decode("latin-1"), match[2]))
            elif match := CONNECTION_PATH.fullmatch(raw):
                return self._manage(request, match[1].decode())
            elif raw == b"/healthz":
                return _health(request)
            elif raw == b"*":
                return _Known(request, 200, b"allow: %b\r\n" % ALLOWED.encode())
            else:
                return self._open_routed(request) or self._forwarder.open(request)
        if way.target.path:
            return self._open_event(request, way)
        if request.method != b"POST":
            raise Refusal("method_not_allowed", "A function is invoked with POST.", extra={"allow": "POST"})
        return self._open_invoke(request, way)

    def _remember(self, raw: bytes, target: Target) -> Way:
        """The same few addresses come again and again; what they mean does not change."""
        if len(self._ways) >= REMEMBERED_TARGETS_MAX:
            self._ways.clear()
        way = self._ways[raw] = Way(target)
        return way

    # ---- /function/NAME --------------------------------------------------------------------------------------------------------

    def _open_event(self, request: Request, way: Way, manner: Manner | None = None) -> "Reply | AsyncReply | Socket | _Known":
        target = way.target
        if request.method == b"OPTIONS" and (answer := self._preflight(request, target)):
            return answer
        if request.prefer and prefers_async(request.prefer):
            manner = manner or "prefer"
        reply = self._admitted(request, EventReply, way) if manner is None else self._asked(request, EventReply, way, manner)
        config = reply.entry.version.config
        reply.meta = self._head(request, target, private=config.auth == "token")
        if reply.entry.is_application:
            reply.meta += b"\n%b%b" % (ROOT_LINE, request.target.partition(b"?")[0].removesuffix(target.path.encode()))
        if config.websocket and is_upgrade(request):
            if reply.entry.is_application:
                return self._open_session(request, way, reply)
            # each of its messages is admitted anew: tokens are revoked, versions change
            return Socket(request, target.namespace, reply.meta, lambda letter: self._admitted(letter, SocketReply, way), self.sockets)
        return reply

    def _open_session(self, request: Request, way: Way, asked: "Reply | AsyncReply") -> "Reply | AsyncReply | _Known":
        """A WebSocket for an ASGI application is one call. `asked`: what this would be without the upgrade."""
        if request.coded or request.length > 0:
            return asked  # a handshake has no body: one that has is not understood (RFC 9110 §7.8)
        reply = self._admitted(request, SessionReply, way)
        assert isinstance(reply, SessionReply)
        protocol, response = handshake(request, reply.bytes_max)
        if response.status_code != SWITCHING_PROTOCOLS:
            reply.left()
            return _Known(request, response.status_code, NO_HANDSHAKE, bytes(response.body or b""))
        reply.meta = asked.meta
        reply.expect(protocol, response, lambda: self._entry(request, SessionReply, way))
        return reply

    def _manage(self, request: Request, connection: str) -> Sink:
        """/api/v1/connections/ID. Who may not invoke the function is not told whether the connection exists."""
        token = self.catalog.bearer(request.authorization)
        if token is None:
            raise Refusal("unauthorized", "A token is needed, one that may invoke the function of this connection.")
        socket = self.sockets.get(connection)
        if socket is None or not allowed(token, INVOKE, socket.namespace):
            raise Refusal("not_found", f"There is no connection {connection!r}.")
        if request.method not in (b"GET", b"POST", b"DELETE"):
            raise Refusal("method_not_allowed", "Use GET, POST or DELETE.", extra={"allow": "GET, POST, DELETE"})
        return Management(request, socket)

    def _preflight(self, request: Request, target: Target) -> "_Known | None":
        """A browser asks before it calls a function with `[cors]`: answered here, without token and instance. None: it is a call."""
        if not request.header(b"access-control-request-method") or not request.header(b"origin"):
            return None
        version = pick_version(self.catalog.function(target.namespace, target.function), target.qualifier, self._die.random())
        if version.config.cors is None:
            return None
        return _Known(request, 204, preflight_lines(version.config.cors, request.header(b"origin").decode("latin-1")))

    def _head(self, request: Request, target: Target, private: bool) -> bytes:
        """The head lines of runtime/frames.py. A private function does not see the token that opened its door."""
        peer, dropped = request.connection.peer, request.dropped
        lines = [request.method, target.path.encode(), target.query.encode(), peer.encode(), b"http"]
        for name, value in request.headers:
            if name in dropped or (private and name == b"authorization"):
                continue
            lines.append(b"%b: %b" % (name, value))
        if self._proxies and self._proxies.trusts(peer):
            client, scheme, more = told(request.headers, peer, self._proxies)
            lines[3:5] = client.encode(), scheme.encode()
            lines += more
        return b"\n".join(lines)

    def host(self, request: Request) -> str:
        """The host that the client asked for, as far as anybody who is believed says so."""
        if self._proxies and self._proxies.trusts(request.connection.peer) and (host := last(request.header(b"x-forwarded-host"))):
            return host
        return request.header(b"host").decode("latin-1")

    # ---- a function's own route ------------------------------------------------------------------------------------------------

    def _open_routed(self, request: Request) -> Sink | None:
        """None when the address is nobody's: then it is control's."""
        routes = self.catalog.routes
        path, _, query = request.target.partition(b"?")
        if not routes or not request.target.isascii():
            return None
        host, method = self.host(request), request.method.decode()
        if method == "OPTIONS" and (wanted := request.header(b"access-control-request-method")):
            with contextlib.suppress(Refusal):  # the function that would take the call is asked, if there is one
                asked = routes.find(host, wanted.decode("latin-1"), path.decode())
                if asked and (answer := self._preflight(request, Target(asked.namespace, asked.function, LIVE, "/", ""))):
                    return answer
        found = routes.find(host, method, path.decode())
        if found is None:
            return None
        reply = self._open_event(request, Way(Target(found.namespace, found.function, LIVE, path.decode(), query.decode())))
        if found.key != DEFAULT_KEY and isinstance(reply, Reply | AsyncReply):
            reply.meta += b"\n%b%b" % (ROUTE_LINE, found.key.encode())
        return reply

    # ---- POST /api/v1/functions/NAME/invoke ------------------------------------------------------------------------------------

    def _open_invoke(self, request: Request, way: Way) -> Sink:
        manner: Manner | None = None
        if way.target.query or request.prefer or request.x_amz:
            manner = _manner(request, way.target)
        reply = self._admitted(request, InvokeReply, way) if manner is None else self._asked(request, InvokeReply, way, manner)
        if reply.entry.is_application:
            raise Refusal("bad_request", "This function is a web application: it is called at /function/NAME and takes no events.")
        if request.x_amz:
            for name, value in request.headers:
                if name == b"x-amz-client-context":
                    reply.meta = _client_context(value)
                elif name == b"x-amz-log-type":
                    reply.wants_tail = value.lower() == b"tail"
                elif value == DRY_RUN and name == b"x-amz-invocation-type":
                    return _Known(request, 204, b"")
        return reply

    # ---- both ------------------------------------------------------------------------------------------------------------------

    def _admitted(self, request: Request, door: type[Reply], way: Way) -> Reply:
        """A reply for a call that may enter. Raises Refusal. What was found out about the last call with this address and token holds as
        long as nothing has changed: neither the catalog, nor that the version's calls are taken."""
        entry = self._entry(request, door, way)
        if request.coded or request.length > self.settings.body_bytes_max:
            door = self._door_for_large(request, door, entry)
        given = request.given_id
        call_id = given if given and CALL_ID.fullmatch(given.decode("latin-1")) else self._ids.next()
        if entry.gate is not None:
            door = LIMITED[door]
        return door(self.fleet, request, entry, call_id)

    def _asked(self, request: Request, door: type[Reply], way: Way, manner: Manner) -> AsyncReply:
        """The same for a call that nobody will wait for. Its id is ours: the caller's may be another call's."""
        entry = self._entry(request, door, way)
        self._door_for_large(request, InvokeReply, entry)  # a body that is written down is no stream
        call_id = self._asynchronous.ids.next(time.time())
        return AsyncReply(self._asynchronous, request, entry, (call_id, way.target.qualifier, door.kind, manner))

    def _entry(self, request: Request, door: type[Reply], way: Way) -> Entry:
        entry = way.entry
        if (
            entry is None
            or way.changes != self.catalog.changes
            or entry.pool.draining
            or self.fleet.stopping
            or not (way.public or request.authorization in way.admitted)
        ):
            entry = self._find(request, door, way)
        elif door is EventReply and (cors := entry.version.config.cors) is not None:
            request.cors = answer_lines(cors, request.header(b"origin").decode("latin-1"))
        return entry

    def _find(self, request: Request, door: type[Reply], way: Way) -> Entry:
        """The entry of the version that takes this call, if it may enter. Raises Refusal. Remembers the way, where no die was cast."""
        target, authorization, catalog = way.target, request.authorization, self.catalog
        token = catalog.bearer(authorization) if authorization else None
        try:
            function = catalog.function(target.namespace, target.function)
        except Refusal:
            # Who has no business in a namespace is not told what exists there, except that public functions are public.
            if catalog.known and token is None and authorization:
                raise Refusal("unauthorized", "The token is unknown or was revoked.") from None
            raise
        version = pick_version(function, target.qualifier, self._die.random())
        if version.config.cors is not None and door is EventReply:
            request.cors = answer_lines(version.config.cors, request.header(b"origin").decode("latin-1"))
        refusal = admit(version, token, token_was_given=bool(authorization), stopping=self.fleet.stopping)
        if refusal is not None:
            raise refusal
        entry = self.fleet.entry(function, version)
        if way.entry is not entry or way.changes != catalog.changes or len(way.admitted) >= REMEMBERED_TOKENS_MAX:
            way.admitted.clear()
        is_certain = all(len(alias.weights) == 1 for alias in function.aliases if alias.name == target.qualifier)
        way.entry, way.changes = entry if is_certain else None, catalog.changes
        way.public = version.config.auth == "none"
        if token is not None:
            way.admitted.add(authorization)
        return entry

    def _door_for_large(self, request: Request, door: type[Reply], entry: Entry) -> type[Reply]:
        """A body that is too large for an event, or may be: web applications read theirs as it comes. Raises Refusal body_too_large."""
        streams = entry.is_application and door is EventReply
        name = "stream_bytes_max" if streams else "body_bytes_max"
        most = self.settings.stream_bytes_max if streams else self.settings.body_bytes_max
        if request.length > most:
            raise Refusal("body_too_large", f"The request's body is over {most} bytes ({name}).")
        return StreamReply if streams else door


def event_target(raw: bytes) -> Target:
    """/function/…; raises Refusal bad_request or bad_name."""
    try:
        return parse_target(raw.decode("ascii"))
    except UnicodeDecodeError:
        raise Refusal("bad_request", "The request target holds bytes that must be percent-encoded.") from None


def invoke_target(name: str, query: bytes | None) -> Target:
    """/api/v1/functions/NAME/invoke; its path is "", which no event's is, and its query is its mode. Raises Refusal bad_name."""
    namespace, function = split_qualified(name)
    qualifier, mode = LIVE, ""
    for pair in (query or b"").decode("latin-1").split("&"):
        key, _, value = pair.partition("=")
        if key == "namespace":
            namespace = value or DEFAULT_NAMESPACE
        elif key == "qualifier":
            qualifier = checked_name(value, "alias or version")
        elif key == "mode":
            if value not in ("sync", ASYNC):
                raise Refusal("bad_request", f"mode={value[:40]}: must be sync or async.")
            mode = value
    return Target(checked_name(namespace, "namespace"), checked_name(function), qualifier, "", mode)


def _manner(request: Request, target: Target) -> Manner | None:
    """Whether a direct invoke is to be asynchronous. Raises Refusal bad_request for a type that Lambda does not have."""
    kind = request.header(b"x-amz-invocation-type") if request.x_amz else b""
    if kind not in (b"", b"RequestResponse", b"Event", DRY_RUN):
        raise Refusal("bad_request", "X-Amz-Invocation-Type must be RequestResponse, Event or DryRun.")
    if kind:
        return "lambda" if kind == b"Event" else None
    if target.query == ASYNC:
        return "native"
    return "prefer" if request.prefer and prefers_async(request.prefer) else None


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


def _health(request: Request) -> Sink:
    """GET /healthz: this gateway takes calls."""
    if request.method not in (b"GET", b"HEAD"):
        raise Refusal("method_not_allowed", "Use GET.", extra={"allow": "GET, HEAD"})
    return _Known(request, 200, _JSON_TEXT, b'{"status":"ok"}')


class _Known:
    """An answer that is known before the request's body is here."""

    def __init__(self, request: Request, status: int, lines: bytes, body: bytes = b"") -> None:
        self._request = request
        self._answer = (status, lines, body)

    def body(self, chunk: bytes) -> None:
        """Nothing to do with it."""

    def complete(self) -> None:
        self._request.respond(*self._answer)

    def left(self) -> None:
        """Nothing to clean up."""

    def writable(self, yes: bool) -> None:
        """One small answer."""

    def begun(self) -> bool:
        return False
