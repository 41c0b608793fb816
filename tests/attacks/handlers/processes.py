"""Other processes: their /proc, environment, memory and descriptors, and killing them. Runs in sandboxes only."""

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import re
import signal
import socket
import struct
import time

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
PROCESS_VM_READV, PROCESS_VM_WRITEV, PIDFD_OPEN, PIDFD_GETFD, PIDFD_SEND_SIGNAL = (
    (310, 311, 434, 438, 424) if X86 else (270, 271, 434, 438, 424)
)
SO_PEERPIDFD = 77


def name_of(error):
    return f"{type(error).__name__} {getattr(error, 'errno', '')}"


def raw(number, *arguments):
    done = LIBC.syscall(number, *arguments)
    return done if done >= 0 else -ctypes.get_errno()


def proc(event):
    """All that /proc would tell of each process."""
    said = {}
    for pid in event["pids"]:
        for part in (
            "environ",
            "mem",
            "maps",
            "cmdline",
            "status",
            "fd",
            "root",
            "cwd",
            "exe",
            "task",
            "syscall",
            "stack",
            "auxv",
            "pagemap",
        ):
            path = f"/proc/{pid}/{part}"
            try:
                if part in ("root", "cwd", "exe"):
                    said[path] = os.readlink(path)
                elif part in ("fd", "task"):
                    said[path] = os.listdir(path)
                else:
                    with open(path, "rb", buffering=0) as file:
                        said[path] = file.read(64).decode("latin-1")
            except OSError as error:
                said[path] = name_of(error)
    return said


def listed(event):
    """Processes that /proc lists, and how many there are when one asks for every number up to a bound."""
    return {
        "listed": [name for name in os.listdir("/proc") if name.isdigit()],
        "guessed": [pid for pid in range(1, event["most"]) if os.path.exists(f"/proc/{pid}/stat")],
        "me": os.getpid(),
    }


def environment(event):
    """Our own variables and those that this process was born with."""
    with open("/proc/self/environ", "rb") as file:
        return file.read().decode("latin-1") + repr(dict(os.environ))


def own_memory(event):
    """What the process that forked us may have left in our memory: every place where a needle's first half is followed by its second.
    Of each needle we are given the first half, reversed, and a digest of the whole, so that looking for it does not make one."""
    found = []
    halves = [(bytes.fromhex(half)[::-1], size, digest) for half, size, digest in event["needles"]]
    scanned = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps.read().splitlines():
            span, rights = line.split()[:2]
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vsyscall]")) or "vvar" in line:
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(begin)
                data = memory.read(end - begin)
            except (OSError, OverflowError, ValueError):
                continue
            scanned += len(data)
            for half, size, digest in halves:
                for match in re.finditer(re.escape(half), data):
                    whole = data[match.start() : match.start() + size]
                    if hashlib.sha256(whole).hexdigest() == digest:
                        found.append(line)
            del data
    return {"found": found, "scanned": scanned}


def other_memory(event):
    """process_vm_readv and writev, pidfd_open and pidfd_getfd with other processes' numbers."""
    buffer = ctypes.create_string_buffer(64)
    span = struct.pack("@PN", ctypes.addressof(buffer), 64)
    said = {}
    for pid in event["pids"]:
        said[f"readv {pid}"] = raw(PROCESS_VM_READV, pid, span, 1, span, 1, 0)
        said[f"writev {pid}"] = raw(PROCESS_VM_WRITEV, pid, span, 1, span, 1, 0)
        said[f"pidfd_open {pid}"] = raw(PIDFD_OPEN, pid, 0)
        said[f"kill {pid}"] = -errno.ESRCH if pid == os.getpid() else _kill(pid, 9)
        said[f"tgkill {pid}"] = -errno.ESRCH if pid == os.getpid() else raw(234 if X86 else 131, pid, pid, 9)
        said[f"setpriority {pid}"] = _catch(lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, 19))
        said[f"affinity {pid}"] = _catch(lambda pid=pid: os.sched_setaffinity(pid, {0}))
        said[f"prlimit {pid}"] = raw(302 if X86 else 261, pid, 7, 0, ctypes.create_string_buffer(16))
        said[f"own signal {pid}"] = _aimed(pid)
    return said


def _catch(action):
    try:
        action()
        return 0
    except OSError as error:
        return -error.errno


def _kill(pid, number):
    return _catch(lambda: os.kill(pid, number))


def _aimed(pid):
    """A descriptor's signal aimed at another process (F_SETOWN), then made to come."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = _catch(lambda: fcntl.fcntl(ours, fcntl.F_SETOWN, pid))
        if done == 0:
            fcntl.fcntl(ours, 10, signal.SIGKILL)  # F_SETSIG
            fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            theirs.send(b"x")
        return done


def everybody(event):
    """SIGKILL to all that may be signalled. A process group of its own number 0 would be the caller's own: not tried."""
    return _kill(-1, 9)


def descriptors(event):
    """What is open here, and what can be got out of it: who is at the other end, where it leads."""
    said = {}
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        number = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # that of the listing itself
        entry = {"target": target}
        for label, action in (
            ("parent", lambda n=number: os.close(os.open("..", os.O_RDONLY, dir_fd=n))),
            ("fchdir", lambda n=number: os.fchdir(n)),
            ("inside", lambda n=number: os.listdir(f"/proc/self/fd/{n}/..")),
            ("reopen", lambda n=number: os.close(os.open(f"/proc/self/fd/{n}", os.O_RDWR))),
        ):
            try:
                action()
                entry[label] = "worked"
            except OSError as error:
                entry[label] = name_of(error)
        if target.startswith("socket:"):
            entry["peer"] = _peer(number)
        said[name] = entry
    return said


def _peer(number):
    """The process at the other end of a socket, held by a pidfd if the kernel gives one: signals to it, its descriptors, its /proc."""
    with socket.socket(fileno=os.dup(number)) as there:
        pid, _uid, _gid = struct.unpack("3i", there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        said = {"pid": pid}
        try:
            (held,) = struct.unpack("i", there.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))
        except OSError as error:
            said["pidfd"] = name_of(error)
            return said
        said["signal"] = raw(PIDFD_SEND_SIGNAL, held, 9, 0, 0)
        said["getfd"] = raw(PIDFD_GETFD, held, 0, 0)
        said["setns"] = LIBC.setns(held, 0x20000) or 0
        os.close(held)
        return said


def recycle(event):
    """Use up process numbers: children by the thousand, and a held child that has long ended."""
    held = os.fork()
    if held == 0:
        os._exit(0)
    descriptor = raw(PIDFD_OPEN, held, 0)
    os.waitpid(held, 0)
    born, last = 0, 0
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        last = os.fork()
        if last == 0:
            os._exit(0)
        os.waitpid(last, 0)
        born += 1
    said = {"born": born, "signal": raw(PIDFD_SEND_SIGNAL, descriptor, 9, 0, 0), "kill": _kill(held, 9)}
    os.close(descriptor)
    return said


def go(event):
    os._exit(3)
