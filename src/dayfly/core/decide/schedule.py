"""Which due times of a schedule are fired now, and when to look again. The one place that knows the policies; silent.

Theory. `decided` is a mark on the line of due times: whatever lies at or before it has been fired, skipped or missed, and is never
looked at again; so nothing is fired twice and nothing is forgotten, whoever dies in between, because the mark moves after the firing was
written down (and a firing written down twice is one: its due time is its key). The mark never goes back, but in one case: a clock that
was in the future and was put right would leave a schedule silent until then. Beyond CLOCK_BACK_SECONDS the mark goes back to the clock
(and as far before it as is still on time), and the keys see to it that what was fired stays fired once.

A jitter delays all firings of a schedule alike, so their order and distance stay: it is a clock that is slow by `offset`.
Called by control/schedules.py.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from dayfly.core.model.schedule import Missed, Overlap

CLOCK_BACK_SECONDS = 3600.0


class Times(Protocol):
    """The due times of an expression (control/due.py)."""

    def after(self, moment: float) -> Iterator[float]:
        """Those after `moment`, strictly growing."""

    def upto(self, moment: float) -> Iterator[float]:
        """Those at or before `moment`, the newest first."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the platform: how late is still on time; how many due times that were missed are made up for, and how old."""

    late_seconds: float
    missed_max: int
    missed_seconds_max: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now. `firings`: due times, oldest first. `missed`: how many others passed (as far as they were counted)."""

    firings: tuple[float, ...]
    missed: int
    decided: float
    next_at: float | None


def plan(times: Times, policy: Missed, decided: float, offset: float, now: float, bounds: Bounds) -> Plan:
    """What a schedule whose mark is `decided` does at epoch seconds `now`."""
    clock = now - offset
    mark = clock - bounds.late_seconds if now < decided - CLOCK_BACK_SECONDS else decided
    due = _due(times, mark, clock, bounds.missed_max)
    firings = _fired(due, policy, clock, bounds)
    mark = due[0] if due else mark
    following = next(times.after(mark), None)
    return Plan(
        firings=tuple(reversed(firings)),
        missed=len(due) - len(firings),
        decided=mark,
        next_at=None if following is None else following + offset,
    )


def _due(times: Times, mark: float, clock: float, at_most: int) -> list[float]:
    """Due times after the mark, newest first."""
    found: list[float] = []
    for due in times.upto(clock):
        if due <= mark or len(found) >= at_most:
            break
        found.append(due)
    return found


def _fired(due: list[float], policy: Missed, clock: float, bounds: Bounds) -> list[float]:
    """Of these (newest first), which are fired: those that are on time, and of those that were missed what the policy says."""
    on_time = [moment for moment in due if moment >= clock - bounds.late_seconds]
    late = due[len(on_time) :]
    if policy == "all":
        return on_time + [moment for moment in late if moment >= clock - bounds.missed_seconds_max]
    if policy == "last" and not on_time:
        return late[:1]
    return on_time


def allowed(overlap: Overlap, firings: tuple[float, ...], unfinished: int, queued_max: int) -> tuple[float, ...]:
    """Of these firings (oldest first), those that may be made while so many earlier ones of the schedule wait or run."""
    if overlap == "parallel":
        return firings
    if overlap == "skip":
        return () if unfinished else firings[-1:]
    return firings[: max(0, queued_max - unfinished)]
