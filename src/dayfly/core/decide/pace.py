"""May this much pass now, or how long must it wait? A rate with a second's worth of leeway, for one instance's traffic in both directions.

Virtual scheduling, as ATM's generic cell rate algorithm has it (ITU-T I.371, annex A): one number, no timer. Silent: `now` is the
caller's. Used by the egress broker.
"""

BURST_SECONDS = 1.0


class Pace:
    """`per_second` 0: as fast as it goes."""

    __slots__ = ("_due", "per_second")

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self._due = float("-inf")  # when all that has passed would have passed at exactly this rate

    def __repr__(self) -> str:
        return f"<Pace {self.per_second}/s>"

    def passed(self, count: int, now: float) -> float:
        """So much has passed: seconds until more may."""
        if not self.per_second:
            return 0.0
        self._due = max(self._due, now - BURST_SECONDS) + count / self.per_second
        return max(0.0, self._due - now)
