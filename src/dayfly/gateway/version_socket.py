"""The socket from which all instances of one version pull: calls out, one message each. What comes back is gateway/channel.py's.

Decides nothing: what is sent, and in which order, core/decide/pool.py has said. What lies on it belongs to nobody, so that untaken calls
outlive an instance; they can be looked at, and taken back. Used by gateway/entry.py.
"""

import array
import errno
import fcntl
import itertools
import os
import socket
from collections.abc import Sequence
from typing import Protocol

from dayfly.core.model.call import Call
from dayfly.gateway import burst
from dayfly.runtime import frames
from dayfly.runtime.frames import LAST

SEND_BUFFER_BYTES = 1024 * 1024
SPOILT = (errno.EPIPE, errno.ECONNRESET, errno.EPERM)  # shut down; or told to take no descriptors (SO_PASSRIGHTS)
F_ADD_SEALS, SEALS = 1033, 1 | 2 | 4 | 8  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
_pack_request = frames.REQUEST.pack


class Parcel(Protocol):
    """What a call sends to an instance."""

    kind: int
    call_id: bytes
    meta: bytes
    parts: list[bytes]
    body_size: int

    def body_descriptor(self) -> tuple[int, int]:
        """A body too large for a message rides beside it: as what (a flag of runtime/frames.py), and the descriptor, then the caller's."""
        ...


def sealed_memfd(name: str, parts: Sequence[bytes]) -> int:
    """A memory file holding `parts`, which nobody can change or resize any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _message(call: Call) -> bytes:
    """A call whose body is short enough to be in it."""
    parcel = call.reply
    call_id, meta, parts = parcel.call_id, parcel.meta, parcel.parts
    head = _pack_request(parcel.kind, LAST if call.last else 0, len(call_id), len(meta), call.seq, int(call.deadline * 1e9))
    return head + call_id + meta + parts[0] if len(parts) == 1 else b"".join((head, call_id, meta, *parts))


class VersionSocket:
    """The socket from which all instances of one version pull. Kept open through all of them: untaken calls outlive an instance."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender.setblocking(False)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def send(self, calls: Sequence[Call]) -> int:
        """Send calls, in order; how many went. Fewer than all: the socket is full, or an instance has spoilt it for all that hold it. Those
        read end-of-file and leave; instances to come get another one."""
        sent = 0
        try:
            if len(calls) == 1 or burst.send is None:
                for call in calls:
                    self._send(call)
                    sent += 1
                return sent
            while sent < len(calls):
                batch, size = [], 0
                for call in itertools.islice(calls, sent, sent + burst.MESSAGES_MAX):
                    if call.reply.body_size > frames.INLINE_BYTES_MAX or size > burst.BYTES_MAX - frames.MESSAGE_BYTES_MAX:
                        break
                    batch.append(_message(call))
                    size += len(batch[-1])
                if batch:
                    went = burst.send(self._sender.fileno(), batch)
                    sent += went
                    if went < len(batch):
                        break
                else:
                    self._send(calls[sent])
                    sent += 1
        except OSError as error:
            if error.errno in SPOILT:
                self.finish()
                self._open()
        return sent

    def _send(self, call: Call) -> None:
        parcel: Parcel = call.reply
        if parcel.body_size <= frames.INLINE_BYTES_MAX:
            self._sender.send(_message(call))
        else:
            self._send_with_body(call, parcel)

    def _send_with_body(self, call: Call, parcel: Parcel) -> None:
        flag, fd = parcel.body_descriptor()
        flag |= LAST if call.last else 0
        try:
            call_id, meta = parcel.call_id, parcel.meta
            head = _pack_request(parcel.kind, flag, len(call_id), len(meta), call.seq, int(call.deadline * 1e9))
            self._sender.sendmsg([head, call_id, meta], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        finally:
            os.close(fd)

    def retire_one(self) -> bool:
        """Ask whoever takes this message to leave; False when the socket is full or shut."""
        try:
            self._sender.send(_pack_request(frames.RETIRE, 0, 0, 0, 0, 0))
        except OSError:
            return False
        return True

    def untaken(self) -> list[int]:
        """Sequence numbers of the calls nobody has taken, in order: taken out and put back, so as to tell them from lost ones."""
        packets = list(iter(lambda: self._take_one(frames.MESSAGE_BYTES_MAX), None))
        seqs = []
        for packet, rights in packets:
            try:
                socket.send_fds(self._sender, [packet], rights)
            except OSError:
                continue  # cannot be put back: then it was not taken either, and its call is returned to the queue
            finally:
                for fd in rights:
                    os.close(fd)
            kind, _, _, _, seq, _ = frames.REQUEST.unpack_from(packet)
            if kind != frames.RETIRE:
                seqs.append(seq)
        return seqs

    def clear(self) -> None:
        """Throw away every message that nobody has taken."""
        while (taken := self._take_one(frames.REQUEST.size)) is not None:
            for fd in taken[1]:
                os.close(fd)

    def _take_one(self, size: int) -> tuple[bytes, list[int]] | None:
        """The next untaken message and its descriptors, or None. Not socket.recv_fds: that one loses its flags (CPython 3.11 to 3.13)
        and would wait, for the receiving end blocks by default: instances share it."""
        try:
            packet, ancillary, _, _ = self.receiver.recvmsg(size, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        rights = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
        return (packet, list(rights)) if packet else None

    def finish(self) -> None:
        """No more calls: instances read what is there, then end-of-file, and leave."""
        self._sender.close()
        self.receiver.close()
