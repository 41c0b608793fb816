"""What a request says about how it wants to be called asynchronously: headers → `Wishes`, each bound checked. docs/async.md has the table.

`Prefer: respond-async` is RFC 7240 §4.1; `Idempotency-Key` is draft-ietf-httpapi-idempotency-key-header, whose quotes may be left out;
`X-Callback-Url` is OpenFaaS's. Called by gateway/asynchronous.py with header names in lower case.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import msgspec

from dayfly.core.manifest.durable import url_problem
from dayfly.core.model.durable import DEFAULT_PRIORITY, PRIORITIES, Lineage
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings

KEY_LENGTH_MAX = 255
RETRY_AFTER_DIGITS_MAX = 6
_ASYNC = re.compile(rb"(?i)(?:^|[,;])\s*respond-async\s*(?:[,;]|$)")
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_LINEAGE = re.compile(r"root=([A-Za-z0-9._:-]{1,64});parent=([A-Za-z0-9._:-]{1,64});depth=([0-9]{1,6})")


class Wishes(NamedTuple):
    """Times are epoch seconds, 0 = not said."""

    due: float = 0.0
    expires: float = 0.0
    priority: int = DEFAULT_PRIORITY
    group: str = ""
    dedup: str = ""
    lineage: Lineage = Lineage()
    callback: str = ""


def prefers_async(value: bytes) -> bool:
    """Whether a Prefer header asks for 202."""
    return _ASYNC.search(value) is not None


def wishes(headers: Iterable[tuple[bytes, bytes]], now: float, settings: Settings) -> Wishes:
    """What the headers ask for. Raises Refusal bad_request and chain_too_deep."""
    said: dict[str, str] = {}
    for name, value in headers:
        if name in _READ:
            said[name.decode()] = value.decode("latin-1").strip()
    if not said:
        return Wishes()
    due = _due(said, now, settings)
    expires = 0.0
    if (text := said.get("x-dayfly-deadline")) is not None:
        expires = max(due, now) + _number(text, "X-Dayfly-Deadline", 1.0, settings.async_delay_seconds_max)
    priority = DEFAULT_PRIORITY
    if (text := said.get("x-dayfly-priority")) is not None:
        if not (len(text) == 1 and text.isascii() and text.isdigit()):
            raise Refusal("bad_request", f"X-Dayfly-Priority must be a digit from 0 to {PRIORITIES - 1}; {text[:40]!r} is none.")
        priority = int(text)
    callback = said.get("x-callback-url", "")
    if callback and (why := url_problem(callback)) is not None:
        raise Refusal("bad_request", f"X-Callback-Url {why}")
    return Wishes(
        due=due,
        expires=expires,
        priority=priority,
        group=_key(said, "x-dayfly-group", "X-Dayfly-Group"),
        dedup=_key(said, "idempotency-key", "Idempotency-Key"),
        lineage=lineage(said.get("x-dayfly-lineage", ""), settings.async_depth_max),
        callback=callback,
    )


def lineage(text: str, depth_max: int) -> Lineage:
    """The chain that a new call belongs to, from what the call before it was given. Nonsense is no chain. Raises Refusal chain_too_deep."""
    found = _LINEAGE.fullmatch(text)
    if found is None:
        return Lineage()
    depth = int(found[3])
    if depth > depth_max:
        raise Refusal("chain_too_deep", f"{depth} calls, each made by the one before, began with {found[1]}; {depth_max} may.")
    return Lineage(root=found[1], parent=found[2], depth=depth)


def onwards(of: Lineage, call_id: str) -> Lineage:
    """What a call hands to those that it makes."""
    return Lineage(root=of.root or call_id, parent=call_id, depth=of.depth + 1)


def with_lineage(kind: str, meta: bytes, of: Lineage, call_id: str) -> bytes:
    """What an instance is sent beside the body, with what the function has to pass on: as a header, or in the client context (from where
    runtime/context.py takes it)."""
    text = onwards(of, call_id).text.encode()
    if kind == "http":
        lines = [line for line in meta.split(b"\n") if not line.startswith(_LINEAGE_HEADER)]
        return b"\n".join([*lines, _LINEAGE_HEADER + b" " + text])
    given = msgspec.json.decode(meta, type=dict[str, msgspec.Raw]) if meta else {}
    return msgspec.json.encode({**given, "dayfly_lineage": text.decode()})


def _due(said: dict[str, str], now: float, settings: Settings) -> float:
    delay, at = said.get("x-dayfly-delay"), said.get("x-dayfly-not-before")
    if delay is not None and at is not None:
        raise Refusal("bad_request", "Send X-Dayfly-Delay or X-Dayfly-Not-Before, not both.")
    if delay is not None:
        return now + _number(delay, "X-Dayfly-Delay", 0.0, settings.async_delay_seconds_max)
    if at is None:
        return 0.0
    due = _moment(at)
    if due > now + settings.async_delay_seconds_max:
        raise Refusal("bad_request", f"X-Dayfly-Not-Before is over {settings.async_delay_seconds_max:g} s away (async_delay_seconds_max).")
    return due


def _moment(text: str) -> float:
    """Epoch seconds, or a time as RFC 3339 writes it."""
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        pass
    raise Refusal("bad_request", "X-Dayfly-Not-Before must be epoch seconds, or a time with its zone such as 2026-05-01T08:00:00Z.")


def _number(text: str, name: str, low: float, high: float) -> float:
    if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
        raise Refusal("bad_request", f"{name} must be a number of seconds from {low:g} to {high:g}; {text[:40]!r} is none.")
    return float(text)


def _key(said: dict[str, str], name: str, shown: str) -> str:
    text = said.get(name)
    if text is None:
        return ""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not _KEY.fullmatch(text):
        raise Refusal("bad_request", f"{shown} must be 1 to {KEY_LENGTH_MAX} visible ASCII characters.")
    return text


def retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds of a Retry-After header (RFC 9110 §10.2.3) that is a number; 0 when there is none."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.strip()
            return float(text) if text.isdigit() and len(text) <= RETRY_AFTER_DIGITS_MAX else 0.0
    return 0.0


_LINEAGE_HEADER = b"x-dayfly-lineage:"
_READ = frozenset(
    (
        b"x-dayfly-delay", b"x-dayfly-not-before", b"x-dayfly-deadline", b"x-dayfly-priority", b"x-dayfly-group", b"x-dayfly-lineage",
        b"idempotency-key", b"x-callback-url",
    )
)  # fmt: skip
