"""WebSockets of ASGI applications: a connection is one call, from its handshake to its end, and has an instance all that time.

Its messages travel through a socket of the call's own (runtime/frames.py WEBSOCKET). Nothing is kept here but one read: a client is not
read while its application does not read, and an application not while its client does not. Whoever may not call the function any more is
told so at its next message or ping. Must never let an instance's words reach the client but as messages of the lengths that may be.
`SessionReply` is made by gateway/dispatch.py.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable

from websockets.http11 import Response
from websockets.server import ServerProtocol

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import Answered
from dayfly.gateway.channel import REST_FACTOR, TURN_SECONDS, Channel, Frame
from dayfly.gateway.deaths import error_in, outcome_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.exchange import Request
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.reply import RETRY_AFTER_SECONDS, EventReply
from dayfly.gateway.upload import BESIDE
from dayfly.gateway.version_socket import SEND_BUFFER_BYTES
from dayfly.gateway.websocket import GOING_AWAY, INTERNAL, POLICY, SWITCHING_PROTOCOLS, WebSocket, is_utf8
from dayfly.runtime import frames
from dayfly.runtime.messages import Incoming, farewell, farewell_in, message

READ_BYTES = 64 * 1024
LAST_SECONDS = 5.0  # of a call's time: so long before its deadline the connection is closed, for the application to say goodbye
NORMAL = 1000
NO_ENTRY = (401, 403, 404)


class Way:
    """The socket between one connection and its application, as the gateway holds it."""

    def __init__(self, bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        for end in (self._ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._rest = bytearray()  # for the application, which does not read
        self._incoming = Incoming(bytes_max)
        self._wanted = self._reading = self._resting = False
        self._is_over = self._ending = False  # its end was read; the application is done
        self._session: Session | None = None

    @property
    def is_full(self) -> bool:
        return bool(self._rest)

    def descriptor(self) -> int:
        """A new descriptor of the instance's end. Ours stays open: who takes the call and dies before it begins has read nothing of it."""
        return os.dup(self._theirs.fileno())

    def begin(self, session: "Session") -> None:
        """It is accepted. From now on the instance has the other end alone, and its closing is an end."""
        self._session = session
        self._theirs.close()
        self.watch(True)

    def write(self, data: bytes) -> None:
        """Pass this on; what does not fit waits here, and nobody may come with more until it is gone."""
        if self._ours.fileno() < 0:
            return
        was_full = self.is_full
        self._rest += data
        if not was_full:
            self._push()
            if self._rest:
                self._loop.add_writer(self._ours, self._drained)

    def _push(self) -> None:
        try:
            while self._rest:
                del self._rest[: self._ours.send(self._rest)]
        except BlockingIOError:
            return
        except OSError:
            self._rest.clear()

    def _drained(self) -> None:
        self._push()
        if not self._rest:
            self._loop.remove_writer(self._ours)
            if self._session is not None:
                self._session.taken()

    def watch(self, yes: bool) -> None:
        """Read what the application says, or do not: its client does not."""
        self._wanted = yes
        self._look()

    def _look(self) -> None:
        reading = self._wanted and not self._is_over and not self._resting
        if reading != self._reading and self._ours.fileno() >= 0:
            self._reading = reading
            self._loop.add_reader(self._ours, self._readable) if reading else self._loop.remove_reader(self._ours)
        if self._ending and not self._resting:
            self._loop.call_soon(self._readable)

    def end(self) -> None:
        """The application is done: all that it has said lies here by now."""
        self._ending = True
        self._look()

    def _readable(self) -> None:
        session = self._session
        if session is None or not (self._reading or self._is_over):
            return
        try:
            data = b"" if self._is_over else self._ours.recv(READ_BYTES)
        except BlockingIOError:
            self._is_over = self._ending
        except OSError:
            self._is_over = True
        else:
            self._is_over = not data
            self._incoming.feed(data)
        if not self._is_over:
            self._hear()
        elif self._ending:
            session.ended()
        else:
            self._look()

    def _hear(self) -> None:
        """Hand on what has come. A flood of small messages gets a share of the loop, as one of frames does (gateway/channel.py)."""
        self._resting = False
        began = self._loop.time()
        try:
            while self._session is not None and (found := self._incoming.next()) is not None:
                self._session.hear(*found)
                if (spent := self._loop.time() - began) > TURN_SECONDS:
                    self._resting = True
                    self._loop.call_later(REST_FACTOR * spent, self._hear)
                    break
        except ValueError as error:
            if self._session is not None:
                self._session.fail(str(error))
        self._look()

    def close(self) -> None:
        """Let go of it; the application, if it is there, reads its end. Idempotent."""
        if self._ours.fileno() >= 0:
            self.watch(False)
            self._loop.remove_writer(self._ours)
            self._ours.close()
            self._theirs.close()
        self._session = None


class Session(WebSocket):
    """One client, as the transport's protocol."""

    def __init__(self, reply: "SessionReply", protocol: ServerProtocol, way: Way) -> None:
        super().__init__(reply.request)
        self._reply = reply
        self._protocol = protocol
        self._way = way
        self._until = reply.deadline - min(LAST_SECONDS, reply.entry.timeout_seconds / 2)

    def __repr__(self) -> str:
        return f"<Session of {self.peer} call={self._reply.call_id.decode()}>"

    def begin(self, response: Response, lines: bytes) -> bool:
        """The application has accepted, with these header lines. False: the client has not waited for it."""
        for line in lines.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            if name and not name.lower().startswith("sec-websocket-"):
                response.headers[name] = value.strip()
        if not self._open(response, lines):
            return False
        self.deadline = min(self.deadline, self._until)
        self._way.begin(self)
        return True

    # ---- the client says -------------------------------------------------------------------------------------------------------------

    def _said(self, form: bytes, body: bytes) -> None:
        if not self._may_go_on():
            return
        self._reply.received_bytes += len(body)
        self._way.write(message(frames.TEXT if form == b"text" else frames.BINARY, body))
        if self._way.is_full and self._transport is not None:
            self._transport.pause_reading()

    def taken(self) -> None:
        """What waited for the application has been taken."""
        self._next()

    def _next(self) -> None:
        if self._transport is not None and not (self._way.is_full or self._write_paused or self._transport.is_closing()):
            self._transport.resume_reading()

    def _may_go_on(self) -> bool:
        """Whether the client would be let in today; else it is sent away."""
        try:
            self._reply.check()
        except Refusal as refusal:
            if refusal.kind.status in NO_ENTRY:
                self.close(POLICY, refusal.kind.code)
                return False
        return True

    def _writable(self, yes: bool) -> None:
        self._way.watch(yes)

    def _over(self, code: int, reason: str) -> None:
        self._reply.gone(code, reason)

    def timed_out(self) -> None:
        if not self.closing and time.monotonic() >= self._until:
            self.close(GOING_AWAY, "function_timeout")
        elif self.closing or self._may_go_on():
            super().timed_out()
            if not self.closing:
                self.deadline = min(self.deadline, self._until)

    # ---- the application says --------------------------------------------------------------------------------------------------------

    def hear(self, kind: int, body: bytes) -> None:
        """One message of its. Raises ValueError when it is none."""
        if kind == frames.CLOSE:
            self.close(*farewell_in(body))
        elif kind == frames.TEXT and not is_utf8(body):
            raise ValueError("a text that is not UTF-8")
        else:
            self._reply.sent_bytes += len(body)
            self._send(body, binary=kind == frames.BINARY)

    def ended(self) -> None:
        """All of it is said."""
        self._reply.concluded()

    def fail(self, text: str) -> None:
        """It said what is no message, or one that is too long."""
        self._reply.broke(text)


class SessionReply(EventReply):
    """The call of one connection: its answer is HTTP where it denies, and a conversation where it accepts."""

    kind = frames.WEBSOCKET
    movable = False

    def __init__(self, fleet: Fleet, request: Request, entry: Entry, call_id: bytes) -> None:
        super().__init__(fleet, request, entry, call_id)
        most = request.connection.site.settings.websocket_message_bytes_max
        self.bytes_max = most if entry.gate is None else min(most, entry.gate.body_bytes_max)
        try:
            self._way = Way(self.bytes_max)
        except OSError:
            raise Refusal("overloaded", "The gateway has no descriptors to spare.", retry_after_seconds=RETRY_AFTER_SECONDS) from None
        self._session: Session | None = None
        self.received_bytes = 0
        self.body_size = BESIDE

    def expect(self, protocol: ServerProtocol, response: Response, check: Callable[[], object]) -> None:
        """The client's handshake, which is right. `check` raises Refusal once the client may not call the function any more."""
        self._protocol, self._response, self.check = protocol, response, check

    @property
    def deadline(self) -> float:
        assert self.call is not None
        return self.call.deadline

    def body_descriptor(self) -> tuple[int, int]:
        if self.over:  # the client left after the call was offered and before it was sent
            way = Way(0)
            try:
                return frames.BODY_IN_STREAM, way.descriptor()
            finally:
                way.close()
        return frames.BODY_IN_STREAM, self._way.descriptor()

    # ---- what the instance says ------------------------------------------------------------------------------------------------------

    def head(self, channel: Channel, frame: Frame) -> None:
        """It is accepted, or an answer begins that denies it."""
        if frame.status != SWITCHING_PROTOCOLS or self.over or self.head_sent:
            super().head(channel, frame)
            return
        lines = self._accepted_lines(channel, frame)
        if lines is None:
            self.refused("function_bad_answer")
            self._way.close()
            return
        self.channel, self.seq, self.head_sent = channel, frame.seq, True
        session = Session(self, self._protocol, self._way)
        if session.begin(self._response, lines):
            self._session = session
        else:
            self.left()

    def _accepted_lines(self, channel: Channel, frame: Frame) -> bytes | None:
        found = self._stream_lines(channel, frame._replace(status=200))
        return found[1] if found is not None else None

    def chunk(self, channel: Channel, frame: Frame) -> None:
        if self._session is None:
            super().chunk(channel, frame)

    def result(self, channel: Channel, frame: Frame) -> None:
        if self._session is None:
            super().result(channel, frame)
        else:  # what nobody says who has accepted
            self.end(channel, frame._replace(flags=frame.flags | frames.ERROR))

    def end(self, channel: Channel, frame: Frame) -> None:
        if self._session is None or self.over:
            super().end(channel, frame)
            return
        self._settle(channel, frame.exec_us)
        self.last = (channel, frame)
        self._way.end()

    def concluded(self) -> None:
        """What the application said before its end is on its way to the client."""
        if self.over or self.last is None or self._session is None:
            return
        channel, frame = self.last
        self.over = True
        if frame.flags & frames.ERROR:
            self.detail = self.detail or outcome_of(error_in(frame.body))
            self._session.close(INTERNAL, self.detail)
        else:
            self._session.close(NORMAL, "")
        self._record(self.detail or "ok", channel, frame.exec_us, self.sent_bytes)

    def broke(self, text: str) -> None:
        """Nothing of what follows can be understood."""
        self.died(f"The application's message is none: {text}.")
        if self.channel is not None:
            self.channel.cancel(self.seq)
        self.refused("function_bad_answer")

    def refused(self, code: str, retry_after_seconds: float = 0.0) -> None:
        if self._session is None or self.over:
            super().refused(code, retry_after_seconds)
            return
        self.over = True
        self._session.close(INTERNAL, code)
        self._record(code, None, 0, self.sent_bytes)

    # ---- what the client does --------------------------------------------------------------------------------------------------------

    def gone(self, code: int, reason: str) -> None:
        """The connection is over. The application is told, and has a moment."""
        self._way.write(farewell(code, reason))
        self._way.watch(True)
        if self.channel is not None and not self.over:
            self.channel.cancel(self.seq)

    def left(self) -> None:
        super().left()
        self._way.close()

    def begun(self) -> bool:
        return False  # whoever has closed its sending side has no use for a WebSocket

    def _record(self, outcome: str, channel: Channel | None, exec_us: int, bytes_out: int) -> Answered:
        self.body_size = self.received_bytes
        try:
            return super()._record(outcome, channel, exec_us, bytes_out)
        finally:
            self._release_body()

    def _release_body(self) -> None:
        self.body_size = BESIDE  # nothing of it was kept here
        self._way.close()
