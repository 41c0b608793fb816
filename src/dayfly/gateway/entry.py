"""One version on this gateway: its pool, its socket, its channels and what its instances are booted with. Decides nothing.

Made and changed by gateway/fleet.py and gateway/starter.py only.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.evict import Item
from dayfly.core.decide.pool import Pool
from dayfly.core.decide.steer import Steering
from dayfly.core.model.function import Function, Version
from dayfly.core.model.settings import Settings
from dayfly.gateway.channel import Channel
from dayfly.gateway.ledger import FunctionLedger
from dayfly.gateway.limits import Gate
from dayfly.gateway.version_socket import VersionSocket

LATE_GRACE_SECONDS = 0.5
CLOSE_GRACE_SECONDS = 5.0  # instances of a closed pool get this long to leave by themselves

Provers = Callable[[Channel | None, dict[str, Any]], None]


class Entry:
    """One version on this gateway."""

    __slots__ = (
        "boot", "channels", "closed_at", "executed", "function", "gate", "is_application", "ledger", "memory_mb", "noted", "pool",
        "provers", "proving_until", "secrets", "socket", "steering", "timeout_seconds", "version", "warned_at",
    )  # fmt: skip

    def __init__(self, function: Function, version: Version, settings: Settings, ledger: FunctionLedger) -> None:
        config = version.config
        self.function = function
        self.version = version
        self.ledger = ledger
        self.executed = b"x-amz-executed-version: %d\r\n" % version.number  # in every answer of a direct invoke
        self.is_application = config.is_application
        self.memory_mb = config.memory_mb
        self.timeout_seconds = config.timeout_seconds
        self.pool = Pool(
            PoolLimits(
                concurrency=config.concurrency,
                min_instances=min_instances_of(function, version),
                max_instances=config.max_instances,
                queue_max=config.queue_max,
                keep_alive_seconds=config.keep_alive_seconds,
                keep_alive_learns=config.keep_alive == "auto",
                starts_max=settings.starts_per_version_max,
                prefetch_max=settings.prefetch_max,
            ),
            ledger.idle_times,
        )
        self.steering = Steering(config)
        self.socket = VersionSocket()
        self.noted = False  # in this turn of the loop (gateway/turn.py)
        self.gate: Gate | None = None  # when the function or its namespace has limits
        self.channels: dict[str, Channel] = {}
        self.provers: list[Provers] = []
        self.proving_until = 0.0
        self.closed_at = 0.0
        self.warned_at = float("-inf")  # when it was last logged that there is no room for its instances
        self.secrets = {name: function.secrets[name] for name in config.secrets if name in function.secrets}
        self.boot = {
            "namespace": version.namespace,
            "function": version.function,
            "version": version.number,
            "handler": config.handler,
            "memory_mb": config.memory_mb,
            "timeout_seconds": config.timeout_seconds,
            "concurrency": config.concurrency,
            "env": config.env,
            "secrets": sorted(self.secrets),
        }

    def serves(self, function: Function, version: Version) -> bool:
        """Whether this entry is the one for `version` as `function` has it now: same version, same secrets. It takes over the floor."""
        if self.function is not function:
            if self.version != version or self.secrets != secrets_of(function, version):
                return False
            self.function = function
            self.pool.limits = msgspec.structs.replace(self.pool.limits, min_instances=min_instances_of(function, version))
        return True

    def send(self) -> None:
        """Put what the pool offers on the socket; what that does not take goes back, each to the front."""
        calls = self.pool.take_offers()
        sent = self.socket.send(calls)
        for call in reversed(calls[sent:]):
            self.pool.blocked(call)

    def untaken(self) -> set[int]:
        """Sequence numbers of the offered calls that no instance has received: on the socket, or still to be sent."""
        return {*self.socket.untaken(), *(call.seq for call in self.pool.offers)}

    def check_deadlines(self, now: float) -> None:
        """Tell the pool of calls that ran out of time, and which instance holds each."""
        pool = self.pool
        if not pool.offered and not pool.waiting:
            return
        # Several calls at once in one instance: its agent ends a late one by itself, so the whole instance is spared for a moment.
        at = now if pool.limits.concurrency == 1 else now - LATE_GRACE_SECONDS
        oldest = next(iter(pool.offered.values()), None)
        if oldest is not None and oldest.deadline <= at:
            pool.expired(self._holders(), at)
        elif pool.waiting.has_late(at):
            pool.expired({}, at)

    def _holders(self) -> dict[int, str]:
        """Who has each call that was taken; '' where no page says it. First the pages, then the answers, then the socket: each call stands
        in one of them at least, and those whose answer lies there unread (after a suspension, many) are answered by this."""
        slots = self.pool.limits.concurrency
        marked = {seq: channel.id for channel in self.channels.values() for seq in channel.running(slots)}
        for channel in list(self.channels.values()):
            channel.read()
        untaken = self.untaken()
        return {seq: marked.get(seq, "") for seq in self.pool.offered if seq in marked or seq not in untaken}

    def is_over(self, now: float, kill: Callable[[str], None]) -> bool:
        """Of a version that is leaving: whether nothing is left of it. Instances that stay beyond their grace are ended."""
        if self.closed_at and now - self.closed_at > CLOSE_GRACE_SECONDS:
            for name in list(self.channels):
                kill(name)
            self.closed_at = now
        return not self.channels and self.pool.closed

    def retire(self, instances: int) -> None:
        """Ask so many instances to leave."""
        sent = sum(self.socket.retire_one() for _ in range(instances))
        self.pool.kept(instances - sent)  # the socket is full: there are calls enough for those instances

    def taken_by(self, channel: Channel, newest: int) -> list[int]:
        """Calls that the ended instance had begun, by its progress page. A page that names calls never made (above `newest`) or belongs
        to an instance that sent nonsense proves nothing: then every call that nobody else accounts for may have run."""
        slots = self.pool.limits.concurrency
        claimed = channel.running(slots)
        if channel.believed and max(claimed, default=0) <= newest:
            return claimed
        accounted = {seq for other in self.channels.values() if other is not channel for seq in other.running(slots)}
        accounted.update(self.untaken())
        return [seq for seq in self.pool.offered if seq not in accounted]

    def evictable(self) -> Item["Entry"]:
        """What an idle instance of this version is worth when room is needed."""
        pool = self.pool
        may_leave = pool.idle() > 0 and pool.ready > max(pool.limits.min_instances, pool.floor) and not pool.closed
        return Item(self, pool.submitted_count, pool.start_seconds, self.memory_mb * 1024 * 1024, may_leave)

    def cost(self) -> float:
        """Seconds that a start takes of the machine, for one that weighs as much as others."""
        return self.pool.start_seconds / self.steering.weight

    def gauge(self) -> None:
        """Add this entry's present state to its function's gauges."""
        self.ledger.versions += 1
        numbers = self.ledger.numbers
        numbers.in_flight += len(self.pool.offered)
        numbers.waiting += len(self.pool.waiting)
        numbers.instances += len(self.channels)
        numbers.memory_mb += len(self.channels) * self.memory_mb
        numbers.idle_times = self.pool.keep.seen.total
        numbers.ahead_seconds, numbers.keep_seconds, _ = self.pool.keep.windows
        steering = self.steering
        if steering.scaler is not None:
            numbers.wanted += self.pool.floor
            numbers.panic = steering.scaler.panics
        numbers.held_at += steering.held_at
        if steering.computes is not None:
            numbers.cpu_share = steering.computes.share


def secrets_of(function: Function, version: Version) -> dict[str, bytes]:
    return {name: function.secrets[name] for name in version.config.secrets if name in function.secrets}


def min_instances_of(function: Function, version: Version) -> int:
    """Only what an alias names is kept warm: as its settings say, or more in a window of `provisioned`."""
    if version.number not in function.named:
        return 0
    return max(version.config.min_instances, function.floors.get(version.number, 0))
