"""Whose is this host and path? `[[route]]` of all functions as one table, kept up to date function by function.

Theory, as nginx's server and location and API Gateway's routes have it. **First the host**: the exact name, else the longest `*.suffix`
(a star stands for one label or more), else the routes without a host. A host that has routes is closed: what none of them takes is
not found there, and never falls to the routes without a host, which may be another tenant's. **Then the path**, segment by segment from
the left: text beats `{name}` beats `{name+}`, so the longest match wins; what leads nowhere is taken back. **Then the method**: its own
route, for HEAD also GET's, else the one for all.

A path's segments are compared percent-decoded. First segments that are the platform's (RESERVED) are nobody's on any host.

The table is a dict of hosts over tries. A look-up costs as many steps as the path has segments (with parameters at most as many as
patterns that fit its beginning), however many functions there are. Kept by gateway/catalog.py, which asks it, and by
control/catalog.py, which refuses what is taken.
"""

import re
from itertools import pairwise
from urllib.parse import unquote

import msgspec

from dayfly.core.decide.rollout import live_of, primary
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function, Route
from dayfly.core.model.names import HOST_LENGTH_MAX

ANY = "ANY"
DEFAULT_KEY = "$default"  # the key of a route without a path, as API Gateway calls it
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
SHARED = {method: method for method in (*METHODS, ANY)}  # one string each
PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]{0,62})\}")
GREEDY = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]{0,62})\+\}")
# Doors, faces and probes, those that are planned among them; the last two are Lambda's API.
RESERVED = frozenset(
    (
        *("api", "async-function", "console", "function", "health", "healthz", "livez", "metrics", "openapi.json", "readyz"),
        *("system", "ui", "2015-03-31", "2021-10-31"),
    )
)


class Match(msgspec.Struct, frozen=True, gc=False):
    """The function that takes a request, and by which route."""

    namespace: str
    function: str
    method: str  # ANY for all
    path: str  # "" for every path

    @property
    def key(self) -> str:
        """Payload format 2.0's routeKey."""
        return f"{self.method} {self.path}" if self.path else DEFAULT_KEY

    def is_of(self, namespace: str, function: str) -> bool:
        """Whether it is this function."""
        return self.function == function and self.namespace == namespace


# What one place is claimed by. Hardly ever more than one function's one route, and there are as many places as routes: so it is no dict.
Slot = tuple[Match, ...]


class _Node(msgspec.Struct, gc=False):
    """A place in a host's tree of segments. A path without segments ends at the root: `$default`."""

    below: dict[str, "_Node"] | None = None  # by a segment's text
    parameter: "_Node | None" = None  # behind {name}
    ends: Slot = ()  # paths that end here
    rest: Slot = ()  # {name+}: paths that go on

    @property
    def empty(self) -> bool:
        return not (self.below or self.parameter or self.ends or self.rest)

    def child(self, segment: str) -> "_Node | None":
        if PARAMETER.fullmatch(segment):
            return self.parameter
        return self.below.get(segment) if self.below else None

    def set_child(self, segment: str, child: "_Node | None") -> None:
        if PARAMETER.fullmatch(segment):
            self.parameter = child
        elif child is not None:
            self.below = self.below or {}
            self.below[segment] = child
        elif self.below:
            del self.below[segment]


class Routes:
    """The table. All methods are immediate; `put` and `remove` cost as much as the one function has routes. It has no list of them beside
    the tree: whoever changes a function says what it was."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}  # by host; "" has the routes without one
        self._namespaces: dict[str, str] = {}  # each as one string, for all matches

    def __repr__(self) -> str:
        return f"<Routes on {len(self._roots)} hosts>"

    def __bool__(self) -> bool:
        return bool(self._roots)

    # ---- changing --------------------------------------------------------------------------------------------------------------

    def put(self, function: Function, before: Function | None = None) -> None:
        """A function is new, or different from `before`. What another one has already stays the other's (`check` asks before)."""
        routes = routes_of(function)
        if before is not None:
            if routes_of(before) == routes:
                return
            self.remove(before)
        for route in routes:
            self._claim(function, route)

    def remove(self, function: Function) -> None:
        """A function is gone, and its routes are free."""
        for route in routes_of(function):
            self._drop(function, route)

    def _claim(self, function: Function, route: Route) -> None:
        node, is_greedy = self._roots.setdefault(route.host, _Node()), False
        for segment in segments_of(route.path):
            if GREEDY.fullmatch(segment):
                is_greedy = True
                break
            child = node.child(segment)
            if child is None:
                child = _Node()  # a route is often called as its function: then both are one string
                node.set_child(function.name if segment == function.name else segment, child)
            node = child
        slot = node.rest if is_greedy else node.ends
        taken = {match.method for match in slot}
        namespace = self._namespaces.setdefault(function.namespace, function.namespace)
        methods = [SHARED.get(method, method) for method in route.methods or (ANY,) if method not in taken]
        slot += tuple(Match(namespace, function.name, method, route.path) for method in methods)
        if is_greedy:
            node.rest = slot
        else:
            node.ends = slot

    def _drop(self, function: Function, route: Route) -> None:
        trail = self._trail(route)
        node = trail[-1][1]
        node.rest, node.ends = _without(function, node.rest), _without(function, node.ends)
        for (_, parent), (segment, child) in reversed(list(pairwise(trail))):
            if child.empty:
                parent.set_child(segment, None)
        if trail[0][1].empty:
            self._roots.pop(route.host, None)

    def _trail(self, route: Route) -> list[tuple[str, _Node]]:
        """The nodes on a route's way, from its host's root, each with the segment that leads there. Ends where nothing is."""
        trail = [("", self._roots.get(route.host) or _Node())]
        for segment in segments_of(route.path):
            child = None if GREEDY.fullmatch(segment) else trail[-1][1].child(segment)
            if child is None:
                break
            trail.append((segment, child))
        return trail

    def _taken_slot(self, route: Route) -> Slot:
        """What stands where this route would."""
        segments, trail = segments_of(route.path), self._trail(route)
        is_greedy = bool(segments) and GREEDY.fullmatch(segments[-1]) is not None
        if len(trail) - 1 < len(segments) - is_greedy:
            return ()
        return trail[-1][1].rest if is_greedy else trail[-1][1].ends

    def _meeting(self, host: str) -> list[str]:
        """Hosts of the table that have names in common with this one. No host has two namespaces, so one look at each will do."""
        met = [host, *_stars_above(host)]
        if host.startswith("*."):
            met += [other for other in self._roots if other != host and other.endswith(host[1:])]
        return [it for it in met if it in self._roots]

    def check(self, namespace: str, name: str, routes: tuple[Route, ...]) -> None:
        """Raises Refusal conflict, naming the owner, when another function has one of these routes, or another namespace the host."""
        for route in routes:
            for match in self._taken_slot(route):
                both = not route.methods or match.method == ANY or match.method in route.methods
                if both and not match.is_of(namespace, name):
                    raise _taken(route, f"is taken by function {match.function!r} in namespace {match.namespace!r}")
            for host in self._meeting(route.host) if route.host else ():
                other = _any(self._roots[host])
                if other is not None and other.namespace != namespace:
                    raise _taken(route, f"meets {host}, which function {other.function!r} in namespace {other.namespace!r} has")

    # ---- asking ----------------------------------------------------------------------------------------------------------------

    def find(self, host: str, method: str, path: str) -> Match | None:
        """Who takes this; None when it is nobody's but maybe the platform's. `host` is a Host header's value, `path` raw with its '/'.

        Raises Refusal not_found when the host has routes and none takes this path, method_not_allowed when only the method is wrong."""
        segments = path.split("/")[1:]
        if "%" in path:
            segments = [unquote(segment) for segment in segments]
        if segments[0] in RESERVED:
            return None
        root = self._root_of(host)
        if root is None:
            return None
        allowed: set[str] = set()
        found = _walk(root, segments, 0, (method, allowed)) or _slot_for(root.ends, method, allowed)
        if found is None and allowed:
            raise Refusal("method_not_allowed", f"No route takes {method} here.", extra={"allow": ", ".join(sorted(allowed))})
        if found is None and root is not self._roots.get(""):
            raise Refusal("not_found", "No route of this host takes this path.")
        return found

    def _root_of(self, host: str) -> _Node | None:
        """The most specific host's tree."""
        roots = self._roots
        name = host.partition(":")[0].rstrip(".").lower()
        if name and len(name) <= HOST_LENGTH_MAX:
            for candidate in (name, *_stars_above(name)):
                if root := roots.get(candidate):
                    return root
        return roots.get("")


def _walk(node: _Node, segments: list[str], at: int, wanted: tuple[str, set[str]]) -> Match | None:
    """The best match at `node` for what is left of the path. Every node is looked at once at most; as deep as the routes are."""
    if at == len(segments):
        return _slot_for(node.ends, *wanted) if at else None
    segment = segments[at]
    child = node.below.get(segment) if node.below else None
    if child is not None and (found := _walk(child, segments, at + 1, wanted)):
        return found
    if node.parameter is not None and segment and (found := _walk(node.parameter, segments, at + 1, wanted)):
        return found
    return _slot_for(node.rest, *wanted) if node.rest and (segment or at + 1 < len(segments)) else None


def _slot_for(slot: Slot, method: str, allowed: set[str]) -> Match | None:
    """Whose it is with this method: of its own route, for HEAD of GET's, of the one for all."""
    if not slot:
        return None
    found = {match.method: match for match in slot}
    match = found.get(method) or (found.get("GET") if method == "HEAD" else None) or found.get(ANY)
    if match is None:
        allowed.update(found)
    return match


def _without(function: Function, slot: Slot) -> Slot:
    return tuple(match for match in slot if not match.is_of(function.namespace, function.name))


def routes_of(function: Function) -> tuple[Route, ...]:
    """A function's routes: those of the version that gets most of live's calls."""
    live = live_of(function.aliases)
    number = primary(live) if live is not None else -1
    return next((version.config.route for version in function.versions if version.number == number), ())


def segments_of(path: str) -> list[str]:
    """'/users/{id}' → ['users', '{id}']; '/' → ['']; '' → []."""
    return path.split("/")[1:]


def slots_of(route: Route) -> list[tuple[str, ...]]:
    """What a route claims, each as (method, host, segment …) with the parameters' names left out: they make no difference."""
    shape = tuple("{}" if PARAMETER.fullmatch(it) else "{+}" if GREEDY.fullmatch(it) else it for it in segments_of(route.path))
    return [(method, route.host, *shape) for method in route.methods or (ANY,)]


def _stars_above(host: str) -> list[str]:
    """'a.b.example.com' → ['*.b.example.com', '*.example.com', '*.com']; of '*.b.example.com' those above it."""
    labels = host.removeprefix("*.").split(".")
    return [f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))]


def _any(node: _Node) -> Match | None:
    """Somebody who has a route below this node."""
    for slot in (node.ends, node.rest):
        for match in slot:
            return match
    for child in (*(node.below or {}).values(), *([node.parameter] if node.parameter else ())):
        if found := _any(child):
            return found
    return None


def _taken(route: Route, why: str) -> Refusal:
    return Refusal("conflict", f"The route {route.text} {why}.")
