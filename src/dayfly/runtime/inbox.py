"""Where calls come from: the SOCK_SEQPACKET socket that all instances of a version share. One message, one call.

Must never make the shared socket non-blocking (its flags belong to every instance), nor run anything. Used by sequential.py
(waits) and concurrent.py (does not).
"""

import os
import sys
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, SCM_RIGHTS, socket
from contextlib import suppress
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from time import monotonic_ns

from dayfly.runtime.failure import Fault
from dayfly.runtime.frames import BODY_IN_FD, BODY_IN_STREAM, LAST, MESSAGE_BYTES_MAX, REQUEST, RETIRE

_unpack = REQUEST.unpack_from
_HEAD = REQUEST.size
_WAIT = int(MSG_CMSG_CLOEXEC)
_POLL = int(MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
_ATTACHED = BODY_IN_FD | BODY_IN_STREAM
_ANCILLARY = CMSG_SPACE(4) + 256  # one descriptor, and what user code may have the shared socket add: credentials, times
SMALL_BYTES = 32 * 1024  # after a larger message the buffer's pages go back to the kernel
EXIT_LOST_CALL = 71  # a signal handler raised while a call was being received
NO_FD = -1  # the body is inline
LOST_FD = -2  # there was a descriptor and this process could not take it


class Leave(Exception):
    """There will be no more calls for this instance: end of file, or it took a RETIRE message."""


class Call:
    """One call as it came. `kind`: frames.DIRECT or HTTP. `deadline` and `began`: CLOCK_MONOTONIC nanoseconds.

    A body that came as a descriptor is read by `body`, because reading it may fail, and such a failure is this call's answer. One that is
    still on its way is read by runtime/body.py, through `take_stream`.
    """

    __slots__ = ("_body", "_fd", "began", "deadline", "flags", "id", "kind", "meta", "seq")

    def __init__(self, kind: int, seq: int, deadline: int, id: str, meta: bytes, body: bytes) -> None:
        self.kind = kind
        self.seq = seq
        self.deadline = deadline
        self.id = id
        self.meta = meta
        self._body = body
        self._fd = NO_FD
        self.flags = 0
        self.began = 0

    @property
    def is_last(self) -> bool:
        """Whether this instance is to leave after it."""
        return bool(self.flags & LAST)

    @property
    def body(self) -> bytes:
        """The body's bytes; may be asked for once. Raises Fault when a large one did not arrive."""
        if self._fd == NO_FD:
            return self._body
        fd, self._fd = self._fd, NO_FD
        return _read_all(_arrived(fd))

    def take_stream(self) -> int:
        """The descriptor from which the body is read, now the caller's; NO_FD when the body is here. Raises Fault when it was lost."""
        if not self.flags & BODY_IN_STREAM:
            return NO_FD
        fd, self._fd = self._fd, NO_FD
        return _arrived(fd)


def _arrived(fd: int) -> int:
    if fd == LOST_FD:
        raise Fault("Runtime.TruncatedRequest", "The request's body could not be received: too many open files.")
    return fd


def _read_all(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        body = os.pread(fd, size, 0)
        while len(body) < size:
            more = os.pread(fd, size - len(body), len(body))
            if not more:
                break
            body += more
        return body
    finally:
        os.close(fd)


class Inbox:
    """The shared socket and one receive buffer, of which only the pages that messages touch exist."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, True)
        self.fd = fd
        self._socket = socket(fileno=fd)
        self._receive = self._socket.recvmsg_into
        self._buffer = mmap(-1, MESSAGE_BYTES_MAX, MAP_PRIVATE | MAP_ANONYMOUS)  # a shared one is a file, whose pages no advice gives back
        self._buffers = (self._buffer,)

    def wait(self) -> Call:
        """The next call that is still worth running; blocks. Raises Leave."""
        while True:
            call = self._take(_WAIT)
            if call is not None:
                return call

    def poll(self) -> Call | None:
        """The next call, or None when none waits right now. Raises Leave."""
        while True:
            try:
                call = self._take(_POLL)
            except BlockingIOError:
                return None
            if call is not None:
                return call

    def _take(self, mode: int) -> Call | None:
        """Receive one message; None when it was worthless (expired, or malformed)."""
        buffer = self._buffer
        buffer[0] = 0
        try:
            size, rights, _, _ = self._receive(self._buffers, _ANCILLARY, mode)
        except BlockingIOError:
            if mode == _POLL:
                raise
            os.set_blocking(self.fd, True)  # user code changed it
            return None
        except BaseException as error:
            if isinstance(error, OSError) and error.errno:  # user code closed the descriptor (its own TimeoutError has no number)
                raise Leave from error
            self._interrupted(error)
            return None
        if size < _HEAD:
            raise Leave
        now = monotonic_ns()
        kind, flags, id_size, meta_size, seq, deadline = _unpack(buffer)
        if kind == RETIRE:
            raise Leave
        fd = NO_FD
        if flags & _ATTACHED:
            fd = next((int.from_bytes(data[:4], sys.byteorder) for _, kind, data in rights if kind == SCM_RIGHTS), LOST_FD)
        if deadline < now:  # the gateway has answered it already
            if fd >= 0:
                os.close(fd)
            return None
        meta_at = _HEAD + id_size
        body_at = meta_at + meta_size
        call = Call(kind, seq, deadline, str(buffer[_HEAD:meta_at], "ascii"), buffer[meta_at:body_at], buffer[body_at:size])
        call.began = now
        call._fd = fd
        call.flags = flags
        if size > SMALL_BYTES:
            buffer.madvise(MADV_DONTNEED)
        return call

    def _interrupted(self, error: BaseException) -> None:
        """A signal handler of the user's raised while this instance was idle. Nothing was received: say so and go on. Otherwise a call
        would be lost in silence; this process ends instead, and the gateway gives the call (not marked as begun) to another one."""
        if self._buffer[0]:
            os._exit(EXIT_LOST_CALL)
        with suppress(Exception):  # stderr is the user's to break
            sys.stderr.write(f"A signal handler raised between calls: {type(error).__name__}\n")

    def forget(self) -> None:
        """In a process that user code forked: this socket belongs to the parent."""
        self._socket.close()
