"""Which sandboxes should stand ready: of what was asked for lately, a few each, more of nothing while anybody waits.

A *kind* is whatever a sandbox must match to serve a start (its zygote and the steps of its plan): here only a key. Facts in (`asked`,
what stands, what is coming), the next kind to make or to drop out. A sandbox costs two milliseconds and two megabytes, so it is made
off the request path, at most COMING_MAX at once, and only for kinds that somebody asked for within `forget_seconds`.
Silent. Called by node/prepared.py.
"""

from collections.abc import Container, Hashable, Mapping
from typing import Generic, TypeVar

QUIET_SECONDS = 0.008  # without a start, before another is made while nearly all stand; the fewer stand, the less
COMING_MAX = 2  # more at once and they take the processors from the calls they are meant for (facts/sandbox.md, section 3)
KINDS_MAX = 16

Kind = TypeVar("Kind", bound=Hashable)


class Stock(Generic[Kind]):
    """What should stand ready. `each`: sandboxes of one kind; `in_all`: of all kinds together."""

    def __init__(self, each: int, in_all: int, forget_seconds: float) -> None:
        self.each = each
        self.in_all = in_all
        self.forget_seconds = forget_seconds
        self._asked: dict[Kind, float] = {}  # the latest last

    def __repr__(self) -> str:
        return f"<Stock kinds={len(self._asked)} each={self.each}>"

    def asked(self, kind: Kind, now: float) -> None:
        """Somebody wanted a sandbox of this kind, whether one stood ready or not."""
        self._asked.pop(kind, None)
        self._asked[kind] = now
        if len(self._asked) > KINDS_MAX:
            del self._asked[next(iter(self._asked))]

    def kinds(self) -> list[Kind]:
        """What was asked for."""
        return list(self._asked)

    def forget(self, kind: Kind) -> None:
        """It will not be asked for again: its zygote is gone."""
        self._asked.pop(kind, None)

    def next(self, there: Mapping[Kind, int], coming: int, now: float, busy: Container[Kind] = ()) -> Kind | None:
        """What to make now, or None. `there`: how many stand or are coming, by kind; `coming`: how many of those are on their way;
        `busy`: kinds whose parent has not forked yet all that it was asked for: one more would make the next start wait longer."""
        if coming >= COMING_MAX or sum(there.values()) >= self.in_all:
            return None
        missing = [kind for kind in reversed(self._asked) if there.get(kind, 0) < self.each and kind not in busy]
        wanted = [kind for kind in missing if not self._is_forgotten(kind, now)]
        return min(wanted, key=lambda kind: there.get(kind, 0), default=None)

    def patience_seconds(self, there: Mapping[Kind, int], now: float) -> float:
        """How long no start should have come before the next is made. Waiting for a pause keeps refills out of the way of starts; but under
        steady load pauses are short, and who only waits for long ones makes none. So a stock that is empty waits for no pause at all."""
        counts = [min(there.get(kind, 0), self.each) for kind in self._asked if not self._is_forgotten(kind, now)]
        return QUIET_SECONDS * min(counts) / self.each if counts and self.each else QUIET_SECONDS

    def surplus(self, there: Mapping[Kind, int], now: float) -> Kind | None:
        """A kind of which one sandbox should go: nobody has asked for it for long; or there is no room, and a kind that somebody asks for
        has none, while another has several. None when all is well."""
        forgotten = next((kind for kind, count in there.items() if count and self._is_forgotten(kind, now)), None)
        if forgotten is not None or sum(there.values()) < self.in_all or all(there.get(kind, 0) for kind in self._asked):
            return forgotten
        return next((kind for kind in self._asked if there.get(kind, 0) > 1), None)  # the one that was asked for longest ago

    def _is_forgotten(self, kind: Kind, now: float) -> bool:
        return now - self._asked.get(kind, float("-inf")) > self.forget_seconds
