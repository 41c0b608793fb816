"""Two traces drawn from less than bench/wild.py, measured beside it by keepalive.py: what the answer would be if calls came otherwise.

Functions in place of applications; triggers, rates and memory as published (the same sources), and how calls follow each other by guess:

- *plain*: HTTP calls are a Poisson stream with a daily cycle, timers are periodic, queues and events come in bursts;
- *varied*: of the functions that no timer calls 10 % are called by machines at regular times, 45 % in sessions, and 45 % by a renewal
  process between regular and Poisson.
"""

import random
from collections.abc import Callable, Iterator
from math import log, pi, sin

from bench.wild import DAY, START_SECONDS, rate_at
from dayfly.core.model.trace import Arrival, Subject, Trace

RATE_MAX = 720.0  # busier ones are drawn at this: never cold under any policy that is compared, and the same waste under each
TRIGGERS = (("http", 0.55), ("queue", 0.15), ("timer", 0.16), ("event", 0.02), ("orchestration", 0.07), ("other", 0.05))
PERIODS = (60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 43_200.0, DAY)
DAILY_CYCLE = 0.6  # the rate swings by this part around its mean
BURST_CALLS = 10.0

Dice = random.Random
Times = Iterator[float]
Draw = Callable[[Dice, str, float], Times]


def trace(seed: int, functions: int, days: int, times: Draw) -> Trace:
    """Functions and their calls; one seed is one trace, exactly."""
    dice = random.Random(seed)  # noqa: S311  (drawn again the same is the point)
    seconds = days * DAY
    subjects, arrivals = [], []
    for number in range(functions):
        trigger = dice.choices([name for name, _ in TRIGGERS], [share for _, share in TRIGGERS])[0]
        rate = min(rate_at(dice.random()), RATE_MAX)
        memory = min(max(dice.lognormvariate(log(170), 0.67), 20.0), 1536.0)
        run_median = min(dice.lognormvariate(log(0.7), 1.5), 60.0)
        subjects.append(Subject(f"{trigger}-{number}", memory, START_SECONDS))
        own = random.Random(dice.random())  # noqa: S311  (so that no function's draws move another's)
        for at in times(own, trigger, rate):
            if at >= seconds:
                break
            arrivals.append(Arrival(at, number, min(run_median * own.lognormvariate(0.0, 0.5), 300.0)))
    arrivals.sort()
    return Trace(subjects, arrivals, seconds)


def plain(dice: Dice, trigger: str, rate: float) -> Times:
    """Independent calls."""
    if trigger == "timer":
        return _timer(dice, rate)
    if trigger in ("queue", "event"):
        return _bursts(dice, rate, 1.0)
    return _poisson_by_day(dice, rate)


def varied(dice: Dice, trigger: str, rate: float) -> Times:
    """Sessions and regular callers too."""
    if trigger == "timer":
        return _timer(dice, rate)
    kind = dice.random()
    if kind < 0.10:
        return _renewal(dice, rate, 400.0)
    if kind < 0.55:
        return _bursts(dice, rate, 10.0 if trigger == "http" else 2.0)
    return _renewal(dice, rate, dice.choice((1.0, 2.0, 4.0)))


def _timer(dice: Dice, rate: float) -> Times:
    period = min(PERIODS, key=lambda one: abs(log(one * rate / DAY)))
    at = dice.random() * period
    while True:
        yield at + dice.random()
        at += period


def _poisson_by_day(dice: Dice, rate: float) -> Times:
    """Thinning: drawn at the highest rate, kept in proportion to the hour's."""
    at, phase = 0.0, dice.random() * 2 * pi
    while True:
        at += dice.expovariate((1 + DAILY_CYCLE) * rate / DAY)
        if dice.random() * (1 + DAILY_CYCLE) < 1 + DAILY_CYCLE * sin(2 * pi * at / DAY + phase):
            yield at


def _bursts(dice: Dice, rate: float, pause_seconds: float) -> Times:
    """Bursts at random, each of ten calls on average, with pauses of this median between them."""
    at = 0.0
    while True:
        at += dice.expovariate(rate / BURST_CALLS / DAY)
        for _ in range(1 + int(dice.expovariate(1 / (BURST_CALLS - 0.5)))):
            yield at
            at += dice.lognormvariate(log(pause_seconds), 1.0)


def _renewal(dice: Dice, rate: float, shape: float) -> Times:
    """Gamma distributed times between calls: coefficient of variation 1 ÷ √shape."""
    at = 0.0
    while True:
        at += dice.gammavariate(shape, DAY / rate / shape)
        yield at
