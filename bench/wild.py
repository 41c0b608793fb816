"""A trace drawn from what is published of Azure Functions, for keepalive.py: applications with their triggers, rates and irregularity.

Its subjects are Azure's *applications*: the unit that is kept in memory there, whose rates, memory and percentiles the paper gives. Here
each is one function. Sources, by their letters in the comments below:

- P: Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, sections 3.2 to 3.6. Not read itself: its sentences as a draft quotes them
  from which mikhail.io/2020/05/serverless-in-the-wild-azure-functions-usage-stats was made;
- B: that article, its tables;
- N: Azure/AzurePublicDataset, AzureFunctionsDataset2019.md and analysis/AzureFunctionsDataset2019-Trace_Analysis.md;
- G: alpa-projects/mms (AlpaServe), which draws Azure's traces again as Gamma processes from a rate and a coefficient of variation (CV);
- R: recalled, found nowhere to be read;
- A: assumed, because nothing is published.

Nothing here was chosen by what a policy makes of it. One number is fitted, and to P alone: which part of the streams has a CV above 1,
until two of five drawn applications have. tests/bench/test_wild.py compares what is drawn with what is published.
"""

import random
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice, pairwise, takewhile
from math import ceil, log, pi, sin
from statistics import mean, pstdev
from typing import NamedTuple

from dayfly.core.model.trace import Arrival, Subject, Trace

DAY = 86_400.0
MINUTE = 60.0

RATES = ((0.0, 1 / 14), (0.45, 24.0), (0.81, 1440.0), (1.0, 1e7))
# share of applications → calls a day at most. P: 45 % at most one an hour, 81 % at most one a minute, eight orders of magnitude in all.
# A: straight between them on a logarithmic scale, and none of those that were called less than once in the two weeks.
RATE_DRAWN_MAX = 720.0  # of busier ones only every k-th call is drawn, with its k calls; no policy compared lets go within two minutes

ONLY_TIMERS, TIMERS_AND_OTHERS = 0.13, 0.158  # P: of applications; 71.2 % have no timer
FUNCTIONS = ((1, 0.54), (2, 0.16), (3, 0.10), (5, 0.08), (10, 0.07), (20, 0.05))  # B: of applications, upper ends; A: 20 for "11 and more"
PERIODS = (60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 43_200.0, DAY, 7 * DAY)
# A: what people write into cron. P: 95 % of timers fire at most once a minute on average; here all do.

CV_REGULAR = 0.10  # R: of streams, CV close to 0 (devices that report). Notes on P say of those without timers: "a significant fraction".
ABOVE_ONE_GAMMA, ABOVE_ONE_LOGNORMAL = 0.45, 0.50  # of streams; fitted, so that of all applications 40 % are above 1, as in P
CV_MIN, CV_MAX = 0.01, 10.0  # A: a regular one jitters by a hundredth; N: where the published plot of CVs ends
# A: below 1 CVs are uniform, above 1 uniform on a logarithmic scale.
DAILY_SWING = 1 / 3  # P: days show, above a constant half of the volume. A: so the least hour has half of the most, in every stream

RUN_LOG_MEAN, RUN_LOG_DEVIATION = -0.38, 2.36  # P: log-normal fit of the functions' average seconds
RUN_SPREAD, RUN_SECONDS_MAX = 0.5, 600.0  # A: around the average; Azure ends calls after ten minutes
BURR_C, BURR_K, BURR_SCALE_MB = 11.652, 0.221, 107.083  # P: fit of the applications' average memory
START_SECONDS = 1.0  # all alike, so that a policy's knob is in seconds of one start

Dice = random.Random
Times = Iterator[float]


class Shape(NamedTuple):
    """How times between calls are distributed, given their mean and CV; and the part of streams whose CV is above 1."""

    gap: Callable[[Dice, float, float], float]
    above_one: float


def _gamma(dice: Dice, mean_seconds: float, cv: float) -> float:
    return dice.gammavariate(1 / cv**2, mean_seconds * cv**2)


def _lognormal(dice: Dice, mean_seconds: float, cv: float) -> float:
    variance = log(1 + cv**2)
    return dice.lognormvariate(log(mean_seconds) - variance / 2, variance**0.5)


GAMMA = Shape(_gamma, ABOVE_ONE_GAMMA)  # G's: where the CV is above 1 many calls come at once, and then none for long
LOGNORMAL = Shape(_lognormal, ABOVE_ONE_LOGNORMAL)  # beside the figure, to see what the choice does: fewer very short times


def trace(seed: int, applications: int, days: int, shape: Shape = GAMMA) -> Trace:
    """Applications and their calls; one seed is one trace, exactly. As in N, calls within one minute are one arrival with a count."""
    dice = random.Random(seed)  # noqa: S311  (drawn again the same is the point)
    seconds = days * DAY
    subjects, arrivals = [], []
    for number in range(applications):
        rate = rate_at(dice.random())
        memory = BURR_SCALE_MB * ((1 - dice.random()) ** (-1 / BURR_K) - 1) ** (1 / BURR_C)
        run = min(dice.lognormvariate(RUN_LOG_MEAN, RUN_LOG_DEVIATION), RUN_SECONDS_MAX)
        every = max(1, ceil(rate / RATE_DRAWN_MAX))
        own = random.Random(dice.random())  # noqa: S311  (so that no application's draws move another's)
        kind, times = _application(own, rate / every, every, shape)
        subjects.append(Subject(f"{kind}-{number}", min(memory, 1536.0), START_SECONDS))
        for at, calls in _by_minute(times, seconds):
            took = min(run * own.lognormvariate(0.0, RUN_SPREAD), RUN_SECONDS_MAX)
            arrivals.append(Arrival(at, number, took, calls * every))
    arrivals.sort()
    return Trace(subjects, arrivals, seconds)


def rate_at(share: float) -> float:
    """Calls a day of the application at this share of all."""
    for (low, least), (high, most) in pairwise(RATES):
        if share <= high:
            return float(least * (most / least) ** ((share - low) / (high - low)))
    return RATES[-1][1]


def _application(dice: Dice, rate: float, every: int, shape: Shape) -> tuple[str, Times]:
    """What calls it, and when. `rate` is a day's; of a stream that is busier, each `every`-th call."""
    kind = dice.random()
    if kind < ONLY_TIMERS:
        weights = [dice.expovariate(1.0) for _ in range(_functions(dice))]  # A: who has how much of the rate
        return "timers", merge(*(_timer(dice, rate * weight / sum(weights)) for weight in weights))
    if kind < ONLY_TIMERS + TIMERS_AND_OTHERS:
        part = dice.uniform(0.05, 0.95)  # A: of the calls that are the timer's; and that it is one timer
        return "mixed", merge(_timer(dice, rate * part), _stream(dice, rate * (1 - part), every, shape))
    return "others", _stream(dice, rate, every, shape)


def _functions(dice: Dice) -> int:
    """Of an application that only timers call. Those with timers and others have two or more, so the rest has fewer than all have."""
    (_, one), *several = FUNCTIONS
    if dice.random() < one / (1 - TIMERS_AND_OTHERS):
        return 1
    return int(dice.choices([count for count, _ in several], [share for _, share in several])[0])


def _timer(dice: Dice, rate: float) -> Times:
    """As cron has it: on the minute, a part of a second late."""
    at_period = log(DAY / rate)
    period = min(PERIODS, key=lambda one: abs(log(one) - at_period))
    at = MINUTE * int(dice.random() * period / MINUTE)
    return (at + period * number + 0.9 * dice.random() for number in _forever())


def _forever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _stream(dice: Dice, rate: float, every: int, shape: Shape) -> Times:
    """G: Gamma distributed times between calls, of a CV drawn as P has it. Of a Gamma process each k-th call is one with CV ÷ √k."""
    share = dice.random()
    cv = max(cv_at(share, shape.above_one) / every**0.5, CV_MIN)
    swing = DAILY_SWING if share > CV_REGULAR else 0.0
    at = dice.random() * DAY / rate if cv < 1 else 0.0  # what is regular begins somewhere within its interval
    while True:
        at += shape.gap(dice, DAY / rate, cv) / (1 + swing * sin(2 * pi * at / DAY))
        yield at


def cv_at(share: float, above_one: float) -> float:
    """The coefficient of variation that this share of streams does not exceed."""
    if share <= CV_REGULAR:
        return 0.0
    if share <= 1 - above_one:
        return (share - CV_REGULAR) / (1 - above_one - CV_REGULAR)
    return float(CV_MAX ** ((share - 1 + above_one) / above_one))


def _by_minute(times: Times, seconds: float) -> Iterator[tuple[float, int]]:
    """The first call of each minute that has any, and how many it has."""
    first, calls = -1.0, 0
    for at in times:
        if at >= seconds:
            break
        if calls and at // MINUTE == first // MINUTE:
            calls += 1
            continue
        if calls:
            yield first, calls
        first, calls = at, 1
    if calls:
        yield first, calls


def irregularity(seed: int, applications: int, days: int, shape: Shape = GAMMA) -> list[float]:
    """The CV of the times between calls of each application that is called three times or more, ascending: the paper's figure 6.

    Of every call, so before busy ones are thinned; of those the first 5,000 calls have to do."""
    dice = random.Random(seed)  # noqa: S311
    found = []
    for _ in range(applications):
        rate = rate_at(dice.random())
        _, times = _application(dice, rate, 1, shape)
        within = list(takewhile(lambda at: at < days * DAY, islice(times, 5000)))
        between = [later - earlier for earlier, later in pairwise(within)]
        if len(between) >= 2:
            found.append(pstdev(between) / mean(between))
    return sorted(found)
