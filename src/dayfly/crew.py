"""The supervisor's hands on its children: starts them, hears that they are ready, reaps them, ends them, writes down how they are.

`Crew` has no will: what is asked of the platform, and when it ends, says `Supervisor` (supervisor.py), which is one. Standard library only,
like everything here that lives as long as the platform.
"""

import contextlib
import json
import os
import select
import signal
import time

from dayfly.child import (
    REASON_BYTES_MAX,
    Child,
    Role,
    high,
    process_start_ticks,
    restart_delay,
    send_signal,
    write,
)
from dayfly.handover import Held, Restart

STABLE_SECONDS = 10.0  # a child that lived this long starts with a clean sheet
LOG_BYTES_MAX = 16 * 1024 * 1024  # a log file is copied to FILE.1 and cut when it is longer


class Crew:
    """All children. `held`: descriptors (and, after an exec, children) to go on with. `facts` go into the state file as they are."""

    def __init__(self, roles: list[Role], held: Held, state_file: str, facts: dict[str, object]) -> None:
        self.children, self.leaving = held.adopted(roles)
        self.rising: Child | None = None  # a successor that is not in service yet
        self.settings_fd = high(held.settings_fd)
        self.listeners = {number: high(fd) for number, fd in held.listeners.items()}
        self.state_file = state_file
        self.facts = facts
        self.level = str(facts.get("log_level", "info"))
        self.announced = False
        self.stopping = 0  # how many times we were asked to end
        self.restart = Restart()
        vars(self.restart).update(held.restart)
        self.poll = select.poll()
        for child in self._everyone():
            if child.ready_pipe >= 0:
                self.poll.register(child.ready_pipe, select.POLLIN)

    # ---- what the supervisor says

    def _ending(self) -> bool:
        """Whether nothing that ends now shall come back."""
        raise NotImplementedError

    def _fail(self, role: str, reason: str) -> None:
        """The first start did not work."""
        raise NotImplementedError

    def _announce_when_ready(self) -> None:
        """One more child is ready."""
        raise NotImplementedError

    def _read_signals(self) -> None:
        """Take the signals that have come."""
        raise NotImplementedError

    # ---- children

    def _everyone(self) -> list[Child]:
        return [*self.children, *self.leaving, *([self.rising] if self.rising and self.rising not in self.children else [])]

    def _start(self, child: Child) -> None:
        """Start a child's process. It imports at once and waits for its go."""
        try:
            child.start(self.settings_fd, self.listeners)
        except OSError as error:
            child.reason = f"it could not be started: {error.strerror}".encode()
        if not child.pid:
            self._gone(child, 0, "no process")
            return
        self.poll.register(child.ready_pipe, select.POLLIN)
        self.log("debug", "role_started", role=child.role.name, pid=child.pid)

    def _permit(self) -> None:
        """Give the go to every child up to and including the first one that is not ready (all of them after the first start)."""
        for child in self.children:
            if child.pid and not child.ready:
                child.permit()
                if not self.announced:
                    return

    def _read_ready(self, fd: int) -> None:
        child = next((c for c in self._everyone() if c.ready_pipe == fd), None)
        data = os.read(fd, REASON_BYTES_MAX) if child else b""
        if child is None:
            return
        if child.hear(data):
            took = time.monotonic() - child.started_at
            self.log("info", "role_ready", role=child.role.name, pid=child.pid, ms=round(took * 1000), restarts=child.restarts)
            self._permit()
            self._announce_when_ready()
            self._write_state()
        elif not data:  # end-of-file: nothing more will come
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
            child = next((c for c in self._everyone() if c.pid == pid), None)
            if child is not None:  # otherwise: the announcer of `dayfly up`, which has done its work
                self._died(child, status)

    def _died(self, child: Child, status: int) -> None:
        """A child's process ended: read what it had to say, and go on from there."""
        if child.ready_pipe >= 0:
            os.set_blocking(child.ready_pipe, False)  # whoever it forked may hold the other end
            with contextlib.suppress(BlockingIOError):
                child.hear(os.read(child.ready_pipe, REASON_BYTES_MAX))
            self.poll.unregister(child.ready_pipe)
        code = os.waitstatus_to_exitcode(status)
        self._gone(child, child.pid, f"signal {-code}" if code < 0 else f"exit status {code}")

    def _gone(self, child: Child, pid: int, how: str) -> None:
        """Decide when a child that has no process comes back; during the first start, nothing comes back."""
        child.close()
        child.pid, child.ready = 0, False
        if child in self.leaving:
            self.leaving.remove(child)
            self.log("info", "role_left", role=child.role.name, pid=pid, how=how)
            self._write_state()
            return
        if self._ending() or child not in self.children:
            child.deaths += 1
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

    def _stop_all(self, *, politely: bool = False) -> None:
        """All roles, last started first; processes of one role, and all gateways, together. `politely`: what they are asked on connections
        that they have they answer as ever, because others will serve after them."""
        for kind in reversed(list(dict.fromkeys(child.role.kind for child in self.children))):
            same = [child for child in self._everyone() if child.role.kind == kind]
            for child in same:
                if child.pid and (politely or child is not same[0]):
                    send_signal(child.pid, child.role.relief if politely else signal.SIGTERM)
            for child in same:
                self._stop(child)
        for child in self._everyone():
            self._stop(child)
        self.leaving.clear()

    def _stop(self, child: Child) -> None:
        if not child.pid:
            return
        pid = child.pid
        patience = max(self.stopping, 1)  # one more signal than that means: now
        send_signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + child.role.stop_seconds
        while child.pid and time.monotonic() < deadline and self.stopping <= patience:
            self.poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))
            self._drain_events()
            self._reap()
        if child.pid:
            self.log("warning", "role_killed", role=child.role.name, pid=pid, waited_seconds=child.role.stop_seconds)
            send_signal(-pid, signal.SIGKILL)
            send_signal(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            child.pid = 0
        child.close()

    def _drain_events(self) -> None:
        self._read_signals()
        for child in self._everyone():
            if child.ready_pipe >= 0:  # late bytes would wake the poll again and again
                self.poll.unregister(child.ready_pipe)
                os.close(child.ready_pipe)
                child.ready_pipe = -1

    # ---- what others see

    def statistics(self) -> dict[str, object]:
        """What `dayfly status` shows."""
        roles = {child.role.name: child.facts() for child in self.children}
        leaving = {f"{child.role.name} {child.pid}": child.facts() for child in self.leaving}
        pid = os.getpid()
        own = {"pid": pid, "start_ticks": process_start_ticks(pid), "restart": vars(self.restart)}
        return {**self.facts, **own, "roles": roles, "leaving": leaving}

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
        write(2, text.encode("utf-8", "replace") + b"\n")

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
