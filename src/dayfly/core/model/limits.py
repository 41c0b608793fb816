"""Limits: how much one function, or all functions of a namespace together, may be called. None is no limit.

A function's stand in its `dayfly.toml` (`[limits]`) and hold for the version that is called; what was used is counted for the function,
whatever the version. A namespace's are set by the platform's administrator. Bounds: core/manifest/limits.py; meaning: docs/functions.md.
"""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that can be limited. Days are UTC days."""

    rate_per_second: float | None = None  # calls that may enter, in the long run
    burst: int | None = None  # of these, at once; a second's worth when left out
    concurrency: int | None = None  # calls inside, waiting or running; 0: none may enter (paused)
    body_bytes_max: int | None = None  # of one call; the platform's own maximum stays
    calls_per_day: int | None = None
    gb_seconds_per_day: float | None = None
    response_bytes_per_day: int | None = None

    @property
    def any(self) -> bool:
        """Whether something is limited."""
        return self != NO_LIMITS

    @property
    def daily(self) -> bool:
        """Whether something is limited by the day."""
        return not (self.calls_per_day is None and self.gb_seconds_per_day is None and self.response_bytes_per_day is None)


NO_LIMITS = Limits()


class Consumed(msgspec.Struct, frozen=True, array_like=True):
    """What was used on one UTC day, of one function, or of a whole namespace when `function` is empty. As metered: core/decide/meter.py."""

    namespace: str
    function: str
    calls: int = 0
    mb_ms: int = 0
    bytes_out: int = 0
