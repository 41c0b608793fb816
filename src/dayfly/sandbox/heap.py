"""Both heaps before a fork, the C library's and Python's, without holes.

What a child allocates out of the holes of an old heap lies scattered, and for nearly each piece it copies a page. So a parent
takes all free room for good (some hundred kilobytes of each, once), and its children allocate side by side behind it: 90 pages less
in each of a zygote's, 250 less in those of a Flask application's template.
Standard library only. Called by node/zygote.py and launch.py.
"""

import ctypes
import gc
import sys

_SIZES = (*range(65536, 8192, -1024), *range(8192, 1048, -64), *range(1048, 8, -16))  # largest first: small ones take the leftovers
_ROUNDS_MAX = 100_000
_SMALL_SIZES = range(16, 513, 16)
_POOL_BYTES = 16384
_FEW = 4  # blocks in use: this pool is new, the others of them being what this loop itself works with


def fill_holes() -> None:
    """Take every free piece of both heaps that lies among used ones. They are never given back. Collect garbage before: it makes holes."""
    gc.collect()
    _fill_c()
    _fill_python()


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
    allocate = ctypes.pythonapi.PyObject_Malloc
    allocate.restype, allocate.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    for size in _SMALL_SIZES:
        for _ in range(_ROUNDS_MAX):
            block = allocate(size)
            if ctypes.c_uint.from_address(block - block % _POOL_BYTES).value <= _FEW:
                break
