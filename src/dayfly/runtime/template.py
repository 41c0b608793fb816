"""A version's template: its init has run, it serves no call, and forks the instances that do.

Three parts. `problems` finds what cannot be forked: threads, open files and sockets, child processes, files in /tmp, memory shared
by mapping; what it says is read by the function's author. `stand` waits for the node's orders and forks; it returns only in a
child. `refresh` makes fresh in the child what would be the same in all: random state. Hooks are those of Lambda's SnapStart for
Python: what is registered with `snapshot_restore_py` runs before the template stands (last registered first) and in each child
(first registered first).

The process is as hostile as the code whose init it ran: the node believes nothing it says but its exits, and those only once the
kernel has confirmed them. Used by agent.py.
"""

import gc
import os
import select
import sys
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Protocol

    class Offspring(Protocol):
        """How a template forks and what its child does first (sandbox/launch.py)."""

        def settle(self) -> None: ...

        def fork(self) -> int: ...

        def harden(self, uid: int, tasks: list[int]) -> None: ...

        def populate(self, first: int, length: int) -> None: ...


SEAT_FD = 7  # above what arrives for an instance, at 3 to 6
OWN_DESCRIPTORS = frozenset((0, 1, 2, 3, 4, 5, SEAT_FD))
LISTED_MAX = 8  # things of one kind that are named
HOOKS_NAME = "snapshot_restore_py"
# Threads that a numeric library starts for itself at import would forbid the template; one is what an instance's share comes to anyway.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_ENTROPY_BITS = 64  # a numpy seed of more was not chosen by a person

forking = False  # the fork under way is this template's own: nothing of the instance-to-be is to be forgotten


# ---- hooks -------------------------------------------------------------------------------------------------------------------


def hooks_module() -> "ModuleType":
    """What `import snapshot_restore_py` finds, with the interface of the package of that name that Lambda has built in."""
    from types import ModuleType

    module = ModuleType(HOOKS_NAME, "Hooks around a function's snapshot.")
    before: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
    after: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def register_before_snapshot(func: "Callable[..., Any]", *args: "Any", **kwargs: "Any") -> "Callable[..., Any]":
        """Call `func` once, when init is over and before the snapshot; the last one registered first."""
        before.append((func, args, kwargs))
        return func

    def register_after_restore(func: "Callable[..., Any]", *args: "Any", **kwargs: "Any") -> "Callable[..., Any]":
        """Call `func` in each instance made from the snapshot, before its first call; the first one registered first."""
        after.append((func, args, kwargs))
        return func

    vars(module).update(
        register_before_snapshot=register_before_snapshot,
        register_after_restore=register_after_restore,
        get_before_snapshot=lambda: before,
        get_after_restore=lambda: after,
    )
    return module


def run_hooks(which: str) -> None:
    """`which`: "before_snapshot" or "after_restore". Raises what they raise."""
    module = sys.modules.get(HOOKS_NAME)
    registered = list(getattr(module, f"get_{which}", tuple)())
    for func, args, kwargs in reversed(registered) if which == "before_snapshot" else registered:
        func(*args, **kwargs)


# ---- what cannot be forked ------------------------------------------------------------------------------------------------------


def problems() -> list[str]:
    """Why this process cannot be a template, each a phrase that names the thing; empty when it can."""
    return [*_threads(), *_descriptors(), *_children(), *_files(), *_shared_memory(), *_timers()]


def _listed(count: int, what: str, names: list[str]) -> list[str]:
    if not count:
        return []
    named = ", ".join(names[:LISTED_MAX]) + (", …" if len(names) > LISTED_MAX else "")
    return [f"{count} {what}{'' if count == 1 else 's'}{f' ({named})' if named else ''}"]


def _threads() -> list[str]:
    count = len(os.listdir("/proc/self/task")) - 1
    threading = sys.modules.get("threading")
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()] if threading else []
    return _listed(count, "running thread", names)


def _descriptors() -> list[str]:
    files, sockets = [], []
    for name in os.listdir("/proc/self/fd"):
        if int(name) in OWN_DESCRIPTORS:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
        if target.startswith("socket:"):
            sockets.append(_socket_text(int(name)))
        elif not target.startswith("/proc/"):
            files.append(target.removeprefix("anon_inode:"))
    return [*_listed(len(sockets), "open socket", sockets), *_listed(len(files), "open file", files)]


def _socket_text(fd: int) -> str:
    with_socket = socket(fileno=os.dup(fd))
    try:
        return f"to {with_socket.getpeername()}"
    except OSError:
        return f"at {with_socket.getsockname() or 'no address'}"
    finally:
        with_socket.close()


def _children() -> list[str]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    return ["child processes"]


def _files() -> list[str]:
    found = sorted(os.listdir("/tmp"))  # noqa: S108 - the sandbox's own: an instance gets an empty one
    return _listed(len(found), "file in /tmp", found)


def _shared_memory() -> list[str]:
    with open("/proc/self/maps") as file:
        rows = [line.split(None, 5) for line in file]
    shared = [row[-1].strip() for row in rows if row[1] == "rw-s"]
    return _listed(len(shared), "writable shared mapping", shared)


def _timers() -> list[str]:
    signal = sys.modules.get("_signal")
    if signal is None or not any(signal.getitimer(which)[0] for which in (0, 1, 2)):
        return []
    return ["a running timer"]


# ---- standing and forking ----------------------------------------------------------------------------------------------------


def settle() -> None:
    """What children share is put in order once: no garbage, and nothing that a collection in a child would write to."""
    gc.collect()
    gc.disable()
    gc.freeze()


def announce() -> None:
    """Tell the node that orders will be obeyed."""
    seat = socket(fileno=SEAT_FD)
    seat.send(b"stands")
    seat.detach()


def stand(offspring: "Offspring", learning: int, learn: "Callable[[], None]", freshen: "Callable[[], None]") -> bool:
    """Wait for orders to fork; returns in each child, hardened: whether it is made ahead, for nobody yet. Ends the process when the node
    lets go of the seat. `learn` is called when the descriptor `learning` is readable, once; `freshen` in each child while the node
    furnishes it."""
    global forking
    seat = socket(fileno=SEAT_FD)
    poll = select.poll()
    poll.register(SEAT_FD, select.POLLIN)
    poll.register(learning, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # pidfd → pid, number
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in children:
                _report(seat, poll, children, descriptor)
                continue
            if descriptor == learning:
                poll.unregister(learning)
                learning = -1
                learn()
                continue
            number, child_seat = _order(seat)
            forking = True
            try:
                pid = offspring.fork()
            except OSError:  # no room for one more now: the node sees its seat close
                pid = -1
            forking = False
            if pid == 0:
                os.dup2(child_seat, SEAT_FD, inheritable=False)
                os.close(child_seat)
                for pidfd in children:
                    os.close(pidfd)
                is_ahead = _grow_up(socket(fileno=os.dup(SEAT_FD)), offspring, freshen)
                seat.detach()
                return is_ahead
            os.close(child_seat)
            if pid < 0:
                continue
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, number)
            poll.register(pidfd, select.POLLIN)


def _order(seat: "socket") -> tuple[int, int]:
    """(number, the child's seat) of an order. Ends the process when there will be none."""
    data, rights, _, _ = seat.recvmsg(32, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    if not data or not rights:
        os._exit(0)
    return int(data), int.from_bytes(rights[0][2][:4], sys.byteorder)


def _report(seat: "socket", poll: "Any", children: dict[int, tuple[int, int]], pidfd: int) -> None:
    """Tell how a child ended."""
    pid, number = children.pop(pidfd)
    poll.unregister(pidfd)
    os.close(pidfd)
    _, status, usage = os.wait4(pid, 0)
    kind, code = ("signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else ("exit", os.WEXITSTATUS(status))
    seat.send(b"exited %d %s %d %d %d" % (number, kind.encode(), code, int((usage.ru_utime + usage.ru_stime) * 1e6), usage.ru_maxrss))


def _grow_up(seat: "socket", offspring: "Offspring", freshen: "Callable[[], None]") -> bool:
    """In a child: say that it is born; when the node has furnished its namespaces, drop what it still may do. Its user, whether somebody
    waits for it, and the descriptors of its groups' task files come with that word. Until it comes there is time for `freshen`."""
    seat.send(b"born")
    freshen()
    data, rights, _, _ = seat.recvmsg(32, CMSG_SPACE(4 * 8), MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)
    raw = rights[0][2] if rights else b""
    uid, _, ahead = data.partition(b" ")
    offspring.harden(int(uid), [int.from_bytes(raw[at : at + 4], sys.byteorder) for at in range(0, len(raw), 4)])
    seat.close()
    return bool(ahead)


# ---- fresh in each child ---------------------------------------------------------------------------------------------------------


def shared_generators() -> "list[Any]":
    """numpy's bit generators that init made without a seed of its own: found once, in the template."""
    if "numpy.random" not in sys.modules:
        return []
    kind = sys.modules["numpy.random"].BitGenerator
    return [it for it in gc.get_objects() if isinstance(it, kind) and _is_unseeded(it)]


def _is_unseeded(generator: "Any") -> bool:
    entropy = getattr(getattr(generator, "seed_seq", None), "entropy", None)
    return isinstance(entropy, int) and entropy.bit_length() > _ENTROPY_BITS


def refresh(generators: "list[Any]") -> None:
    """New random state where the old one is the template's. (`random`, OpenSSL and temporary names: boot.py does those for every child.)"""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    for generator in generators:
        generator.state = type(generator)().state
