"""Figures: one run of one contender, and what several alternating runs say together. Arithmetic only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Run:
    """One measurement. Latencies in milliseconds; `cpu_us` is CPU time per call of everything the contender runs."""

    value: float
    p50: float
    p99: float
    errors: int = 0
    cpu_us: float = 0.0
    samples: tuple[float, ...] = ()


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))] if ordered else 0.0


def of_latencies(samples_ms: list[float], errors: int = 0, cpu_us: float = 0.0) -> Run:
    """A run whose figure is its median latency."""
    p50 = median(samples_ms) if samples_ms else 0.0
    return Run(p50, p50, quantile(samples_ms, 0.99), errors, cpu_us, tuple(samples_ms))


@dataclass
class Series:
    """All runs of one contender."""

    name: str
    runs: list[Run] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Medians over runs; the 99th percentile of pooled samples where there are some (three maxima are no percentile)."""
        pooled = [sample for run in self.runs for sample in run.samples]
        p99 = quantile(pooled, 0.99) if pooled else median(run.p99 for run in self.runs)
        return {
            "value": round(median(run.value for run in self.runs), 3),
            "p50": round(median(run.p50 for run in self.runs), 3),
            "p99": round(p99, 3),
            "errors": sum(run.errors for run in self.runs),
            "cpu_us_per_call": round(median(run.cpu_us for run in self.runs), 1),
        }


def alternate(measures: dict[str, Callable[[int], Run]], runs: int) -> list[Series]:
    """Every contender once, then every contender again …: what disturbs the machine disturbs all of them. Ours is the first."""
    series = [Series(name) for name in measures]
    for number in range(runs):
        for one, measure in zip(series, measures.values(), strict=True):
            one.runs.append(measure(number))
    return series


@dataclass(frozen=True)
class Outcome:
    """A benchmark's result. The first series is ours, and so are those named in `also` (another subject, another rate).

    A baseline is compared with the first series, or with the one of ours that `beside` names for it."""

    series: list[Series]
    method: str
    more: dict[str, object] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)

    def errors(self) -> int:
        """Of all series of ours."""
        return sum(run.errors for one in self.series if one is self.series[0] or one.name in self.also for run in one.runs)

    def document(self, name: str, unit: str) -> dict[str, object]:
        """What `--json` prints: ours, and every baseline with the ratio ours ÷ baseline."""
        sums = {one.name: one.summary() for one in self.series}
        first = self.series[0].name
        ours = sums[first]
        baselines = {}
        for baseline, theirs in sums.items():
            if baseline == first or baseline in self.also:
                continue
            mine = sums[self.beside.get(baseline, first)]
            ratio = round(mine["value"] / theirs["value"], 3) if theirs["value"] else None
            baselines[baseline] = {**theirs, "ratio": ratio}
        return {
            "name": name,
            "unit": unit,
            "value": ours["value"],
            "p50": ours["p50"],
            "p99": ours["p99"],
            "runs": len(self.series[0].runs),
            "errors": ours["errors"],
            "cpu_us_per_call": ours["cpu_us_per_call"],
            "baselines": baselines,
            **({"also": {one: sums[one] for one in self.also}} if self.also else {}),
        }
