"""A trace of calls as CSV → core/model/trace.py. Two formats, told apart by the line of headings:

- `time,function,duration_ms,memory_mb,start_ms`: one call a line, time in seconds from any moment on, in any order. Only the first two must
  be there; memory and start are the function's, taken from its first line.
- Azure's public trace of 2019 (`HashOwner,HashApp,HashFunction,Trigger,1,2,…,1440`): one function a line with its calls in each minute of a
  day. The calls of a minute are spread evenly over it. Beyond six a minute, each of the six stands for several calls, of which at most
  the first can be cold.

Called by cli/simulating.py. Touches no file: lines come as an argument.
"""

import csv
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import NamedTuple

from dayfly.core.model.trace import Arrival, Subject, Trace

ARRIVALS_MAX = 20_000_000
ARRIVALS_PER_MINUTE_MAX = 6
MINUTES = 1440
MS = 1e-3


class BadTrace(ValueError):
    """The text is no trace; says which line and why."""


class Defaults(NamedTuple):
    """What a trace does not say."""

    duration_ms: float = 100.0
    memory_mb: float = 128.0
    start_ms: float = 5.0


def parse_trace(lines: Iterable[str], defaults: Defaults) -> Trace:
    """Raises BadTrace."""
    rows = csv.reader(lines)
    try:
        heads = [head.strip().lstrip("\ufeff").lower() for head in next(rows, [])]
        if {"hashapp", "hashfunction", "1", str(MINUTES)} <= set(heads):
            return _by_minute(rows, heads, defaults)
        if {"time", "function"} <= set(heads):
            return _by_call(rows, heads, defaults)
    except csv.Error as error:
        raise BadTrace(f"line {rows.line_num}: {error}") from error
    raise BadTrace("line 1: the headings must hold time and function, or be those of Azure's trace (HashOwner, HashApp, HashFunction, …)")


def _by_call(rows: Iterator[list[str]], heads: list[str], defaults: Defaults) -> Trace:
    columns = {head: place for place, head in enumerate(heads)}
    subjects: dict[str, tuple[int, Subject]] = {}
    arrivals: list[Arrival] = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(heads):
            raise BadTrace(f"line {number}: {len(row)} values below {len(heads)} headings")

        def value(head: str, default: float, row: list[str] = row, number: int = number) -> float:
            return default if head not in columns or not row[columns[head]].strip() else _number(row[columns[head]], head, number)

        name = row[columns["function"]]
        if name not in subjects:
            memory, start = value("memory_mb", defaults.memory_mb), value("start_ms", defaults.start_ms)
            subjects[name] = len(subjects), Subject(name, memory, start * MS)
        at = _number(row[columns["time"]], "time", number)
        arrivals.append(Arrival(at, subjects[name][0], value("duration_ms", defaults.duration_ms) * MS))
        _bound(arrivals)
    if not arrivals:
        raise BadTrace("there is no call in it")
    arrivals.sort()
    first = arrivals[0].at
    moved = [arrival._replace(at=arrival.at - first) for arrival in arrivals]
    return Trace([subject for _, subject in subjects.values()], moved, max(one.at + one.seconds for one in moved))


def _by_minute(rows: Iterator[list[str]], heads: list[str], defaults: Defaults) -> Trace:
    columns = {head: place for place, head in enumerate(heads)}
    minutes = [columns[str(minute)] for minute in range(1, MINUTES + 1) if str(minute) in columns]
    if len(minutes) != MINUTES:
        raise BadTrace(f"line 1: there must be a column for each of the {MINUTES} minutes of a day")
    subjects: list[Subject] = []
    arrivals: list[Arrival] = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(heads):
            raise BadTrace(f"line {number}: {len(row)} values below {len(heads)} headings")
        name = f"{row[columns['hashapp']]}/{row[columns['hashfunction']]}"
        for minute, place in enumerate(minutes):
            calls = int(_number(row[place], str(minute + 1), number)) if row[place] != "0" else 0
            arrivals += _spread(minute * 60.0, len(subjects), calls, defaults.duration_ms * MS)
        _bound(arrivals)
        subjects.append(Subject(name, defaults.memory_mb, defaults.start_ms * MS))
    if not arrivals:
        raise BadTrace("there is no call in it")
    arrivals.sort()
    return Trace(subjects, arrivals, MINUTES * 60.0)


def _spread(begin: float, subject: int, calls: int, seconds: float) -> Iterator[Arrival]:
    """The calls of one minute."""
    parts = min(calls, ARRIVALS_PER_MINUTE_MAX)
    for part in range(parts):
        yield Arrival(begin + 60.0 * part / parts, subject, seconds, calls // parts + (part < calls % parts))


def _number(text: str, head: str, line: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not isfinite(number) or number < 0:
        raise BadTrace(f"line {line}: {head} = {text[:40]!r} must be a number from 0")
    return number


def _bound(arrivals: list[Arrival]) -> None:
    if len(arrivals) > ARRIVALS_MAX:
        raise BadTrace(f"more than {ARRIVALS_MAX:,} calls: cut it into days")
