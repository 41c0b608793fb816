"""What is known of a platform on this machine from outside: who holds its lock, its state file, its processes; and ending it.

Never trusts a pid alone: a process is ours when pid and start time are those the supervisor wrote down. `dayfly up`, `down`, `status`
and `doctor` use it.
"""

import fcntl
import json
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dayfly.cli import directories
from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.core.model.layout import Layout
from dayfly.supervisor import STATE_FILE, process_start_ticks

LEFTOVER_SECONDS_MAX = 5.0  # roles whose supervisor was killed see it on their lifeline and end within this
POLL_SECONDS = 0.02


def refuse_second(layout: Layout) -> None:
    """Raises Failure naming the pid when a platform runs on these directories. Changes nothing."""
    pid = holder(layout)
    if pid:
        raise Failure(
            f"Dayfly already runs on {layout.data} (pid {pid if pid > 0 else 'unknown'}).",
            "Use it, end it with `dayfly down`, or name another directory with --data.",
            exit_code=EXIT_PLATFORM,
            code="already_running",
        )


def lock(layout: Layout) -> int:
    """Take the platform's lock; returns the descriptor that holds it. Raises Failure naming the pid when somebody else does."""
    fd = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        refuse_second(layout)
        return lock(layout)  # whoever held it has just let go
    return fd


def lock_data(layout: Layout) -> int:
    """A second lock, in DATA itself: two platforms with different --run must not share one data directory either."""
    fd = os.open(f"{layout.data}/{directories.MARKER}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Failure(
            f"Another Dayfly with a different run directory uses {layout.data}.",
            "Find it with `pgrep -f dayfly.app`, or name another directory with --data.",
            exit_code=EXIT_PLATFORM,
            code="already_running",
        ) from None
    return fd


def write_pid(fd: int, layout: Layout, pid: int) -> None:
    """The supervisor's pid, into the lock file and the pid file."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{pid}\n".encode(), 0)
    Path(layout.pid_file).write_text(f"{pid}\n")


def holder(layout: Layout) -> int:
    """Pid of the running supervisor, 0 when there is none. Raises Failure when the run directory may not be looked into."""
    try:
        fd = os.open(layout.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise Failure(
            f"{layout.lock_file}: {error.strerror}.", "Ask as the user who started the platform.", exit_code=EXIT_PLATFORM
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return 0
    except BlockingIOError:
        return _number(os.pread(fd, 32, 0)) or -1  # held, but the pid is not written yet
    finally:
        os.close(fd)


def state(layout: Layout) -> dict[str, Any]:
    """The supervisor's state file, {} when there is none (or it is being replaced)."""
    try:
        value = json.loads(Path(layout.run, STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def memory_bytes(pid: int) -> int:
    """A process's proportional set size; its resident set where the kernel does not tell us; 0 when it is gone."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def stop(layout: Layout, pid: int, seconds: float) -> bool:
    """Ask the supervisor to end and wait until it is gone; False when it had to be killed."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if holder(layout) != pid:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        if select.select([handle], [], [], seconds)[0]:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], 5.0)
        return False
    except PermissionError:
        raise Failure(f"You may not end pid {pid}.", "Ask as the user who started the platform.", exit_code=EXIT_PLATFORM) from None
    finally:
        os.close(handle)


def clear(layout: Layout) -> list[str]:
    """After a kill -9 of the supervisor: wait for (then kill) its roles, remove sockets and the node's remains.

    Only while the lock is ours or nobody's. Returns a word on each thing that was found."""
    before = state(layout)
    found: list[str] = []
    for name, role in reversed([*before.get("leaving", {}).items(), *before.get("roles", {}).items()]):
        if _end_leftover(role):
            found.append(name)
    directories.remove_sockets(layout)
    if before:
        from dayfly.node import server

        server.cleanup(layout)
    return found


def _end_leftover(role: object) -> bool:
    """Wait for one process that a dead supervisor left, kill its group when it stays. True when it was still there."""
    if not isinstance(role, dict):
        return False
    pid, ticks = role.get("pid"), role.get("start_ticks")
    if not isinstance(pid, int) or pid <= 1 or not ticks or process_start_ticks(pid) != ticks:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if process_start_ticks(pid) == ticks and not select.select([handle], [], [], LEFTOVER_SECONDS_MAX)[0]:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            select.select([handle], [], [], 1.0)
        return True
    finally:
        os.close(handle)


def wait_unlocked(layout: Layout, seconds: float) -> bool:
    """Wait until nobody holds the lock (the kernel lets go of it when the supervisor is gone)."""
    deadline = time.monotonic() + seconds
    while holder(layout):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _number(raw: bytes) -> int:
    try:
        return int(raw.split()[0])
    except (ValueError, IndexError):
        return 0
