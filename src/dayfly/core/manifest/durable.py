"""`[async]` of a function's dayfly.toml → checked `Async`. Every problem names the key and its bounds.

    [async]
    policy = "openfaas"          # lambda, openfaas, knative, own
    attempts = 5
    idempotent = false
    on_failure = "https://example.com/failed"

Called by core/manifest/function.py. docs/async.md documents the keys.
"""

import difflib
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from dayfly.core.decide.retry import POLICIES
from dayfly.core.model.durable import Async
from dayfly.core.model.names import NAME

NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "attempts": (int, 1, 100, "runs"),
    "concurrency": (int, 1, 10_000, "calls at once"),
    "backoff_seconds": (float, 0, 3_600, "seconds"),
    "backoff_max_seconds": (float, 0, 86_400, "seconds"),
    "max_age_seconds": (float, 1, 14 * 86_400, "seconds"),
    "result_keep_seconds": (float, 0, 366 * 86_400, "seconds"),
}
JITTERS = ("none", "full", "equal")
STATUSES_MAX = 64
URL_LENGTH_MAX = 2_048
KEYS = tuple(Async.__struct_fields__)
_VISIBLE = re.compile(r"[\x21-\x7e]+")


def checked_async(table: object, problems: list[str]) -> Async:
    """What `table` asks for; what is wrong with it is added to `problems`."""
    if isinstance(table, Async):
        return table
    if not isinstance(table, Mapping):
        problems.append("async: must be a table.")
        return Async()
    before = len(problems)
    values = {key: value for key, value in table.items() if value is not None}
    for key in values:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key).replace("-", "_"), KEYS, 1)
            problems.append(f"async: unknown key {str(key)[:80]!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
    _check_numbers(values, problems)
    for key, allowed in (("policy", tuple(POLICIES)), ("jitter", JITTERS)):
        if key in values and values[key] not in allowed:
            problems.append(f"async: {key} = {_shown(values[key])}: must be one of {', '.join(map(repr, allowed))}.")
    if not isinstance(values.get("idempotent", True), bool):
        problems.append("async: idempotent must be true or false.")
    statuses = values.get("retry_on", ())
    if not isinstance(statuses, list | tuple) or len(statuses) > STATUSES_MAX or not all(_is_status(status) for status in statuses):
        problems.append(f"async: retry_on must be a list of at most {STATUSES_MAX} statuses from 400 to 599.")
    for key in ("on_success", "on_failure"):
        if (why := destination_problem(values.get(key, ""))) is not None:
            problems.append(f"async: {key} {why}")
    return msgspec.convert(values, Async) if len(problems) == before else Async()


def destination_problem(value: object) -> str | None:
    """What is wrong with a destination: a function's name, or a URL. None: nothing."""
    if not isinstance(value, str):
        return "must be a function's name or a URL."
    if value == "" or NAME.fullmatch(value):
        return None
    return url_problem(value)


def url_problem(value: str) -> str | None:
    """What is wrong with a callback's URL. Where it may lead is decided when it is called."""
    if len(value) > URL_LENGTH_MAX or not _VISIBLE.fullmatch(value):
        return f"must be a URL of at most {URL_LENGTH_MAX} visible ASCII characters."
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return "is no URL."
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "must be a function's name or a URL that begins with http:// or https:// and a host."
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or password: URLs are shown and logged."
    return None


def _check_numbers(values: dict[str, object], problems: list[str]) -> None:
    for key, (kind, low, high, unit) in NUMBERS.items():
        if key not in values:
            continue
        value = values[key]
        right = isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
        if not right or not low <= value <= high:  # type: ignore[operator]  # (false for NaN, too)
            what = "a whole number" if kind is int else "a number"
            problems.append(f"async: {key} = {_shown(value)}: must be {what} from {low:g} to {high:g} ({unit}).")
        elif kind is float:
            values[key] = float(value)  # type: ignore[arg-type]


def _is_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599


def _shown(value: object) -> str:
    is_huge = isinstance(value, int) and value.bit_length() > 256  # of more digits than Python would print
    return "a huge number" if is_huge else repr(value)[:80]
