"""Ten times a second: look at the processors and at the pools, and tell the pools at least and at most how many instances they shall have.

The hands of core/decide/steer.py. Reads a few files of /proc (gateway/processors.py), and those of instances only while the machine is
pressed or a function is scaled by `cpu`; sets `pool.floor` and `pool.ceiling`, which the pool hears at its next tick; asks the node to
weigh instances anew (never for a start: the groups that starts take are weighed already). Called by gateway/main.py's clock.
"""

from itertools import islice

from dayfly.core.decide.pressure import Computes, Pressure, Reading
from dayfly.core.decide.steer import hold, is_busy
from dayfly.core.ports import Provider
from dayfly.core.wire.node import WEIGHTS_MAX, Accepted
from dayfly.gateway.entry import Entry
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.processors import Processors

LOOK_SECONDS = 0.1
READINGS_PER_LOOK_MAX = 16  # of instances; a quarter of a millisecond
READINGS_PER_VERSION_MAX = 3


class Scaling:
    """One gateway's."""

    def __init__(self, fleet: Fleet, provider: Provider, processors: Processors) -> None:
        self._fleet = fleet
        self._provider = provider
        self._processors = processors
        self.pressure = Pressure(processors.cores)
        self._looked_at = float("-inf")
        self._was_pressed = False
        self._turn = 0  # whose instances are read next, when there are too many for one look

    def __repr__(self) -> str:
        return f"<Scaling {self.pressure!r}>"

    def tick(self, now: float) -> None:
        """Look, at most ten times a second."""
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        stalled_us = self._processors.stalled_us()
        self.pressure.looked(stalled_us, self._processors.running() if stalled_us < 0 else 0, now)
        pressed = self.pressure.high
        self._fleet.ledger.cpu_pressure = self.pressure.share
        entries = list(self._fleet.entries.values())
        self._read([entry for entry in entries if entry.steering.wants_reading(entry.pool, pressed=pressed)], now)
        if pressed or self._was_pressed:
            hold(self.pressure, ((entry.steering, entry.pool) for entry in entries))
        for entry in entries:
            if not entry.steering.is_open(entry.pool):
                entry.steering.looked(entry.pool, now)
                entry.pool.floor, entry.pool.ceiling = entry.steering.bounds(entry.pool)
        if pressed:
            self._weigh(entries)
        self._was_pressed = pressed

    def _read(self, entries: list[Entry], now: float) -> None:
        """Processor time of a few instances of each, as many as one look may cost, the next versions the next time."""
        left = READINGS_PER_LOOK_MAX
        first, self._turn = self._turn, 0
        for index, entry in enumerate(entries[first:], first):
            if left <= 0:
                self._turn = index
                return
            steering = entry.steering
            readings = self._readings(entry, min(left, READINGS_PER_VERSION_MAX))
            left -= max(1, len(readings))
            if steering.computes is None:
                steering.computes = Computes()
            steering.computes.saw(readings, now, busy=is_busy(entry.pool))

    def _readings(self, entry: Entry, most: int) -> dict[str, Reading]:
        found = {}
        for channel in islice((it for it in entry.channels.values() if it.ready_at), most):
            accepted = channel.accepted
            if isinstance(accepted, Accepted) and (reading := self._processors.reading(accepted.pid)) is not None:
                found[channel.id] = reading
        return found

    def _weigh(self, entries: list[Entry]) -> None:
        """Let every function have its weight, however many instances it has."""
        changed: dict[str, int] = {}
        for entry in entries:
            if entry.channels:
                changed |= entry.steering.weights(entry.pool)
        names = list(changed)
        for at in range(0, len(names), WEIGHTS_MAX):
            self._provider.weigh({name: changed[name] for name in names[at : at + WEIGHTS_MAX]})
