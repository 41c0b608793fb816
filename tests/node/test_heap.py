"""The heap that a zygote leaves to its children."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.driver import interpreters

PROGRAM = """
import ctypes, random, sys
sys.path.insert(0, sys.argv[1])
from dayfly.sandbox import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_size_t, [ctypes.c_size_t], [ctypes.c_size_t]
chunks = [libc.malloc(size) for size in random.Random(1).choices(range(40, 4000, 8), k=4000)]
for chunk in chunks[::2]:
    libc.free(chunk)
room = (ctypes.c_size_t * 64)()
def pages():
    for i in range(64):
        room[i] = libc.malloc(200 + i)  # nothing of Python's own is made between two of them
    return len({address // 4096 for address in room})
def own_kilobytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = pages()
memory = own_kilobytes()
heap.fill_holes()
after = pages()
grown = own_kilobytes() - memory
print(before, after, grown)
"""


def test_after_filling_the_holes_new_memory_lies_side_by_side() -> None:
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", PROGRAM, source], capture_output=True, text=True, timeout=60, check=True)
    before, after, grown = map(int, done.stdout.split())
    assert before > 8  # the holes lay scattered
    assert after <= 5  # 64 chunks of 232 bytes on average fill four pages
    assert grown < 400  # kilobytes: each would be mapped by every child


SMALL = """
import ctypes, random, sys
sys.path.insert(0, sys.argv[1])
from dayfly.sandbox import heap
allocate = ctypes.pythonapi.PyObject_Malloc
allocate.restype, allocate.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
kept = [bytes(90) for _ in range(20000)]
del kept[:: 40]
room = (ctypes.c_size_t * 64)()
def pages():
    for i in range(64):
        room[i] = allocate(120)
    return len({address // 4096 for address in room})
before = pages()
heap.fill_holes()
print(before, pages())
"""


@pytest.mark.parametrize("python", interpreters())
def test_small_objects_lie_side_by_side_too(python: str) -> None:
    """Those that Python's own allocator makes room for."""
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([python, "-I", "-S", "-c", SMALL, source], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 32
    assert after <= 3  # 64 pieces of 128 bytes fill two pages
