"""Schedules: when a function is called by the clock, and what is kept of that. Nouns only.

A *schedule* is a name in a namespace: an expression (`cron`, `rate` or `at`) whose *due times* fall on whole seconds or, for `at`, where it
says; a function; a payload. A *firing* is the call that is made for one due time: there is one for each, whoever tries (docs/schedules.md).
What a schedule may hold: core/manifest/schedule.py; which due times are fired: core/decide/schedule.py.
"""

from typing import Literal

import msgspec

Overlap = Literal["skip", "queue", "parallel"]
Missed = Literal["none", "last", "all"]


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[schedule]]` of a function's dayfly.toml, and what the API takes. One of `cron`, `rate` and `at` says when."""

    name: str = ""  # "" in a manifest: FUNCTION-N, by its place
    cron: str = ""  # [second] minute hour day month weekday
    rate: str = ""  # "5 minutes"
    at: str = ""  # "2026-12-24T18:00:00"
    timezone: str = "UTC"  # of `cron`, and of an `at` that names none
    jitter_seconds: float = 0.0  # every firing is late by the same part of this
    overlap: Overlap = "skip"  # a firing while the one before still waits or runs
    missed: Missed = "last"  # due times while nobody could fire
    payload: str = ""  # JSON; "" = the event that tells of the firing
    enabled: bool = True

    @property
    def expression(self) -> str:
        """For people: `cron(0 8 * * mon-fri)`, `rate(5 minutes)`, `at(…)`."""
        return f"cron({self.cron})" if self.cron else f"rate({self.rate})" if self.rate else f"at({self.at})"

    @property
    def when(self) -> tuple[str, str, str, str]:
        """What its due times depend on; when this changes it begins anew."""
        return self.cron, self.rate, self.at, self.timezone


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule with what control remembers of it (store/schedules.py)."""

    namespace: str
    function: str
    schedule: Schedule
    declared: bool  # by the manifest of the version that is live; else it was put through the API
    paused: bool = False
    anchor: float = 0.0  # when it began: what a rate counts from
    dice: float = 0.0  # in [0, 1), thrown once: which part of the jitter is its own
    decided: float = 0.0  # due times up to here are fired, skipped or missed
    next_at: float | None = None  # when to look again; None = never
    revision: int = 0  # grows with every change
    created_at: float = 0.0
    updated_at: float = 0.0
    last_due: float | None = None  # of the last firing
    last_call: str = ""
    fired: int = 0
    skipped: int = 0  # for an overlap
    missed: int = 0

    @property
    def name(self) -> str:
        return self.schedule.name

    @property
    def is_on(self) -> bool:
        """Whether it fires at all."""
        return self.schedule.enabled and not self.paused

    @property
    def offset(self) -> float:
        """How long after a due time it fires."""
        return self.dice * self.schedule.jitter_seconds
