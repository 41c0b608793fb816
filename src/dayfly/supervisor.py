"""The tiny parent: owns the listening socket, starts the roles in order, restores one that dies, replaces them, ends them in order.

It must never import anything beyond the standard library's small modules (it lives as long as the platform and is paid for by
everybody), never parse anything a user wrote, and never serve a request. `app.py` starts it; `dayfly status` reads the state
file it writes. Its only clock is `poll`: while nothing happens it sleeps and costs nothing.

All children (child.py) are started at once so that their imports overlap, but each may *run* only when the one before it is ready: that is
the "go". Whoever may signal this process (its user and root) asks by signal: SIGTERM ends the platform, ROLL replaces one role after the
other while both serve, RENEW ends all and starts all while the sockets stay open. Before either, this process becomes the program that is
installed now (handover.py) and goes on with the same pid, children, sockets and locks; the state file says how far a restart is.
"""

import json
import os
import select
import signal
import time
from collections.abc import Iterator

from dayfly import handover
from dayfly.child import (
    BACKOFF_SECONDS_MAX,
    FRONT_PLAIN,
    FRONT_TLS,
    GO_BYTE,
    LIFELINE,
    LISTENER,
    PREPARED_BYTE,
    READY,
    READY_BYTE,
    SETTINGS,
    Child,
    Role,
    high,
    process_start_ticks,
    restart_delay,
    send_signal,
    write,
)
from dayfly.crew import Crew
from dayfly.handover import Held, Restart

__all__ = [
    "BACKOFF_SECONDS_MAX", "FRONT_PLAIN", "FRONT_TLS", "GO_BYTE", "LIFELINE", "LISTENER", "PREPARED_BYTE", "READY", "READY_BYTE", "RENEW",
    "ROLL", "SETTINGS", "STATE_FILE", "Child", "Role", "Supervisor", "process_start_ticks", "restart_delay",
]  # fmt: skip

START_SECONDS_MAX = 30.0  # all roles ready at the first start, or the start has failed
HANDOVER_SECONDS_MAX = 60.0  # what the old control gets to finish requests and deploys in a rolling restart
LEAVE_SECONDS_MAX = 1000.0  # and who was relieved otherwise: a little more than the longest call
LOG_CHECK_SECONDS = 60.0
EXIT_OK, EXIT_FAILED = 0, 5
STATE_FILE = "state.json"  # below the run directory: what `dayfly status` shows
ROLL, RENEW = signal.SIGUSR1, signal.SIGUSR2  # what `dayfly restart` sends, with and without --rolling


class RollFailed(Exception):
    """A role could not be replaced; the text says why."""


class Supervisor(Crew):
    """Runs until SIGTERM or SIGINT. `command`: argv of the program to become at a restart; without one this program goes on."""

    def __init__(
        self,
        roles: list[Role],
        held: Held,
        *,
        state_file: str,
        facts: dict[str, object],
        command: tuple[str, ...] = (),
        start_seconds: float = START_SECONDS_MAX,
    ) -> None:
        super().__init__(roles, held, state_file, facts)
        self.locks = held.locks
        self.announce_fd = high(held.announce_fd)
        self.command = list(command)
        self.start_seconds = start_seconds
        self.failed = False  # the first start did not work
        self.asked = 0  # the signal of a restart that is to begin
        self.renewing = False  # everything ends to be started again
        self.rolling: Iterator[float] | None = None
        self.rolling_until = 0.0
        self.born = time.monotonic()
        self.signals = -1

    # ---- life

    def run(self) -> int:
        """Start everything, watch, end everything. Returns the exit code."""
        self._catch_signals()
        self._go_on()
        try:
            while not self._ending():
                self._turn()
                if not self.announced and time.monotonic() - self.born > self.start_seconds:
                    late = next(c.role.name for c in self.children if not c.ready)
                    self._fail(late, f"it was not ready within {self.start_seconds:g} seconds")
        finally:
            self._end()
        return EXIT_FAILED if self.failed else EXIT_OK

    def _go_on(self) -> None:
        """Begin: everything is to be started, or (after an exec for a rolling restart) replaced one by one."""
        if self.restart.running and self.restart.kind == "rolling":
            self.announced = True
            self.rolling = self._roll()
            self._advance()
            return
        self.announced, self.born = False, time.monotonic()
        for child in self.children:
            child.deaths = 0
            self._start(child)
        self._permit()

    def _ending(self) -> bool:
        return self.failed or self.stopping > 0 or self.renewing

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
        if self.asked and self.announced and not self._ending():
            self._restart()
        self._advance()
        self._trim_log()

    def _timeout_ms(self) -> int:
        now = time.monotonic()
        due = [child.restart_at for child in self.children if not child.pid]
        if not self.announced:
            due.append(self.born + self.start_seconds + 0.01)
        if self.rolling is not None:
            due.append(self.rolling_until)
        due.append(now + LOG_CHECK_SECONDS)
        return max(0, int((min(due) - now) * 1000) + 1)

    def _catch_signals(self) -> None:
        self.signals, waker = (high(fd) for fd in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in handover.BLOCKED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup dayfly up &` wants them ignored
                signal.signal(number, lambda *_: None)  # the wake-up pipe carries the number
        self.poll.register(self.signals, select.POLLIN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.BLOCKED)  # after an exec

    def _read_signals(self) -> None:
        try:
            numbers = os.read(self.signals, 512)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self.stopping += 1
            elif number in (ROLL, RENEW):
                self.asked = number

    # ---- restarts

    def _restart(self) -> None:
        """Become the installed program, then replace or renew all roles. What cannot be is refused while everything still serves."""
        kind, self.asked = "rolling" if self.asked == ROLL else "all", 0
        if self.restart.running:
            return  # whoever asked sees that one runs
        self.restart = Restart(self.restart.number + 1, kind)
        self._progress("supervisor", "checking what is installed")
        if self.command and (reason := handover.check(self.command, self._held())):
            self._restarted(reason)
            return
        if kind == "all":
            self._progress("", "finishing calls")
            self.renewing = True
            self._stop_all(politely=True)
            self.renewing = False
        if self.command and not self._ending():
            try:
                handover.become(self.command, self._held())
            except OSError as error:
                self.log("error", "exec_failed", reason=str(error))
        if not self._ending():
            self._go_on()

    def _held(self) -> Held:
        held = Held(self.settings_fd, self.listeners, self.locks)
        held.children = [child.written() for child in self.children]
        held.leaving = [child.written() for child in self.leaving]
        held.restart, held.log_file = vars(self.restart), str(self.facts.get("log_file", ""))
        return held

    def _progress(self, role: str, step: str) -> None:
        self.restart.role, self.restart.step = role, step
        self.restart.steps.append(f"{role}: {step}" if role else step)
        self.log("info", "restart", kind=self.restart.kind, of=role, step=step)
        self._write_state()

    def _restarted(self, error: str) -> None:
        self.restart.running, self.restart.error = False, error
        self._progress(self.restart.role if error else "", "failed" if error else "done")

    def _advance(self) -> None:
        """Let a rolling restart look at what happened; it says until when it waits for more."""
        if self.rolling is None or self._ending():
            return
        try:
            self.rolling_until = next(self.rolling)
            return
        except StopIteration:
            self._restarted("")
        except RollFailed as error:
            new, self.rising = self.rising, None
            if new is not None and new not in self.children:
                if new.pid:
                    self.leaving.append(new)
                    send_signal(-new.pid, signal.SIGKILL)
                else:
                    new.close()
            self._restarted(str(error))
        self.rolling = None

    def _roll(self) -> Iterator[float]:
        """Replace one role after the other, then wait until the old ones have left. Yields until when it waits."""
        for old in sorted(self.children, key=lambda child: not child.role.leads):
            if not any(
                child.role.name == old.role.name for child in self.leaving
            ):  # else its successor is there, from a restart that failed
                yield from self._replace(old)
        self._progress("", "the old ones finish")
        until = time.monotonic() + LEAVE_SECONDS_MAX
        while self.leaving and time.monotonic() < until:
            yield until
        for child in self.leaving:
            send_signal(-child.pid, signal.SIGKILL)

    def _replace(self, old: Child) -> Iterator[float]:
        """Start a successor; the old process is told to leave when it is ready or, where only one may work at once, when it is prepared."""
        role = old.role
        new = self.rising = Child(role)
        new.held = role.alone
        self._progress(role.name, "starting")
        self._start(new)
        if role.alone:
            yield from self._wait(new, "prepared")
            self._progress(role.name, "handing over")
            self._succeed(old, new)
            until = time.monotonic() + HANDOVER_SECONDS_MAX
            while old.pid:
                if time.monotonic() >= until:
                    send_signal(-old.pid, signal.SIGKILL)
                yield max(until, time.monotonic() + 0.1)
            new.held = False
        new.permit()
        yield from self._wait(new, "ready")
        if not role.alone:
            self._succeed(old, new)
        self.rising = None

    def _wait(self, new: Child, what: str) -> Iterator[float]:
        until = time.monotonic() + self.start_seconds
        while not getattr(new, what):
            if new.deaths:
                reason = new.reason.decode("utf-8", "replace").strip()
                raise RollFailed(f"the new {new.role.name} did not start: {reason or 'it ended without a word'}")
            if time.monotonic() >= until:
                raise RollFailed(f"the new {new.role.name} was not {what} within {self.start_seconds:g} seconds")
            yield until

    def _succeed(self, old: Child, new: Child) -> None:
        """From now on `new` is the role; `old` finishes what it has."""
        new.restarts = old.restarts
        self.children[self.children.index(old)] = new
        if old.pid:
            self.leaving.append(old)
            send_signal(old.pid, old.role.relief)
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
        self._stop_all()
        if os.path.exists(self.state_file):  # noqa: PTH110
            os.unlink(self.state_file)  # noqa: PTH108
        self.log("info", "stopped", uptime_seconds=round(time.monotonic() - self.born, 1))

    def _announce_when_ready(self) -> None:
        if not self.announced and all(child.ready for child in self.children):
            self._write_state()
            self._announce({"ready": True, "ms": round((time.monotonic() - self.born) * 1000)})
            if self.restart.running:
                self._restarted("")

    def _announce(self, message: dict[str, object]) -> None:
        self.announced = True
        if self.announce_fd < 0:
            return
        write(self.announce_fd, json.dumps(message).encode() + b"\n")
        os.close(self.announce_fd)
        self.announce_fd = -1
