"""A forked child walks into its sandbox: carries out the steps of a plan (core/decide/isolate.py), one small function each.

Runs inside the function's interpreter, between the zygote's fork and user code: standard library only, no policy, and every
step either succeeds completely or raises. Called by node/zygote.py. Traps it heeds: a change of user clears the parent-death
signal, so that comes after; a rule of Landlock on a directory that is then covered by a mount is ignored, so the ruleset is
made here, after the mounts; joining a cgroup is cheap only when a process writes itself (0) to its `tasks`.
"""

import ctypes
import errno
import fcntl
import os
import resource
import signal

from dayfly.sandbox import mounts, seccomp
from dayfly.sandbox import syscalls as sys_

FIRST_DESCRIPTOR = 3  # descriptors of a ticket arrive at 3, 4, 5 …, in its order
KEPT_DESCRIPTORS = 3  # requests, answers, progress stay; the rest is closed before user code runs
SECRETS_BYTES_MAX = 1024 * 1024  # all secrets of one instance
SECRET_NAME_BYTES_MAX = 63
SECRET_NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
OPEN_FILES_MAX = 1024
FILE_BYTES_MIN = 64 * 1024 * 1024

_SPACES = {
    "mountns": sys_.CLONE_NEWNS,
    "ipcns": sys_.CLONE_NEWIPC,
    "utsns": sys_.CLONE_NEWUTS,
    "cgroupns": sys_.CLONE_NEWCGROUP,
}

# Landlock access rights, by the kernel interface's version that brought them (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_WRITE = _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # write, remove, make dir/reg/sock/fifo/symlink
_MAKE_DEVICES = 1 << 6 | 1 << 11  # character and block devices: handled, never allowed
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_SCOPES = 3  # abstract Unix sockets and signals stay inside

Parameter = int | str


class Kit:
    """What a zygote makes once and all its children use: limits that are the same for all, filters, a handle on the root."""

    def __init__(self, config: dict[str, object]) -> None:
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
        _limit(resource.RLIMIT_MSGQUEUE, 0)
        _limit(resource.RLIMIT_MEMLOCK, 64 * 1024)
        self.landlock_abi = _landlock_abi()
        self.root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self.null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
        self.readable = config.get("readable", [])  # for Landlock where there is no private root
        self.proxy = config.get("proxy", {})
        self.filters: dict[tuple[str, str], bytes] = {}
        for inet in ("inet", "unix"):
            for sessions in ("sessions", "group"):
                try:
                    code = seccomp.program(inet=inet == "inet", sessions=sessions == "sessions")
                except OSError:
                    code = b""
                self.filters[inet, sessions] = code


class Child:
    """One child on its way in. `ticket` is the node's start message; `kit` the zygote's."""

    def __init__(self, ticket: dict[str, object], kit: Kit, parent: int) -> None:
        self.ticket = ticket
        self.kit = kit
        self.parent = parent  # 0 when the zygote's pid is not visible from here (own pid namespace)
        self.step = "start"
        self.folders: tuple[str, str] | None = None  # code and layer, where they do not lie at their usual places
        self.uid = int(str(ticket["uid"]))
        self.gid = self.uid
        names = ticket["descriptors"]
        assert isinstance(names, list)
        self.descriptors = {str(name): FIRST_DESCRIPTOR + i for i, name in enumerate(names)}

    def enter(self) -> None:
        """Carry out all steps. Raises OSError or ValueError; `self.step` names the one that failed."""
        os.dup2(self.descriptors["output"], 1)
        os.dup2(self.descriptors["output"], 2)
        steps = self.ticket["steps"]
        assert isinstance(steps, list)
        for name, parameters in steps:
            self.step = name
            getattr(self, "do_" + name)(*parameters)

    # Limits and namespaces

    def do_cgroup(self) -> None:
        """Join the v1 groups: their `tasks` files came open for writing."""
        for name, descriptor in self.descriptors.items():
            if name.startswith("tasks"):
                os.write(descriptor, b"0")

    def do_namespaces(self, *spaces: str) -> None:
        flags = 0
        for space in spaces:
            flags |= _SPACES[space]
        sys_.unshare(flags)

    def do_network(self, egress: str) -> None:
        sys_.setns(self.descriptors["netns"], sys_.CLONE_NEWNET)
        if egress == "internet":
            assert isinstance(self.kit.proxy, dict)
            os.environ.update(self.kit.proxy)

    def do_hostname(self) -> None:
        sys_.sethostname(str(self.ticket["instance"]))

    # Files

    def do_proc(self) -> None:
        mounts.mount_proc()

    def do_tmp(self, size_bytes: int, inodes: int) -> None:
        mounts.mount_tmpfs("/tmp", f"mode=1777,size={size_bytes},nr_inodes={inodes}")  # noqa: S108 - private to the instance

    def do_tree(self, name: str, target: str) -> None:
        sys_.move_mount(self.descriptors[name], target)

    def do_secrets(self) -> None:
        mounts.mount_tmpfs("/run/secrets", "mode=0755,size=2m,nr_inodes=1024")
        self._write_secrets("/run/secrets", self.uid)
        mounts.remount_read_only("/run/secrets")

    def do_directory(self, path: str) -> None:
        os.chdir(path)

    def do_folders(self) -> None:
        """Without a private root: where the instance's folders really lie is told in its environment."""
        code, scratch = str(self.ticket["code_path"]), str(self.ticket["scratch_path"])
        self.folders = (code, str(self.ticket["layer_path"]))
        os.environ.update(TMPDIR=scratch, HOME=scratch, DAYFLY_SECRETS=scratch + "/secrets")
        os.chdir(code)

    def do_secret_files(self) -> None:
        folder = os.environ["DAYFLY_SECRETS"]
        os.mkdir(folder, 0o700)
        owner = self.uid or -1  # without root there is only one user
        os.chown(folder, owner, owner)
        self._write_secrets(folder, owner)

    def _write_secrets(self, folder: str, uid: int) -> None:
        for name, value in parse_secrets(read_whole(self.descriptors["secrets"], SECRETS_BYTES_MAX)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(f"{folder}/{name}", flags, 0o400)
            try:
                os.write(descriptor, value)
                os.fchown(descriptor, uid, uid)
            finally:
                os.close(descriptor)

    # Identity

    def do_user(self) -> None:
        os.setgroups([])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    def do_user_namespace(self) -> None:
        """One more user namespace: the instance gets an ordinary uid and no power over the mounts made so far."""
        sys_.unshare(sys_.CLONE_NEWUSER)
        for name, inside in (("uid_map", 1000), ("gid_map", 1000)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"{inside} 0 1")
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        sys_.drop_bounding_set()  # its creation filled the set again

    def do_parent_death(self) -> None:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)
        if self.parent and os.getppid() != self.parent:
            os._exit(1)  # the zygote died before the signal was asked for
        sys_.prctl(sys_.PR_SET_DUMPABLE, 1, 0, 0)  # a change of user hid /proc/self from its owner

    def do_session(self) -> None:
        os.setsid()

    def do_limits(self, processes: int, tmp_bytes: int, data_bytes: int) -> None:
        """`processes` and `data_bytes` 0: no such limit here, because another wall stands or counting would hit the wrong ones."""
        _limit(resource.RLIMIT_FSIZE, max(tmp_bytes, FILE_BYTES_MIN))
        if processes:
            _limit(resource.RLIMIT_NPROC, processes)
        if data_bytes:
            _limit(resource.RLIMIT_DATA, data_bytes)

    def do_capabilities(self) -> None:
        sys_.drop_capabilities()

    def do_no_new_privs(self) -> None:
        sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)

    # Filters

    def do_landlock(self, kind: str) -> None:
        abi = self.kit.landlock_abi
        write = _WRITE | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
        handled = _READ | write | _MAKE_DEVICES | (_IOCTL_DEVICE if abi >= 5 else 0)
        ruleset = sys_.landlock_create(handled, 0, _SCOPES if abi >= 6 else 0)
        try:
            to_device = _READ_FILE | _WRITE_FILE | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEVICE if abi >= 5 else 0)
            sys_.landlock_allow(ruleset, self.kit.null, to_device)
            if kind == "mounts":
                sys_.landlock_allow(ruleset, self.kit.root, _READ)
                _allow_path(ruleset, "/tmp", _READ | write)  # noqa: S108
            else:
                self._allow_host_paths(ruleset, _READ | write)
            sys_.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)

    def _allow_host_paths(self, ruleset: int, everything: int) -> None:
        assert isinstance(self.kit.readable, list)
        layer = str(self.ticket["layer_path"])
        for path in (*self.kit.readable, str(self.ticket["code_path"]), *([layer] if layer else [])):
            _allow_path(ruleset, path, _READ if os.path.isdir(path) else _EXECUTE | _READ_FILE)
        _allow_path(ruleset, str(self.ticket["scratch_path"]), everything)

    def do_seccomp(self, inet: str, sessions: str) -> None:
        sys_.seccomp_filter(self.kit.filters[inet, sessions])

    def do_descriptors(self) -> None:
        sys_.close_range(FIRST_DESCRIPTOR + KEPT_DESCRIPTORS)
        for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + KEPT_DESCRIPTORS):
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


def read_whole(descriptor: int, limit: int) -> bytes:
    """All of a memfd. Raises ValueError when it holds more than `limit` bytes."""
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise ValueError(f"{size} bytes are over {limit}")
    return os.pread(descriptor, size, 0)


def parse_secrets(data: bytes) -> list[tuple[str, bytes]]:
    """(name, value) pairs of a secrets memfd (core/wire/node.py). Raises ValueError for anything but well-formed pairs."""
    found: list[tuple[str, bytes]] = []
    at = 0
    while at < len(data):
        if at + 5 > len(data):
            raise ValueError("a secret's head is cut short")
        name_length, value_length = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
        name = data[at + 5 : at + 5 + name_length]
        value = data[at + 5 + name_length : at + 5 + name_length + value_length]
        if len(name) != name_length or len(value) != value_length:
            raise ValueError("a secret is cut short")
        if not 0 < name_length <= SECRET_NAME_BYTES_MAX or not SECRET_NAME_CHARACTERS.issuperset(name) or name[0] in b"_.-":
            raise ValueError("a secret's name is not valid")
        found.append((name.decode("ascii"), value))
        at += 5 + name_length + value_length
    if len({name for name, _ in found}) != len(found):
        raise ValueError("a secret's name is there twice")
    return found


def _landlock_abi() -> int:
    try:
        return sys_.landlock_abi()
    except OSError:
        return 0


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    """A path that is not there needs no rule."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES):
            return
        raise
    try:
        sys_.landlock_allow(ruleset, handle, rights)
    finally:
        os.close(handle)


def _limit(which: int, value: int) -> None:
    """Set soft and hard limit, never above the hard limit that is there."""
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def offer_to_oom_killer() -> None:
    """When the whole machine runs out of memory, this process and its children go before the platform. Inherited by forks."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        return  # no /proc to say it to: nothing depends on it


def name_process(name: str) -> None:
    """What `ps` and `top` show."""
    sys_.prctl(sys_.PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0)
