"""Many messages to one socket in one system call: sendmmsg(2), which Python does not have.

Each message is still one call that whoever is free takes; but the instance that the first one wakes finds the others there, instead of
falling asleep and being woken again for each. Measured: docs/performance.md. Where the C library has no sendmmsg, `send` is None and
messages go one by one. Never waits, never decides. Used by gateway/channel.py.
"""

import ctypes
import itertools
import os
import socket
from array import array
from collections.abc import Callable, Sequence

MESSAGES_MAX = 64
BYTES_MAX = 256 * 1024
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _Message(ctypes.Structure):
    """struct msghdr of <sys/socket.h>."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("parts", ctypes.c_void_p),
        ("parts_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr: a message, and how much of it went."""

    _fields_ = (("message", _Message), ("sent", ctypes.c_uint))


class Burst:
    """The arrays that the kernel reads, made once for all sockets of a process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sendmmsg = library.sendmmsg
        self._sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        self._bytes = bytearray(BYTES_MAX)
        self._begin = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        self._parts = array("L", bytes(2 * MESSAGES_MAX * array("L").itemsize))  # struct iovec: address and length of each
        word = self._parts.itemsize  # of an unsigned long, which is as long as a pointer wherever Linux runs
        parts_at = self._parts.buffer_info()[0]
        self._headers = (_Header * MESSAGES_MAX)()
        for index, header in enumerate(self._headers):
            header.message.parts, header.message.parts_count = parts_at + 2 * word * index, 1
        self._headers_at = ctypes.addressof(self._headers)

    def send(self, fd: int, messages: Sequence[bytes]) -> int:
        """Send the first so many of at most MESSAGES_MAX messages of BYTES_MAX in all; how many went. Raises OSError when none did."""
        data = b"".join(messages)
        self._bytes[: len(data)] = data
        lengths = array("L", map(len, messages))
        count = len(lengths)
        self._parts[1 : 2 * count : 2] = lengths
        self._parts[0 : 2 * count : 2] = array("L", itertools.accumulate(lengths[:-1], initial=self._begin))
        sent: int = self._sendmmsg(fd, self._headers_at, count, _FLAGS)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return sent


def _burst() -> Callable[[int, Sequence[bytes]], int] | None:
    try:
        return Burst(ctypes.CDLL(None, use_errno=True)).send
    except (OSError, AttributeError):
        return None


send = _burst()
