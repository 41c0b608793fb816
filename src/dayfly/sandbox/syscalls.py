"""The Linux calls that Python's standard library lacks, one thin function each. No policy: nobody decides anything here.

Standard library only, because zygotes run it inside every interpreter we support. Every function raises OSError with the
call's errno. Called by the other modules of this room and by node/.
"""

import ctypes
import os
import signal
from functools import partial
from struct import Struct, pack

_libc = ctypes.CDLL(None, use_errno=True)
madvise = _libc.madvise
madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_entries: "dict[tuple[str, int], ctypes._NamedFuncPointer]" = {}  # by name and number of arguments, for `prepared`
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6

CLONE_NEWTIME = 0x00000080
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000
CHILD_TID_FLAGS = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 4, 15, 22, 23, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2

# These numbers are the same on every architecture (calls added after Linux 5.0).
_PIDFD_SEND_SIGNAL, _OPEN_TREE, MOVE_MOUNT, _PIDFD_OPEN, _CLONE3 = 424, 428, 429, 434, 435
CLOSE_RANGE, _OPENAT2, _MOUNT_SETATTR = 436, 437, 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
_SCHED_SETATTR = {"x86_64": 314}.get(os.uname().machine, 274)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLONE = {"x86_64": 56}.get(os.uname().machine, 220)
_NS_GET_USERNS, _NS_GET_OWNER_UID = 0xB701, 0xB704  # linux/nsfs.h


_KEYCTL = (250, 219)  # x86_64, aarch64

_SPACE_NAMES = {
    CLONE_NEWNS: "mount namespace", CLONE_NEWCGROUP: "cgroup namespace", CLONE_NEWUTS: "host name namespace", CLONE_NEWIPC: "ipc namespace",
    CLONE_NEWUSER: "user namespace", CLONE_NEWPID: "pid namespace", CLONE_NEWNET: "network namespace",
}  # fmt: skip


def _named(flags: int) -> str:
    """Flags in words, for the person who reads the error."""
    return "new " + " and ".join(name for flag, name in _SPACE_NAMES.items() if flags & flag)


def failure(what: str) -> OSError:
    """The error that the last call left."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def prepared(function: str, *arguments: object) -> "partial[int]":
    """A call of libc that is ready to be made: nothing is looked up any more. `arguments`: integers, bytes (passed by their
    address), or ctypes objects, whose values are those of the moment of the call. It returns what the function returns as a C
    int; `failure` tells why when that is -1. Calls of one shape share what ctypes makes for them: a zygote's child copies what it uses."""
    shape = function, len(arguments)
    if shape not in _entries:
        _entries[shape] = _libc[function]
        _entries[shape].argtypes = [ctypes.c_void_p] * len(arguments)
    return partial(_entries[shape], *arguments)


def _call(what: str, number: int, *arguments: object) -> int:
    """A raw system call. `arguments`: integers, bytes, or ctypes buffers; missing ones are zero."""
    result: int = _syscall(number, *arguments, *(0,) * (6 - len(arguments)))
    if result == -1:
        raise failure(what)
    return result


def unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise failure(_named(flags))


def setns(descriptor: int, kind: int) -> None:
    if _libc.setns(descriptor, kind):
        raise failure(f"setns {kind:#x}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2). `kind`: the file system's type; `flags`: MS_*; `data`: its options."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None):
        raise failure(f"mount {kind or 'flags'} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    if _libc.umount2(os.fsencode(target), flags):
        raise failure(f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    if _libc.pivot_root(os.fsencode(new), os.fsencode(old)):
        raise failure("pivot_root")


def sethostname(name: str) -> None:
    """Of the uts namespace this process is in."""
    raw = name.encode()
    if _libc.sethostname(raw, ctypes.c_size_t(len(raw))):
        raise failure("sethostname")


def prctl(option: int, *arguments: object) -> int:
    """prctl(2): `option` is PR_*; `arguments`: integers or ctypes pointers."""
    result: int = _libc.prctl(option, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments), 0, 0)
    if result == -1:
        raise failure(f"prctl {option}")
    return result


def set_slice(nanoseconds: int) -> None:
    """How long the kernel lets this thread run before somebody with an earlier claim may take its place (Linux 6.12; inherited by forks;
    older kernels ignore it)."""
    attributes = pack("<IIQiIQQQ", 48, 0, 0, 0, 0, nanoseconds, 0, 0)
    _call("sched_setattr", _SCHED_SETATTR, 0, attributes, 0)


def drop_bounding_set() -> None:
    """Take every capability out of the bounding set. Needs CAP_SETPCAP; without it only when the set is empty already."""
    for capability in range(64):
        present = _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0)
        if present < 0:
            return
        if present:
            prctl(PR_CAPBSET_DROP, capability, 0)


NO_CAPABILITIES = (pack("<Ii", 0x20080522, 0), bytes(24))  # _LINUX_CAPABILITY_VERSION_3, this thread; all three sets empty


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets; the kernel empties the ambient set with them."""
    if _libc.capset(*NO_CAPABILITIES):
        raise failure("capset")


def join_new_session_keyring() -> None:
    """Leave the session keyring that was inherited for an empty one of our own (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING)."""
    _call("keyctl", _KEYCTL[os.uname().machine == "aarch64"], 1, None)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    _call("close_range", CLOSE_RANGE, first, last, 0)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """A descriptor of `path` below `directory`, resolved under the RESOLVE_* rules."""
    how = pack("<QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _call(f"openat2 {path}", _OPENAT2, directory, os.fsencode(path), how, len(how))


def open_tree(directory: int, path: str = "", flags: int = 0) -> int:
    """A detached copy of the mount at `path` (or of `directory` itself, path empty)."""
    all_flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags | (0 if path else AT_EMPTY_PATH)
    return _call(f"open_tree {path}", _OPEN_TREE, directory, os.fsencode(path), all_flags)


def mount_setattr(descriptor: int, attributes: int, flags: int = 0, path: str = "") -> None:
    """Set MOUNT_ATTR_* on a mount given by descriptor, or by path below it."""
    data = pack("<QQQQ", attributes, 0, 0, 0)
    all_flags = flags | (0 if path else AT_EMPTY_PATH)
    _call("mount_setattr", _MOUNT_SETATTR, descriptor, os.fsencode(path), all_flags, data, len(data))


def move_mount(descriptor: int, target: str) -> None:
    """Attach a detached mount at `target`."""
    raw = os.fsencode(target)
    _call(f"move_mount to {target}", MOVE_MOUNT, descriptor, b"", AT_FDCWD, raw, MOVE_MOUNT_F_EMPTY_PATH)


def new_mount(kind: str, options: dict[str, str], attributes: int) -> int:
    """A detached mount of a new file system. `attributes`: MOUNT_ATTR_*."""
    context = _call(f"fsopen {kind}", _FSOPEN, kind.encode(), 1)
    try:
        for name, value in options.items():
            _call(f"fsconfig {name}", _FSCONFIG, context, 1, name.encode(), value.encode(), 0)
        _call(f"fsconfig {kind}", _FSCONFIG, context, 6, None, None, 0)
        return _call(f"fsmount {kind}", _FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def owner_of_namespace(descriptor: int) -> int:
    """The user who made the user namespace that a namespace belongs to."""
    owner = ctypes.c_uint32()
    user_namespace: int = _libc.ioctl(descriptor, ctypes.c_ulong(_NS_GET_USERNS))
    if user_namespace < 0:
        raise failure("NS_GET_USERNS")
    try:
        if _libc.ioctl(user_namespace, ctypes.c_ulong(_NS_GET_OWNER_UID), ctypes.byref(owner)):
            raise failure("NS_GET_OWNER_UID")
    finally:
        os.close(user_namespace)
    return owner.value


def pidfd_open(pid: int) -> int:
    return _call("pidfd_open", _PIDFD_OPEN, pid, 0)


def pidfd_send_signal(descriptor: int, number: int) -> None:
    _call("pidfd_send_signal", _PIDFD_SEND_SIGNAL, descriptor, number, None, 0)


_CLONE_ARGS = Struct("<11Q")
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
# PyDLL keeps the interpreter lock, which the fork hooks and the child both need held across the call.
_locked_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_locked_syscall.restype = ctypes.c_long
_locked_syscall.argtypes = _syscall.argtypes


def fork_with(flags: int, cgroup: int = -1, thread_id_address: int = 0) -> int:
    """fork() with CLONE_NEW* flags for the child, which is born in the v2 cgroup that `cgroup` names. Returns 0 in the child.

    `thread_id_address` is where libc keeps the calling thread's id (see `find_thread_id_address`): libc's own fork has the kernel
    refresh it, and a raw clone must do the same, or pthread calls in the child act on the parent's id. 0 will do before an exec.
    """
    flags |= (CLONE_INTO_CGROUP if cgroup >= 0 else 0) | (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID if thread_id_address else 0)
    group = max(cgroup, 0)
    arguments = ctypes.create_string_buffer(_CLONE_ARGS.pack(flags, 0, thread_id_address, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, group))
    _before_fork()
    pid: int = _locked_syscall(_CLONE3, ctypes.addressof(arguments), _CLONE_ARGS.size, 0, 0, 0, 0)
    if pid == 0:
        _after_fork_child()
        return 0
    error = failure(f"clone3, {_named(flags)}") if pid < 0 else None
    _after_fork_parent()
    if error is not None:
        raise error
    return pid


def clone_with(flags: int, thread_id_address: int) -> int:
    """The same by the older call, which a filter can look into: it takes its flags in a register, and knows no cgroup."""
    flags |= CHILD_TID_FLAGS | signal.SIGCHLD
    # The order of the last two differs between architectures; the thread-local storage stays what it is, so 0 there is ignored.
    last = (thread_id_address, 0) if os.uname().machine == "x86_64" else (0, thread_id_address)
    _before_fork()
    pid: int = _locked_syscall(_CLONE, flags, 0, 0, *last, 0)
    if pid == 0:
        _after_fork_child()
        return 0
    error = failure(f"clone, {_named(flags)}") if pid < 0 else None
    _after_fork_parent()
    if error is not None:
        raise error
    return pid


def find_thread_id_address() -> int:
    """Where libc keeps this thread's id: the one word of its thread descriptor that follows the id over two real forks."""
    _libc.pthread_self.restype = ctypes.c_void_p
    base: int = _libc.pthread_self()
    words = 0x900 // 4
    matching = set(range(words))
    for _ in range(2):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            copy = (ctypes.c_int32 * words).from_address(base)
            found = [i for i in matching if copy[i] == os.getpid()]
            os.write(writer, b",".join(b"%d" % i for i in found))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as answer:
            matching &= {int(part) for part in answer.read().split(b",") if part}
        os.waitpid(pid, 0)
    if len(matching) != 1:
        raise OSError(f"libc's thread id was found {len(matching)} times, not once")
    return base + 4 * matching.pop()


def landlock_abi() -> int:
    """Version of the kernel's Landlock interface. Raises OSError when there is none."""
    return _call("landlock", LANDLOCK_CREATE, None, 0, 1)


def landlock_attributes(files: int, network: int, scoped: int) -> tuple[bytes, int]:
    """A ruleset's description and its length, for a ruleset that handles these rights; pass 0 for what the kernel's version does
    not know."""
    return pack("<QQQ", files, network, scoped), 24 if scoped else 16 if network else 8


def landlock_rule(rights: int, directory: int) -> bytes:
    """Allows `rights` beneath the directory (or on the file) that an O_PATH descriptor names."""
    return pack("<Qi", rights, directory)


def landlock_create(files: int, network: int, scoped: int) -> int:
    """A ruleset that handles these access rights (see `landlock_attributes`)."""
    return _call("landlock_create_ruleset", LANDLOCK_CREATE, *landlock_attributes(files, network, scoped), 0)


def landlock_allow(ruleset: int, directory: int, rights: int) -> None:
    _call("landlock_add_rule", LANDLOCK_ADD, ruleset, 1, landlock_rule(rights, directory), 0)


def landlock_restrict(ruleset: int) -> None:
    _call("landlock_restrict_self", LANDLOCK_RESTRICT, ruleset, 0)


class Filter:
    """A BPF program (8-byte instructions) as the kernel wants it; `header` holds the address of the rest."""

    def __init__(self, program: bytes) -> None:
        self._program = ctypes.create_string_buffer(program, len(program))
        self.header = pack("@HP", len(program) // 8, ctypes.addressof(self._program))


def seccomp_filter(program: bytes) -> None:
    """Install a BPF program for this thread and all it starts. Needs no_new_privs."""
    made = Filter(program)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(made.header))
