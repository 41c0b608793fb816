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
from typing import Any

import msgspec

from dayfly.core.decide.route import pick_version
from dayfly.core.model.call import ANSWERED, WAITING, Call
from dayfly.core.model.durable import LeasedCall, Outcome, Ran
from dayfly.core.model.errors import BY_CODE, Fault, Refusal
from dayfly.core.model.records import Answered
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import retry_after
from dayfly.core.wire.link import CancelRun, Heard, Holding, Outcomes, Run, ToGateway
from dayfly.gateway.asynchronous import Say
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import error_in, outcome_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.reply import REJECTED, checked_block
from dayfly.runtime import frames

HOLD_SECONDS = 5.0  # a lease that found no room for so long goes back
OUTCOMES_BYTES_MAX = 8 * 1024 * 1024  # of one message
RESULT_BYTES_MAX = 6 * 1024 * 1024 + 100  # Lambda's; a longer one is a bad answer
DETAIL_MAX = 2_000
KINDS = {"direct": frames.DIRECT, "http": frames.HTTP}

Key = tuple[str, int]

_BY_CODE: dict[str, Outcome] = {
    "function_timeout": "timeout",
    "function_crashed": "crashed",
    "init_failed": "init_failed",
    "function_error": "error",
    "function_bad_answer": "error",
    "shutting_down": "returned",
    "function_not_found": "gone",
    "version_not_found": "gone",
}


def outcome_by(code: str) -> Outcome:
    """What a code of core/model/errors.py means for a call that nobody waits for."""
    known = _BY_CODE.get(code)
    if known is not None:
        return known
    return "throttled" if BY_CODE[code].fault is Fault.CAPACITY else "platform"


class Leased:
    """One lease in a pool: what gateway/fleet.py tells a reply, it tells this."""

    __slots__ = ("_gate", "_inside", "_size", "_status", "began_at", "body_size", "call", "call_id", "cancelled", "channel", "detail",
                 "entry", "error", "headers", "kind", "lease", "log_lines", "meta", "over", "parts", "runner", "streamed")  # fmt: skip

    def __init__(self, runner: "Runner", lease: LeasedCall, entry: Entry) -> None:
        self.runner = runner
        self.lease = lease
        self.entry = entry
        self.call_id = lease.id.encode()
        self.kind = KINDS[lease.kind]
        self.meta = lease.meta
        self.parts = [lease.body]
        self.body_size = len(lease.body)
        self.call: Call | None = None
        self.channel: Channel | None = None
        self.log_lines = 0
        self.began_at = 0.0
        self.detail = ""
        self.error = b""
        self.headers = b""
        self.streamed: list[bytes] = []
        self.cancelled = False
        self.over = False
        self._status = 0
        self._size = 0
        self._gate = entry.gate
        self._inside = False

    def begin(self) -> None:
        """Into the pool, through the gate of the function's limits."""
        mean = self.entry.pool.mean_seconds
        if self._gate is not None:
            refusal = self._gate.enter(mean)
            if refusal is not None:
                self.runner.fleet.ledger.rejected(self.entry.ledger, refusal.kind.code, str(refusal.extra.get("reason", "")))
                self._end("throttled", refusal.kind.code, refusal.detail, refusal.retry_after_seconds or 0.0)
                return
            self._inside = True
        self.began_at = time.time()
        self.runner.fleet.submit(self.entry, self)

    def stop(self, kill: Callable[[str], None]) -> None:
        """It was cancelled. What waits in the pool is out; an instance that runs nothing else is ended; where others run beside it, it runs
        to its end and its answer is dropped."""
        entry, call = self.entry, self.call
        if self.over or call is None:
            return
        if self.runner.fleet.abandon(entry, call, self.channel if self.streamed else None):
            self._leave(never_ran=True)
            self.began_at = 0.0
            self._end("cancelled", "cancelled", "")
        elif entry.pool.limits.concurrency == 1:
            for channel in list(entry.channels.values()):
                if call.seq in channel.running(1):
                    kill(channel.id)

    # ---- what the fleet tells --------------------------------------------------------------------------------------------------

    def printed(self, data: bytes) -> None:
        self.log_lines += 1

    def died(self, text: str) -> None:
        self.detail = text

    def start_failed(self, error: dict[str, Any]) -> None:
        self.detail = f"{error.get('errorType')}: {error.get('errorMessage')}"
        self.error = msgspec.json.encode(error)

    def wanted_by(self) -> float | None:
        return None

    def result(self, channel: Channel, frame: Frame) -> None:
        self.channel = channel
        if frame.flags & frames.ERROR:
            error = error_in(frame.body)
            self._failed(outcome_of(error), str(error.get("errorMessage", "")), frame)
            return
        self._status = frame.status
        self._answered(frame.meta, frame.body, frame)

    def head(self, channel: Channel, frame: Frame) -> None:
        """A stream begins: it is gathered."""
        self.channel, self.headers, self._status = channel, frame.meta, frame.status
        self.chunk(channel, frame)

    def chunk(self, channel: Channel, frame: Frame) -> None:
        self._size += len(frame.body)
        if self._size <= RESULT_BYTES_MAX:
            self.streamed.append(frame.body)
        else:
            self.streamed.clear()
            channel.cancel(frame.seq)

    def end(self, channel: Channel, frame: Frame) -> None:
        self.channel = channel
        if frame.flags & frames.ERROR:
            self._failed("function_error", "The stream broke.", frame)
        elif self._size > RESULT_BYTES_MAX:
            self._failed("function_bad_answer", f"The answer is over {RESULT_BYTES_MAX} bytes.", frame)
        else:
            self._answered(self.headers, b"".join(self.streamed), frame)

    def refused(self, code: str, retry_after_seconds: float = 0.0) -> None:
        outcome = outcome_by(code)
        if outcome in ("throttled", "platform", "returned"):
            self.began_at = 0.0
        if code in REJECTED:
            self._leave(never_ran=True)
            self.runner.fleet.ledger.rejected(self.entry.ledger, code)
        else:
            exec_us = int((time.time() - self.began_at) * 1e6) if self.began_at else 0
            self._record(code, exec_us, 0)
        self._end(outcome, code, self.detail or code, retry_after_seconds, body=self.error)

    # ---- its ends --------------------------------------------------------------------------------------------------------------

    def _answered(self, headers: bytes, body: bytes, frame: Frame) -> None:
        block = checked_block(headers)
        status = self._status or 200
        if block is None or not 200 <= status <= 599:
            self._failed("function_bad_answer", "The handler's status or headers are no valid HTTP.", frame)
            return
        self._record("ok", frame.exec_us, len(body))
        after = retry_after(_pairs(block)) if status in (429, 503) else 0.0
        self._end("ok", "", "", after, status=status, headers=block, body=body, exec_us=frame.exec_us)

    def _failed(self, code: str, detail: str, frame: Frame) -> None:
        self._record(code, frame.exec_us, len(frame.body))
        self._end(outcome_by(code), code, detail, body=frame.body, exec_us=frame.exec_us)

    def _record(self, outcome: str, exec_us: int, bytes_out: int) -> None:
        """As every call: metered, counted, billed."""
        channel, call, entry = self.channel, self.call, self.entry
        start_us = init_us = queue_us = 0
        if call is not None:
            queue_us = max(0, int((time.monotonic() - call.submitted_at) * 1e6) - exec_us)
            if channel is not None and channel.ready_at > call.submitted_at:
                start_us, init_us = channel.start_us, channel.init_us
                queue_us = max(0, queue_us - start_us - init_us)
        record = Answered(
            outcome, time.time(), bool(start_us), queue_us, start_us, init_us, exec_us, entry.memory_mb, self.body_size, bytes_out
        )
        self.runner.fleet.ledger.answered(entry.ledger, record)
        if self._gate is not None and self._inside:
            self._gate.used(record)
        self._leave()

    def _leave(self, *, never_ran: bool = False) -> None:
        if self._inside and self._gate is not None and self.call is not None and self.call.state == ANSWERED:
            self._inside = False
            self._gate.leave()
            if never_ran:
                self._gate.never_ran()

    def _end(
        self, outcome: Outcome, code: str, detail: str, retry_after_seconds: float = 0.0, *, status: int = 0, headers: bytes = b"",
        body: bytes = b"", exec_us: int = 0,
    ) -> None:  # fmt: skip
        if self.over:
            return
        self.over = True
        channel, lease, entry = self.channel, self.lease, self.entry
        cold = channel is not None and self.call is not None and channel.ready_at > self.call.submitted_at
        self.runner.ended(
            self,
            Ran(
                id=lease.id,
                epoch=lease.epoch,
                outcome="cancelled" if self.cancelled else outcome,
                code="cancelled" if self.cancelled else code,
                detail=detail[:DETAIL_MAX],
                status=status,
                headers=headers,
                body=body,
                retry_after_seconds=retry_after_seconds,
                began_at=self.began_at,
                ended_at=time.time(),
                version=entry.version.number,
                instance=channel.id if channel is not None else "",
                cold=cold,
                exec_us=exec_us,
                memory_mb=entry.memory_mb,
            ),
        )


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
            for line_key in {(lease.namespace, lease.function, lease.qualifier) for lease in message.calls}:
                self._pump(line_key)
        elif isinstance(message, Heard):
            for id_, epoch in message.leases:
                self._drop((id_, epoch))
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
        """Rooms that became free without anything of ours having ended; leases that found none for long go back."""
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
            if not self._has_room(entry, line):
                return
            line.waiting.popleft()
            leased = self._held[lease.id, lease.epoch] = Leased(self, lease, entry)
            line.running.add(leased)
            leased.begin()

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
        if not self._fresh:
            self._loop.call_soon(self._flush)
        self._fresh.append(ran)

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


def _pairs(block: bytes) -> list[tuple[bytes, bytes]]:
    lines = (line.partition(b":") for line in block.split(b"\r\n"))
    return [(name, value) for name, _, value in lines]
