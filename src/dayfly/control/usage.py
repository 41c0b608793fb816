"""Metering: what gateways have added up per function and day, written in one transaction a second.

What a gateway sent and control had not yet written is lost when control is killed: at most once, never twice. That is stated in
docs/operations.md.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from dayfly.control.worker import Store
from dayfly.core.decide.quota import DAY_SECONDS, day_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.limits import Consumed
from dayfly.core.model.records import UsageSum
from dayfly.store import usage
from dayfly.store.usage import UsageDay

FLUSH_SECONDS = 1.0
DAYS_KEPT = 4  # in memory, for quotas
PENDING_MAX = 100_000  # functions × days not yet written; reached only when the disk is full for long


class Usage:
    """Sums in memory, flushed to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[tuple[int, str, str], UsageDay] = {}
        self._billed: dict[tuple[str, str], int] = {}  # MB·ms of what was written since start
        self._flushing: dict[tuple[int, str, str], UsageDay] = {}
        self._written: dict[int, dict[tuple[str, str], Consumed]] = {}  # by day: what the store has of the days that were written last
        self.calls = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Usage {self.calls} calls, {len(self._pending)} sums to write, {self.dropped} dropped>"

    def add(self, sums: Iterable[UsageSum]) -> None:
        """Count what a gateway has added up."""
        for part in sums:
            key = (part.day, part.namespace, part.function)
            day = self._pending.get(key)
            if day is None:
                if len(self._pending) >= PENDING_MAX:
                    self.dropped += part.calls
                    continue
                day = self._pending[key] = UsageDay(day=_iso(key[0]), namespace=key[1], function=key[2])
            for name in usage.SUMS:
                setattr(day, name, getattr(day, name) + getattr(part, name))
            self.calls += part.calls

    async def flush(self) -> None:
        """Write what is pending. When the disk says no, the sums go back and the Refusal is raised."""
        taken, self._pending = self._pending, {}
        if not taken:
            return
        self._flushing = taken
        try:
            await self._store(usage.add, list(taken.values()))
        except BaseException:
            self._put_back(taken)
            raise
        finally:
            self._flushing = {}
        _add_billed(self._billed, taken.values())
        for (day, *_), part in taken.items():
            _add_consumed(self._written_on(day), part)

    async def load(self, now: float) -> None:
        """What the store has of the present day, once, before anything is added."""
        written = self._written_on(day_of(now))
        for part in await self._store(usage.of_day, _iso(day_of(now))):
            _add_consumed(written, part)

    def used_on(self, day: int) -> dict[tuple[str, str], Consumed]:
        """(namespace, function) → what was used on the present day, up to what gateways have sent; functions that are gone included."""
        total: dict[tuple[str, str], Consumed] = dict(self._written.get(day, {}))
        for parts in (self._flushing, self._pending):
            for key, part in parts.items():
                if key[0] == day:
                    _add_consumed(total, part)
        return total

    def _written_on(self, day: int) -> dict[tuple[str, str], Consumed]:
        """That day's figures, kept as the latest of a few: a record with a date out of the blue pushes nobody's day out."""
        written = self._written[day] = self._written.pop(day, {})
        while len(self._written) > DAYS_KEPT:
            del self._written[next(iter(self._written))]
        return written

    def billed_mb_ms(self) -> dict[tuple[str, str], int]:
        """(namespace, function) → MB·ms billed since control started."""
        total = dict(self._billed)
        _add_billed(total, self._pending.values())
        return total

    async def between(self, first: str, last: str, namespaces: Iterable[str], function: str = "") -> list[UsageDay]:
        """Usage by day (YYYY-MM-DD, UTC, both included), up to what gateways have sent so far."""
        await self.flush()
        return await self._store(usage.between, first, last, tuple(namespaces), function)

    def _put_back(self, taken: dict[tuple[int, str, str], UsageDay]) -> None:
        for key, day in taken.items():
            present = self._pending.setdefault(key, day)
            if present is not day:
                for name in usage.SUMS:
                    setattr(present, name, getattr(present, name) + getattr(day, name))


def _add_billed(total: dict[tuple[str, str], int], days: Iterable[UsageDay]) -> None:
    for day in days:
        key = (day.namespace, day.function)
        total[key] = total.get(key, 0) + day.mb_ms


def _add_consumed(total: dict[tuple[str, str], Consumed], part: UsageDay) -> None:
    key = (part.namespace, part.function)
    was = total.get(key) or Consumed(*key)
    total[key] = Consumed(*key, was.calls + part.calls, was.mb_ms + part.mb_ms, was.bytes_out + part.bytes_out)


def today(now: float) -> str:
    """The UTC day of `now` (epoch seconds) as YYYY-MM-DD."""
    return _iso(int(now) // DAY_SECONDS)


def checked_day(text: str) -> str:
    """`text` when it is a day as YYYY-MM-DD. Raises Refusal bad_request."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date().isoformat()
    except ValueError:
        raise Refusal("bad_request", f"{text[:40]!r} is no day; write YYYY-MM-DD (UTC).") from None


def _iso(day: int) -> str:
    return datetime.fromtimestamp(min(max(day, 0), 2_932_896) * DAY_SECONDS, UTC).date().isoformat()
