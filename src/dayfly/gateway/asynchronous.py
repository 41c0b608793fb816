"""The door of asynchronous calls: a request that was routed and admitted as any other, and is answered 202 once control says it is durable.

`AsyncReply` takes the body; `Door` sends what has gathered to control in one message and answers each request when its call is written
down. What comes while control has UNDER_WAY_MAX messages gathers: the busier control is, the more calls share a message and a commit.
A message that was not answered when the link broke is sent again to the next control: its calls have their ids already, so none is taken
twice. What is not answered in time is answered 503, and says whether the call may have been accepted.
Never decides whether a call may enter, never runs one. Made by gateway/main.py, called by gateway/dispatch.py and link.py.
"""

import asyncio
import itertools
import os
import struct
import time
from collections.abc import Callable
from typing import Literal

from dayfly.core.model.durable import Kind, NewCall
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import wishes
from dayfly.core.wire.link import Accept, Accepted, Answered, ToControl, ToGateway
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import Request, refusal_answer
from dayfly.runtime.frames import HTTP

UNDER_WAY_MAX = 2  # Accept messages: one is on its way to the disk while the next is read
PENDING_MAX = 10_000  # calls that control was asked to accept; their bodies count to buffered_bytes_max
ACCEPT_BYTES_MAX = 8 * 1024 * 1024  # of one message's bodies
RETRY_AFTER_SECONDS = 1.0

Manner = Literal["native", "prefer", "lambda", "openfaas"]  # how the request asked for it, and so how its 202 looks
Say = Callable[[ToControl], bool]


class AsyncReply:
    """One request at an asynchronous door: its `Sink`."""

    __slots__ = ("_body_max", "_door", "body_size", "call_id", "entry", "kind", "manner", "meta", "over", "parts", "qualifier", "request",
                 "sent", "wants_tail")  # fmt: skip

    def __init__(self, door: "Door", request: Request, entry: Entry, what: tuple[str, str, int, Manner]) -> None:
        """`what`: call id, qualifier, kind of the frame that an instance will get, and how the request asked for it."""
        self._door = door
        self.request = request
        self.entry = entry
        self.call_id, self.qualifier, kind, self.manner = what
        self.kind: Kind = "http" if kind == HTTP else "direct"
        self.meta = b""
        self.wants_tail = False  # nobody listens
        self.parts: list[bytes] = []
        self.body_size = 0
        self.over = False
        self.sent = False
        gate = entry.gate.body_bytes_max if entry.gate is not None else door.settings.body_bytes_max
        self._body_max = min(door.settings.body_bytes_max, gate)

    def body(self, chunk: bytes) -> None:
        if self.over:
            return
        site = self.request.connection.site
        if max(self.body_size + len(chunk), self.request.length) > self._body_max:
            self.refuse(Refusal("body_too_large", f"The request's body is over {self._body_max} bytes (body_bytes_max)."))
        elif site.buffered + len(chunk) > site.settings.buffered_bytes_max:
            detail = "Bodies of other calls fill the gateway's memory."
            self.refuse(Refusal("overloaded", detail, retry_after_seconds=RETRY_AFTER_SECONDS))
        else:
            self.parts.append(chunk)
            self.body_size += len(chunk)
            site.buffered += len(chunk)

    def complete(self) -> None:
        if not self.over:
            self._door.accept(self)

    def left(self) -> None:
        """Nobody waits for the 202 any more. What was sent to control is accepted all the same."""
        self._end()

    def writable(self, yes: bool) -> None:
        """One small answer."""

    def begun(self) -> bool:
        return self.sent

    def new_call(self, now: float) -> NewCall:
        """Raises Refusal when a header asks for what cannot be."""
        wanted = wishes(self.request.headers, now, self._door.settings)
        version = self.entry.version
        return NewCall(
            id=self.call_id,
            namespace=version.namespace,
            function=version.function,
            qualifier=self.qualifier,
            kind=self.kind,
            meta=self.meta,
            body=b"".join(self.parts),
            due=wanted.due,
            expires=wanted.expires,
            priority=wanted.priority,
            group=wanted.group,
            dedup=wanted.dedup,
            lineage=wanted.lineage,
            callback=wanted.callback,
            source=self.manner,
        )

    def answered(self, answer: Answered) -> None:
        """What control says."""
        if answer.code:
            after = answer.retry_after_seconds or None
            self.refuse(Refusal(answer.code, answer.detail, retry_after_seconds=after))
        elif not self.over:
            self._end()
            lines = b"x-call-id: %b\r\n" % answer.id.encode()
            if answer.duplicate:
                lines += b"x-dayfly-duplicate: true\r\n"
            if self.manner == "prefer":
                lines += b"preference-applied: respond-async\r\n"
            if self.manner in ("native", "prefer"):
                lines += b"content-type: application/json\r\nlocation: /api/v1/calls/%b\r\n" % answer.id.encode()
                more = b',"duplicate":true' if answer.duplicate else b""
                self.request.respond(202, lines, b'{"call_id":"%b"%b}' % (answer.id.encode(), more))
            else:
                self.request.respond(202, lines, b"")

    def refuse(self, refusal: Refusal) -> None:
        if not self.over:
            self._end()
            self.request.respond(*refusal_answer(refusal))

    def _end(self) -> None:
        self.over = True
        self.request.connection.site.buffered -= self.body_size
        self.parts, self.body_size = [], 0


class OrderedIds:
    """Ids of calls: UUIDs that begin with their time (version 7, RFC 9562 §5.7). New ones stand together at the end of every index, so
    that a batch of calls touches few pages of the store, however many calls there are."""

    BATCH = 256
    _PARTS = struct.Struct("3s3s12s2x")  # of 20 hexadecimal digits, without those that say version and variant

    def __init__(self) -> None:
        self._parts: list[tuple[bytes, bytes, bytes]] = []

    def next(self, now: float) -> str:
        """`now`: epoch seconds."""
        if not self._parts:
            self._parts = list(self._PARTS.iter_unpack(os.urandom(10 * self.BATCH).hex().encode()))
        a, b, c = self._parts.pop()
        moment = b"%012x" % int(now * 1000)
        return (b"%b-%b-7%b-a%b-%b" % (moment[:8], moment[8:], a, b, c)).decode()


class _Sent:
    """One Accept message and who waits for it. `heard_by_control`: it has been on a link."""

    __slots__ = ("deadline", "message", "replies", "was_sent")

    def __init__(self, message: Accept, replies: list[AsyncReply], deadline: float) -> None:
        self.message = message
        self.replies = replies
        self.deadline = deadline
        self.was_sent = False


class Door:
    """All calls of this gateway that control has not yet taken."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self.settings = settings
        self._say = say
        self._loop = asyncio.get_running_loop()
        self.ids = OrderedIds()
        self._numbers = itertools.count(1)
        self._gathered: list[tuple[AsyncReply, NewCall]] = []
        self._sent: dict[int, _Sent] = {}
        self._pending = 0

    def __repr__(self) -> str:
        return f"<Door {self._pending} calls to be accepted, in {len(self._sent)} messages>"

    def accept(self, reply: AsyncReply) -> None:
        """The whole request is here."""
        if self._pending >= PENDING_MAX:
            reply.refuse(Refusal("overloaded", "Too many calls wait to be accepted.", retry_after_seconds=RETRY_AFTER_SECONDS))
            return
        try:
            call = reply.new_call(time.time())
        except Refusal as refusal:
            reply.refuse(refusal)
            return
        reply.sent = True
        self._pending += 1
        if not self._gathered and len(self._sent) < UNDER_WAY_MAX:
            self._loop.call_soon(self._send)
        self._gathered.append((reply, call))

    def linked(self) -> None:
        """There is a control: what it, or the one before, was not heard to answer is said again."""
        for sent in self._sent.values():
            sent.was_sent |= self._say(sent.message)

    def take(self, message: ToGateway) -> None:
        if isinstance(message, Accepted) and (sent := self._sent.pop(message.request, None)) is not None:
            self._pending -= len(sent.replies)
            for reply, answer in zip(sent.replies, message.answers, strict=True):
                reply.answered(answer)
            self._send()

    def tick(self, now: float) -> None:
        """Who has waited long enough is told. What has gathered goes out, whether or not control answers: its time runs from then."""
        self._send()
        for request in [number for number, sent in self._sent.items() if sent.deadline <= now]:
            sent = self._sent.pop(request)
            self._pending -= len(sent.replies)
            for reply in sent.replies:
                reply.refuse(_unheard(sent.was_sent, reply.call_id))

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        while gathered:
            size, count = 0, 0
            while count < len(gathered) and (not count or size < ACCEPT_BYTES_MAX):
                size += len(gathered[count][1].body)
                count += 1
            part, gathered = gathered[:count], gathered[count:]
            message = Accept(next(self._numbers), [call for _, call in part])
            deadline = time.monotonic() + self.settings.async_accept_seconds
            sent = self._sent[message.request] = _Sent(message, [reply for reply, _ in part], deadline)
            sent.was_sent = self._say(message)


def _unheard(was_sent: bool, call_id: str) -> Refusal:
    if was_sent:
        detail = "Control did not say in time whether the call is durable; it may have been accepted."
        return Refusal("acceptance_unknown", detail, retry_after_seconds=RETRY_AFTER_SECONDS, extra={"call_id": call_id})
    detail = "Control is not there, and asynchronous calls need it. This call was not accepted."
    return Refusal("control_unavailable", detail, retry_after_seconds=RETRY_AFTER_SECONDS)
