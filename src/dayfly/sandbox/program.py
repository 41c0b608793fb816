"""A plan as a list of system calls, worked out before the fork, so that a child only makes them.

A child that runs Python to find out what to call copies a page for nearly every function, name and number it meets: half a
megabyte of its own memory, and half of its start. So it is prepared here, once per plan, in the zygote; what differs from child
to child (its user, its name) is written into its place just before the fork. What is no plain call, or rare, stays a method of
`launch.Child`.
Standard library only, no policy. Called by sandbox/launch.py.

Descriptors have the same numbers in every child: those of the ticket come first (FIRST_DESCRIPTOR …), the zygote's own lie far
above, and what a child opens takes the lowest free number. A call that returns another number than foretold fails the start.
"""

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Container
from functools import partial
from struct import pack

from dayfly.sandbox import mounts
from dayfly.sandbox import syscalls as sys_

FIRST_DESCRIPTOR = 3  # descriptors of a ticket arrive at 3, 4, 5 …, in its order
# What stays open; the rest is closed before user code runs. A prepared sandbox keeps its seat, where the others will arrive.
KEPT = ("requests", "answers", "progress", "seat")
FILE_BYTES_MIN = 64 * 1024 * 1024
HOST_NAME_BYTES_MAX = 64
ZERO = (0,)

_SPACES = {
    "mountns": sys_.CLONE_NEWNS,
    "ipcns": sys_.CLONE_NEWIPC,
    "utsns": sys_.CLONE_NEWUTS,
    "cgroupns": sys_.CLONE_NEWCGROUP,
}

# Landlock access rights, by the kernel interface's version that brought them (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_WRITE = _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # write, remove, make dir/reg/sock/fifo/symlink
_MAKE_DEVICES = 1 << 6 | 1 << 11  # character and block devices: handled, never allowed
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_SCOPES = 3  # abstract Unix sockets and signals stay inside

Parameter = int | str
# A step's name, then either a call and its results that mean success, or None: the child's own method gets the parameters.
Entry = tuple[str, "partial[int] | None", list[Parameter], Container[int]]


def limited(which: int, value: int) -> int:
    """A soft and hard limit that is never above the hard limit that is there."""
    hard = resource.getrlimit(which)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


class Rights:
    """Landlock's access rights as this kernel knows them."""

    execute_file = _EXECUTE | _READ_FILE
    read = _EXECUTE | _READ_FILE | _READ_FOLDER

    def __init__(self, abi: int) -> None:
        write = _WRITE | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
        self.everything = self.read | write
        self.device = _READ_FILE | _WRITE_FILE | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEVICE if abi >= 5 else 0)
        self.handled = self.everything | _MAKE_DEVICES | (_IOCTL_DEVICE if abi >= 5 else 0)
        self.scopes = _SCOPES if abi >= 6 else 0


class Ground:
    """What programs stand on, the same for all children of a zygote. `parent`: the zygote's pid as its children see it."""

    def __init__(self, parent: int, landlock_abi: int) -> None:
        self.parent = parent
        self.rights = Rights(landlock_abi)
        self.root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self.null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
        self.filters: dict[tuple[str, str], sys_.Filter] = {}
        self.uid = ctypes.c_void_p()
        self.name = ctypes.create_string_buffer(HOST_NAME_BYTES_MAX)

    def stand(self, uid: int, name: bytes) -> None:
        """What differs from child to child, put into its place in all programs. Called before each fork."""
        self.uid.value = uid
        self.name.raw = name[:HOST_NAME_BYTES_MAX].ljust(HOST_NAME_BYTES_MAX, b"\0")


class Program:
    """The entries of one plan. `names`: what the ticket's descriptors are, in order. A step that no method here knows is left to
    the child."""

    def __init__(self, ground: Ground, steps: list[tuple[str, list[Parameter]]], names: list[str]) -> None:
        self.ground = ground
        self.names = names
        self.descriptors = {name: FIRST_DESCRIPTOR + i for i, name in enumerate(names)}
        self.arriving = list(self.descriptors.values())
        self.free = FIRST_DESCRIPTOR + len(names)  # the next number that an open gives
        self.entries: list[Entry] = []
        self.step = "start"
        self.kept = sum(name in KEPT for name in names)
        for descriptor in (1, 2):  # a prepared sandbox has no output yet: then nothing may be written
            self._call("dup2", self.descriptors.get("output", 0), descriptor, accepted=(descriptor,))
        for self.step, parameters in steps:
            make = getattr(self, "make_" + self.step, None)
            if make is None:
                self._leave_to_child(self.step, parameters)
            else:
                make(*parameters)

    def _call(self, function: str, *arguments: object, accepted: Container[int] = ZERO) -> None:
        self.entries.append((self.step, sys_.prepared(function, *arguments), [], accepted))

    def _leave_to_child(self, step: str, parameters: list[Parameter]) -> None:
        self.entries.append((step, None, parameters, ()))

    # Limits and namespaces

    def make_cgroup(self) -> None:
        """Join the v1 groups: their `tasks` files came open for writing, and a process joins cheaply only by writing itself (0)."""
        for name, descriptor in self.descriptors.items():
            if name.startswith("tasks"):
                self._call("write", descriptor, b"0", 1, accepted=(1,))

    def make_namespaces(self, *spaces: str) -> None:
        flags = 0
        for space in spaces:
            flags |= _SPACES[space]
        self._call("unshare", flags)

    def make_network(self, egress: str) -> None:
        self._call("setns", self.descriptors["netns"], sys_.CLONE_NEWNET)
        if egress == "internet":
            self._leave_to_child("proxy", [])

    def make_hostname(self) -> None:
        self._call("sethostname", ctypes.addressof(self.ground.name), HOST_NAME_BYTES_MAX)

    def make_limits(self, processes: int, tmp_bytes: int, data_bytes: int) -> None:
        """`processes` and `data_bytes` 0: no such limit here, because another wall stands or counting would hit the wrong ones."""
        self._limit(resource.RLIMIT_FSIZE, max(tmp_bytes, FILE_BYTES_MIN))
        if processes:
            self._limit(resource.RLIMIT_NPROC, processes)
        if data_bytes:
            self._limit(resource.RLIMIT_DATA, data_bytes)

    def _limit(self, which: int, value: int) -> None:
        value = limited(which, value)
        self._call("setrlimit", which, pack("@2L", value, value))

    # Files

    def make_proc(self) -> None:
        self._mount("proc", "/proc", mounts.PROC_FLAGS, mounts.PROC_OPTIONS)

    def make_tmp(self, size_bytes: int, inodes: int) -> None:
        self._mount("tmpfs", "/tmp", mounts.TMPFS_FLAGS, f"mode=1777,size={size_bytes},nr_inodes={inodes}")  # noqa: S108 - its own

    def _mount(self, kind: str, target: str, flags: int, options: str) -> None:
        self._call("mount", kind.encode(), target.encode(), kind.encode(), flags, options.encode())

    def make_tree(self, name: str, target: str) -> None:
        here, place = sys_.AT_FDCWD, target.encode()
        self._call("syscall", sys_.MOVE_MOUNT, self.descriptors[name], b"", here, place, sys_.MOVE_MOUNT_F_EMPTY_PATH)

    def make_directory(self, path: str) -> None:
        self._call("chdir", path.encode())

    # Identity

    def make_user(self) -> None:
        uid = self.ground.uid
        self._call("setgroups", 0, 0)
        self._call("setresgid", uid, uid, uid)
        self._call("setresuid", uid, uid, uid)

    def make_parent_death(self) -> None:
        """Asked for after the change of user, which clears it. A zygote that died before has another pid now: no start."""
        self._call("prctl", sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._call("getppid", accepted=(self.ground.parent,))
        self._call("prctl", sys_.PR_SET_DUMPABLE, 1, 0, 0, 0)  # a change of user hid /proc/self from its owner

    def make_session(self) -> None:
        self._call("setsid", accepted=range(1, 1 << 31))

    def make_capabilities(self) -> None:
        self._call("capset", *sys_.NO_CAPABILITIES)

    def make_no_new_privs(self) -> None:
        self._call("prctl", sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    # Filters

    def make_landlock(self, kind: str) -> None:
        """Where there is a private root. Made in the child, after the mounts: a rule on a directory that is then covered is ignored."""
        if kind == "paths":
            self._leave_to_child(self.step, [])
            return
        rights, ruleset, tmp = self.ground.rights, self.free, self.free + 1
        self._call("syscall", sys_.LANDLOCK_CREATE, *sys_.landlock_attributes(rights.handled, 0, rights.scopes), 0, accepted=(ruleset,))
        self._call("open", b"/tmp", os.O_PATH | os.O_CLOEXEC, accepted=(tmp,))
        self._allow(ruleset, self.ground.null, rights.device)
        # A template's children have a /tmp of their own over its, which no rule on /tmp would reach: they bring a narrower rule with it.
        self._allow(ruleset, self.ground.root, rights.everything if kind == "template" else rights.read)
        self._allow(ruleset, tmp, rights.everything)
        self._call("syscall", sys_.LANDLOCK_RESTRICT, ruleset, 0)
        self._call("close", ruleset)
        self._call("close", tmp)

    def _allow(self, ruleset: int, directory: int, rights: int) -> None:
        self._call("syscall", sys_.LANDLOCK_ADD, ruleset, 1, sys_.landlock_rule(rights, directory), 0)

    def make_seccomp(self, inet: str, sessions: str) -> None:
        self._call("prctl", sys_.PR_SET_SECCOMP, sys_.SECCOMP_MODE_FILTER, self.ground.filters[inet, sessions].header, 0, 0)

    def make_descriptors(self) -> None:
        first_closed = FIRST_DESCRIPTOR + self.kept
        self._call("syscall", sys_.CLOSE_RANGE, first_closed, 0xFFFFFFFF, 0)
        for descriptor in range(FIRST_DESCRIPTOR, first_closed):
            self._call("fcntl", descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
