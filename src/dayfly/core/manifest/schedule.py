"""`[[schedule]]` of a function's dayfly.toml, and a schedule from the API → checked `Schedule`s. Their shape only: control/due.py reads
cron, time zone and moment.

    [[schedule]]
    cron = "0 8 * * mon-fri"
    timezone = "Europe/Berlin"
    payload = { report = "daily" }

Called by core/manifest/function.py and api/schedules.py. docs/schedules.md documents the keys.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import get_args

import msgspec

from dayfly.core.model.names import NAME
from dayfly.core.model.schedule import Missed, Overlap, Schedule

SCHEDULES_MAX = 16  # of one manifest
PAYLOADS_BYTES_MAX = 32 * 1024  # of one manifest: every gateway knows it
TEXT_LENGTH_MAX = 256
PAYLOAD_DEPTH_MAX = 32
JITTER_SECONDS_MAX = 86_400.0
PERIOD_SECONDS_MAX = 366 * 86_400
KEYS = tuple(field.name for field in msgspec.structs.fields(Schedule))
RATE = re.compile(r"(?:rate\(\s*)?([0-9]{1,9})\s*([a-z]+)\s*\)?", re.IGNORECASE)
UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
EXAMPLES = {"cron": "'0 8 * * mon-fri'", "rate": "'5 minutes'", "at": "'2026-12-24T18:00:00'"}
_encode = msgspec.json.Encoder().encode


def rate_seconds(text: str) -> int:
    """'5 minutes', 'rate(1 hour)' → seconds; 0 when it is no rate."""
    found = RATE.fullmatch(text.strip())
    if found is None or text.lower().lstrip().startswith("rate(") != text.rstrip().endswith(")"):
        return 0
    unit = found[2].lower()
    return int(found[1]) * UNIT_SECONDS.get(unit.removesuffix("s"), 0)


def checked_schedules(value: object, problems: list[str]) -> tuple[Schedule, ...]:
    """The schedules of a manifest, or () with what is wrong added to `problems`."""
    if not isinstance(value, list | tuple) or len(value) > SCHEDULES_MAX:
        problems.append(f"schedule: must be at most {SCHEDULES_MAX} tables, each below a line [[schedule]].")
        return ()
    before = len(problems)
    found = [checked_schedule(table, problems, f"schedule[{number}]") for number, table in enumerate(value)]
    names = [it.name for it in found if it.name]
    if len(set(names)) != len(names):
        problems.append("schedule: two have the same name.")
    if (size := sum(len(it.payload.encode()) for it in found)) > PAYLOADS_BYTES_MAX:
        problems.append(f"schedule: the payloads take {size} bytes together; at most {PAYLOADS_BYTES_MAX} are allowed.")
    return tuple(found) if len(problems) == before else ()


def checked_schedule(table: object, problems: list[str], where: str = "schedule") -> Schedule:
    """The schedule that `table` asks for; what is wrong with it is added to `problems`, and then it is an empty one."""
    if not isinstance(table, Mapping):
        problems.append(f"{where}: must be a table.")
        return Schedule()
    before = len(problems)
    values = {str(key): value for key, value in table.items()}
    for key in values:
        if key not in KEYS:
            close = difflib.get_close_matches(key[:80].replace("-", "_"), KEYS, 1)
            problems.append(f"{where}: unknown key {key[:80]!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
    _check_when(values, where, problems)
    _check_choices(values, where, problems)
    name, jitter = values.get("name", ""), values.get("jitter_seconds", 0.0)
    if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
        problems.append(f"{where}: name = {_shown(name)}: 1 to 63 letters, digits, '-' or '_', starting with a letter or digit.")
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= JITTER_SECONDS_MAX:
        problems.append(f"{where}: jitter_seconds = {_shown(jitter)}: must be a number from 0 to {JITTER_SECONDS_MAX:g} (seconds).")
    if not isinstance(values.get("enabled", True), bool):
        problems.append(f"{where}: enabled = {_shown(values['enabled'])}: must be true or false.")
    if "payload" in values:
        values["payload"] = _json(values["payload"], where, problems)
    if len(problems) > before:
        return Schedule()
    return msgspec.convert(values | {"jitter_seconds": float(jitter)}, Schedule)


def _check_when(values: dict[str, object], where: str, problems: list[str]) -> None:
    said = [key for key in EXAMPLES if values.get(key, "") != ""]
    if len(said) != 1:
        examples = ", ".join(f"{key} = {example}" for key, example in EXAMPLES.items())
        problems.append(f"{where}: must have one of {examples}, and only one.")
    for key in (*said, "timezone"):
        value = values.get(key, "UTC")
        if not isinstance(value, str) or not value.strip() or len(value) > TEXT_LENGTH_MAX or not value.isprintable():
            problems.append(f"{where}: {key} = {_shown(value)}: must be a text of at most {TEXT_LENGTH_MAX} letters.")
        elif key == "rate" and not 0 < rate_seconds(value) <= PERIOD_SECONDS_MAX:
            problems.append(f"{where}: rate = {_shown(value)}: must be seconds, minutes, hours or days up to a year, as in '5 minutes'.")


def _check_choices(values: dict[str, object], where: str, problems: list[str]) -> None:
    for key, words in (("overlap", get_args(Overlap)), ("missed", get_args(Missed))):
        if key in values and values[key] not in words:
            problems.append(f"{where}: {key} = {_shown(values[key])}: must be one of {', '.join(map(repr, words))}.")


def _json(payload: object, where: str, problems: list[str]) -> str:
    """The payload as JSON text, the same for the same value."""
    if not _plain(payload, PAYLOAD_DEPTH_MAX):
        problems.append(f"{where}: payload: must be JSON: no dates, no infinite numbers, at most {PAYLOAD_DEPTH_MAX} deep.")
        return ""
    return _encode(payload).decode()


def _plain(value: object, depth: int) -> bool:
    if depth < 0:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _encodable(key) and _plain(inner, depth - 1) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_plain(inner, depth - 1) for inner in value)
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and value.bit_length() <= 64)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shown(value: object) -> str:
    is_huge = isinstance(value, int) and value.bit_length() > 256  # of more digits than Python would print
    return "a huge number" if is_huge else repr(value)[:80]
