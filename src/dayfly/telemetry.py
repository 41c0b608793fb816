"""The platform's own log events: structlog set up once per process, JSON for machines, plain text on a terminal.

Every role calls `configure` once (app.py does it for them) and then `structlog.get_logger()`. One event is one line on standard
error; the supervisor's child shares that descriptor. It must never log what a user keeps secret: fields whose names say so are
blanked, and anything that looks like a token of ours is cut wherever it appears. Libraries that use `logging` come out here too.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
SECRET_FIELD = re.compile(r"secret|password|passwd|token|authorization|cookie|credential|private|api_?key", re.IGNORECASE)
TOKEN_TEXT = re.compile(r"dfy_([A-Za-z0-9]+)_[A-Za-z0-9_-]+|(?i:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
BLANK = "***"
TEXT_CHARACTERS_MAX = 8192  # of one value; a log line is for reading
DEPTH_MAX = 4


def hide_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: blank fields by name, cut token texts out of values, bound long values."""
    for key in list(event):
        event[key] = _hidden(key, event[key], DEPTH_MAX)
    return event


def _hidden(key: str, value: Any, depth: int) -> Any:
    if SECRET_FIELD.search(key) and isinstance(value, str | bytes | Mapping | list | tuple):
        return BLANK
    if isinstance(value, str):
        return TOKEN_TEXT.sub(_cut, value)[:TEXT_CHARACTERS_MAX]
    if isinstance(value, bytes):
        return _hidden(key, value[:TEXT_CHARACTERS_MAX].decode("utf-8", "replace"), depth)
    if isinstance(value, bool | int | float | None):
        return value
    if depth == 0:
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {str(k): _hidden(str(k), v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(key, item, depth - 1) for item in value]
    return _hidden(key, repr(value), depth)


def _cut(match: re.Match[str]) -> str:
    return f"dfy_{match[1]}_{BLANK}" if match[1] else BLANK


class Patient:
    """Standard error that never fails: with a full disk or a closed pipe a log line is lost, the work it tells of is not."""

    def write(self, text: str) -> int:
        """As a text stream's; what cannot be written is dropped."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(role: str, level: str = "info", *, json: bool | None = None) -> None:
    """Set up this process. `json` None: text when standard error is a terminal, JSON otherwise. May be called again."""
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _adds_role(role),
    ]
    last: list[Any] = [hide_secrets, structlog.processors.JSONRenderer(default=repr)] if as_json else [hide_secrets, _plain]
    number = LEVELS[level]
    structlog.configure(
        processors=[*shared[:1], *shared[2:], structlog.processors.format_exc_info, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Patient())),
        cache_logger_on_first_use=False,  # `configure` may come after a module made its logger
    )
    handler = logging.StreamHandler(Patient())
    formatter = structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(processors=[formatter.remove_processors_meta, structlog.processors.format_exc_info, *last], foreign_pre_chain=shared)
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING) if number > logging.DEBUG else number, force=True)


def _adds_role(role: str) -> Any:
    def add(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("role", role)
        return event

    return add


def _plain(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line for eyes, the same order as the supervisor's; control characters are escaped so that no value forges a line."""
    head = [str(event.pop(key, "")) for key in ("timestamp", "level", "role", "event")]
    trace = str(event.pop("exception", ""))
    fields = " ".join(f"{key}={_visible(value)}" for key, value in event.items())
    line = f"{head[0]} {head[1]:<7} {head[2]} {_visible(head[3])} {fields}".rstrip()
    return f"{line}\n{trace}" if trace else line


def _visible(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]
