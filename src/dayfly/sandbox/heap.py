"""The C library's heap before a fork, without holes.

What a child allocates out of the holes of an old heap lies scattered, and for nearly each piece it copies a page. So a parent
takes all free chunks for good (some hundred kilobytes, once), and its children allocate side by side behind them: 40 pages less
in each of a zygote's, 250 less in those of a Flask application's template. (The same for Python's own allocator was measured for
both and gained nothing: what a child frees there it uses again.)
Standard library only. Called by node/zygote.py and launch.py.
"""

import ctypes

_SIZES = (*range(65536, 8192, -1024), *range(8192, 1048, -64), *range(1048, 8, -16))  # largest first: small ones take the leftovers
_ROUNDS_MAX = 100_000


def fill_holes() -> None:
    """Take every chunk of malloc's that lies below the end of the heap. They are never given back."""
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
