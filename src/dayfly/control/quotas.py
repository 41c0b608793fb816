"""What was used today of what has limits: for gateways, which must not forget it, and for people, who look.

Only functions and namespaces with a quota by the day are told to gateways, because only those are counted there. Pure; control/catalog.py
tells, api/ shows.
"""

from collections.abc import Collection, Iterable, Mapping

from dayfly.core.decide.meter import gb_seconds
from dayfly.core.model.function import Function
from dayfly.core.model.limits import Consumed, Limits

Key = tuple[str, str]
NAMESPACE = ""  # in a function's place: all of them together


def is_daily(function: Function) -> bool:
    """Whether any version of it has a quota."""
    return any(version.config.limits.daily for version in function.versions)


def consumed(used: Mapping[Key, Consumed], functions: Iterable[Key], namespaces: Mapping[str, Limits]) -> list[Consumed]:
    """What gateways must know of a day's usage (by namespace and function, functions that are gone included)."""
    found = [used.get(key) or Consumed(*key) for key in functions]
    daily = {name for name, limits in namespaces.items() if limits.daily}
    return found + list(wholes(used, daily).values()) if daily else found


def wholes(used: Mapping[Key, Consumed], namespaces: Collection[str]) -> dict[str, Consumed]:
    """All that each of these namespaces used."""
    sums = {name: [0, 0, 0] for name in namespaces}
    for part in used.values():
        if (total := sums.get(part.namespace)) is not None:
            total[0] += part.calls
            total[1] += part.mb_ms
            total[2] += part.bytes_out
    return {name: Consumed(name, NAMESPACE, *total) for name, total in sums.items()}


def whole(used: Mapping[Key, Consumed], namespace: str) -> Consumed:
    """All that a namespace used."""
    return wholes(used, (namespace,))[namespace]


def rows(limits: Limits, today: Consumed) -> list[tuple[str, float, float | None]]:
    """(limit, its value, used today or None when it is none by the day) of what is limited."""
    used = {
        "calls_per_day": float(today.calls),
        "gb_seconds_per_day": gb_seconds(today.mb_ms),
        "response_bytes_per_day": float(today.bytes_out),
    }
    values = ((name, getattr(limits, name)) for name in Limits.__struct_fields__)
    return [(name, value, used.get(name)) for name, value in values if value is not None]
