"""The kernel's control group file system as files: where it is, which of its folders are ours, reading and writing one line.

No policy and no state; cgroup.py has the groups of instances. Must never touch a folder whose name does not carry this data
directory's tag. Called by cgroup.py and, to clean up after a killed node, by node/.
"""

import contextlib
import errno
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

CONTROLLERS = ("memory", "pids", "cpu")
CLEAN_SECONDS_MAX = 3.0
SHORT_BYTES = 1024  # the kernel hands long files over page by page: a piece as short as this was the last


class Place(NamedTuple):
    """Where groups are made: the interface's version and the folder of each controller (all the same on v2)."""

    version: int
    folders: dict[str, Path]
    reasons: dict[str, str]  # controllers that cannot be used → why
    blkio: Path | None = None  # v1's controller of disk input and output: one group for all instances, so that no start pays for it

    def tagged(self, tag: str) -> list[Path]:
        """All folders that a platform with this tag may have here."""
        bases = [*self.folders.values(), *([self.blkio] if self.blkio is not None else [])]
        return [base / tag for base in dict.fromkeys(bases)]


def tag(data: str) -> str:
    """The name of the folder below which all of one platform's groups lie."""
    return "dayfly-" + hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:12]


def find_place(mountinfo: str, own: str, *, privileged: bool) -> Place:
    """Where this process may make groups, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    v1, v2 = _mounts(mountinfo)
    paths = {controller: line.split(":", 2)[2] for line in own.splitlines() for controller in line.split(":", 2)[1].split(",")}
    if v2 is not None and {"memory", "pids"} <= set(read(v2 / "cgroup.controllers").split()):
        inside = v2 / paths.get("", "/").strip("/")
        base = v2 if privileged or not inside.is_dir() else inside
        return Place(2, dict.fromkeys(CONTROLLERS, base), {})
    folders, reasons = {}, {}
    for controller in CONTROLLERS:
        if controller not in v1:
            reasons[controller] = f"no cgroup controller {controller!r} on this machine"
            continue
        inside = v1[controller] / paths.get(controller, "/").strip("/")
        folders[controller] = inside if inside.is_dir() else v1[controller]
    blkio = v1.get("blkio")
    return Place(1, folders, reasons, blkio and blkio / paths.get("blkio", "/").strip("/"))


def _mounts(mountinfo: str) -> tuple[dict[str, Path], Path | None]:
    """Mount points of v1 by controller, and of v2."""
    v1: dict[str, Path] = {}
    v2 = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        point = Path(before.split(" ")[4].encode().decode("unicode_escape")) if before.count(" ") >= 4 else Path("/")
        if kind == "cgroup":
            v1.update(dict.fromkeys(options.split(","), point))
        elif kind == "cgroup2":
            v2 = point
    return v1, v2


def enable_below(base: Path, tag: str) -> None:
    """Let children of a v2 folder have controllers. A folder with processes may not: move them into a leaf first (the processes
    of a delegated folder are the platform's own)."""
    try:
        enable(base)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = base / f"{tag}-platform"
        leaf.mkdir(exist_ok=True)
        for pid in read(base / "cgroup.procs").split():
            with contextlib.suppress(OSError):
                write(leaf / "cgroup.procs", int(pid))
        enable(base)


def enable(folder: Path) -> None:
    """Let children of a v2 folder have the controllers that it has."""
    there = set(read(folder / "cgroup.controllers").split()) - set(read(folder / "cgroup.subtree_control").split())
    wanted = [f"+{name}" for name in sorted(there & {*CONTROLLERS, "io"})]
    if wanted and not try_write(folder / "cgroup.subtree_control", " ".join(wanted)):
        write(folder / "cgroup.subtree_control", " ".join(name for name in wanted if name != "+io"))  # that one is a luxury


def clean(folder: Path) -> None:
    """Kill everything below a folder of groups and remove it. Raises OSError when it is still busy after a few seconds."""
    deadline = time.monotonic() + CLEAN_SECONDS_MAX
    while folder.is_dir():
        children = [child for child in folder.iterdir() if child.is_dir()]
        for child in (*children, folder):
            kill_all(child)
            remove(child)
        if not folder.is_dir():
            return
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"{folder} still holds processes")
        time.sleep(0.005)


def clean_noted(note: Path, tag: str) -> None:
    """Clean the folders that an earlier node noted, as far as they carry the tag: it may have lived in another place of the tree."""
    for line in read(note).splitlines():
        if Path(line).name == tag:
            with contextlib.suppress(OSError):
                clean(Path(line))


def kill_all(folder: Path) -> None:
    """SIGKILL to every process in this group, not those below."""
    for pid in read(folder / "cgroup.procs").split():
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)


def remove(folder: Path) -> bool:
    """Whether the group is gone now."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def has_swap() -> bool:
    """Whether this machine has any."""
    return len(read(Path("/proc/swaps")).splitlines()) > 1


def read(path: Path | str) -> str:
    """Empty when it cannot be read. By bare system calls: a node reads such files at the end of every instance."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = b""
        while block := os.read(descriptor, 65536):
            text += block
            if len(block) < SHORT_BYTES:
                break
        return text.decode()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def write(path: Path | str, value: object) -> None:
    """In one write, as the kernel wants it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def try_write(path: Path | str, value: object) -> bool:
    """For files that some kernels lack, or values that one refuses now."""
    try:
        write(path, value)
    except OSError:
        return False
    return True


def number(path: Path | str) -> int:
    """The file's number; -1 when it has none."""
    text = read(path).strip()
    return int(text) if text.isdigit() else -1


def keyed(path: Path | str, key: str) -> int:
    """The value of `key value` lines; -1 when it is not there."""
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return -1
