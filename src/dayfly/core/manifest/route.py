"""`[[route]]` of a function's dayfly.toml → checked routes.

    [[route]]
    host = "shop.example.com"       # or "*.example.com", or left out
    path = "/users/{id}/{rest+}"    # or left out: every path of the host
    methods = ["GET", "POST"]       # or left out: all

Paths are written as in API Gateway's HTTP APIs: whoever reads payload format 2.0 reads the same text in `routeKey`. `{name}` takes one
segment, `{name+}` at the end takes one or more. Called by core/manifest/function.py. docs/functions.md documents the keys.
"""

import re
from collections.abc import Mapping

from dayfly.core.decide.routes import GREEDY, METHODS, PARAMETER, RESERVED, slots_of
from dayfly.core.model.function import Route
from dayfly.core.model.names import HOST, HOST_LENGTH_MAX

ROUTES_MAX = 64  # of one function
PATH_LENGTH_MAX = 512
SEGMENTS_MAX = 16
KEYS = ("host", "path", "methods")
LITERAL = re.compile(r"[^\s{}%?#/\x00-\x1f\x7f]+")


def checked_routes(value: object, problems: list[str]) -> tuple[Route, ...]:
    """The routes, or those that are right with what is wrong added to `problems`."""
    if not isinstance(value, list | tuple) or len(value) > ROUTES_MAX:
        problems.append(f"route: must be at most {ROUTES_MAX} tables, each below a line [[route]].")
        return ()
    routes: list[Route] = []
    seen: set[tuple[str, ...]] = set()
    for number, table in enumerate(value):
        found: list[str] = []
        route = _checked(table, found)
        if route is not None:
            slots = slots_of(route)
            if not seen.isdisjoint(slots):
                found.append(f"{route.text} stands here twice.")
            seen.update(slots)
            routes.append(route)
        problems += [f"route[{number}]: {text}" for text in found]
    return tuple(routes)


def _checked(table: object, problems: list[str]) -> Route | None:
    if not isinstance(table, Mapping):
        problems.append("must be a table.")
        return None
    for key in table:
        if key not in KEYS:
            problems.append(f"unknown key {str(key)[:80]!r}; there are {', '.join(KEYS)}.")
    host, path, methods = table.get("host", ""), table.get("path", ""), table.get("methods", ())
    if not isinstance(host, str) or (host and (len(host) > HOST_LENGTH_MAX or not HOST.fullmatch(host.lower()))):
        problems.append(f"host = {str(host)[:80]!r}: must be a name such as 'shop.example.com' or '*.example.com' (IDNs as 'xn--…').")
    problems += _path_problems(path)
    if not isinstance(methods, list | tuple) or not all(isinstance(it, str) and it.upper() in METHODS for it in methods):
        problems.append(f"methods: must be a list of some of {', '.join(sorted(METHODS))}; leave it out for all.")
    elif len(set(methods)) != len(methods):
        problems.append("methods: names one twice.")
    if problems:
        return None
    if not host and not path:
        problems.append("must have a host, a path or both.")
        return None
    if methods and not path:
        problems.append("methods need a path, such as '/{proxy+}'.")
        return None
    return Route(host=host.lower(), path=path, methods=tuple(method.upper() for method in methods))


def _path_problems(path: object) -> list[str]:
    if not isinstance(path, str) or len(path) > PATH_LENGTH_MAX or not (path == "" or path.startswith("/")):
        return [f"path = {str(path)[:80]!r}: must begin with '/' and have at most {PATH_LENGTH_MAX} characters."]
    if not path:
        return []
    segments = path.split("/")[1:]
    if len(segments) > SEGMENTS_MAX:
        return [f"path has {len(segments)} segments; at most {SEGMENTS_MAX}."]
    if segments[0] in RESERVED:
        return [f"path = {path[:80]!r}: /{segments[0]} is the platform's own; choose another first segment."]
    names = [found[1] for segment in segments if (found := PARAMETER.fullmatch(segment) or GREEDY.fullmatch(segment))]
    if len(set(names)) != len(names):
        return [f"path = {path[:80]!r}: names a parameter twice."]
    last = len(segments) - 1
    for at, segment in enumerate(segments):
        if not segment and at == last:
            continue  # "/" itself, or a slash at the end
        if GREEDY.fullmatch(segment) and at != last:
            return [f"path = {path[:80]!r}: {segment} takes all that follows, so it must be last."]
        if segment in (".", "..") or not any(kind.fullmatch(segment) for kind in (LITERAL, PARAMETER, GREEDY)):
            return [f"path: the segment {segment[:80]!r} must be text (not percent-encoded), a whole {{name}}, or {{name+}} at the end."]
    return []
