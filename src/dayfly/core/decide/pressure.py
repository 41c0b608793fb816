"""May a version have more instances although the processors are busy? What it computes decides, and what the others do.

Calls that compute are not over sooner when more of them run than there are processors: they share them, all are late, and memory and
switches are paid for. So while the machine is *pressed*, a version whose calls compute gets as many instances as its part of the processors
can run, and the rest of its calls wait in its queue. Calls that wait for something else (a database, a timer) lose nothing by company:
such versions start as ever, as does everybody's first instance.

- **Pressed**: some thread that could run had to wait for a processor, more than half of the time (`Pressure`; the kernel's own account,
  /proc/pressure/cpu; where there is none, whether more threads could run than there are processors, looked at ten times a second).
  It ends below a quarter.
- **Computes** (`Computes`): processor time ÷ (time that passed − time waited for a processor), of instances all of whose places are taken.
  By this an instance that mostly waits for a database looks the same on a busy machine as on a quiet one. From a quarter on it counts,
  until it is below a tenth: one that computes a quarter of its time gets four times as many instances, so nobody falls off an edge.
- **Its part** (`ceilings`): two instances for each processor, divided by weight among the versions that compute and have calls; at least
  one each. Two, because calls of different length share better than they queue: beside a long one the short ones still get through.
  Whoever computes only part of the time, or has a ceiling (`cpu`), gets so many more.

Silent. Called by core/decide/steer.py for gateway/scaling.py, which reads the files.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

HIGH, LOW = 0.5, 0.25
NEWEST = 0.5  # weight of the newest look
COMPUTES_SHARE, COMPUTES_NO_MORE_SHARE = 0.25, 0.1
INSTANCES_PER_CORE = 2
SECONDS_MIN = 0.04  # between two readings: the kernel counts a process's time in hundredths of a second


class Reading(NamedTuple):
    """What a process has used by now: processor time, and time that its main thread waited for a processor."""

    cpu_seconds: float
    delay_seconds: float


class Pressure:
    """How pressed the processors are, from looks at the kernel's figures."""

    __slots__ = ("_at", "_stalled_us", "cores", "high", "share")

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self.share = 0.0  # of the time lately in which somebody waited for a processor
        self.high = False
        self._at = -1.0
        self._stalled_us = -1

    def __repr__(self) -> str:
        return f"<Pressure {self.share:.2f} of {self.cores:g} cores{' high' if self.high else ''}>"

    def looked(self, stalled_us: int, running: int, now: float) -> None:
        """`stalled_us`: the kernel's account up to now; below 0 where there is none. `running`: threads that run or could."""
        if stalled_us < 0:
            newest = float(running > self.cores)
        elif self._stalled_us < 0 or now <= self._at:
            newest = self.share
        else:
            newest = min(1.0, max(0.0, (stalled_us - self._stalled_us) * 1e-6 / (now - self._at)))
        self._at, self._stalled_us = now, stalled_us
        self.share += NEWEST * (newest - self.share)
        self.high = self.share >= (LOW if self.high else HIGH)


class Computes:
    """How much of its time a version computes when nothing keeps it from that; from readings of a few of its instances."""

    __slots__ = ("_last", "_was_busy", "cores", "counts", "share")

    def __init__(self) -> None:
        self.share = -1.0  # unknown
        self.counts = False  # whether it is one of those that are held back while the processors are pressed
        self.cores = 0.0  # that one instance uses on average
        self._last: dict[str, tuple[Reading, float]] = {}
        self._was_busy = False

    def __repr__(self) -> str:
        return f"<Computes {self.share:.2f}, {self.cores:.2f} cores each>"

    def saw(self, readings: Mapping[str, Reading], now: float, *, busy: bool) -> None:
        """Readings by instance. `busy`: every place of the version's instances is taken; `share` is learned only between two such looks."""
        used = waited = passed = 0.0
        for instance, reading in readings.items():
            before, at = self._last.get(instance, (reading, now))
            if now - at >= SECONDS_MIN:
                used += reading.cpu_seconds - before.cpu_seconds
                waited += reading.delay_seconds - before.delay_seconds
                passed += now - at
        if passed > 0:
            self.cores = used / passed
            if busy and self._was_busy:
                newest = min(1.0, used / max(passed - waited, used, 1e-9))
                self.share = newest if self.share < 0 else self.share + NEWEST * (newest - self.share)
                self.counts = self.share >= (COMPUTES_NO_MORE_SHARE if self.counts else COMPUTES_SHARE)
        if passed > 0 or not self._last.keys() & readings.keys():
            self._last = {instance: (reading, now) for instance, reading in readings.items()}
            self._was_busy = busy
        else:
            self._was_busy = self._was_busy and busy


def ceilings(cores: float, computing: Iterable[tuple[float, float]]) -> list[int]:
    """How many instances each may have that computes, of (weight, cores that one of its instances wants); see the module."""
    them = list(computing)
    total = sum(weight for weight, _ in them)
    places = cores * INSTANCES_PER_CORE
    return [max(1, round(places * weight / total / max(wanted, 0.001))) for weight, wanted in them]
