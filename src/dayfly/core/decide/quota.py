"""What was used of a UTC day, and when the next one begins. Wall clock, because a day is a matter of the calendar.

Counters of the day before are kept beside today's: a clock that is put back over midnight, or a call that two clocks date differently,
finds them again. Control's figures (`told`) and the gateway's own meet by the larger one: each knows something that the other does not
yet, and neither counts a call that was not. Silent. Used by core/decide/limit.py.
"""

from dayfly.core.model.limits import Consumed

DAY_SECONDS = 86_400


class Used:
    """Counters of one day."""

    __slots__ = ("bytes_out", "calls", "day", "mb_ms")

    def __init__(self, day: int) -> None:
        self.day = day
        self.calls = self.mb_ms = self.bytes_out = 0

    def __repr__(self) -> str:
        return f"<Used day={self.day} calls={self.calls} mb_ms={self.mb_ms} bytes_out={self.bytes_out}>"


class Days:
    """Counters of the day that is, and of the one that was."""

    __slots__ = ("before", "today")

    def __init__(self) -> None:
        self.today = Used(-1)
        self.before = Used(-2)

    def on(self, day: int) -> Used:
        """The counters of `day` (`day_of`), which is now today."""
        if self.today.day != day:
            self.today, self.before = (self.before if self.before.day == day else Used(day)), self.today
        return self.today

    def told(self, day: int, consumed: Consumed) -> None:
        """What control has written down for `day`."""
        used = self.on(day)
        used.calls = max(used.calls, consumed.calls)
        used.mb_ms = max(used.mb_ms, consumed.mb_ms)
        used.bytes_out = max(used.bytes_out, consumed.bytes_out)


def day_of(at: float) -> int:
    """The UTC day of epoch seconds, counted from 1970."""
    return int(at) // DAY_SECONDS


def seconds_left(at: float) -> float:
    """Until the next UTC day begins."""
    return DAY_SECONDS - at % DAY_SECONDS
