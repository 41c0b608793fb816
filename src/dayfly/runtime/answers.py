"""The instance's own socket to its gateway: whole frames out, from any thread and from signal handlers; control frames in.

Back-pressure is the gateway not reading: `write` then blocks, `offer`/`push` say "not yet". At most one frame is ever half sent and
nothing else is kept. Must never leave a broken frame behind: when a write ends in an unknown state (a signal handler raised in the
middle of it, the gateway is gone, user code closed the descriptor), the process ends and the gateway sees a lost instance.
Used by every other file here that says something to the gateway.
"""

import os
import select
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, SCM_RIGHTS, SOCK_STREAM, socket
from _thread import RLock
from sys import byteorder

from dayfly.runtime.frames import ANSWER, BOOT, CANCEL, CONTROL, MOVE

EXIT_BROKEN = 70  # the answers socket cannot be used any more
LATE_FRAMES_MAX = 64  # frames kept of a signal handler that prints while a frame is being sent
SMALL_BYTES = 64 * 1024  # up to here head and body go in one send, copied together
BOOT_BYTES_MAX = 4 * 1024 * 1024
_ONE_FD = CMSG_SPACE(4)
_pack = ANSWER.pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


def frame(kind: int, seq: int, body: bytes = b"", *, flags: int = 0, status: int = 0, meta: bytes = b"", exec_us: int = 0) -> bytes:
    """One whole answer frame (runtime/frames.py)."""
    return _pack(kind, flags, status, len(meta), len(body), exec_us & 0xFFFFFFFF, seq) + meta + body


class Answers:
    """The answers socket. `fd` is taken over: kept from subprocesses, and never closed before the process ends."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
        self.fd = fd
        self._socket = socket(fileno=fd)
        self._send = self._socket.send
        self._lock = RLock()
        self._sending = False  # a frame is on its way; seen by the thread that holds the lock, so only by its signal handlers
        self._late: list[bytes] = []
        self._rest = memoryview(b"")  # of a frame that `offer` could send only in part
        self._behind = memoryview(b"")  # and what of it comes behind that
        self._control = b""
        self._cancelled: set[int] = set()
        self._moves: dict[int, socket] = {}  # where the gateway would have streams go on, by sequence number, until they ask
        self.forgotten = False  # in a process that user code forked

    def read_boot(self) -> bytes:
        """Wait for the BOOT frame and return its body; end the process when the gateway left before it sent one."""
        head = self._socket.recv(CONTROL.size, MSG_WAITALL)
        if len(head) < CONTROL.size:
            os._exit(0)
        kind, size, _ = CONTROL.unpack(head)
        if kind != BOOT or size > BOOT_BYTES_MAX:
            os._exit(EXIT_BROKEN)
        body = b""
        while len(body) < size:
            more = self._socket.recv(size - len(body), MSG_WAITALL)
            if not more:
                os._exit(0)
            body += more
        return body

    def write(self, head: bytes, body: bytes = b"") -> None:
        """Send one or several whole frames, the last of which may have its body apart; blocks until they are out."""
        if body and len(body) <= SMALL_BYTES:
            head, body = head + body, b""
        with self._lock:
            if self._sending:  # a signal handler prints while this very thread sends: after the frame
                if len(self._late) < LATE_FRAMES_MAX:
                    self._late.append(head + body)
                return
            self._sending = True
            try:
                if self._rest:
                    self._all(self._rest)
                    self._all(self._behind)
                    self._rest = self._behind = memoryview(b"")
                self._all(head)
                if body:
                    self._all(body)
            except BaseException:
                os._exit(EXIT_BROKEN)
            self._sending = False
            if self._late:
                self.write(self._late.pop(0))

    def _all(self, data: "bytes | memoryview") -> None:
        while True:
            try:
                sent = self._send(data, MSG_NOSIGNAL)
            except BlockingIOError:  # user code made the descriptor non-blocking
                select.select((), (self.fd,), ())
                continue
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def offer(self, data: "bytes | memoryview", body: bytes = b"") -> bool:
        """Begin to send a frame, which may have its body apart, without waiting. False: the socket is full; `push` sends the rest.
        Call only after `push` was True."""
        with self._lock:
            self._rest, self._behind = memoryview(data), memoryview(body)
            return self.push()

    def push(self) -> bool:
        """Send more of a half-sent frame without waiting. True: nothing is left, the next frame may begin."""
        if not self._rest:
            return True
        with self._lock:
            self._sending = True
            try:
                while self._rest:
                    self._rest = self._rest[self._send(self._rest, MSG_NOSIGNAL | MSG_DONTWAIT) :]
                    if not self._rest:
                        self._rest, self._behind = self._behind, memoryview(b"")
            except BlockingIOError:
                return False
            except BaseException:
                os._exit(EXIT_BROKEN)
            finally:
                self._sending = False
            if self._late:
                self.write(self._late.pop(0))
            return True

    def is_cancelled(self, seq: int) -> bool:
        """Whether the gateway said CANCEL for this call; asked between the chunks of a stream."""
        self.read_control()
        if seq in self._cancelled:
            self._cancelled.clear()  # others in it belong to calls that have ended: numbers are never used again
            return True
        return False

    def take_move(self, seq: int) -> socket | None:
        """The socket through which this stream is to go on, now the caller's; None: there is none (yet)."""
        return self._moves.pop(seq, None) if self._moves else None

    def drop_moves(self, keep: "Collection[int]" = ()) -> None:
        """Streams that have ended by now were told too late."""
        for seq in [seq for seq in self._moves if seq not in keep]:
            self._moves.pop(seq).close()

    def read_control(self) -> list[int]:
        """Take what the gateway wrote, without waiting: the calls it cancelled. Ends the process when the gateway is gone."""
        try:
            data, rights, _, _ = self._socket.recvmsg(4096, _ONE_FD, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return []
        except OSError:
            os._exit(EXIT_BROKEN)
        if not data:
            os._exit(0)
        found, moved = [], 0
        self._control += data
        while len(self._control) >= CONTROL.size:
            kind, _, seq = CONTROL.unpack_from(self._control)
            self._control = self._control[CONTROL.size :]
            if kind == CANCEL:
                found.append(seq)
            elif kind == MOVE:
                moved = seq
        for _, kind, raw in rights:  # the kernel ends what it gives behind a message with descriptors: this is the last one's
            if kind == SCM_RIGHTS:
                self._moves[moved] = socket(AF_UNIX, SOCK_STREAM, 0, int.from_bytes(raw[:4], byteorder))
        self._cancelled.update(found)
        return found

    def forget(self) -> None:
        """In a process that user code forked: this socket belongs to the parent."""
        self.forgotten = True
        self._lock = RLock()
        self._socket.close()
