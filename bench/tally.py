"""What became of many calls, small enough for ten million of them: histograms of times by kind of call, counts of ends. Arithmetic only.

Filled by bench/caller.py, a process each; merged by bench/callers.py.
"""

from typing import Self

import msgspec

from bench.outcome import Run

EXACT_BITS = 8  # below 256 µs a bucket is a microsecond; above, its width is at most 1/128 of its value


class Histogram(msgspec.Struct):
    """Times in buckets: `counts[bucket_of(microseconds)]`; sum and maximum are exact."""

    counts: dict[int, int] = {}
    total_us: int = 0
    most_us: int = 0

    def add(self, microseconds: int) -> None:
        """One more. Twice per call on the driver's hot path, which is why it looks like that."""
        counts, bucket = self.counts, bucket_of(microseconds)
        counts[bucket] = counts.get(bucket, 0) + 1
        self.total_us += microseconds
        if microseconds > self.most_us:
            self.most_us = microseconds

    def merge(self, other: Self) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total_us += other.total_us
        self.most_us = max(self.most_us, other.most_us)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean_ms(self) -> float:
        return self.total_us / 1000 / max(1, self.count)

    def quantile_ms(self, share: float) -> float:
        """The upper edge of the bucket in which that share of all is reached; 0 of none."""
        wanted, seen = share * self.count, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(self.most_us, upper_edge(bucket)) / 1000
        return 0.0


def bucket_of(microseconds: int) -> int:
    """Grows with the time, without gaps; see EXACT_BITS."""
    shift = microseconds.bit_length() - EXACT_BITS
    return microseconds if shift <= 0 else (shift << (EXACT_BITS - 1)) + (microseconds >> shift)


def upper_edge(bucket: int) -> int:
    """The greatest time of a bucket, in microseconds."""
    half = EXACT_BITS - 1
    shift = max(0, (bucket >> half) - 1)
    return ((bucket - (shift << half) + 1) << shift) - 1


class Tally(msgspec.Struct):
    """Every call is counted once: a good answer in `times` under its label; any other in `bad` by its status ("429"), or as "function
    error", "closed" (the server left with it), "no connection", "no answer". Late: due → sent, the driver's own part."""

    seconds: float = 0.0  # that calls were due in, or that a closed loop ran; longer when the last good answer came later
    cpu_seconds: float = 0.0  # of the driver
    times: dict[str, Histogram] = {}
    bad: dict[str, int] = {}
    late: Histogram = msgspec.field(default_factory=Histogram)
    unadvised: int = 0  # refusals (429, 503) without Retry-After
    failed_from: float = -1.0  # when the first call failed, in seconds after the start, and the last; -1: none did
    failed_until: float = -1.0

    def failure(self, how: str, at: float) -> None:
        """A call that was not answered well, so many seconds after the start."""
        self.bad[how] = self.bad.get(how, 0) + 1
        self.failed_from = at if self.failed_from < 0 else self.failed_from
        self.failed_until = at

    def merge(self, other: Self) -> None:
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.unadvised += other.unadvised
        self.late.merge(other.late)
        begins = [at for at in (self.failed_from, other.failed_from) if at >= 0]
        self.failed_from = min(begins, default=-1.0)
        self.failed_until = max(self.failed_until, other.failed_until)
        for how, count in other.bad.items():
            self.bad[how] = self.bad.get(how, 0) + count
        for label, times in other.times.items():
            self.times.setdefault(label, Histogram()).merge(times)

    @property
    def good(self) -> int:
        return sum(times.count for times in self.times.values())

    @property
    def failed(self) -> int:
        return sum(self.bad.values())

    @property
    def calls(self) -> int:
        return self.good + self.failed

    @property
    def per_second(self) -> float:
        """Good answers."""
        return self.good / max(1e-9, self.seconds)

    def all_times(self) -> Histogram:
        """Of every label together."""
        merged = Histogram()
        for times in self.times.values():
            merged.merge(times)
        return merged

    def run(self, cpu_us: float = 0.0, *, errors: int | None = None, times: Histogram | None = None) -> Run:
        """As a run whose figure is goodput; `errors` where refusals are wanted, `times` where only some calls are meant."""
        shown = times or self.all_times()
        return Run(self.per_second, shown.quantile_ms(0.5), shown.quantile_ms(0.99), self.failed if errors is None else errors, cpu_us)

    def driver(self) -> str:
        """For the report: what the driver cost, and how late it sent."""
        share = 100 * self.cpu_seconds / max(1e-9, self.seconds)
        return (
            f"driver {share:.0f} % of a core, {self.cpu_seconds * 1e6 / max(1, self.calls):.1f} µs a call, sent "
            f"{self.late.quantile_ms(0.5):.3g} ms late at p50, {self.late.quantile_ms(0.99):.3g} ms at p99"
        )

    def failures(self) -> str:
        """` (429: 12, closed: 3; from 4.01 s to 4.20 s)`; empty without any."""
        counts = ", ".join(f"{how}: {count}" for how, count in sorted(self.bad.items()))
        return f" ({counts}; from {self.failed_from:.2f} s to {self.failed_until:.2f} s)" if counts else ""
