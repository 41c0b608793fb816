"""Both heaps before a fork, the C library's and Python's: without holes, and what all children use close together.

What a child allocates out of the holes of an old heap lies scattered, and for nearly each piece it copies a page. So a parent
takes all free room for good (some hundred kilobytes of each, once), and its children allocate side by side behind it: 90 pages less
in each of a zygote's, 250 less in those of a Flask application's template.
Standard library only. Called by node/zygote.py and launch.py.
"""

import ctypes
import gc
import sys
from types import CodeType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

_SIZES = (*range(65536, 8192, -1024), *range(8192, 1048, -64), *range(1048, 8, -16))  # largest first: small ones take the leftovers
_ROUNDS_MAX = 100_000
_SMALL_SIZES = range(16, 513, 16)
_POOL_BYTES = 16384
_FEW = 4  # blocks in use: this pool is new, the others of them being what this loop itself works with


def fill_holes() -> None:
    """Take every free piece of both heaps that lies among used ones. They are never given back. Collect garbage before: it makes holes."""
    gc.collect()
    _fill_python()
    _fill_c()


def _fill_c() -> None:
    """Every chunk of malloc's that lies below the end of the heap."""
    libc = ctypes.CDLL(None)
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    free.argtypes = [ctypes.c_size_t]
    last, end = 0, malloc(_SIZES[0])
    for _ in range(_ROUNDS_MAX):
        if end - last == _SIZES[0] + 16:  # two neighbours: both were cut from the heap's end
            break
        last, end = end, malloc(_SIZES[0])
    for size in _SIZES:
        for _ in range(_ROUNDS_MAX):
            chunk = malloc(size)
            if not 0 < chunk < end:
                free(chunk)  # from beyond the end: else each size would leave one there, a megabyte for every child to map
                break


def _fill_python() -> None:
    """Every free block of small objects. Blocks of one size lie in pools (CPython, Objects/obmalloc.c), whose first word says how many are
    in use; a new pool is begun when no other has room. Only for the allocator that `python -I` has in a usual build."""
    if sys.abiflags:
        return
    allocate, free = ctypes.pythonapi.PyObject_Malloc, ctypes.pythonapi.PyObject_Free
    allocate.restype, allocate.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_size_t]
    for size in _SMALL_SIZES:
        for _ in range(_ROUNDS_MAX):
            block = allocate(size)
            if ctypes.c_uint.from_address(block - block % _POOL_BYTES).value <= _FEW:
                free(block)  # the next size begins the same pool
                break


def pack_code(play: "Callable[[], object]", others: "Iterable[Callable[..., object]]" = ()) -> None:
    """Give each function that `play` calls, and `others`, a copy of its code. The copies lie together, the originals among a thousand
    that children do not run; and whoever runs code writes to it: it counts its users, and its instructions learn. What they have learnt
    is lost, so this comes before any rehearsal."""
    called = {function.__code__: True for function in others}

    def note(frame: "FrameType", event: str, _: object) -> None:
        called[frame.f_code] = True

    sys.setprofile(note)
    try:
        play()
    finally:
        sys.setprofile(None)
    copies: dict[CodeType, CodeType] = {}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in called:
            function.__code__ = copies.setdefault(function.__code__, function.__code__.replace())
