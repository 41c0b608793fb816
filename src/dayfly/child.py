"""One child of the supervisor: its role, its present process, the descriptors it is started with, and how it is written down.

Used by supervisor.py, which decides when; numbers and bytes of the protocol are for app.py, too. Like the supervisor it imports only small
modules of the standard library.

Descriptors of a child, fixed numbers: LIFELINE (a pipe; one byte means "go", end-of-file means that the supervisor is gone),
READY (a pipe; the child writes PREPARED_BYTE when it has imported all and waits for its go, then READY_BYTE when it serves, or a message
why it cannot), SETTINGS (a sealed memfd with the settings as JSON), LISTENER (the public socket, gateway only), FRONT_TLS and FRONT_PLAIN
(the TLS front's), COMMONS (memory that several gateways share; gateway only, and only then).
"""

import contextlib
import os
import signal
import time

LIFELINE, READY, SETTINGS, LISTENER, FRONT_TLS, FRONT_PLAIN, COMMONS = 3, 4, 5, 6, 7, 8, 9
FIRST_FREE_FD = 20  # the supervisor keeps its own descriptors at or above this number, clear of those above
GO_BYTE, PREPARED_BYTE, READY_BYTE = b"g", b"p", b"r"
RELIEF = signal.SIGUSR1
REASON_BYTES_MAX = 4096
BACKOFF_SECONDS_MAX = 5.0


class Role:
    """What to start: argv, how long it may take to end, and which listening sockets it gets (by the numbers above).

    `manners` say how it is replaced in a rolling restart. Usually both work side by side until the old one was told by RELIEF that its
    successor serves; then it finishes what it has, bounded by itself, and leaves. "alone": two must never work at once, so the old one ends
    before the new one gets its go. "first": it goes before the others, whose successors connect to it. "foreign": it knows SIGTERM only.
    """

    def __init__(self, name: str, argv: list[str], *, stop_seconds: float, listeners: tuple[int, ...] = (), manners: str = "") -> None:
        self.name = name
        self.kind = name.partition("-")[0]  # gateway-1 is a gateway
        self.argv = argv
        self.stop_seconds = stop_seconds
        self.listeners = listeners
        self.alone, self.leads = manners == "alone", manners == "first"
        self.relief = signal.SIGTERM if manners == "foreign" else RELIEF


class Child:
    """A role's present process. `pid` is 0 while it is down; `restart_at` says when it comes back (monotonic)."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.pid = 0
        self.prepared = self.ready = self.permitted = False
        self.held = False  # its go must wait: somebody else is still in its place
        self.lifeline = self.ready_pipe = -1
        self.started_at = self.restart_at = 0.0
        self.started_epoch = 0.0
        self.deaths = self.restarts = 0
        self.reason = b""  # what it wrote instead of READY_BYTE

    def __repr__(self) -> str:
        return f"<Child {self.role.name} pid={self.pid} ready={self.ready} deaths={self.deaths}>"

    def start(self, settings_fd: int, listeners: dict[int, int]) -> None:
        """Start a process. It imports at once and waits for its go. Raises OSError; `pid` is 0 then."""
        lifeline_read, self.lifeline = (high(fd) for fd in os.pipe2(os.O_CLOEXEC))
        self.ready_pipe, ready_write = (high(fd) for fd in os.pipe2(os.O_CLOEXEC))
        self.started_at, self.started_epoch = time.monotonic(), time.time()
        self.prepared = self.ready = self.permitted = False
        self.reason = b""
        given = [(lifeline_read, LIFELINE), (ready_write, READY), (settings_fd, SETTINGS)]
        given += [(listeners[number], number) for number in self.role.listeners]
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in given]
        environment = {key: value for key, value in os.environ.items() if key != "DAYFLY_TOKEN"}  # the command line's own secret
        argv = self.role.argv
        try:
            # A group of its own: Ctrl-C in the terminal reaches only us, and we end the roles in order.
            self.pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGINT])
        finally:
            os.close(lifeline_read)
            os.close(ready_write)

    def permit(self) -> None:
        """Give it its go, once: on the lifeline, the next thing a role may see is end-of-file."""
        if self.pid and not self.permitted and not self.held:
            self.permitted = True
            write(self.lifeline, GO_BYTE)

    def hear(self, data: bytes) -> bool:
        """Take what it wrote; True when this made it ready."""
        if data.startswith(PREPARED_BYTE) and not self.prepared:
            self.prepared, data = True, data[1:]
        if data == READY_BYTE and not self.ready:
            self.ready = True
            return True
        self.reason = (self.reason + data)[:REASON_BYTES_MAX]
        return False

    def close(self) -> None:
        """Close both pipes: the child, if it is still there, sees end-of-file on its lifeline."""
        for fd in (self.lifeline, self.ready_pipe):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.ready_pipe = -1

    def facts(self) -> dict[str, object]:
        """What the state file says of it."""
        ticks = process_start_ticks(self.pid) if self.pid else 0
        return {
            "pid": self.pid,
            "start_ticks": ticks,
            "started_at": self.started_epoch,
            "ready": self.ready,
            "restarts": self.restarts,
        }

    def written(self) -> dict[str, object]:
        """All that the supervisor's next program needs to go on with this process; `read` makes it a Child again."""
        return {"name": self.role.name} | {key: value for key, value in vars(self).items() if key not in ("role", "reason")}

    @classmethod
    def read(cls, role: Role, written: dict[str, object]) -> "Child":
        child = cls(role)
        for key in vars(child).keys() & written.keys():
            setattr(child, key, written[key])
        for fd in (child.lifeline, child.ready_pipe):
            if fd >= 0:
                os.set_inheritable(fd, False)
        return child


def restart_delay(deaths: int) -> float:
    """Seconds to wait before a child that died `deaths` times in a row (≥ 1) is started again: 0, 0.1, 0.2, 0.4 … 5."""
    return 0.0 if deaths <= 1 else float(min(BACKOFF_SECONDS_MAX, 0.1 * 2 ** min(deaths - 2, 16)))


def process_start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid, an identity that is never reused. 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (pathlib is not worth its memory here)
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def high(fd: int) -> int:
    """Move a descriptor out of the way of the children's fixed numbers; it does not survive an exec. -1 stays -1."""
    if fd < 0:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    os.close(fd)
    return moved


def write(fd: int, data: bytes) -> None:
    """Write to somebody who may have left."""
    with contextlib.suppress(OSError):
        os.write(fd, data)


def send_signal(pid: int, number: int) -> None:
    """Signal a process, or with a negative number a group, that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
