"""Who the platform's processes are: the unprivileged users of control, gateway, egress broker and front, and the uids of instances.

Each data directory has a block of uids (and gids) of its own: the first few are its roles', all others its instances'. So nobody
shares a user with anybody, in this platform or in another one. `drop` turns a process that root started into such a user for good.
Called by app.py, node/ and cli/; it must run before the process touches the network or reads anything a user wrote.
"""

import hashlib
import os
import pwd
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dayfly.sandbox import mounts
from dayfly.sandbox import syscalls as sys_

BLOCK = 65536
ROLES = ("control", "gateway", "egress", "front")  # where they stand in the block; users of data directories on disk depend on this order
_ROLES_MAX = 16  # of the block, kept from instances
_FIRST, _BLOCKS = 0x10000000, 0x6000
_SMALL_FIRST, _SMALL_COUNT = 20000, 40000  # where only the classic 16-bit uids are mapped


class User(NamedTuple):
    """Whom a process becomes: its uid and its only group."""

    uid: int
    gid: int


def role_users(data: str, user: str = "", uid_map: str = "") -> dict[str, User]:
    """Who the unprivileged roles of this data directory are, by role. `user` (a name or a number) names control's, otherwise it is
    from the block, like the others. Started without root, all of them are the present user. Raises ValueError for a bad `user`.
    """
    if os.geteuid() != 0:
        return dict.fromkeys(ROLES, User(os.geteuid(), os.getegid()))
    first, count = uid_block(data, uid_map)
    users = {role: User(first + place, first + place) for place, role in enumerate(ROLES)}
    if user:
        users["control"] = named = _named(user)
        if any(first <= number < first + count for number in named):
            raise ValueError(f"the user {user!r} is one of those that this platform gives to its own processes")
    return users


def _named(user: str) -> User:
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
    return User(uid, gid)


def instance_uids(data: str, uid_map: str = "") -> tuple[int, int]:
    """First uid and count of those that instances and installers of this data directory get."""
    first, count = uid_block(data, uid_map)
    return first + _ROLES_MAX, count - _ROLES_MAX


def uid_block(data: str, uid_map: str = "") -> tuple[int, int]:
    """First uid and count of this data directory's block: two platforms on one machine share none, but for one pair in 24,576.

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


def drop(user: User, folders: Iterable[str]) -> None:
    """Become an unprivileged user: no other group, no capabilities, no_new_privs, and dead when the parent dies.

    Where the interpreter, our own source or `folders` (what this user works in) lie below a folder that this user cannot enter (a
    Python under /root), a private mount namespace first covers that folder with an empty one that shows only those; code read-only.
    Raises OSError when the kernel refuses.
    """
    parent = os.getppid()
    code, folders = _own_folders(), list(folders)
    covered = blocked_folders([*code, *folders], *user)
    if covered:
        _uncover(covered, code, folders)
    sys_.drop_bounding_set()
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    sys_.drop_capabilities()
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    end_with(parent)  # a change of user clears it, so it comes last


def end_with(parent: int) -> None:
    """Have the kernel kill this process, and what it becomes by exec, when its parent `parent` ends."""
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)
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
