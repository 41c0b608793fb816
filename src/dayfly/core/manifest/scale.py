"""`[scale]` of a function's dayfly.toml → a checked `Scale`. Every problem names the key and its bounds.

    [scale]
    metric = "concurrency"
    target = 10

Called by core/manifest/function.py. docs/scaling.md documents the keys.
"""

import difflib
from collections.abc import Mapping

import msgspec

from dayfly.core.manifest.limits import shown
from dayfly.core.model.scale import BY_DEMAND, Scale

METRICS = ("demand", "concurrency", "rps", "cpu")

# key → (lowest, highest, unit)
NUMBERS: dict[str, tuple[float, float, str]] = {
    "target": (0.001, 1_000_000, "of the metric, for one instance"),
    "utilisation": (0.01, 1, "of the target"),
    "stable_window_seconds": (1, 3_600, "seconds"),
    "panic_window_percent": (1, 100, "percent of the stable window"),
    "panic_threshold": (1.1, 1_000, "times the instances that are there"),
    "scale_up_rate": (1.1, 10_000, "times the instances that are there"),
    "scale_down_rate": (1.1, 10_000, "times fewer instances"),
    "scale_down_delay_seconds": (0, 3_600, "seconds"),
}


def checked_scale(table: object, problems: list[str]) -> Scale:
    """What `table` asks for; what is wrong with it is added to `problems`."""
    if not isinstance(table, Mapping):
        problems.append("scale: must be a table, [scale].")
        return BY_DEMAND
    before = len(problems)
    metric = table.get("metric", "demand")
    if not isinstance(metric, str) or metric not in METRICS:
        problems.append(f"scale: metric = {shown(metric)}: must be one of {', '.join(map(repr, METRICS))}.")
    values: dict[str, object] = {"metric": metric}
    for key, value in table.items():
        if key == "metric":
            continue
        if key not in NUMBERS:
            close = difflib.get_close_matches(str(key), ("metric", *NUMBERS), 1)
            problems.append(f"scale: unknown key {str(key)[:80]!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
            continue
        low, high, unit = NUMBERS[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            problems.append(f"scale: {key} = {shown(value)}: must be a number from {low:g} to {high:g} ({unit}).")
        else:
            values[key] = float(value)
    if metric == "demand" and len(problems) == before and len(values) > 1:
        problems.append(f"scale: {', '.join(sorted(values.keys() - {'metric'}))} mean nothing with metric = 'demand'.")
    return msgspec.convert(values, Scale) if len(problems) == before else BY_DEMAND
