"""`[[provisioned]]` of a function's dayfly.toml → checked windows. Their shape only: control/provisioned.py reads cron and time zone.

    [[provisioned]]
    cron = "0 8 * * mon-fri"
    duration = "10h"
    min_instances = 5
    timezone = "Europe/Berlin"

Called by core/manifest/function.py. docs/functions.md documents the keys.
"""

import re
from collections.abc import Mapping

import msgspec

from dayfly.core.model.function import Provisioned

WINDOWS_MAX = 16
TEXT_LENGTH_MAX = 128
INSTANCES_MAX = 1_000
SECONDS_MIN, SECONDS_MAX = 60.0, 366 * 86_400.0
KEYS = ("cron", "duration", "min_instances", "timezone")
DURATION = re.compile(r"(?:(\d{1,3})d)?(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")
UNIT_SECONDS = (86_400, 3_600, 60, 1)


def checked_windows(value: object, problems: list[str]) -> tuple[Provisioned, ...]:
    """The windows, or () with what is wrong added to `problems`."""
    if not isinstance(value, list | tuple) or len(value) > WINDOWS_MAX:
        problems.append(f"provisioned: must be at most {WINDOWS_MAX} tables, each below a line [[provisioned]].")
        return ()
    windows = [_checked(window, f"provisioned[{number}]", problems) for number, window in enumerate(value)]
    return tuple(window for window in windows if window is not None)


def _checked(window: object, where: str, problems: list[str]) -> Provisioned | None:
    if not isinstance(window, Mapping):
        problems.append(f"{where}: must be a table.")
        return None
    before = len(problems)
    for key in window:
        if key not in KEYS:
            problems.append(f"{where}: unknown key {str(key)[:80]!r}; there are {', '.join(KEYS)}.")
    cron, count, zone = window.get("cron"), window.get("min_instances"), window.get("timezone", "UTC")
    if not isinstance(cron, str) or len(cron) > TEXT_LENGTH_MAX:
        problems.append(f"{where}: cron must be there, as in '0 8 * * mon-fri'.")
    if not isinstance(zone, str) or not zone or len(zone) > TEXT_LENGTH_MAX:
        problems.append(f"{where}: timezone must be a name such as 'Europe/Berlin'.")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= INSTANCES_MAX:
        problems.append(f"{where}: min_instances must be a whole number from 1 to {INSTANCES_MAX}.")
    seconds = _seconds(window.get("duration"))
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        problems.append(f"{where}: duration must be a text such as '10h', '90m' or '1d12h', from a minute to a year.")
    if len(problems) > before:
        return None
    values = {"cron": cron, "duration_seconds": seconds, "min_instances": count, "timezone": zone}
    return msgspec.convert(values, Provisioned)


def _seconds(duration: object) -> float:
    """'1h30m' → 5400.0; 0 when it is no duration."""
    found = DURATION.fullmatch(duration) if isinstance(duration, str) else None
    return float(sum(int(number or 0) * unit for number, unit in zip(found.groups(), UNIT_SECONDS, strict=True))) if found else 0.0
