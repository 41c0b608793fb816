"""A forked child walks into its sandbox: carries out the steps of a plan (core/decide/isolate.py).

Runs inside the function's interpreter, between the zygote's fork and user code: standard library only, no policy, and every
step either succeeds completely or raises. Most steps are system calls that were worked out before the fork (program.py); what
differs from child to child is a small function each, here. Called by node/zygote.py.
"""

import ctypes
import errno
import json
import os
import resource
import sys
from contextlib import suppress

from dayfly.sandbox import heap, mounts, seccomp
from dayfly.sandbox import syscalls as sys_
from dayfly.sandbox.program import FIRST_DESCRIPTOR, Ground, Program, limited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn

__all__ = ["FIRST_DESCRIPTOR"]
PROGRAMS_MAX = 256  # kept; more different plans than a node makes
SECRETS_BYTES_MAX = 1024 * 1024  # all secrets of one instance
SECRET_NAME_BYTES_MAX = 63
SECRET_NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
OPEN_FILES_MAX = 1024
PROGRAM_ENVIRONMENT = (
    "PATH", "LANG", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "DAYFLY_SECRETS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy",
    "https_proxy", "no_proxy",
)  # fmt: skip
OFFSPRING_FLAGS = (
    sys_.CLONE_NEWUSER | sys_.CLONE_NEWPID | sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS | sys_.CLONE_NEWNET
)  # fmt: skip
MADV_POPULATE_WRITE = 23  # Linux 5.14
NICE = 10
SLICE_NANOSECONDS = 100_000  # the shortest that the kernel takes
PENDING_SIGNALS_MAX = 1024  # queued signals and timers


class Kit(Ground):
    """What a zygote makes once and all its children use: limits that are the same for all, filters, the programs of its plans."""

    def __init__(self, config: dict[str, object]) -> None:
        super().__init__(0 if config["pidns"] else os.getpid(), _landlock_abi())
        _forbid_core_dumps()
        _limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
        _limit(resource.RLIMIT_MSGQUEUE, 0)
        _limit(resource.RLIMIT_MEMLOCK, 64 * 1024)
        _limit(resource.RLIMIT_RTPRIO, 0)
        _limit(resource.RLIMIT_NICE, 0)
        _limit(resource.RLIMIT_SIGPENDING, PENDING_SIGNALS_MAX)
        with suppress(OSError):  # a kernel without keys
            sys_.join_new_session_keyring()
        self.readable = config.get("readable", [])  # for Landlock where there is no private root
        self.proxy = config.get("proxy", {})
        given = config.get("processors")
        self.processors: list[int] = given if isinstance(given, list) else []
        for inet in ("inet", "unix"):
            for sessions in ("sessions", "group"):
                with suppress(OSError):  # an architecture without a list
                    self.filters[inet, sessions] = sys_.Filter(seccomp.program(inet=inet == "inet", sessions=sessions == "sessions"))
        with suppress(OSError):
            self.filters["inet", "template"] = sys_.Filter(seccomp.program(children=OFFSPRING_FLAGS | sys_.CHILD_TID_FLAGS))
        self._programs: dict[bytes, Program] = {}

    def program(self, plan: bytes) -> Program:
        """The program of a ticket's plan. Plans differ in few ways, so it is nearly always there already."""
        found = self._programs.get(plan)
        if found is None:
            if len(self._programs) >= PROGRAMS_MAX:
                self._programs.clear()
            names, _, steps = plan.partition(b"\0")
            found = self._programs[plan] = Program(self, json.loads(steps), names.decode().split(" "))
        return found


class Ticket:
    """The node's start message (node/nursery.py packs it), its fields as they came: a zygote that parses more copies a page for each
    thing that it touches, after every fork. `plan`: names of descriptors, NUL, steps as JSON."""

    def __init__(self, instance: bytes, uid: bytes, code_path: bytes, layer_path: bytes, scratch_path: bytes, plan: bytes) -> None:
        self.instance = instance
        self.uid = uid
        self.code_path = code_path
        self.layer_path = layer_path
        self.scratch_path = scratch_path
        self.plan = plan


class Offspring:
    """A template's way to make its instances; its methods run in the sandbox, without privileges. Made before the template is forked."""

    def __init__(self, kit: Kit, walls: set[str], thread_id_address: int) -> None:
        self._walls = walls
        self._rights = kit.rights
        self._filter = kit.filters.get(("inet", "sessions"))
        self._thread_id_address = thread_id_address
        self._madvise = sys_.madvise

    def fork(self) -> int:
        """A child in new namespaces of every kind, where it may do anything and can do nothing: the filter stays. 0 in the child."""
        return sys_.clone_with(OFFSPRING_FLAGS, self._thread_id_address)

    def settle(self) -> None:
        """In the template, before its first child: what they allocate shall lie together."""
        heap.fill_holes()

    def populate(self, first: int, length: int) -> None:
        """In the child: pages that it will write to become its own now. What cannot be had now is had when it is written to."""
        self._madvise(first, length, MADV_POPULATE_WRITE)

    def harden(self, uid: int, tasks: list[int]) -> None:
        """In the child, furnished: into its groups, be its own user (0: stay), put down what the new namespaces allowed. Closes `tasks`."""
        for descriptor in tasks:
            os.write(descriptor, b"0")
            os.close(descriptor)
        if uid:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            sys_.prctl(sys_.PR_SET_DUMPABLE, 1)
        os.setsid()
        sys_.drop_bounding_set()
        sys_.drop_capabilities()
        if "landlock" in self._walls:
            self._restrict_files()
        if self._filter is not None:
            sys_.prctl(sys_.PR_SET_SECCOMP, sys_.SECCOMP_MODE_FILTER, ctypes.c_char_p(self._filter.header))

    def _restrict_files(self) -> None:
        rights = self._rights
        ruleset = sys_.landlock_create(rights.handled, 0, rights.scopes)
        try:
            for path, allowed in (("/dev/null", rights.device), ("/", rights.read), ("/tmp", rights.everything)):  # noqa: S108
                _allow_path(ruleset, path, allowed)
            sys_.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)


class Child:
    """One child on its way in. `ticket` is the node's start message; `kit` the zygote's. Made before the fork."""

    def __init__(self, ticket: Ticket, kit: Kit) -> None:
        self.ticket = ticket
        self.kit = kit
        self.program = kit.program(ticket.plan)
        self.step = "start"
        self.folders: tuple[str, str] | None = None  # code and layer, where they do not lie at their usual places
        self.waits = self.program.names[0] == "seat"
        self.uid = int(ticket.uid)
        kit.stand(self.uid, ticket.instance)

    def offspring(self, thread_id_address: int) -> Offspring:
        """What it needs when it is a template."""
        steps = json.loads(self.ticket.plan.partition(b"\0")[2])
        return Offspring(self.kit, {step[0] for step in steps}, thread_id_address)

    def enter(self) -> None:
        """Carry out all steps. Raises OSError or ValueError; `self.step` names the one that failed."""
        for step, call, parameters, accepted in self.program.entries:
            self.step = step
            if call is None:
                getattr(self, "do_" + step)(*parameters)
            elif call() not in accepted:
                raise sys_.failure(call.func.__name__)

    def do_proxy(self) -> None:
        assert isinstance(self.kit.proxy, dict)
        os.environ.update(self.kit.proxy)

    # Files

    def do_secrets(self) -> None:
        mounts.mount_tmpfs("/run/secrets", "mode=0755,size=2m,nr_inodes=1024")
        self._write_secrets("/run/secrets", self.uid)
        mounts.remount_read_only("/run/secrets")

    def do_folders(self) -> None:
        """Without a private root: where the instance's folders really lie is told in its environment."""
        code, scratch = os.fsdecode(self.ticket.code_path), os.fsdecode(self.ticket.scratch_path)
        self.folders = (code, os.fsdecode(self.ticket.layer_path))
        os.environ.update(TMPDIR=scratch, HOME=scratch, DAYFLY_SECRETS=scratch + "/secrets")
        os.chdir(code)

    def do_secret_files(self) -> None:
        folder = os.environ["DAYFLY_SECRETS"]
        os.mkdir(folder, 0o700)
        owner = self.uid or -1  # without root there is only one user
        os.chown(folder, owner, owner)
        self._write_secrets(folder, owner)

    def _write_secrets(self, folder: str, uid: int) -> None:
        for name, value in parse_secrets(read_whole(self.program.descriptors["secrets"], SECRETS_BYTES_MAX)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(f"{folder}/{name}", flags, 0o400)
            try:
                os.write(descriptor, value)
                os.fchown(descriptor, uid, uid)
            finally:
                os.close(descriptor)

    def do_program(self) -> "NoReturn":
        use_processors(self.kit.processors)
        run_program(self.folders[0] if self.folders else "/var/task")

    # Identity

    def do_user_namespace(self) -> None:
        """One more user namespace: the instance gets an ordinary uid and no power over the mounts made so far."""
        sys_.unshare(sys_.CLONE_NEWUSER)
        for name, inside in (("uid_map", 1000), ("gid_map", 1000)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"{inside} 0 1")
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        sys_.drop_bounding_set()  # its creation filled the set again

    # Filters

    def do_landlock(self) -> None:
        """Without a private root: only what this instance needs of the host."""
        rights = self.kit.rights
        ruleset = sys_.landlock_create(rights.handled, 0, rights.scopes)
        try:
            sys_.landlock_allow(ruleset, self.kit.null, rights.device)
            assert isinstance(self.kit.readable, list)
            layer = os.fsdecode(self.ticket.layer_path)
            for path in (*self.kit.readable, os.fsdecode(self.ticket.code_path), *([layer] if layer else [])):
                _allow_path(ruleset, path, rights.read if os.path.isdir(path) else rights.execute_file)
            _allow_path(ruleset, os.fsdecode(self.ticket.scratch_path), rights.everything)
            sys_.landlock_restrict(ruleset)
        finally:
            os.close(ruleset)


def run_program(folder: str) -> "NoReturn":
    """Be the function's own program instead of an interpreter that is there already: descriptors 3, 4 and 5 go with it, and an environment
    built from nothing. Never returns: 126, as from a shell, when it cannot be run."""
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 3):
        os.set_inheritable(descriptor, True)
    kept = {name: os.environ[name] for name in PROGRAM_ENVIRONMENT if name in os.environ}
    path = f"{folder}/bootstrap"
    try:
        os.execve(path, [path], {**kept, "PWD": folder, "LAMBDA_TASK_ROOT": folder})  # noqa: S606
    except OSError as error:
        os.write(2, f"{path} cannot be run: {error.strerror}\n".encode())
    os._exit(126)


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
    value = limited(which, value)
    resource.setrlimit(which, (value, value))


def _forbid_core_dumps() -> None:
    """1, not 0: to no file either way, and only at 1 is a program that /proc/sys/kernel/core_pattern names not run either (core(5);
    fs/coredump.c). The filter keeps it there."""
    with suppress(ValueError, OSError):  # no privilege, and a hard limit of 0: then only such a program would run
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def join_groups(tasks: list[str]) -> None:
    """Control groups that all instances share, by their `tasks` files: joined once, by the parent of all."""
    for path in tasks:
        with open(path, "w") as file:
            file.write("0")


def hide_arguments(shown: str) -> None:
    """Put `shown` where /proc/PID/cmdline and Python keep the words that started this process: they say where the platform is installed.
    The kernel has no call for it; proc(5) says where the words lie."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    first, last = int(fields[45]), int(fields[46])  # arg_start, arg_end: the 48th and 49th
    if 0 < first < last:
        ctypes.memmove(first, shown.encode()[: last - first - 1].ljust(last - first, b"\0"), last - first)
    sys.orig_argv[:] = [shown]


def take_short_turns() -> None:
    """Inherited by all instances: who wakes for a call need not wait until others' long slices are over, however many they are."""
    with suppress(OSError):
        sys_.set_slice(SLICE_NANOSECONDS)


def use_processors(processors: "Collection[int]") -> None:
    """From now on these: who forked this process may have been kept to fewer of them (node/apart.py)."""
    with suppress(OSError):  # none of them is this group's: it stays where it is
        os.sched_setaffinity(0, processors)


def stand_behind() -> None:
    """For the egress broker and for zygotes, inherited by all instances: starts, functions and their connections come after the gateway,
    which carries everybody's calls. Between instances nothing changes, and an idle processor does not ask."""
    with suppress(OSError):
        os.nice(NICE)


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
