"""Who the platform's processes are: the unprivileged user of gateway and control, and the uids of instances.

`drop` turns a process that root started into that user for good. Called by app.py, node/ and cli/; it must run before the process
touches the network or reads anything a user wrote.
"""

import hashlib
import os
import pwd
import signal
from collections.abc import Iterable
from pathlib import Path

from dayfly.core.model.layout import Layout
from dayfly.sandbox import mounts
from dayfly.sandbox import syscalls as sys_

DEFAULT_UID = 64020  # in Debian's range for "users assigned by the system on demand"; needs no entry in /etc/passwd
BLOCK = 65536
_FIRST, _BLOCKS = 0x10000000, 0x6000
_SMALL_FIRST, _SMALL_COUNT = 20000, 40000  # where only the classic 16-bit uids are mapped


def platform_uid(user: str) -> int:
    """The uid that `user` (a name, a number, or "" for the default) means. Raises ValueError for an unknown or root user."""
    return _identity(user)[0]


def _identity(user: str) -> tuple[int, int]:
    if not user:
        return DEFAULT_UID, DEFAULT_UID
    if user.isdigit():
        uid = int(user)
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except KeyError:
            gid = uid
    else:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise ValueError(f"there is no user {user!r} on this machine") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if uid == 0 or gid == 0:
        raise ValueError(f"the user {user!r} is root or in root's group: that would drop nothing")
    return uid, gid


def uid_block(data: str, uid_map: str = "") -> tuple[int, int]:
    """First uid and count of the block that instances of this data directory use: two platforms on one machine share none.

    `uid_map` is the text of /proc/self/uid_map (read when empty): a container may map only some uids.
    """
    number = int.from_bytes(hashlib.sha256(os.path.realpath(data).encode()).digest()[:4], "big")
    first = _FIRST + number % _BLOCKS * BLOCK
    for line in (uid_map or Path("/proc/self/uid_map").read_text()).splitlines():
        inside, _, count = map(int, line.split())
        if inside <= first and first + BLOCK <= inside + count:
            return first, BLOCK
    blocks = _SMALL_COUNT // 4000
    return _SMALL_FIRST + number % blocks * 4000, 4000


def drop(user: str, layout: Layout, *, readable: Iterable[str] = ()) -> None:
    """Become the unprivileged user: no groups, no capabilities, no_new_privs, and dead when the parent dies.

    Where the interpreter or our own source lies below a folder that this user cannot enter (a Python under /root), a private mount
    namespace first covers that folder with an empty one that shows only those, read-only, and the data and run directories.
    `readable`: further paths to show. Raises ValueError for a bad user, OSError when the kernel refuses.
    """
    uid, gid = _identity(user)
    parent = os.getppid()
    wanted = _own_folders() + list(readable)
    covered = blocked_folders([*wanted, layout.data, layout.run], uid, gid)
    if covered:
        _uncover(covered, wanted, [layout.data, layout.run])
    sys_.drop_bounding_set()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    sys_.drop_capabilities()
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)  # a change of user clears it, so it comes last
    if os.getppid() != parent:
        raise SystemExit("the supervisor is gone")


def _own_folders() -> list[str]:
    """Where this process's code lies: interpreter, virtual environment, import path, our source."""
    import sys

    paths = [sys.base_prefix, sys.prefix, str(Path(__file__).parents[2]), *(path for path in sys.path if Path(path).is_absolute())]
    existing = dict.fromkeys(str(Path(path).resolve()) for path in paths if Path(path).exists())
    return [path for path in existing if not any(path.startswith(other + "/") for other in existing)]


def blocked_folders(paths: Iterable[str], uid: int, gid: int) -> list[str]:
    """The topmost folders on the way to `paths` that this user cannot enter."""
    blocked: dict[str, None] = {}
    for path in paths:
        for folder in reversed(Path(path).resolve().parents):
            status = folder.stat()
            bits = status.st_mode >> 6 if status.st_uid == uid else status.st_mode >> 3 if status.st_gid == gid else status.st_mode
            if not bits & 1:
                blocked[str(folder)] = None
                break
    return [folder for folder in blocked if not any(folder.startswith(other + "/") for other in blocked)]


def _uncover(covered: list[str], readable: list[str], writable: list[str]) -> None:
    """In a private mount namespace, cover each folder with an empty read-only one that shows only the given paths."""
    mounts.private_namespace()
    here = str(Path.cwd())
    inside = [path for path in (*readable, *writable) if any(path.startswith(folder + "/") for folder in covered)]
    kept = [path for path in dict.fromkeys(inside) if not any(path.startswith(other + "/") for other in inside)]
    trees = []
    for path in kept:
        tree = sys_.open_tree(sys_.AT_FDCWD, path, sys_.AT_RECURSIVE)
        read_only = path in readable
        sys_.mount_setattr(tree, mounts.READ_ONLY if read_only else mounts.READ_ONLY & ~sys_.MOUNT_ATTR_RDONLY)
        trees.append((tree, path, Path(path).is_dir()))
    for folder in covered:
        mounts.mount_tmpfs(folder, "mode=0755,size=1m,nr_inodes=4096")
    for tree, path, is_folder in trees:
        mounts.make_folders(path if is_folder else str(Path(path).parent))
        if not is_folder:
            Path(path).touch()
        mounts.attach(tree, path)
    for folder in covered:
        mounts.remount_read_only(folder)
    os.chdir(here if Path(here).is_dir() else "/")
