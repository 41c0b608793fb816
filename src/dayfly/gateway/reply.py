"""One call's two ends: what the instance is sent (kind, meta, body) and how its answer becomes HTTP, at either front door.

`Reply` is the part both doors share (streamed.py has what streams of it): it is the request's `Sink`, it meters, it is told by
gateway/fleet.py what became of the call
(`result`, `head`/`chunk`/`end`, `refused`, `died`, `start_failed`), exactly one of which ends it. `EventReply` speaks payload format 2.0
at /function/…, `InvokeReply` speaks Lambda's Invoke at /api/v1/functions/NAME/invoke. What an instance sends is hostile: a header block
is checked before it reaches a client.
"""

import base64
import re
import time
from typing import Any

import msgspec

from dayfly.core.model.call import WAITING, Call
from dayfly.core.model.errors import BY_CODE, Refusal
from dayfly.core.model.records import Answered
from dayfly.core.wire.prefer import wait_preferred
from dayfly.core.wire.throttle import ERROR_TYPE, throttled
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import error_in, outcome_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import Request, refusal_answer
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.streamed import Streamed
from dayfly.gateway.version_socket import sealed_memfd
from dayfly.runtime import frames

LOG_TAIL_BYTES = 4096
REMEMBERED_BLOCKS_MAX = 1024
REMEMBERED_BLOCK_BYTES_MAX = 1024
RETRY_AFTER_SECONDS = 1.0
THROTTLED = 429
REJECTED = frozenset(("queue_full", "deadline_out_of_reach", "overloaded", "shutting_down"))  # refused at the door: no usage, no record

_BLOCK = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ \t]*[\t\x20-\x7e\x80-\xff]*\r\n)*")
# Framing and identity are the gateway's to say; a function that names them is not believed.
_OURS = re.compile(
    rb"(?im)^(?:connection|content-length|transfer-encoding|keep-alive|upgrade|te|trailer|proxy-connection|date|x-call-id|"
    rb"x-dayfly-[a-z]+|server-timing):[^\r\n]*\r\n"
)
_CORS = re.compile(rb"(?im)^access-control-[a-z-]+:[^\r\n]*\r\n")  # the gateway's to say where a function has [cors]
_WARM = b"x-dayfly-start: warm\r\nserver-timing: queue;dur=%.3f, exec;dur=%.3f\r\n"
_COLD = b"x-dayfly-start: cold\r\nx-dayfly-origin: %b\r\nserver-timing: queue;dur=%.3f, start;dur=%.3f, init;dur=%.3f, exec;dur=%.3f\r\n"
_good_blocks: dict[bytes, bytes] = {}


def checked_block(block: bytes) -> bytes | None:
    """A header block fit for a client, or None when it is malformed. Good ones are remembered: most functions repeat themselves."""
    found = _good_blocks.get(block)
    if found is not None:
        return found
    if not _BLOCK.fullmatch(block):
        return None
    clean = _OURS.sub(b"", block)
    if len(block) <= REMEMBERED_BLOCK_BYTES_MAX:
        if len(_good_blocks) >= REMEMBERED_BLOCKS_MAX:
            _good_blocks.clear()
        _good_blocks[block] = clean
    return clean


class Reply(Streamed):
    """One call at a front door. Subclasses say how answers look."""

    __slots__ = (
        "body_size", "call", "call_id", "cold", "detail", "entry", "fleet", "log_lines", "meta", "parts", "queue_us", "tail", "wants_tail",
    )  # fmt: skip
    kind = 0

    def __init__(self, fleet: Fleet, request: Request, entry: Entry, call_id: bytes) -> None:
        super().__init__(request)
        self.fleet = fleet
        self.entry = entry
        self.call_id = call_id
        self.meta = b""
        self.parts: list[bytes] = []
        self.body_size = 0
        self.call: Call | None = None
        self.cold = False
        self.queue_us = 0
        self.detail = ""
        self.log_lines = 0
        self.wants_tail = False
        self.tail = b""

    # ---- the request's body (Sink) ---------------------------------------------------------------------------------------------

    def body_chunk_allowed(self, size: int) -> None:
        """Raises Refusal when this much more of a body may not be kept."""
        site = self.request.connection.site
        if self.body_size + size > site.settings.body_bytes_max:
            raise Refusal("body_too_large", f"The request's body is over {site.settings.body_bytes_max} bytes (body_bytes_max).")
        if site.buffered + size > site.settings.buffered_bytes_max:
            raise Refusal("overloaded", "Bodies of other calls fill the gateway's memory.", retry_after_seconds=RETRY_AFTER_SECONDS)

    def body(self, chunk: bytes) -> None:
        size, site = len(chunk), self.request.connection.site
        try:
            self.body_chunk_allowed(size)
        except Refusal as refusal:
            self._release_body()
            self.over = True
            self._refuse(refusal)
            return
        self.parts.append(chunk)
        self.body_size += size
        site.buffered += size

    def complete(self) -> None:
        """The whole request is here: into the pool."""
        if not self.over:
            self.fleet.submit(self.entry, self)

    def left(self) -> None:
        """The client left. A waiting call is out; a running one runs on, its answer is dropped."""
        if self.call is None or self.over:
            self._release_body()
            self.over = True
            return
        if self.last is not None:
            self._left_behind()
            return
        self.over = True
        waiting = self.fleet.abandon(self.entry, self.call, self.channel)
        self._unpause()
        self._drop_download()
        self._record("client_left", None, 0, 0)
        if waiting:
            self._release_body()

    def _is_running(self) -> bool:
        return self.call is not None and self.call.state != WAITING

    def body_descriptor(self) -> tuple[int, int]:
        """How a body travels that is too large for its call's message."""
        return frames.BODY_IN_FD, sealed_memfd("dayfly-body", self.parts)

    def _release_body(self) -> None:
        self.request.connection.site.buffered -= self.body_size
        self.parts = []
        self.body_size = 0

    # ---- what the fleet tells --------------------------------------------------------------------------------------------------

    def printed(self, data: bytes) -> None:
        self.log_lines += 1
        if self.wants_tail:
            line_end = b"" if data.endswith(b"\n") else b"\n"  # LOG frames hold whole lines, without the last line end
            self.tail = (self.tail + data + line_end)[-LOG_TAIL_BYTES:]

    def died(self, text: str) -> None:
        """Why the instance that ran this call ended; `refused` with function_crashed follows."""
        self.detail = text

    def start_failed(self, error: dict[str, Any]) -> None:
        """The start this call waited for failed in the user's init; `refused` with init_failed or start_failed follows."""
        self.detail = f"{error.get('errorType')}: {error.get('errorMessage')}"

    def result(self, channel: Channel, frame: Frame) -> None:
        if self.over:
            self._release_body()
            return
        self.over = True
        self._answer(channel, frame)
        self._record(self.detail or "ok", channel, frame.exec_us, len(frame.body))

    def wanted_by(self) -> float | None:
        """Until when the caller wants a call begun that found no free instance; None when it did not say."""
        prefer = self.request.prefer
        wait = wait_preferred(prefer) if prefer else None
        return None if wait is None else self.request.received_at + wait

    def refused(self, code: str, retry_after_seconds: float = 0.0) -> None:
        """No instance answered: the pool's or the platform's code, and when it may be otherwise, if that is known."""
        if self.over:
            self._release_body()
            return
        self.over = True
        self._unpause()
        self._drop_download()
        if self.head_sent:
            self.request.abort()
        else:
            after = (retry_after_seconds or RETRY_AFTER_SECONDS) if BY_CODE[code].retryable else None
            self._answer_refusal(Refusal(code, self.detail or _SENTENCES.get(code, code), retry_after_seconds=after))
        if code in REJECTED:
            self._release_body()
            self.fleet.ledger.rejected(self.entry.ledger, code)
        else:
            self._record(code, None, 0, 0)

    # ---- shared by both doors --------------------------------------------------------------------------------------------------

    def _lines(self, channel: Channel, exec_us: int) -> bytes:
        """The headers every answer carries: call id, version, cold or warm, timing. Settles this call's phases."""
        self._settle(channel, exec_us)
        if self.cold:
            timing = (channel.origin.encode(), self.queue_us * 1e-3, channel.start_us * 1e-3, channel.init_us * 1e-3, exec_us * 1e-3)
            return b"x-call-id: %b\r\n%b%b" % (self.call_id, channel.head, _COLD % timing)
        return b"x-call-id: %b\r\n%b%b" % (self.call_id, channel.head, _WARM % (self.queue_us * 1e-3, exec_us * 1e-3))

    def _settle(self, channel: Channel, exec_us: int) -> None:
        """Phases: queue is everything that was not start, init or the handler, transport included. Cold: it waited for a start."""
        assert self.call is not None
        total = int((time.monotonic() - self.call.submitted_at) * 1e6)
        self.cold = channel.ready_at > self.call.submitted_at
        if self.cold:
            total -= channel.start_us + channel.init_us
        self.queue_us = max(0, total - exec_us)

    def _record(self, outcome: str, channel: Channel | None, exec_us: int, bytes_out: int) -> Answered:
        assert self.call is not None
        start_us = init_us = 0
        if channel is None:
            exec_us = int((time.monotonic() - self.call.submitted_at) * 1e6) if outcome in _RAN else 0
        elif self.cold:
            start_us, init_us = channel.start_us, channel.init_us
        record = Answered(
            outcome, time.time(), self.cold, self.queue_us, start_us, init_us, exec_us, self.entry.memory_mb, self.body_size, bytes_out
        )
        self.fleet.ledger.answered(self.entry.ledger, record)
        if self.body_size:
            self._release_body()
        return record

    # ---- what the doors say ----------------------------------------------------------------------------------------------------

    def _answer(self, channel: Channel, frame: Frame) -> None:
        raise NotImplementedError

    def _answer_refusal(self, refusal: Refusal) -> None:
        self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        status, lines, body = refusal_answer(refusal, self.call_id.decode())
        self.request.respond(status, lines + b"x-call-id: %b\r\n" % self.call_id, body)


class EventReply(Reply):
    """/function/NAME: the function decides status and headers."""

    __slots__ = ()
    kind = frames.HTTP

    def _answer(self, channel: Channel, frame: Frame) -> None:
        if frame.flags & frames.ERROR:
            error = error_in(frame.body)
            self.detail = outcome_of(error)
            bad = self.detail == "function_bad_answer"
            text = str(error.get("errorMessage", "")) if bad else f"The function failed with {error.get('errorType', 'an error')}."
            self._answer_failure(channel, frame, text)
            return
        block = checked_block(frame.meta)
        if block is None or not 200 <= frame.status <= 599:
            self.detail = "function_bad_answer"
            self._answer_failure(channel, frame, _SENTENCES[self.detail])
            return
        if self.request.cors:
            block = _CORS.sub(b"", block)
        self.request.respond(frame.status, block + self._lines(channel, frame.exec_us), frame.body)

    def _answer_failure(self, channel: Channel, frame: Frame, text: str) -> None:
        """`detail` is the code, `text` the sentence; the traceback stays in the log, callers may be strangers."""
        status, lines, body = refusal_answer(Refusal(self.detail, text), self.call_id.decode())
        self.request.respond(status, lines + self._lines(channel, frame.exec_us), body)

    def _stream_lines(self, channel: Channel, frame: Frame) -> tuple[int, bytes] | None:
        block = checked_block(frame.meta)
        if block is None or not 200 <= frame.status <= 599:
            return None
        if self.request.cors:
            block = _CORS.sub(b"", block)
        return frame.status, block + self._lines(channel, 0)


class InvokeReply(Reply):
    """Direct invoke: JSON in, JSON out; what goes wrong in the function is HTTP 200 with X-Amz-Function-Error, as in Lambda."""

    __slots__ = ()
    kind = frames.DIRECT

    def _answer(self, channel: Channel, frame: Frame) -> None:
        lines = b"content-type: application/json\r\n" + self._lines(channel, frame.exec_us)
        lines += self._invoke_lines() if self.wants_tail else self.entry.executed
        if frame.flags & frames.ERROR:
            self.detail = outcome_of(error_in(frame.body))
            lines += b"x-amz-function-error: Unhandled\r\n"
        self.request.respond(200, lines, frame.body)

    def _stream_lines(self, channel: Channel, frame: Frame) -> tuple[int, bytes] | None:
        return 200, b"content-type: application/octet-stream\r\n" + self._lines(channel, 0) + self._invoke_lines()

    def _answer_refusal(self, refusal: Refusal) -> None:
        error_type = _ERROR_TYPES.get(refusal.kind.code)
        if error_type is None:
            super()._answer_refusal(refusal)
            return
        request_id = self.call_id.decode()
        message = refusal.detail
        if refusal.kind.code == "function_timeout":
            message = f"RequestId: {request_id} Error: Task timed out after {self.entry.timeout_seconds:.2f} seconds"
        elif refusal.kind.code == "function_crashed":
            message = f"RequestId: {request_id} Error: {refusal.detail}"
        body = msgspec.json.encode({"errorMessage": message, "errorType": error_type, "requestId": request_id, "stackTrace": []})
        lines = b"content-type: application/json\r\nx-amz-function-error: Unhandled\r\nx-call-id: %b\r\n" % self.call_id
        self.request.respond(200, lines + self._invoke_lines(), body)

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.kind.status != THROTTLED:
            super()._refuse(refusal)
            return
        status, lines, _ = refusal_answer(refusal)
        lines += b"x-amzn-errortype: %b\r\nx-call-id: %b\r\n" % (ERROR_TYPE.encode(), self.call_id)
        self.request.respond(status, lines, msgspec.json.encode(throttled(refusal, self.call_id.decode())))

    def _invoke_lines(self) -> bytes:
        if self.wants_tail:
            return b"%bx-amz-log-result: %b\r\n" % (self.entry.executed, base64.b64encode(self.tail))
        return self.entry.executed


_RAN = frozenset(("function_timeout", "function_crashed", "function_error"))
_ERROR_TYPES = {
    "function_timeout": "Sandbox.Timedout",
    "function_crashed": "Runtime.ExitError",
    "init_failed": "Runtime.InitError",
    "function_bad_answer": "Runtime.BadAnswer",
}
_SENTENCES = {
    "function_timeout": "The function ran past its timeout and was ended.",
    "function_crashed": "Runtime exited",
    "queue_timeout": "No instance took the call before its deadline.",
    "queue_full": "The version's queue is full.",
    "deadline_out_of_reach": "So many calls wait that this one could not begin before its deadline.",
    "overloaded": "The machine runs as many instances as it may.",
    "start_failed": "No instance could be started.",
    "init_failed": "The function's module could not be initialised.",
    "function_bad_answer": "The handler's status or headers are no valid HTTP.",
}
