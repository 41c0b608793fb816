"""The node's side of a zygote: starts it, speaks to it, notices its death. Which ones there are is node/tree.py's affair.

It forks, hands descriptors over, and turns a zygote's text messages into calls of its `Listener`; it knows nothing of clients or
limits. The other side, and the messages, are node/zygote.py. Called by node/server.py, on one thread.
"""

import array
import collections
import contextlib
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from dayfly.core.decide.ancestor import Age
from dayfly.sandbox import syscalls as sys_

PROGRAM = str(Path(__file__).with_name("zygote.py"))
SOURCE = str(Path(__file__).parents[2])
MESSAGE_BYTES_MAX = 16 * 1024
# All of the platform's environment that a zygote gets; what user code sees beyond it comes with the BOOT frame. LD_BIND_NOW: the
# linker's work is done once and its pages are shared, instead of call by call in each child.
ENVIRONMENT = {"LANG": "C.UTF-8", "LD_BIND_NOW": "1"}
_CREDENTIALS = struct.Struct("3i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


class Listener(Protocol):
    """Who is told what a zygote says."""

    def forked(self, instance: str, pid: int) -> None: ...

    def failed(self, instance: str, detail: str) -> None: ...

    def exited(self, instance: str, kind: str, code: int, cpu_us: int, peak_bytes: int) -> None: ...

    def zygote_gone(self, zygote: "Zygote") -> None: ...


class Ticket(NamedTuple):
    """A start as the zygote gets it. Descriptors belong to the nursery once sent or dropped: it closes its copies. `steps`: JSON."""

    instance: str
    uid: int
    descriptors: list[str]
    steps: bytes
    code_path: str = ""
    layer_path: str = ""
    scratch_path: str = ""

    def packed(self) -> bytes:
        """The message. Its last part, names and steps, is the same for many starts: the zygote looks it up whole and parses it once."""
        folders = f"{self.code_path}\0{self.layer_path}\0{self.scratch_path}"
        head = f"start\0{self.instance}\0{self.uid}\0{folders}\0{' '.join(self.descriptors)}\0"
        return head.encode() + self.steps


class Zygote:
    """One zygote process and the connection to it. `ready` once it can fork; `alive` until it was reaped; `ending` once it was told to."""

    def __init__(self, runtime: str, interpreter: str, config: dict[str, Any], now: float) -> None:
        self.runtime = runtime
        self.tenant = ""  # the namespace it belongs to, from its first start on
        self.born_at = self.asked_at = now
        self.forks = 0
        self.ending = False
        self.interpreter = interpreter
        self.ready = False
        self.alive = True
        self.instances: dict[str, int] = {}  # id → pid as this process sees it, 0 until forked
        self.unborn = 0  # how many of them are not forked yet
        self._outbox: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.send(msgspec.json.encode(config))
            self.pid = _spawn(interpreter, theirs, bool(config["pidns"]))
        ours.setblocking(False)
        self.socket = ours

    def __repr__(self) -> str:
        return f"<Zygote {self.runtime} of {self.tenant or 'nobody'} pid={self.pid} ready={self.ready} instances={len(self.instances)}>"

    @property
    def age(self) -> Age:
        """What the decisions about it need."""
        return Age(self.born_at, self.forks, self.asked_at, len(self.instances))

    def start(self, ticket: Ticket, descriptors: list[int]) -> None:
        """Ask for an instance. Takes over `descriptors`, in the order of `ticket.descriptors`."""
        self.instances[ticket.instance] = 0
        self.unborn += 1
        self.forks += 1
        self._outbox.append((ticket.packed(), descriptors))
        self.flush()

    def kill(self, instance: str) -> None:
        self._outbox.append((f"kill\0{instance}".encode(), []))
        self.flush()

    def mount_proc(self, space: int, answer: int) -> None:
        """Have a /proc made for a pid namespace below this zygote's and sent to the socket `answer`. Takes over both descriptors."""
        self._outbox.append((b"proc", [space, answer]))
        self.flush()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return self.ready and bool(self._outbox)

    def flush(self) -> None:
        """Send what can be sent now; nothing before the zygote is ready, so that its configuration is read alone."""
        while self.ready and self._outbox:
            packet, descriptors = self._outbox[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self.socket.sendmsg([packet], rights)
            except BlockingIOError:
                return
            except OSError:
                return  # it is dying: reaping it tells everybody
            self._outbox.popleft()
            _close_all(descriptors)

    def receive(self, listener: Listener) -> None:
        """Take all messages that are there."""
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(MESSAGE_BYTES_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                return  # its death is noticed by reaping it
            pid = 0
            for _level, _kind, raw in ancillary:
                pid = _CREDENTIALS.unpack_from(raw)[0]
            self._take(data.decode("utf-8", "replace"), pid, listener)

    def _take(self, text: str, pid: int, listener: Listener) -> None:
        kind, _, rest = text.partition(" ")
        if kind == "ready":
            self.ready = True
            self.flush()
            return
        instance, _, rest = rest.partition(" ")
        if instance not in self.instances:
            return
        if kind == "forked":
            # The kernel translated the credentials' pid for us; without namespaces the sender's own number is the same.
            own = int(rest)
            self.unborn -= self.instances[instance] == 0
            self.instances[instance] = pid if pid not in (0, self.pid) else own
            listener.forked(instance, self.instances[instance])
        elif kind == "failed":
            listener.failed(instance, rest)
        elif kind == "exited":
            self.unborn -= self.instances.pop(instance) == 0
            how, code, cpu_us, peak_kb = rest.split(" ")
            listener.exited(instance, how, int(code), int(cpu_us), int(peak_kb) * 1024)

    def kill_it(self) -> None:
        """SIGKILL to the process, and by its namespace to its instances. It is still to be reaped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process, reap it, let go of what waited for it."""
        if self.alive:
            self.kill_it()
            os.waitpid(self.pid, 0)
        self.forget()

    def forget(self) -> None:
        """It was reaped: close everything, and end what a missing pid namespace may have left."""
        self.alive = self.ready = False
        self.socket.close()
        for _, descriptors in self._outbox:
            _close_all(descriptors)
        self._outbox.clear()
        for pid in self.instances.values():
            if pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def fork_first(own_pid_space: bool) -> int:
    """fork() whose child is pid 1 of a new pid namespace when there can be one. Returns 0 in the child."""
    # Not unshare and fork: the way back into our own namespace is closed to root of a user namespace.
    return sys_.fork_with(sys_.CLONE_NEWPID) if own_pid_space else os.fork()


def become_child() -> None:
    """What every child of the node does first: die with it, forget its handlers, read from nowhere."""
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.set_inheritable(0, True)
    os.setsid()


def _spawn(interpreter: str, control: socket.socket, own_pid_space: bool) -> int:
    """Start the zygote program. Returns its pid as this process sees it."""
    pid = fork_first(own_pid_space)
    if pid:
        return pid
    try:
        become_child()
        os.dup2(2, 1)  # its own words go to the platform's log
        os.dup2(control.fileno(), 3)
        os.set_inheritable(3, True)  # it may have been 3 before
        sys_.close_range(4)
        os.execve(interpreter, [interpreter, "-I", "-S", "-B", PROGRAM, "3"], ENVIRONMENT)  # noqa: S606
    except BaseException as error:
        sys.stderr.write(f"dayfly node: {interpreter} did not start: {error}\n")
    finally:
        os._exit(127)
