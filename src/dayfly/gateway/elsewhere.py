"""Several gateways: whose call is this? Ours, or one that another gateway is asked to serve (docs/decisions/0020-gateways.md).

Stands between the public site and gateway/dispatch.py, and only when there are several gateways: a lone one never comes here. A call whose
function is at home here, or is served here as a guest, goes on as ever; another's is relayed (gateway/relay.py). Who is at home where is
decided in core/decide/share.py, from names and from who is there. Must never decide about a call itself: its home does.
"""

from collections.abc import Iterable
from contextlib import suppress

from dayfly.core.decide import share
from dayfly.core.decide.route import Target
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function, Version
from dayfly.core.model.names import LIVE
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.dispatch import CONNECTION_PATH, EVENT_PREFIX, INVOKE_PATH, Dispatch, event_target, invoke_target
from dayfly.gateway.exchange import Request, Sink
from dayfly.gateway.neighbour import Neighbour
from dayfly.gateway.shared import SharedFleet

REMEMBERED_MAX = 4096
HOLDER_DIGITS = 2  # at the beginning of a connection's id
LOOK_SECONDS = 0.25  # how often it is looked whether a function is called so much that it should be served here, too
QUIET_SECONDS = 10.0  # a guest that was not busy for so long is none any more


class Route:
    """One function, as seen from here."""

    __slots__ = ("busy_at", "calls", "changes", "here", "is_guest", "key", "neighbours", "versions")

    def __init__(self, key: tuple[str, str], here: bool, neighbours: list[Neighbour]) -> None:
        self.key = key
        self.here = here  # this gateway is its home, or stands in for it
        self.neighbours = neighbours  # who is asked otherwise, in this order; behind the last comes this gateway
        self.calls = 0  # since the last look
        self.is_guest = False
        self.busy_at = 0.0
        self.changes = -1  # of the catalog, when that was found out
        self.versions: list[tuple[str, str, int]] = []  # of a guest: those that take calls


class Elsewhere:
    """The dispatcher of the public site."""

    def __init__(self, catalog: CatalogMirror, fleet: SharedFleet, dispatch: Dispatch, neighbours: dict[int, Neighbour]) -> None:
        self._slot = slot = fleet.homes.slot
        self._catalog, self._fleet, self._dispatch = catalog, fleet, dispatch
        self._neighbours = neighbours
        fleet.on_limits_changed = self._look_around
        dispatch.sockets.prefix = f"{slot:0{HOLDER_DIGITS}d}"
        self._routes: dict[tuple[str, str], Route] = {}
        self._targets: dict[bytes, Route] = {}
        self._seen: object = None
        self._look_at = 0.0

    def __repr__(self) -> str:
        guests = sum(route.is_guest for route in self._routes.values())
        return f"<Elsewhere slot={self._slot} {list(self._neighbours.values())} functions={len(self._routes)} guest of {guests}>"

    def open(self, request: Request) -> Sink:
        """Headers are complete (gateway/site.py Dispatcher)."""
        route = self._targets.get(request.target)
        if route is None:
            route = self._find(request)
            if route is None:
                return self._dispatch.open(request)
        if route.here:
            return self._dispatch.open(request)
        route.calls += 1
        if route.is_guest:
            if route.changes != self._catalog.changes:
                self._check(route)
            if route.is_guest and self._fleet.has_room(route.versions):
                return self._dispatch.open(request)
        for neighbour in route.neighbours:
            if neighbour.is_up:
                return neighbour.open(request, self._dispatch)
        return self._dispatch.open(request)

    def _find(self, request: Request) -> Route | None:
        """The function that a request is for. None: no function's, or one of a connection that is held here."""
        raw = request.target
        if match := CONNECTION_PATH.fullmatch(raw):
            return self._holder(match[1])
        target, lasts = None, True
        with suppress(Refusal):  # which our own dispatcher tells, too
            if raw.startswith(EVENT_PREFIX):
                target = event_target(raw)
            elif match := INVOKE_PATH.fullmatch(raw):
                target = invoke_target(match[1].decode("latin-1"), match[2])
            else:
                target, lasts = self._routed(request), False
        if target is None:
            return None
        route = self._route((target.namespace, target.function), target)
        if lasts:
            if len(self._targets) >= REMEMBERED_MAX:
                self._targets.clear()
            self._targets[request.target] = route
        return route

    def _holder(self, connection: bytes) -> Route | None:
        """A connection's id begins with the number of the gateway that holds it."""
        neighbour = self._neighbours.get(int(connection[:HOLDER_DIGITS])) if connection[:HOLDER_DIGITS].isdigit() else None
        return Route(("", ""), False, [neighbour]) if neighbour is not None else None

    def _routed(self, request: Request) -> Target | None:
        """What a function's own route names; for a browser's question, the function that it is about."""
        routes = self._catalog.routes
        if not routes or not request.target.isascii():
            return None
        method = request.header(b"access-control-request-method") if request.method == b"OPTIONS" else b""
        path = request.target.partition(b"?")[0].decode()
        found = routes.find(self._dispatch.host(request), (method or request.method).decode("latin-1"), path)
        return None if found is None else Target(found.namespace, found.function, LIVE, path, "")

    def _route(self, key: tuple[str, str], target: Target) -> Route:
        """Only what is called by `live` may be served by guests; what is called by another name goes home."""
        at = (f"{key[0]}/{key[1]}", LIVE if target.qualifier == LIVE else "")
        found = self._routes.get(at)
        if found is None:
            if len(self._routes) >= REMEMBERED_MAX:
                self._forget()
            order = self._fleet.homes.order(*key)
            before = order[: order.index(self._slot)]
            here = not any(self._neighbours[slot].is_up for slot in before)
            found = self._routes[at] = Route(key, here, [self._neighbours[slot] for slot in before])
        return found

    def _forget(self) -> None:
        self._routes.clear()
        self._targets.clear()

    # ---- the clock ---------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Who is there, what has limits, who is called much."""
        for neighbour in self._neighbours.values():
            neighbour.tick(now)
        self._fleet.homes.away = frozenset(slot for slot, it in self._neighbours.items() if it.is_away(now))
        self._look_around()
        if now >= self._look_at:
            for route in self._routes.values():
                if route.calls or route.is_guest:
                    self._look(route, route.calls / LOOK_SECONDS, now)
                    route.calls = 0
            self._look_at = now + LOOK_SECONDS

    def _look_around(self) -> None:
        """Whether anybody's home is another than before; at once when limits change, for then they must hold."""
        homes = self._fleet.homes
        seen = (homes.away, homes.limited, tuple(it.is_up for it in self._neighbours.values()))
        if seen != self._seen:
            self._seen = seen
            self._forget()
            self._fleet.homes_changed(self._catalog.functions.values())

    def _look(self, route: Route, calls_per_second: float, now: float) -> None:
        """Begin to be, or go on being, or stop being a guest of a function."""
        if share.is_busy(route.is_guest, calls_per_second):
            route.busy_at = now
        route.is_guest = route.busy_at > 0 and now - route.busy_at < QUIET_SECONDS
        if route.is_guest:
            self._check(route)
            function = self._catalog.functions.get(route.key)
            if route.is_guest and function is not None:
                self._fleet.invite(function, _live(function))

    def _check(self, route: Route) -> None:
        """Whether a guest may still be one, by the catalog as it is now: a deploy may have brought limits, or another version."""
        route.changes = self._catalog.changes
        function = self._catalog.functions.get(route.key)
        versions = [] if function is None else list(_live(function))
        route.is_guest = bool(versions) and all(self._fleet.may_be_guest(version) for version in versions)
        route.versions = [version.key for version in versions]


def _live(function: Function) -> Iterable[Version]:
    """The versions that `live` names."""
    numbers = {number for alias in function.aliases if alias.name == LIVE for number, _ in alias.weights}
    return (version for version in function.versions if version.number in numbers)
