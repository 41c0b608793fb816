"""What a platform may leave behind, and how a test finds it: processes, control groups, mounts, network namespaces, sockets, files.

The test process makes itself the subreaper of everything it starts (`adopt_orphans`): whatever loses its parent, be it two forks and a
new session away, becomes our child instead of pid 1's, so that "what is left of a platform" is "what is below us". Used by
conftest.py after the whole session and by tests that kill things.
"""

import ctypes
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dayfly.sandbox.cgroup import tag
from tests.e2e.harness import descendants

PR_SET_CHILD_SUBREAPER = 36
NOT_OURS: set[int] = set()  # pids of what tests run beside platforms (tests/postgres.py): neither they nor what is below them is a leak


def adopt_orphans() -> None:
    """From now on this process is the parent of whatever loses its own below it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(pid: int) -> None:
    """Collect an orphan that has ended; processes that somebody else waits for are left to them."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def command_of(pid: int) -> str:
    try:
        return f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}: {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')}"
    except OSError:
        return f"{pid} (gone)"


def below_us() -> set[int]:
    """Living processes below this one, zombies reaped first."""
    beside = {pid for server in NOT_OURS for pid in descendants(server)}
    below = [pid for pid in list(descendants(os.getpid()))[1:] if pid not in beside]
    for pid in below:
        if is_zombie(pid):
            reap(pid)
    return {pid for pid in below if not is_zombie(pid)}


def strays() -> list[str]:
    """The same, as texts for a person."""
    return [command_of(pid) for pid in sorted(below_us())]


def control_groups(data: Path) -> list[str]:
    """Control groups made for the platform of this data directory, whichever hierarchy they are in."""
    wanted = tag(str(data))
    return [
        folder
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for folder in (f"{folder}/{name}" for name in names if name in (wanted, f"{wanted}-1"))
    ]


def mounts_below(folder: Path) -> list[str]:
    """Mounts that name the platform's folder, in this process' view of the world."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def named_after_us() -> set[str]:
    """Network interfaces and named network namespaces that carry the platform's name: it should never make one outside of a sandbox."""
    found = [*Path("/sys/class/net").iterdir(), *Path("/run/netns").glob("*")]
    return {str(path) for path in found if path.name.startswith("dayfly")}


def left_of(folder: Path) -> list[str]:
    """All that is still there of the platform whose files lay in `folder`, as sentences."""
    return [
        *(f"control group {name}" for name in control_groups(folder / "data")),
        *(f"mount {line}" for line in mounts_below(folder)),
        *(f"socket {line}" for line in sockets_below(folder)),
    ]


def sockets_below(folder: Path) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines():
        if str(folder) in line:
            yield line


def wait_gone(folder: Path, *, seconds: float = 15.0) -> list[str]:
    """Poll until nothing is left of a platform in `folder`; returns what still is at the deadline."""
    deadline = time.monotonic() + seconds
    while (left := left_of(folder)) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    return left
