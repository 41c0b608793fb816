"""Calls of functions that have limits: the two replies of gateway/reply.py with a gate before them.

A class of its own, so that other functions' calls do not ask at every step. A call enters when its whole request is there (a slow body
holds no place), and is over when the pool has let it go, not when its caller leaves: what runs on counts. Made by gateway/dispatch.py.
"""

from dayfly.core.model.call import ANSWERED
from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import Answered
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.conversation import SocketReply
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import Request
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.limits import Gate
from dayfly.gateway.reply import REJECTED, EventReply, InvokeReply, Reply
from dayfly.gateway.session import SessionReply
from dayfly.gateway.upload import StreamReply

EARLY_BYTES = 16 * 1024  # a longer body is not taken to its end when the call would be refused anyway


class _Limited(Reply):
    """What both doors do at a gate."""

    __slots__ = ("_gate", "_inside")

    def __init__(self, fleet: Fleet, request: Request, entry: Entry, call_id: bytes) -> None:
        super().__init__(fleet, request, entry, call_id)
        assert entry.gate is not None
        self._gate: Gate = entry.gate
        self._inside = False

    def body_chunk_allowed(self, size: int) -> None:
        if max(self.body_size + size, self.request.length) > self._gate.body_bytes_max:
            raise Refusal("body_too_large", f"The request's body is over {self._gate.body_bytes_max} bytes (limits.body_bytes_max).")
        super().body_chunk_allowed(size)

    def body(self, chunk: bytes) -> None:
        if self.over:
            return
        if not self.parts and self.request.length > EARLY_BYTES:
            refusal = self._gate.refusal(self.entry.pool.mean_seconds)
            if refusal is not None:
                self._turn_away(refusal)
                return
        super().body(chunk)

    def complete(self) -> None:
        if self._let_in():
            super().complete()

    def _let_in(self) -> bool:
        if self.over:
            return False
        refusal = self._gate.enter(self.entry.pool.mean_seconds)
        if refusal is not None:
            self._turn_away(refusal)
            return False
        self._inside = True
        return True

    def _turn_away(self, refusal: Refusal) -> None:
        self.over = True
        self._release_body()
        self.fleet.ledger.rejected(self.entry.ledger, refusal.kind.code, str(refusal.extra.get("reason", "")))
        self._answer_refusal(refusal)

    # ---- the ends of a call: out before the answer goes, for the next request of the same connection may come right behind it ----

    def left(self) -> None:
        super().left()
        self._leave()

    def result(self, channel: Channel, frame: Frame) -> None:
        self._leave()
        super().result(channel, frame)

    def end(self, channel: Channel, frame: Frame) -> None:
        self._leave()
        super().end(channel, frame)

    def refused(self, code: str, retry_after_seconds: float = 0.0) -> None:
        self._leave()
        if code in REJECTED and not self.over:
            self._gate.never_ran()
        super().refused(code, retry_after_seconds)

    def _leave(self) -> None:
        if self._inside and self.call is not None and self.call.state == ANSWERED:
            self._inside = False
            self._gate.leave()

    def _record(self, outcome: str, channel: Channel | None, exec_us: int, bytes_out: int) -> Answered:
        record = super()._record(outcome, channel, exec_us, bytes_out)
        self._gate.used(record)
        return record


class LimitedEventReply(_Limited, EventReply):
    """/function/NAME behind a gate."""

    __slots__ = ()


class LimitedInvokeReply(_Limited, InvokeReply):
    """Direct invoke behind a gate."""

    __slots__ = ()


class LimitedSocketReply(_Limited, SocketReply):
    """A socket's event behind a gate."""

    __slots__ = ()


class LimitedSessionReply(_Limited, SessionReply):
    """A WebSocket of an application behind a gate: one call for as long as it is open."""


class LimitedStreamReply(_Limited, StreamReply):
    """A call whose body is passed on, behind a gate: it enters with its head."""

    __slots__ = ()

    @property
    def body_bytes_max(self) -> int:
        return min(super().body_bytes_max, self._gate.body_bytes_max)

    def enter(self) -> None:
        if self.request.length > self._gate.body_bytes_max:
            detail = f"The request's body is over {self._gate.body_bytes_max} bytes (limits.body_bytes_max)."
            self._turn_away(Refusal("body_too_large", detail))
        elif self._let_in():
            StreamReply.enter(self)

    def body(self, chunk: bytes) -> None:
        StreamReply.body(self, chunk)

    def complete(self) -> None:
        StreamReply.complete(self)


LIMITED: dict[type[Reply], type[Reply]] = {
    EventReply: LimitedEventReply,
    InvokeReply: LimitedInvokeReply,
    SocketReply: LimitedSocketReply,
    SessionReply: LimitedSessionReply,
    StreamReply: LimitedStreamReply,
}
