"""A trace of calls: which functions were called when, for how long. Read by core/wire/trace.py, replayed by core/decide/simulate.py."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Subject(NamedTuple):
    """A function of a trace."""

    name: str
    memory_mb: float
    start_seconds: float  # with init


class Arrival(NamedTuple):
    """`calls` of one function so close together that one instance takes them all; usually one. `at`: seconds since the beginning."""

    at: float
    subject: int  # index
    seconds: float
    calls: int = 1


class Trace(msgspec.Struct, frozen=True):
    """Functions and their arrivals in order of time. `seconds`: how long it is."""

    subjects: Sequence[Subject]
    arrivals: Sequence[Arrival]
    seconds: float
