"""One lease in a pool: stands there as a reply does (gateway/reply.py), and makes of its answer what control is told.

The same metering, the same gate of limits, the same check of what an instance sends; instead of HTTP comes a `Ran`. Streams are gathered.
Never decides what becomes of the call. Made by gateway/leased.py; told by gateway/fleet.py.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from dayfly.core.model.call import ANSWERED, Call
from dayfly.core.model.durable import LeasedCall, Outcome, Ran
from dayfly.core.model.errors import BY_CODE, Fault
from dayfly.core.model.records import Answered
from dayfly.core.wire.durable import retry_after
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import error_in, outcome_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.reply import REJECTED, checked_block
from dayfly.gateway.version_socket import sealed_memfd
from dayfly.runtime import frames

RESULT_BYTES_MAX = 6 * 1024 * 1024 + 100  # Lambda's; a longer one is a bad answer
DETAIL_MAX = 2_000
KINDS = {"direct": frames.DIRECT, "http": frames.HTTP}

Ended = Callable[["Leased", Ran], None]

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

    __slots__ = (
        "_ended", "_fleet", "_gate", "_inside", "_size", "_status", "began_at", "body_size", "call", "call_id", "cancelled", "channel",
        "detail", "entry", "error", "headers", "kind", "lease", "log_lines", "meta", "over", "parts", "streamed",
    )  # fmt: skip

    def __init__(self, fleet: Fleet, ended: "Ended", lease: LeasedCall, entry: Entry) -> None:
        self._fleet = fleet
        self._ended = ended
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
                self._fleet.ledger.rejected(self.entry.ledger, refusal.kind.code, str(refusal.extra.get("reason", "")))
                self._end("throttled", refusal.kind.code, refusal.detail, refusal.retry_after_seconds or 0.0)
                return
            self._inside = True
        self.began_at = time.time()
        self._fleet.submit(self.entry, self)

    def stop(self, kill: Callable[[str], None]) -> None:
        """It was cancelled. What waits in the pool is out; an instance that runs nothing else is ended; where others run beside it, it runs
        to its end and its answer is dropped."""
        entry, call = self.entry, self.call
        if self.over or call is None:
            return
        if self._fleet.abandon(entry, call, self.channel if self.streamed else None):
            self._leave(never_ran=True)
            self.began_at = 0.0
            self._end("cancelled", "cancelled", "")
        elif entry.pool.limits.concurrency == 1:
            for channel in list(entry.channels.values()):
                if call.seq in channel.running(1):
                    kill(channel.id)

    def body_descriptor(self) -> tuple[int, int]:
        """How a body travels that is too large for its call's message."""
        return frames.BODY_IN_FD, sealed_memfd("dayfly-body", self.parts)

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
        self._answered(frame.meta, bytes(frame.body), frame)

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
            self._fleet.ledger.rejected(self.entry.ledger, code)
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
        self._end(outcome_by(code), code, detail, body=bytes(frame.body), exec_us=frame.exec_us)

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
        self._fleet.ledger.answered(entry.ledger, record)
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
        self._ended(
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


def _pairs(block: bytes) -> list[tuple[bytes, bytes]]:
    lines = (line.partition(b":") for line in block.split(b"\r\n"))
    return [(name, value) for name, _, value in lines]
