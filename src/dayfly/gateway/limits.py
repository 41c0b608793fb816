"""The clocks and the memory beside core/decide/limit.py: what functions and namespaces have used, and the gates that ask for their calls.

One `Gate` for each version whose function or namespace has limits, held by its entry: who has none pays one look at an attribute. Tallies
belong to names, not to versions. Never decides, never counts what has no limit. Used by gateway/fleet.py, limited.py and link.py.
"""

import time
from collections.abc import Iterable

from dayfly.core.decide import limit
from dayfly.core.decide.meter import NOT_RUN, billed
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Version
from dayfly.core.model.limits import NO_LIMITS, Consumed, Limits
from dayfly.core.model.records import Answered

NO_BODY_LIMIT = 1 << 62


class Gate:
    """The limits that calls of one version must keep."""

    __slots__ = ("_is_daily", "_round_ms", "_sides", "body_bytes_max")

    def __init__(self, sides: limit.Sides, round_ms: int) -> None:
        self._sides = sides
        self._round_ms = round_ms
        self._is_daily = any(side.allowance.daily for side in sides)
        sizes = [side.allowance.limits.body_bytes_max for side in sides]
        self.body_bytes_max = min((size for size in sizes if size is not None), default=NO_BODY_LIMIT)

    def refusal(self, mean_seconds: float) -> Refusal | None:
        """Whether a call would be refused now."""
        return limit.refusal(self._sides, time.monotonic_ns(), time.time() if self._is_daily else 0.0, mean_seconds)

    def enter(self, mean_seconds: float) -> Refusal | None:
        """A call wants in. None: it is inside, and `leave` must follow."""
        now, at = time.monotonic_ns(), time.time() if self._is_daily else 0.0
        refusal = limit.refusal(self._sides, now, at, mean_seconds)
        if refusal is None:
            limit.enter(self._sides, now, at)
        return refusal

    def leave(self) -> None:
        """A call that was inside is over."""
        limit.leave(self._sides)

    def used(self, record: Answered) -> None:
        """What a call used that had entered, counted as control/usage.py counts it."""
        if self._is_daily and record.outcome not in NOT_RUN:
            limit.use(self._sides, record.finished_at, billed(record.exec_us, record.memory_mb, self._round_ms), record.bytes_out)
        else:
            self.never_ran()

    def never_ran(self) -> None:
        """A call that had entered was refused after all."""
        if self._is_daily:
            limit.take_back(self._sides, time.time())

    def __repr__(self) -> str:
        return f"<Gate {' '.join(f'{side.scope} {side.name}: {side.tally!r}' for side in self._sides)}>"


class Limiter:
    """All tallies of this gateway, by (namespace, function); a namespace's own stands under (namespace, "")."""

    def __init__(self, round_ms: int) -> None:
        self._round_ms = round_ms
        self._tallies: dict[tuple[str, str], limit.Tally] = {}
        self.namespaces: dict[str, Limits] = {}  # those that have some

    def gate(self, version: Version) -> Gate | None:
        """What calls of this version have to pass; None when nothing is limited."""
        sides = []
        for scope, function, limits in (
            ("function", version.function, version.config.limits),
            ("namespace", "", self.namespaces.get(version.namespace, NO_LIMITS)),
        ):
            if limits.any:
                tally = self._tallies.setdefault((version.namespace, function), limit.Tally())
                sides.append(limit.Side(scope, function or version.namespace, limit.Allowance(limits), tally))
        return Gate(tuple(sides), self._round_ms) if sides else None

    def replace(self, namespaces: dict[str, Limits], functions: Iterable[tuple[str, str]]) -> None:
        """What there is now: namespaces with limits, and all functions. Tallies of others go."""
        self.namespaces = dict(namespaces)
        keep = {*functions, *((name, "") for name in namespaces)}
        self._tallies = {key: tally for key, tally in self._tallies.items() if key in keep}

    def set_namespace(self, namespace: str, limits: Limits) -> None:
        """Other limits, or none, for a namespace."""
        if limits.any:
            self.namespaces[namespace] = limits
        else:
            self.namespaces.pop(namespace, None)
            self._tallies.pop((namespace, ""), None)

    def remove_function(self, namespace: str, function: str) -> None:
        """A function is gone. When it comes again on the same day, control says what it had used."""
        self._tallies.pop((namespace, function), None)

    def told(self, day: int, consumed: Iterable[Consumed]) -> None:
        """What control has written down of this day."""
        for it in consumed:
            self._tallies.setdefault((it.namespace, it.function), limit.Tally()).days.told(day, it)

    def __repr__(self) -> str:
        return f"<Limiter {len(self._tallies)} tallies, {len(self.namespaces)} namespaces with limits>"
