"""The tiny parent: owns the listening socket, starts the roles in order, restores one that dies, ends them in order.

It must never import anything beyond the standard library's small modules (it lives as long as the platform and is paid for by
everybody), never parse anything a user wrote, and never serve a request. `app.py` starts it; `dayfly status` reads the state
file it writes. Its only clock is `poll`: while nothing happens it sleeps and costs nothing.

Descriptors of a child, fixed numbers: LIFELINE (a pipe; one byte means "go", end-of-file means that the supervisor is gone),
READY (a pipe; the child writes READY_BYTE when it serves, or a message why it cannot start), SETTINGS (a sealed memfd with the
settings as JSON), LISTENER (the public socket, gateway only), FRONT_TLS and FRONT_PLAIN (the TLS front's). All children are started at
once so that their imports overlap, but each may *run* only when the one before it is ready: that is the "go".
"""

import contextlib
import json
import os
import select
import signal
import time

LIFELINE, READY, SETTINGS, LISTENER, FRONT_TLS, FRONT_PLAIN = 3, 4, 5, 6, 7, 8
FIRST_FREE_FD = 20  # the supervisor keeps its own descriptors at or above this number, clear of those above
GO_BYTE, READY_BYTE = b"g", b"r"

START_SECONDS_MAX = 30.0  # all roles ready at the first start, or the start has failed
STABLE_SECONDS = 10.0  # a child that lived this long starts with a clean sheet
BACKOFF_SECONDS_MAX = 5.0
REASON_BYTES_MAX = 4096
LOG_BYTES_MAX = 16 * 1024 * 1024  # a log file is copied to FILE.1 and cut when it is longer
LOG_CHECK_SECONDS = 60.0
EXIT_OK, EXIT_FAILED = 0, 5
STATE_FILE = "state.json"  # below the run directory: what `dayfly status` shows


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


class Role:
    """What to start: argv, how long it may take to end, and which listening sockets it gets (by the numbers above)."""

    def __init__(self, name: str, argv: list[str], *, stop_seconds: float, listeners: tuple[int, ...] = ()) -> None:
        self.name = name
        self.argv = argv
        self.stop_seconds = stop_seconds
        self.listeners = listeners


class Child:
    """A role's present process. `pid` is 0 while it is down; `restart_at` says when it comes back (monotonic)."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.pid = 0
        self.ready = self.permitted = False
        self.lifeline = self.ready_pipe = -1
        self.started_at = self.restart_at = 0.0
        self.started_epoch = 0.0
        self.deaths = self.restarts = 0
        self.reason = b""  # what it wrote instead of READY_BYTE

    def __repr__(self) -> str:
        return f"<Child {self.role.name} pid={self.pid} ready={self.ready} deaths={self.deaths}>"

    def close(self) -> None:
        """Close both pipes: the child, if it is still there, sees end-of-file on its lifeline."""
        for fd in (self.lifeline, self.ready_pipe):
            if fd >= 0:
                os.close(fd)
        self.lifeline = self.ready_pipe = -1


class Supervisor:
    """Runs until SIGTERM or SIGINT. `listeners`: number in a child → our descriptor. `facts` go into the state file as they are."""

    def __init__(
        self, roles: list[Role], *, settings_fd: int, listeners: dict[int, int], announce_fd: int, state_file: str, facts: dict[str, object]
    ) -> None:
        self.children = [Child(role) for role in roles]
        self.settings_fd = _high(settings_fd)
        self.listeners = {number: _high(fd) for number, fd in listeners.items()}
        self.announce_fd = _high(announce_fd)
        self.state_file = state_file
        self.facts = facts
        self.level = str(facts.get("log_level", "info"))
        self.announced = False
        self.stopping = 0  # how many times we were asked to end
        self.failed = False  # the first start did not work
        self.born = time.monotonic()
        self.poll = select.poll()
        self.signals = -1

    # ---- life

    def run(self) -> int:
        """Start everything, watch, end everything. Returns the exit code."""
        self._catch_signals()
        for child in self.children:
            self._start(child)
        self._permit()
        try:
            while not self._ending():
                self._turn()
                if not self.announced and time.monotonic() - self.born > START_SECONDS_MAX:
                    late = next(c.role.name for c in self.children if not c.ready)
                    self._fail(late, f"it was not ready within {START_SECONDS_MAX:g} seconds")
        finally:
            self._end()
        return EXIT_FAILED if self.failed else EXIT_OK

    def _ending(self) -> bool:
        return self.failed or self.stopping > 0

    def _turn(self) -> None:
        """Wait for something to happen (a signal, a byte, a restart that is due) and deal with it."""
        for fd, _ in self.poll.poll(self._timeout_ms()):
            if fd == self.signals:
                self._read_signals()
            else:
                self._read_ready(fd)
        self._reap()
        now = time.monotonic()
        for child in self.children:
            if not child.pid and not self._ending() and child.restart_at <= now:
                child.restarts += 1
                self._start(child)
                self._permit()
        self._trim_log()

    def _timeout_ms(self) -> int:
        now = time.monotonic()
        due = [child.restart_at for child in self.children if not child.pid]
        if not self.announced:
            due.append(self.born + START_SECONDS_MAX + 0.01)
        due.append(now + LOG_CHECK_SECONDS)
        return max(0, int((min(due) - now) * 1000) + 1)

    def _catch_signals(self) -> None:
        self.signals, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.signals, write = _high(self.signals), _high(write)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup dayfly up &` wants them ignored
                signal.signal(number, lambda *_: None)  # the wake-up pipe carries the number
        self.poll.register(self.signals, select.POLLIN)

    def _read_signals(self) -> None:
        try:
            numbers = os.read(self.signals, 512)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self.stopping += 1

    # ---- one child

    def _start(self, child: Child) -> None:
        """Start a child's process. It imports at once and waits for its go."""
        lifeline_read, child.lifeline = (_high(fd) for fd in os.pipe2(os.O_CLOEXEC))
        child.ready_pipe, ready_write = (_high(fd) for fd in os.pipe2(os.O_CLOEXEC))
        child.started_at, child.started_epoch = time.monotonic(), time.time()
        child.ready, child.permitted, child.reason = False, False, b""
        given = [(lifeline_read, LIFELINE), (ready_write, READY), (self.settings_fd, SETTINGS)]
        given += [(self.listeners[number], number) for number in child.role.listeners]
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in given]
        environment = {key: value for key, value in os.environ.items() if key != "DAYFLY_TOKEN"}  # the command line's own secret
        argv = child.role.argv
        try:
            # A group of its own: Ctrl-C in the terminal reaches only us, and we end the roles in order.
            child.pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGINT])
        except OSError as error:
            child.reason = f"it could not be started: {error.strerror}".encode()
        finally:
            os.close(lifeline_read)
            os.close(ready_write)
        if not child.pid:
            self._gone(child, 0, "no process")
            return
        self.poll.register(child.ready_pipe, select.POLLIN)
        self.log("debug", "role_started", role=child.role.name, pid=child.pid)

    def _permit(self) -> None:
        """Give the go to every child up to and including the first one that is not ready (all of them after the first start)."""
        for child in self.children:
            if child.pid and not child.ready:
                if not child.permitted:
                    child.permitted = True  # once: on the lifeline, the next thing a role may see is end-of-file
                    _write(child.lifeline, GO_BYTE)
                if not self.announced:
                    return

    def _read_ready(self, fd: int) -> None:
        child = next((c for c in self.children if c.ready_pipe == fd), None)
        data = os.read(fd, REASON_BYTES_MAX) if child else b""
        if child is None:
            return
        if data == READY_BYTE and not child.ready:
            child.ready = True
            took = time.monotonic() - child.started_at
            self.log("info", "role_ready", role=child.role.name, pid=child.pid, ms=round(took * 1000), restarts=child.restarts)
            self._permit()
            self._announce_when_ready()
            self._write_state()
        elif data:
            child.reason = (child.reason + data)[:REASON_BYTES_MAX]
        else:  # end-of-file: nothing more will come
            self.poll.unregister(fd)
            os.close(fd)
            child.ready_pipe = -1

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = next((c for c in self.children if c.pid == pid), None)
            if child is not None:  # otherwise: the announcer of `dayfly up`, which has done its work
                self._died(child, status)

    def _died(self, child: Child, status: int) -> None:
        """A child's process ended: read what it had to say, and go on from there."""
        if child.ready_pipe >= 0:
            os.set_blocking(child.ready_pipe, False)  # whoever it forked may hold the other end
            with contextlib.suppress(BlockingIOError):
                child.reason += os.read(child.ready_pipe, REASON_BYTES_MAX).replace(READY_BYTE, b"")
            self.poll.unregister(child.ready_pipe)
        code = os.waitstatus_to_exitcode(status)
        self._gone(child, child.pid, f"signal {-code}" if code < 0 else f"exit status {code}")

    def _gone(self, child: Child, pid: int, how: str) -> None:
        """Decide when a child that has no process comes back; during the first start, nothing comes back."""
        child.close()
        child.pid, child.ready = 0, False
        if self._ending():
            return
        reason = child.reason.decode("utf-8", "replace").strip()
        if not self.announced:
            self._fail(child.role.name, reason or f"it ended with {how} before it was ready")
            return
        lived = time.monotonic() - child.started_at
        child.deaths = 1 if lived >= STABLE_SECONDS else child.deaths + 1
        delay = restart_delay(child.deaths)
        child.restart_at = time.monotonic() + delay
        fields = {"role": child.role.name, "pid": pid, "how": how, "reason": reason, "lived_seconds": round(lived, 3)}
        self.log("error", "role_died", **fields, restart_in_seconds=delay)
        self._write_state()

    # ---- the end

    def _fail(self, role: str, reason: str) -> None:
        """The first start did not work: nothing is left half-started."""
        self.log("error", "start_failed", role=role, reason=reason)
        self._announce({"error": reason, "role": role})
        self.failed = True

    def _end(self) -> None:
        """Stop accepting, then end the children, last started first. Bounded: who does not end in time is killed."""
        self.log("info", "stopping")
        while self.listeners:
            os.close(self.listeners.popitem()[1])
        for child in reversed(self.children):
            self._stop(child)
        if os.path.exists(self.state_file):  # noqa: PTH110
            os.unlink(self.state_file)  # noqa: PTH108
        self.log("info", "stopped", uptime_seconds=round(time.monotonic() - self.born, 1))

    def _stop(self, child: Child) -> None:
        if not child.pid:
            return
        pid = child.pid
        patience = max(self.stopping, 1)  # one more signal than that means: now
        _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + child.role.stop_seconds
        while child.pid and time.monotonic() < deadline and self.stopping <= patience:
            self.poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))
            self._drain_events()
            self._reap()
        if child.pid:
            self.log("warning", "role_killed", role=child.role.name, pid=pid, waited_seconds=child.role.stop_seconds)
            _signal(-pid, signal.SIGKILL)
            _signal(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            child.pid = 0
        child.close()

    def _drain_events(self) -> None:
        self._read_signals()
        for child in self.children:
            if child.ready_pipe >= 0:  # late bytes would wake the poll again and again
                self.poll.unregister(child.ready_pipe)
                os.close(child.ready_pipe)
                child.ready_pipe = -1

    # ---- what others see

    def _announce_when_ready(self) -> None:
        if not self.announced and all(child.ready for child in self.children):
            self._write_state()
            self._announce({"ready": True, "ms": round((time.monotonic() - self.born) * 1000)})

    def _announce(self, message: dict[str, object]) -> None:
        self.announced = True
        if self.announce_fd < 0:
            return
        _write(self.announce_fd, json.dumps(message).encode() + b"\n")
        os.close(self.announce_fd)
        self.announce_fd = -1

    def statistics(self) -> dict[str, object]:
        """What `dayfly status` shows."""
        roles = {
            child.role.name: {
                "pid": child.pid,
                "start_ticks": process_start_ticks(child.pid) if child.pid else 0,
                "started_at": child.started_epoch,
                "ready": child.ready,
                "restarts": child.restarts,
            }
            for child in self.children
        }
        pid = os.getpid()
        return {**self.facts, "pid": pid, "start_ticks": process_start_ticks(pid), "roles": roles}

    def _write_state(self) -> None:
        temporary = self.state_file + ".new"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, json.dumps(self.statistics()).encode())
            finally:
                os.close(fd)
            os.replace(temporary, self.state_file)  # noqa: PTH105
        except OSError as error:  # a full disk must not end the platform
            self.log("error", "state_not_written", reason=str(error))

    def log(self, level: str, event: str, **fields: object) -> None:
        """One line on standard error: JSON, or plain text on a terminal."""
        order = ("debug", "info", "warning", "error")
        if order.index(level) < order.index(self.level):
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if os.isatty(2):
            text = f"{stamp} {level:<7} supervisor {event} " + " ".join(f"{k}={v}" for k, v in fields.items() if v != "")
        else:
            text = json.dumps({"timestamp": stamp, "level": level, "role": "supervisor", "event": event, **fields})
        _write(2, text.encode("utf-8", "replace") + b"\n")

    def _trim_log(self) -> None:
        """Keep a log file bounded: everybody appends to the same file (O_APPEND), so it can be copied and cut in place."""
        path = str(self.facts.get("log_file", ""))
        try:
            if not path or os.fstat(2).st_size <= LOG_BYTES_MAX:
                return
            with open(path, "rb") as source, open(path + ".1", "wb") as copy:  # noqa: PTH123
                while block := source.read(1024 * 1024):
                    copy.write(block)
            os.ftruncate(2, 0)
        except OSError:
            pass


def _high(fd: int) -> int:
    """Move a descriptor out of the way of the children's fixed numbers; it does not survive an exec. -1 stays -1."""
    if fd < 0:
        return fd
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    os.close(fd)
    return moved


def _write(fd: int, data: bytes) -> None:
    """Write to somebody who may have left."""
    with contextlib.suppress(OSError):
        os.write(fd, data)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
