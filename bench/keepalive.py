"""keepalive-sim: cold starts of the learned keep-alive against a fixed ten minutes, at equal wasted memory, on a drawn trace.

The trace of the figure is that of bench/wild.py: two weeks of applications drawn from what was published of Azure Functions. Beside it the
same with log-normal times between calls in place of Gamma distributed ones, and the two of bench/guessed.py: that is how much the answer
depends on what nobody published. On each of them three policies are moved by one knob until they waste as much memory as the fixed one:

- ours by what a spared start is worth (core/decide/keepalive.py, as the pool runs it);
- the paper's hybrid policy by the range of its histogram, as in the paper's own comparison (`hybrid`, here);
- the paper's percentiles over our bins (a policy of `dayfly simulate`) by the window that holds where the histogram says nothing.

Everything else is alike: functions that are not known yet are kept ten minutes (by the paper's policy as long as its range), and so are
instances above the first. The percentile is over applications, as in the paper, each with the cold share of its calls.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil, log, sqrt

import msgspec

from bench import guessed, wild
from bench.outcome import Outcome, Run, Series
from dayfly.core.decide.keepalive import EDGES, HEAD, MARGIN, OBSERVATIONS_MIN, SPREAD_MIN, TAIL, IdleTimes, Windows, percentiles
from dayfly.core.decide.simulate import POLICIES, Policy, Result, simulate
from dayfly.core.model.trace import Trace

BY_NAME = {policy.name: policy for policy in POLICIES}
FIXED = BY_NAME["fixed-10min"]
TOLERANCE = 0.015
KNOB_SECONDS = (60.0, 172_800.0)
STEPS_MAX = 12
BEYOND_SHARE_MAX, FORECAST_MARGIN, MINUTE = 0.5, 0.15, 60.0


@dataclass(frozen=True)
class Size:
    """How much is drawn."""

    functions: int
    days: int
    seeds: tuple[int, ...]


FULL = Size(200, 14, (1, 2, 3))
QUICK = Size(50, 4, (1,))
TRACES: dict[str, Callable[[int, int, int], Trace]] = {
    "": wild.trace,
    "log-normal": partial(wild.trace, shape=wild.LOGNORMAL),
    "sessions": partial(guessed.trace, times=guessed.varied),
    "independent": partial(guessed.trace, times=guessed.plain),
}
OURS = "dayfly"
POLICY_NAMES = (OURS, "the paper's policy", "its percentiles, our bins")


def simulated(quick: bool) -> Outcome:
    """The ratio at the 75th percentile of applications, a run for each seed; every trace under every policy."""
    size = QUICK if quick else FULL
    with ProcessPoolExecutor() as workers:  # figures are counts and not times: the processes may disturb each other
        asked = {name: [workers.submit(_compared, name, seed, size) for seed in size.seeds] for name in TRACES}
        found = {name: [one.result() for one in each] for name, each in asked.items()}
    series = [Series(_called(policy, name), [one.run(policy) for one in each]) for name, each in found.items() for policy in POLICY_NAMES]
    method = (
        f"{size.functions} applications over {size.days} days, seeds {size.seeds}, drawn from the distributions published of Azure "
        "Functions (bench/wild.py has each number's source); cold share of the application at the 75th percentile under a fixed 10 minutes "
        f"÷ under the policy, whose one knob is moved to the same wasted memory-seconds (within {TOLERANCE:.1%}); the columns p50 and p99 "
        "are the same ratio at those percentiles. *log-normal*: the same with another shape of times between calls; *sessions* and "
        "*independent*: the earlier traces, less of which is published (bench/guessed.py). On Azure's own the paper's policy had about 2.5"
    )
    others = [name for name in TRACES if name]
    beside = {_called(policy, name): name for name in others for policy in POLICY_NAMES[1:]}
    facts: dict[str, object] = {name or "published": [one.facts() for one in each] for name, each in found.items()}
    return Outcome(series, method, facts, tuple(others), beside)


def _called(policy: str, name: str) -> str:
    """A row of the report: ours on another trace is called as the trace."""
    if not name:
        return policy
    return name if policy == OURS else f"{policy}, {name}"


def _compared(name: str, seed: int, size: Size) -> "Comparison":
    return compare(TRACES[name](seed, size.functions, size.days))


@dataclass(frozen=True)
class Comparison:
    """One trace under the fixed policy and, at the same waste, under the others; `shipped` is ours with the knob it is shipped with."""

    fixed: Result
    shipped: Result
    others: dict[str, tuple[float, Result]]  # the knob, and what it gives

    def ratio(self, other: Result, percentile: float) -> float:
        """How many times fewer cold starts; 1 where both have none."""
        theirs, mine = self.fixed.share_at(percentile), other.share_at(percentile)
        return theirs / mine if mine else 1.0 if not theirs else float(self.fixed.calls)

    def run(self, policy: str) -> Run:
        _, other = self.others[policy]
        return Run(self.ratio(other, 0.75), self.ratio(other, 0.5), self.ratio(other, 0.99))

    def facts(self) -> dict[str, object]:
        return {
            "calls": self.fixed.calls,
            "fixed 10 minutes": self._shown(self.fixed),
            "dayfly as shipped": self._shown(self.shipped),
            **{name: {"knob_seconds": round(knob)} | self._shown(one) for name, (knob, one) in self.others.items()},
        }

    def _shown(self, result: Result) -> dict[str, float]:
        return {
            "cold_share_of_calls": round(result.cold_share, 6),
            "cold_share_mean_of_functions": round(sum(result.shares) / len(result.shares), 4),
            "cold_share_p50": round(result.share_at(0.5), 4),
            "cold_share_p75": round(result.share_at(0.75), 4),
            "wasted_memory": round(result.wasted_mb_seconds / self.fixed.wasted_mb_seconds, 3),
        }


def compare(drawn: Trace) -> Comparison:
    """All policies on one trace."""
    fixed = simulate(drawn, FIXED)
    tuned = dict(zip(POLICY_NAMES, (worth, paper, with_percentiles), strict=True))
    others = {name: at_equal_waste(drawn, one, fixed.wasted_mb_seconds) for name, one in tuned.items()}
    return Comparison(fixed, simulate(drawn, BY_NAME["histogram"]), others)


def worth(seconds: float) -> Policy:
    """Ours; the knob is what a spared start is worth."""
    start_worth = seconds / wild.START_SECONDS
    return msgspec.structs.replace(BY_NAME["histogram"], fixed_seconds=FIXED.fixed_seconds, worth_per_start_second=start_worth)


def paper(seconds: float) -> Policy:
    """The paper's; the knob is the range of its histogram."""
    return msgspec.structs.replace(FIXED, choose=partial(hybrid, range_seconds=seconds))


def with_percentiles(seconds: float) -> Policy:
    """Its percentiles over our bins; the knob is the window where they say nothing."""
    return msgspec.structs.replace(FIXED, choose=lambda seen, _, worth_seconds: percentiles(seen, seconds, worth_seconds))


def at_equal_waste(drawn: Trace, tuned: Callable[[float], Policy], wasted: float) -> tuple[float, Result]:
    """The knob and what it gives. Waste grows with it: half-way between bounds on a logarithmic scale, then by the waste at both."""
    (low, high), below, above = KNOB_SECONDS, 0.0, 0.0
    for _ in range(STEPS_MAX):
        part = min(max(log(wasted / below) / log(above / below), 0.1), 0.9) if below and above else 0.5
        knob = low * (high / low) ** part
        result = simulate(drawn, tuned(knob))
        if abs(result.wasted_mb_seconds / wasted - 1) <= TOLERANCE:
            break
        if result.wasted_mb_seconds > wasted:
            high, above = knob, result.wasted_mb_seconds
        else:
            low, below = knob, result.wasted_mb_seconds
    return knob, result


def hybrid(seen: IdleTimes, _fixed_seconds: float, _worth_seconds: float, *, range_seconds: float) -> Windows:
    """The paper's policy (its section 4.2): a histogram in minutes up to a range; 5th to 99th percentile where its counts are concentrated;
    around a forecast where most idle times are beyond the range; else kept as long as the range is. In place of its ARIMA forecast
    the mean. Minutes are made of our bins, which are narrower up to 20 minutes and wider above."""
    standard = Windows(0.0, range_seconds)
    if seen.total < OBSERVATIONS_MIN:
        return standard
    bins = seen.bins()
    within = [(EDGES[index], EDGES[index + 1], count) for index, count in bins if EDGES[index + 1] <= range_seconds]
    inside = sum(count for _, _, count in within)
    if inside < (1 - BEYOND_SHARE_MAX) * seen.total:
        known = sum(count for _, count in bins)
        if known < (1 - BEYOND_SHARE_MAX) * seen.total:
            return standard
        forecast = sum((EDGES[index] + EDGES[index + 1]) / 2 * count for index, count in bins) / known
        return Windows(forecast * (1 - FORECAST_MARGIN), 2 * FORECAST_MARGIN * forecast, learned=True)
    if _spread_of_minutes(within, inside, range_seconds) < SPREAD_MIN:
        return standard
    ahead = MINUTE * int(_edge(within, HEAD * inside, 0) / MINUTE) * (1 - MARGIN)
    until = MINUTE * ceil(_edge(within, TAIL * inside, 1) / MINUTE) * (1 + MARGIN)
    return Windows(ahead, until - ahead, learned=True)


def _edge(within: list[tuple[float, float, int]], wanted: float, side: int) -> float:
    passed = 0
    for one in within:
        passed += one[2]
        if passed >= wanted:
            return one[side]
    return within[-1][side]


def _spread_of_minutes(within: list[tuple[float, float, int]], inside: int, range_seconds: float) -> float:
    """Coefficient of variation of the counts of all minutes within the range, those of a wide bin spread over the minutes it has."""
    minutes: dict[int, float] = {}
    squares = 0.0
    for low, high, count in within:
        if high - low > MINUTE:
            squares += count * count / ((high - low) / MINUTE)
        else:
            minutes[int(low / MINUTE)] = minutes.get(int(low / MINUTE), 0.0) + count
    squares += sum(one * one for one in minutes.values())
    number = max(1.0, range_seconds / MINUTE)
    return sqrt(max(0.0, squares / number - (inside / number) ** 2)) / (inside / number)
