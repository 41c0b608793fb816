"""Pages of a process that are its own: found, and what is said of them believed within bounds."""

import ctypes
import json
import mmap
import os

from dayfly.runtime import touched


def test_only_whole_pages_of_the_templates_own_areas_are_believed() -> None:
    areas = [(0x1000, 0x3000), (0x10000, 0x1000)]
    good = [(0x1000, 0x1000), (0x2000, 0x2000), (0x10000, 0x1000)]
    bad = [(0x1001, 0x1000), (0x1000, 0x4000), (0, 0x1000), (0x2000, 0), (0x2000, 100), (1 << 62, 1 << 40)]
    assert touched.believable([*bad[:5], *good], areas) == good
    assert touched.believable([bad[5], *good], areas) == [], "what comes after so much is not heard any more"
    many = [(touched.PAGE * number, touched.PAGE) for number in range(touched.PAGES_MAX + touched.RANGES_MAX)]
    everything = [(0, 1 << 40)]
    assert len(touched.believable(many, everything)) == touched.RANGES_MAX
    whole = (0, touched.PAGE * touched.PAGES_MAX)
    assert touched.believable([whole, (0, touched.PAGE)], everything) == [whole]


def test_what_a_fork_has_written_to_is_found() -> None:
    """Exactly those pages, neighbours together."""
    block = mmap.mmap(-1, touched.PAGE * 64, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * len(block))
    first = ctypes.addressof(ctypes.c_char.from_buffer(block))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for page in (10, 11, 30):
            block[page * touched.PAGE] = 121
        os.write(writer, json.dumps([touched.own_pages(first, len(block)), touched.writable_areas()]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        found, areas = json.loads(file.read())
    os.waitpid(pid, 0)
    assert found == [[first + 10 * touched.PAGE, 2 * touched.PAGE], [first + 30 * touched.PAGE, touched.PAGE]]
    assert any(at <= first and first + len(block) <= at + size for at, size in areas)
