"""A small disk that nobody else sees and that nobody must clean up: a tmpfs in a mount namespace of one thread's own.

Linux gives mount namespaces to threads, so a test runs its body in a thread that has left ours: what it mounts, its platform sees, and it
is gone when the last of them is, also after kill -9.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_FS = 0x20000, 0x200
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def apart(body: Callable[[], None]) -> None:
    """Run `body` in a thread with mounts of its own; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            checked(LIBC.unshare(CLONE_NEWNS | CLONE_FS))
            checked(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


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
