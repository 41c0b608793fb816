"""A machine of a test's own, as far as mounts and uptime go: namespaces of one thread, which nobody else sees and nobody must clean up.

Linux gives both kinds of namespace to threads, so a test runs its body in a thread that has left ours: what it mounts, its platform
sees, and it is gone when the last of them is, also after kill -9.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_FS, CLONE_NEWTIME = 0x20000, 0x200, 0x80
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def in_a_thread(body: Callable[[], None]) -> None:
    """Run `body` in a thread of its own; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def own_mounts() -> None:
    """From now on this thread, and what it starts, mounts for itself."""
    checked(LIBC.unshare(CLONE_NEWNS | CLONE_FS))
    checked(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


def just_booted(seconds_ago: int = 1) -> None:
    """What this thread starts from now on lives on a machine that came up so long ago: the monotonic clock begins near zero. Raises OSError
    where the kernel has no time namespaces."""
    checked(LIBC.unshare(CLONE_NEWTIME))
    offset = seconds_ago - int(time.clock_gettime(time.CLOCK_BOOTTIME))
    offsets = f"monotonic {offset} 0\nboottime {offset} 0\n"
    Path(f"/proc/{threading.get_native_id()}/timens_offsets").write_text(offsets)


def small_disk(folder: Path, size: str) -> None:
    """A disk of `size` at `folder`, for this thread and what it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    checked(LIBC.mount(b"dayfly-test", bytes(folder), b"tmpfs", 0, f"size={size},mode=0755".encode()))


def no_disk(folder: Path) -> None:
    """Take it away again, so that the folder can go."""
    checked(LIBC.umount2(bytes(folder), MNT_DETACH))


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fill(disk: Path) -> Path:
    """Write until there is no room; the file that takes it."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                continue
    return filler
