"""`[cors]` of a function's dayfly.toml → a checked Cors. The keys are those of Lambda's function URLs in our spelling.

    [cors]
    origins = ["https://app.example.com"]   # or ["*"]
    methods = ["GET", "PUT"]                # beyond GET, HEAD and POST, which need no permission; or ["*"]
    headers = ["content-type"]              # that requests may carry; or ["*"]
    expose = ["x-call-id"]                  # of the answer, that scripts may read; or ["*"]
    credentials = true                      # cookies and Authorization; then no "*" anywhere
    max_age = 600                           # seconds that a browser remembers this

Called by core/manifest/function.py. docs/functions.md documents the keys.
"""

import re
from collections.abc import Mapping

import msgspec

from dayfly.core.decide.routes import METHODS
from dayfly.core.model.function import Cors

ITEMS_MAX = 64  # in each list
TEXT_LENGTH_MAX = 256
MAX_AGE_SECONDS_MAX = 86_400
KEYS = tuple(field.name for field in msgspec.structs.fields(Cors))
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?)(:[1-9][0-9]{0,4})?")
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
DEFAULT_PORTS = re.compile(r"(http://.*:80|https://.*:443)")


def checked_cors(value: object, problems: list[str]) -> Cors | None:
    """The table, or None when there is none, or with what is wrong added to `problems`."""
    if value is None or isinstance(value, Cors):
        return value
    if not isinstance(value, Mapping):
        problems.append("cors: must be a table, below a line [cors].")
        return None
    found = [f"unknown key {str(key)[:80]!r}; there are {', '.join(KEYS)}." for key in value if key not in KEYS]
    lists = {key: _texts(key, value.get(key, ()), found) for key in ("origins", "methods", "headers", "expose")}
    if not lists["origins"]:
        found.append("origins must be there, as in ['https://app.example.com'] or ['*'].")
    for origin in lists["origins"]:
        if origin != "*" and (not ORIGIN.fullmatch(origin.lower()) or DEFAULT_PORTS.fullmatch(origin.lower())):
            found.append(f"origins: {origin!r} must be what a browser sends, as in 'https://app.example.com' or 'http://localhost:3000'.")
    for method in lists["methods"]:
        if method != "*" and method.upper() not in METHODS:
            found.append(f"methods: {method!r} must be one of {', '.join(sorted(METHODS))}, or '*'.")
    for key in ("headers", "expose"):
        found += [f"{key}: {name!r} is no header's name." for name in lists[key] if not HEADER.fullmatch(name)]
    credentials, max_age = value.get("credentials", False), value.get("max_age", 0)
    if not isinstance(credentials, bool):
        found.append("credentials must be true or false.")
    elif credentials and (starred := [key for key, texts in lists.items() if "*" in texts]):
        found.append(f"credentials = true: name what is allowed instead of '*' in {', '.join(starred)}; browsers would not take it.")
    if not isinstance(max_age, int) or isinstance(max_age, bool) or not 0 <= max_age <= MAX_AGE_SECONDS_MAX:
        found.append(f"max_age must be a whole number from 0 to {MAX_AGE_SECONDS_MAX} (seconds).")
    problems += [f"cors: {text}" for text in found]
    if found:
        return None
    return Cors(
        origins=tuple(origin.lower() for origin in lists["origins"]),
        methods=tuple(method.upper() for method in lists["methods"]),
        headers=tuple(name.lower() for name in lists["headers"]),
        expose=tuple(name.lower() for name in lists["expose"]),
        credentials=bool(credentials),
        max_age=int(max_age),  # (found is empty: it is a number)
    )


def _texts(key: str, value: object, problems: list[str]) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and len(value) <= ITEMS_MAX:
        texts = tuple(text for text in value if isinstance(text, str) and 0 < len(text) <= TEXT_LENGTH_MAX)
        if len(texts) == len(value):
            return texts
    problems.append(f"{key} must be a list of at most {ITEMS_MAX} texts.")
    return ()
