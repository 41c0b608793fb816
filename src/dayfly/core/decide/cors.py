"""May a page of another origin read this answer? A function's `[cors]` and a request's Origin → header lines (the Fetch standard, 3.2).

What a browser is told never holds `*` beside credentials, and whatever depends on the origin says so (Vary), also where there was none, so
that no cache gives one origin's answer to another. Called by gateway/dispatch.py for functions that have `[cors]`, and no others.
"""

from dayfly.core.model.function import Cors

EVERY = "*"


def answer_lines(cors: Cors, origin: str) -> bytes:
    """What every answer carries; `origin` is the request's, "" when it has none."""
    lines = _origin_lines(cors, origin)
    if cors.expose and lines[0]:
        lines.append(f"access-control-expose-headers: {', '.join(cors.expose)}\r\n")
    return "".join(lines).encode("latin-1")


def preflight_lines(cors: Cors, origin: str) -> bytes:
    """What a preflight is told. Browsers compare method and headers with it; an origin that is not allowed is told nothing."""
    lines = _origin_lines(cors, origin)
    if lines[0]:
        if cors.methods:
            lines.append(f"access-control-allow-methods: {', '.join(cors.methods)}\r\n")
        if cors.headers:
            lines.append(f"access-control-allow-headers: {', '.join(cors.headers)}\r\n")
        lines.append(f"access-control-max-age: {cors.max_age}\r\n")
    return "".join(lines).encode("latin-1")


def _origin_lines(cors: Cors, origin: str) -> list[str]:
    """The first is "" when the origin is not allowed."""
    if EVERY in cors.origins and not cors.credentials:
        return ["access-control-allow-origin: *\r\n"]
    if origin not in cors.origins or origin == EVERY:
        return ["", "vary: origin\r\n"]
    allowed = [f"access-control-allow-origin: {origin}\r\n", "vary: origin\r\n"]
    return [*allowed, "access-control-allow-credentials: true\r\n"] if cors.credentials else allowed
