"""`[limits]` of a dayfly.toml, and a namespace's limits from the API → checked `Limits`. Every problem names the key and its bounds."""

import difflib
from collections.abc import Mapping

import msgspec

from dayfly.core.model.limits import Limits

# key → (type, lowest, highest, unit). A tenth of a call per minute is slow enough; the highest are beyond what one machine does.
NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "rate_per_second": (float, 0.001, 1_000_000, "calls a second"),
    "burst": (int, 1, 1_000_000, "calls at once"),
    "concurrency": (int, 0, 1_000_000, "calls inside"),
    "body_bytes_max": (int, 0, 1 << 40, "bytes"),
    "calls_per_day": (int, 0, 1 << 53, "calls"),
    "gb_seconds_per_day": (float, 0, 1e12, "GB-seconds"),
    "response_bytes_per_day": (int, 0, 1 << 53, "bytes"),
}


def checked_limits(table: object, problems: list[str], where: str = "limits") -> Limits:
    """The limits that `table` asks for; what is wrong with it is added to `problems`."""
    if not isinstance(table, Mapping):
        problems.append(f"{where}: must be a table of limits.")
        return Limits()
    before = len(problems)
    values = dict(table)
    for key, value in table.items():
        if key not in NUMBERS:
            name = str(key).replace("-", "_")
            close = [known for known in NUMBERS if known.startswith(f"{name}_")] or difflib.get_close_matches(name, NUMBERS, 1)
            problems.append(f"{where}: unknown key {str(key)[:80]!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
            continue
        if value is None:
            continue
        kind, low, high, unit = NUMBERS[key]
        right = isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
        if not right or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            problems.append(f"{where}: {key} = {shown(value)}: must be {what} from {low:g} to {high:g} ({unit}).")
        elif kind is float:
            values[key] = float(value)
    if "burst" in table and "rate_per_second" not in table:
        problems.append(f"{where}: burst means nothing without rate_per_second.")
    return msgspec.convert(values, Limits) if len(problems) == before else Limits()


def shown(value: object) -> str:
    """For a message: short, whatever it is."""
    is_huge = isinstance(value, int) and value.bit_length() > 256  # of more digits than Python would print
    return "a huge number" if is_huge else repr(value)[:80]
