"""What one version's pool is told from outside: at least and at most so many instances, and what each weighs.

Brings together its target (autoscale.py), the pressure on the processors (pressure.py) and fairness (fair.py). Facts in (`looked`, once a
look; `computes.saw`), bounds out (`bounds`). Nothing here runs per call. Silent; one for each version, made and asked by gateway/.
"""

from collections.abc import Iterable

from dayfly.core.decide.autoscale import Autoscaler
from dayfly.core.decide.fair import differs, permille
from dayfly.core.decide.pool import Pool
from dayfly.core.decide.pressure import Computes, Pressure, ceilings
from dayfly.core.model.function import FunctionConfig

SMOOTHING = 0.5  # weight of the newest look


class Steering:
    """One version's."""

    __slots__ = ("_at", "_busy", "_cores_most", "_count", "_told", "computes", "held_at", "metric", "scaler", "weight")

    def __init__(self, config: FunctionConfig) -> None:
        self.metric = config.scale.metric
        self.scaler = Autoscaler(config.scale, config.concurrency) if self.metric != "demand" else None
        self.weight = config.cpu_weight
        self.computes: Computes | None = None  # until somebody wants to know
        self.held_at = 0  # as many instances as the processors can run of it; 0: it is not held
        self._cores_most = config.cpu or 1.0
        self._at = -1.0
        self._count = 0
        self._busy = 1.0  # instances, lately
        self._told: dict[str, int] = {}  # what instances weigh that do not weigh what follows from their memory

    def __repr__(self) -> str:
        return f"<Steering {self.scaler or self.metric} {self.computes} held_at={self.held_at}>"

    @property
    def cores_wanted(self) -> float:
        """By one instance of a version that computes."""
        return min(self.computes.share if self.computes is not None else 0.0, self._cores_most)

    def wants_reading(self, pool: Pool, *, pressed: bool) -> bool:
        """Whether its instances' processor time is worth reading now."""
        return pool.ready > 0 and (self.metric == "cpu" or (pressed and is_busy(pool)))

    def looked(self, pool: Pool, now: float) -> None:
        """Time passed: what was used since the last look."""
        if self.scaler is None:
            return
        seconds = now - self._at if self._at >= 0 else 0.0
        calls, self._count = pool.submitted_count - self._count, pool.submitted_count
        self._at = now
        if self.metric == "concurrency":
            self.scaler.used((len(pool.waiting) + len(pool.offered)) * seconds, now)
        elif self.metric == "rps":
            self.scaler.used(float(calls), now)
        else:
            self.scaler.used((self.computes.cores if self.computes is not None else 0.0) * pool.ready * seconds, now)
        self.scaler.decide(pool.ready, now)

    def is_open(self, pool: Pool) -> bool:
        """Whether there is nothing to tell the pool, and nothing to take back."""
        return self.scaler is None and not self.held_at and pool.ceiling >= pool.limits.max_instances

    def bounds(self, pool: Pool) -> tuple[int, int]:
        """(floor, ceiling) of the pool, besides its own limits."""
        floor, ceiling = 0, pool.limits.max_instances
        if self.scaler is not None:
            floor = min(self.scaler.wanted, ceiling)
            ceiling = max(1, floor)
        if self.held_at:
            ceiling = min(ceiling, self.held_at)
        return min(floor, ceiling), ceiling

    def weights(self, pool: Pool) -> dict[str, int]:
        """Which of its instances shall weigh something else from now on. Those that have nothing to do weigh nothing anyway: the weight
        is shared by as many as are busy, whichever those are."""
        busy = min(pool.ready, -(-len(pool.offered) // pool.limits.concurrency))
        self._busy += SMOOTHING * (max(1, busy) - self._busy)
        wanted, told = permille(self.weight, self._busy), self._told
        if not told and not differs(1000, wanted):
            return {}
        ready = [name for name, it in pool.instances.items() if it.ready_at]
        changed = {name: wanted for name in ready if differs(told.get(name, 1000), wanted)}
        self._told = {name: changed.get(name) or told.get(name, 1000) for name in ready}
        return changed


def is_busy(pool: Pool) -> bool:
    """Whether every place of its instances is taken."""
    return len(pool.waiting) + len(pool.offered) >= pool.ready * pool.limits.concurrency > 0


def hold(pressure: Pressure, them: Iterable[tuple[Steering, Pool]]) -> None:
    """Say for every version how many instances the processors can run of it."""
    everyone = list(them)
    for steering, _ in everyone:
        steering.held_at = 0
    if not pressure.high:
        return
    computing = [it for it, pool in everyone if it.computes is not None and it.computes.counts and (pool.offered or pool.waiting)]
    for it, most in zip(computing, ceilings(pressure.cores, ((it.weight, it.cores_wanted) for it in computing)), strict=True):
        it.held_at = most
