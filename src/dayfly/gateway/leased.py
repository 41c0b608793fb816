"""The runner of asynchronous calls: leases from control go to the same pools as everybody's calls, when nobody else wants them.

A lease waits here until its function's pool has no synchronous call waiting and fewer asynchronous ones inside than their share; then a
`Leased` stands in the pool as a reply does, and its answer becomes a `Ran` that control is told with all others of that turn of the loop.
Outcomes are kept until control says that it has heard them, through its restarts; what is not begun when the gateway leaves is handed
back. That the link is there is the heartbeat of all leases. Never decides what becomes of a call (core/decide/retry.py does, in control).
Made by gateway/main.py; called by link.py (messages), the pools (answers) and the clock.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from dayfly.core.decide.beside import TURN_SECONDS, Beside
from dayfly.core.decide.route import pick_version
from dayfly.core.model.call import WAITING
from dayfly.core.model.durable import LeasedCall, Outcome, Ran
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire.link import CancelRun, Heard, Holding, Outcomes, Run, ToGateway
from dayfly.gateway.asynchronous import Say
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.entry import Entry
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.lease import Leased, outcome_by

HOLD_SECONDS = 5.0  # a lease that found no room for so long goes back
UNHEARD_FEW = 64  # outcomes on their way to the disk, beyond which new ones gather until control has heard of those
OUTCOMES_BYTES_MAX = 8 * 1024 * 1024  # of one message

Key = tuple[str, int]


class _Line:
    """The leases of one function that are here: those not begun, in order, and those in its pool."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, LeasedCall]] = deque()  # (since, monotonic)
        self.running: set[Leased] = set()


class Runner:
    """All leases of this gateway."""

    def __init__(self, settings: Settings, catalog: CatalogMirror, fleet: Fleet, say: Say, kill: Callable[[str], None]) -> None:
        self.fleet = fleet
        self._kill = kill  # ends an instance
        self._settings = settings
        self._catalog = catalog
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._die = random.Random()  # noqa: S311  (a coin between two versions)
        self._lines: dict[tuple[str, str, str], _Line] = {}
        self._held: dict[Key, Leased | None] = {}  # None: waits in its line
        self._unheard: dict[Key, Ran] = {}
        self._unheard_bytes = 0
        self._fresh: list[Ran] = []  # of these, not yet said
        self._closing = False
        self._beside = Beside(settings.async_beside_per_second)
        self._begun = 0  # of what the fleet counts
        self._turn: asyncio.TimerHandle | None = None  # when more may begin beside synchronous calls

    def __repr__(self) -> str:
        return f"<Runner {len(self._held)} held, {len(self._unheard)} outcomes unheard>"

    @property
    def unheard(self) -> int:
        """Outcomes that control has not yet said it knows."""
        return len(self._unheard)

    # ---- the link --------------------------------------------------------------------------------------------------------------

    def linked(self) -> None:
        """A control is there: what is here from the one before, and what became of it."""
        self._say(Holding([*self._held, *self._unheard], closing=self._closing))
        self._fresh = list(self._unheard.values())
        self._flush()

    def take(self, message: ToGateway) -> None:
        if isinstance(message, Run):
            for lease in message.calls:
                self._take(lease)
            for line_key in dict.fromkeys((lease.namespace, lease.function, lease.qualifier) for lease in message.calls):
                self._pump(line_key)
        elif isinstance(message, Heard):
            for id_, epoch in message.leases:
                self._drop((id_, epoch))
            self._flush()
        elif isinstance(message, CancelRun):
            for id_, epoch in message.leases:
                self._cancel((id_, epoch))

    def _take(self, lease: LeasedCall) -> None:
        key = (lease.id, lease.epoch)
        if key in self._held or key in self._unheard:
            return
        self._held[key] = None
        if self._closing or self.fleet.stopping:
            self._tell(lease, "returned", "shutting_down", "The gateway was leaving.")
            return
        line = self._lines.setdefault((lease.namespace, lease.function, lease.qualifier), _Line())
        line.waiting.append((time.monotonic(), lease))

    def stop(self) -> None:
        """The gateway leaves: what has not begun goes back, no more comes."""
        self._closing = True
        self._say(Holding([*self._held, *self._unheard], closing=True))
        for key in list(self._lines):
            self._hand_back(key)
        self._flush()

    # ---- into the pools --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Rooms that became free without anything of ours having ended; leases that found none for long go back; what has gathered is
        said."""
        self._flush()
        for key, line in list(self._lines.items()):
            if line.waiting:
                self._pump(key)
            if line.waiting and now - line.waiting[0][0] > HOLD_SECONDS and not line.running:
                self._hand_back(key)
            if not line.waiting and not line.running:
                del self._lines[key]

    def _hand_back(self, key: tuple[str, str, str]) -> None:
        waiting, self._lines[key].waiting = self._lines[key].waiting, deque()
        for _, lease in waiting:
            self._tell(lease, "returned", "overloaded", "No room beside synchronous calls.")

    def _pump(self, key: tuple[str, str, str]) -> None:
        line = self._lines.get(key)
        while line is not None and line.waiting:
            lease = line.waiting[0][1]
            if lease.expires <= time.time():
                line.waiting.popleft()
                self._tell(lease, "throttled", "expired", "Its time was over before there was room.")
                continue
            try:
                function = self._catalog.function(lease.namespace, lease.function)
                version = pick_version(function, lease.qualifier, self._die.random())
            except Refusal as refusal:
                line.waiting.popleft()
                self._tell(lease, outcome_by(refusal.kind.code), refusal.kind.code, refusal.detail)
                continue
            entry = self.fleet.entry(function, version)
            if not self._has_room(entry, line) or not self._has_time():
                return
            line.waiting.popleft()
            leased = self._held[lease.id, lease.epoch] = Leased(self.fleet, self.ended, lease, entry)
            line.running.add(leased)
            before = self.fleet.seq
            leased.begin()
            self._begun += self.fleet.seq - before

    def _has_time(self) -> bool:
        """Whether one more may begin beside synchronous calls; if not, their turn is asked for, and until it comes none does."""
        if self._turn is not None:
            return False
        now = time.monotonic()
        self._beside.saw(self.fleet.seq - self._begun, now)
        if self._beside.may_begin(now):
            return True
        self._turn = self._loop.call_later(TURN_SECONDS, self._next_turn)
        return False

    def _next_turn(self) -> None:
        """What has ended since the last one is said in one message, and the next begin. The line that used the time up is last the next
        time."""
        self._turn = None
        self._flush()
        for key in list(self._lines):
            before = self._begun
            self._pump(key)
            if self._turn is not None:
                if self._begun > before:
                    self._lines[key] = self._lines.pop(key)
                return

    def _has_room(self, entry: Entry, line: _Line) -> bool:
        """No synchronous call waits there, and ours are within their share."""
        settings, config = self._settings, entry.version.config
        share = int(settings.async_share * config.max_instances * config.concurrency)
        most = max(1, min(share, config.durable.concurrency or settings.async_concurrency))
        if len(line.running) >= most:
            return False
        waiting = len(entry.pool.waiting)
        return not waiting or waiting <= sum(it.call is not None and it.call.state == WAITING for it in line.running)

    def _cancel(self, key: Key) -> None:
        if key not in self._held:
            return
        leased = self._held[key]
        if leased is None:
            for line in self._lines.values():
                found = next((it for it in line.waiting if (it[1].id, it[1].epoch) == key), None)
                if found is not None:
                    line.waiting.remove(found)
                    self._tell(found[1], "cancelled", "cancelled", "")
                    return
            return
        leased.cancelled = True
        leased.stop(self._kill)

    # ---- outcomes --------------------------------------------------------------------------------------------------------------

    def ended(self, leased: Leased, ran: Ran) -> None:
        """A lease is over."""
        lease = leased.lease
        key = (lease.namespace, lease.function, lease.qualifier)
        line = self._lines.get(key)
        if line is not None:
            line.running.discard(leased)
        self._note(ran)
        if line is not None and line.waiting:
            self._loop.call_soon(self._pump, key)

    def _tell(self, lease: LeasedCall, outcome: Outcome, code: str, detail: str) -> None:
        self._note(Ran(id=lease.id, epoch=lease.epoch, outcome=outcome, code=code, detail=detail, ended_at=time.time()))

    def _note(self, ran: Ran) -> None:
        key = (ran.id, ran.epoch)
        self._held.pop(key, None)
        self._unheard[key] = ran
        self._unheard_bytes += len(ran.body)
        settings = self._settings
        while len(self._unheard) > settings.async_in_hand_max or (
            self._unheard_bytes > settings.async_in_hand_bytes_max and len(self._unheard) > 1
        ):
            self._drop(next(iter(self._unheard)))  # control's lease ends, and it decides as for any that were lost
        self._fresh.append(ran)
        if self._turn is None and len(self._fresh) == 1 and len(self._unheard) <= UNHEARD_FEW:
            self._loop.call_soon(self._flush)

    def _drop(self, key: Key) -> None:
        ran = self._unheard.pop(key, None)
        self._unheard_bytes -= len(ran.body) if ran is not None else 0

    def _flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        part: list[Ran] = []
        size = 0
        for ran in fresh:
            part.append(ran)
            size += len(ran.body)
            if size > OUTCOMES_BYTES_MAX:
                self._say(Outcomes(part))
                part, size = [], 0
        if part:
            self._say(Outcomes(part))

    def flush(self) -> None:
        """At the very end."""
        self._flush()
