"""An instance's progress page (runtime/frames.py) as the gateway reads it: shared memory, mapped without keeping a descriptor.

Python's own mmap keeps a duplicate of the file's descriptor (from 3.13 on it can be told not to): one in three of all that an instance
costs the gateway, whose limit of them bounds how many instances it can have. What is read was written by hostile code: numbers, no more.
Called by gateway/channel.py.
"""

import ctypes
import mmap

from dayfly.runtime import frames

_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Page:
    """The page in the memory file `fd`, which must be sealed against shrinking, and may be closed once this is made."""

    __slots__ = ("_bytes",)

    def __init__(self, fd: int) -> None:
        """Raises OSError."""
        address = _libc.mmap(None, frames.PROGRESS_BYTES, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), "a progress page cannot be mapped")
        self._bytes: ctypes.Array[ctypes.c_char] | None = (ctypes.c_char * frames.PROGRESS_BYTES).from_address(address)

    def seq(self, slot: int) -> int:
        """The sequence number in a slot; 0 once the page is closed."""
        return int(frames.SLOT.unpack_from(self._bytes, slot * frames.SLOT.size)[0]) if self._bytes is not None else 0

    def close(self) -> None:
        """Unmap it; idempotent."""
        page, self._bytes = self._bytes, None
        if page is not None:
            _libc.munmap(ctypes.addressof(page), frames.PROGRESS_BYTES)
