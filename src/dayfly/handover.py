"""How the supervisor becomes the program that is installed now without letting go of anything: exec with open descriptors.

What stays is written as JSON into a memfd, whose number is the new program's argument: children with their pids and pipes, listening
sockets, locks, settings, and how far the restart is. Before, the new program is asked whether it can read that (`check`), because after an
exec there is no way back. Signals are blocked meanwhile: one that comes in between waits. Called by supervisor.py, and by app.py at the
other end.
"""

import json
import os
import select
import signal

from dayfly.child import FRONT_PLAIN, FRONT_TLS, LISTENER, Child, Role

CHECK_SECONDS_MAX = 20.0
AGAIN, CHECK = "again", "check"  # the new program's first argument: go on, or only say whether you could
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


class Restart:
    """One restart, as the state file tells of it. `number` counts them; 0: there was none."""

    def __init__(self, number: int = 0, kind: str = "") -> None:
        self.number = number
        self.kind = kind  # "rolling" or "all"
        self.running = bool(kind)
        self.role = self.step = self.error = ""
        self.steps: list[str] = []  # all so far, in words: whoever looks now and then misses none


class Held:
    """What outlives the program: descriptors by their use, children, the restart under way."""

    def __init__(self, settings_fd: int, listeners: dict[int, int], locks: tuple[int, ...] = ()) -> None:
        self.settings_fd = settings_fd
        self.listeners = listeners  # number in a child → our descriptor
        self.locks = locks
        self.children: list[dict[str, object]] = []
        self.leaving: list[dict[str, object]] = []
        self.restart: dict[str, object] = {}
        self.log_file = ""
        self.announce_fd = -1  # who waits for the first start

    def descriptors(self) -> list[int]:
        pipes = [child[key] for child in (*self.children, *self.leaving) for key in ("lifeline", "ready_pipe")]
        return [fd for fd in (self.settings_fd, *self.listeners.values(), *self.locks, *pipes) if isinstance(fd, int) and fd >= 0]

    def written(self) -> int:
        """A memfd with all of it."""
        fd = os.memfd_create("dayfly-held")
        os.write(fd, json.dumps(vars(self)).encode())
        return fd

    @classmethod
    def read(cls, fd: int) -> "Held":
        """What `written` made. Raises ValueError, KeyError or TypeError when it is of another kind."""
        found = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        held = cls(found["settings_fd"], {int(number): own for number, own in found["listeners"].items()}, tuple(found["locks"]))
        held.children, held.leaving, held.restart = found["children"], found["leaving"], found["restart"]
        held.log_file = str(found["log_file"])
        return held

    @classmethod
    def given(cls, what: str, more: str) -> "Held":
        """From a supervisor's arguments: AGAIN or CHECK and the memfd, or the descriptors of `dayfly up` (settings, a memfd, so that nobody
        reads them from argv; announcements; the public socket; the front's two or -1; the locks) and the log file."""
        if what in (AGAIN, CHECK):
            held = cls.read(int(more))
            os.close(int(more))
        else:
            settings_fd, announce_fd, public, tls, plain, *locks = map(int, what.split(","))
            sockets = {LISTENER: public, FRONT_TLS: tls, FRONT_PLAIN: plain}
            held = cls(settings_fd, {number: fd for number, fd in sockets.items() if fd >= 0}, tuple(locks))
            held.announce_fd, held.log_file = announce_fd, more
        for fd in held.locks if what != CHECK else ():  # held for as long as this process lives, and handed to nobody
            os.set_inheritable(fd, False)
        return held

    def adopted(self, roles: list[Role]) -> tuple[list[Child], list[Child]]:
        """(children in the order of `roles`, those that leave). A role without a process starts anew; a process without a role leaves."""
        by_name = {str(written["name"]): written for written in self.children}
        children = [Child.read(role, by_name.pop(role.name, {})) for role in roles]
        known = {role.name: role for role in roles}
        strangers = [Role(str(one["name"]), [], stop_seconds=5.0, manners="foreign") for one in by_name.values()]
        leaving = [Child.read(role, by_name[role.name]) for role in strangers]
        for child in leaving:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        for one in self.leaving:
            leaving.append(Child.read(known.get(str(one["name"])) or Role(str(one["name"]), [], stop_seconds=5.0), one))
        return children, leaving


def check(command: list[str], held: Held) -> str:
    """Why the installed program could not go on with `held`; "" when it could."""
    fd = held.written()
    try:
        os.set_inheritable(fd, True)
        pid = os.posix_spawn(command[0], [*command, CHECK, str(fd)], os.environ, setpgroup=0)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    finally:
        os.close(fd)
    process = os.pidfd_open(pid)
    try:
        if not select.select([process], [], [], CHECK_SECONDS_MAX)[0]:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(process)
    return "" if code == 0 else f"the installed program does not start (exit status {code}); the platform's log has its words"


def become(command: list[str], held: Held) -> None:
    """Replace this program; returns only by OSError, with everything as before."""
    fd = held.written()
    kept = [fd, *held.descriptors()]
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        for one in kept:
            os.set_inheritable(one, True)
        os.execv(command[0], [*command, AGAIN, str(fd)])  # noqa: S606 (our own interpreter)
    finally:
        for one in kept:
            os.set_inheritable(one, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        os.close(fd)
