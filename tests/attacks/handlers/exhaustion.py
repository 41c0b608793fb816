"""What uses up: processes, threads, memory in all its forms, descriptors, files, logs, processor time. Runs in sandboxes only."""

import contextlib
import ctypes
import fcntl
import logging
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
MEGABYTE = 1 << 20
TALLY = mmap.mmap(-1, 4096)  # bytes taken, one number for each child
kept = []


def take_all(take, most):
    """How often `take()` worked, and what stopped it."""
    for number in range(most):
        try:
            take()
        except (OSError, RuntimeError, MemoryError) as error:
            return {"count": number, "error": type(error).__name__, "errno": getattr(error, "errno", None)}
    return {"count": most, "error": None}


def end_children(answer):
    """SIGKILL to everything in this instance but itself."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        return answer


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def go(event):
    os._exit(3)


# Processes and threads


def fork_bomb(event):
    """Children that fork on and on, for a while and at least until one more is refused."""
    end, refused = time.monotonic() + event["seconds"], 0
    LIBC.prctl(15, event["mark"].encode(), 0, 0, 0)  # PR_SET_NAME, which children inherit: how the test counts them
    while time.monotonic() < end or not refused:
        try:
            if os.fork() == 0:
                while True:
                    try:
                        os.fork()
                    except OSError:
                        time.sleep(0.001)
        except OSError:
            refused += 1
            time.sleep(0.001)
    return end_children(refused)


def thread_bomb(event):
    hold, threads = threading.Event(), []

    def one():
        thread = threading.Thread(target=hold.wait, daemon=True)
        thread.start()
        threads.append(thread)

    said = take_all(one, 100_000)
    time.sleep(event["seconds"])
    hold.set()
    for thread in threads:
        thread.join()
    return said


# Memory. Each child takes what it can and tells how much; the parent counts what living children hold.


def spread(event, fill):
    TALLY.seek(0)
    TALLY.write(bytes(4096))
    children = {}
    for number in range(event["children"]):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            try:
                fill(
                    lambda count, number=number: struct.pack_into(
                        "Q", TALLY, 8 * number, struct.unpack_from("Q", TALLY, 8 * number)[0] + count
                    )
                )
            finally:
                signal.pause()
        children[pid] = number
    end, most = time.monotonic() + event["seconds"], 0
    while time.monotonic() < end:
        for pid in list(children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del children[pid]  # the kernel ended it, and what it held is free again
        most = max(most, sum(struct.unpack_from("Q", TALLY, 8 * number)[0] for number in children.values()))
        time.sleep(0.002)
    return end_children({"held_mb": most / MEGABYTE, "killed": event["children"] - len(children)})


def anonymous(event):
    blocks = []
    while True:
        blocks.append(b"\1" * (4 * MEGABYTE))


def anonymous_children(event):
    def fill(tell):
        while True:
            kept.append(b"\1" * MEGABYTE)
            tell(MEGABYTE)

    return spread(event, fill)


def page_cache(event):
    """Read much more of a file than our memory is; twice, also mapped."""
    size, total = os.path.getsize("/var/task/ballast"), 0
    for _ in range(2):
        with open("/var/task/ballast", "rb", buffering=0) as file:
            while part := file.read(MEGABYTE):
                total += len(part)
    with open("/var/task/ballast", "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
        total += sum(view[at] == 0 for at in range(0, size, 4096)) * 4096
    return {"read_mb": total / MEGABYTE, "uid": os.getuid()}


def tmpfs(event):
    """/tmp, and memory files that are nowhere."""
    said = {}
    with open("/tmp/full", "wb", buffering=0) as file:
        said["tmp"] = take_all(lambda: file.write(b"\1" * MEGABYTE), 4096)
    os.unlink("/tmp/full")
    return said


def memory_files(event):
    def fill(tell):
        for _ in range(1000):
            held = os.memfd_create("held")
            kept.append(held)
            for _ in range(16):
                tell(os.write(held, b"\1" * MEGABYTE))

    return spread(event, fill)


def shared_memory(event):
    """SysV segments outlive their processes: they count as their instance's all the same."""
    LIBC.shmat.restype = ctypes.c_void_p

    def fill(tell):
        while True:
            segment = LIBC.shmget(0, 16 * MEGABYTE, 0o1600)
            place = LIBC.shmat(segment, None, 0)
            if segment < 0 or place in (None, ctypes.c_void_p(-1).value):
                raise OSError
            ctypes.memset(place, 1, 16 * MEGABYTE)
            tell(16 * MEGABYTE)

    return spread(event, fill)


def pipes(event):
    def fill(tell):
        while True:
            _, write = os.pipe2(os.O_NONBLOCK)
            with contextlib.suppress(OSError):  # over the user's allowance: pipes of one page then
                fcntl.fcntl(write, 1031, MEGABYTE)  # F_SETPIPE_SZ
            try:
                while True:
                    tell(os.write(write, b"\1" * 65536))
            except BlockingIOError:
                continue

    return spread(event, fill)


def _fill_sockets(make, tell):
    while True:
        ours, theirs = make()
        kept.append((ours, theirs))
        ours.setblocking(False)
        try:
            while True:
                tell(ours.send(b"\1" * 65536))
        except BlockingIOError:
            continue


def unix_sockets(event):
    def make():
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        return pair

    return spread(event, lambda tell: _fill_sockets(make, tell))


def tcp_sockets(event):
    """Left to themselves, they grow: up to several megabytes each."""

    def fill(tell):
        server = socket.create_server(("127.0.0.1", 0), backlog=16)

        def make():
            ours = socket.create_connection(server.getsockname())
            return ours, server.accept()[0]

        _fill_sockets(make, tell)

    return spread(event, fill)


def udp_sockets(event):
    """What the kernel says that each holds (SO_MEMINFO): a full one drops in silence."""

    def fill(tell):
        while True:
            ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ours.bind(("127.0.0.1", 0))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
            kept.append(ours)
            for _ in range(400):
                ours.sendto(b"\1" * 1000, ours.getsockname())
            tell(struct.unpack_from("I", ours.getsockopt(socket.SOL_SOCKET, 55, 36))[0])

    return spread(event, fill)


# Descriptors and files


def descriptors(event):
    """Every kind of descriptor until no more are given, here and in children."""
    makers = {
        "files": lambda: os.open("/dev/null", os.O_RDONLY),
        "pipes": os.pipe,
        "sockets": lambda: socket.socket().detach(),
        "epoll": lambda: LIBC.epoll_create1(0),
        "memory files": lambda: os.memfd_create("one"),
        "inotify": lambda: LIBC.inotify_init1(0),
        "threads of waiting": lambda: LIBC.timerfd_create(1, 0),
    }
    said, before = {}, len(os.listdir("/proc/self/fd"))
    for name, make in makers.items():
        said[name] = take_all(lambda make=make: _counted(make), 5000)["count"]
        os.closerange(6 + before, 70_000)
    children = []
    for _ in range(event["children"]):
        pid = os.fork()
        if pid == 0:
            take_all(lambda: os.open("/dev/null", os.O_RDONLY), 5000)
            signal.pause()
        children.append(pid)
    time.sleep(event["seconds"])
    return end_children(said)


def _counted(make):
    if make() == -1:
        raise OSError(ctypes.get_errno(), "refused")


def in_flight(event):
    """Descriptors inside messages that nobody reads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    null = os.open("/dev/null", os.O_RDONLY)
    said = take_all(lambda: socket.send_fds(ours, [b"x"], [null] * 250), 5000)
    ours.close(), theirs.close(), os.close(null)
    return said


def million_files(event):
    said = take_all(lambda: os.close(os.open(f"/tmp/{time.monotonic_ns()}", os.O_CREAT | os.O_WRONLY)), 1_000_000)
    for name in os.listdir("/tmp"):
        os.unlink(f"/tmp/{name}")
    folders = take_all(lambda: os.mkdir(f"/tmp/{time.monotonic_ns()}"), 1_000_000)
    for name in os.listdir("/tmp"):
        os.rmdir(f"/tmp/{name}")
    return {"files": said, "folders": folders}


# Logs


def flood(event):
    """Lines as fast as they go, in the way that the event names."""
    lines, line = event["lines"], "x" * event.get("size", 100)
    way = event["way"]
    if way == "print":
        for _ in range(lines):
            print(line)
    elif way == "logging":
        for _ in range(lines):
            logging.getLogger("flood").warning(line)
    elif way == "blocks":
        for _ in range(lines // 100):
            print("\n".join([line] * 100))
    elif way == "descriptor":
        block = ((line + "\n") * 100).encode()
        for _ in range(lines // 100):
            os.write(1, block)
    else:
        program = f"for _ in range({lines}): print({line!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
    return lines


# Processor


def priorities(event):
    """Every way to come before others; what worked."""
    ways = {
        "nice": lambda: os.nice(-20),
        "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
        "setpriority of the user": lambda: os.setpriority(os.PRIO_USER, 0, -20),
        "fifo": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99)),
        "round robin": lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)),
        "deadline": lambda: _attributes(6, 10_000_000, 30_000_000),
        "nice by attributes": lambda: _attributes(0, 0, 0, nice=-20),
        "limit nice": lambda: resource.setrlimit(13, (40, 40)),
        "limit realtime": lambda: resource.setrlimit(14, (99, 99)),
        "autogroup": lambda: _write("/proc/self/autogroup", "-20"),
        "timer slack of others": lambda: _write("/proc/2/timerslack_ns", "1"),
        "realtime disk": lambda: _ioprio(1),
    }
    said = {}
    for name, way in ways.items():
        try:
            way()
            said[name] = "worked"
        except (OSError, ValueError) as error:
            said[name] = type(error).__name__
    with contextlib.suppress(OSError):
        _attributes(0, 100_000, 0)  # the shortest slice, which wakes up soonest: anybody may ask for that
    return said


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


def _attributes(policy, runtime, period, nice=0):
    text = struct.pack("=IIQiIQQQII", 56, policy, 0, nice, 0, runtime, period, period, 0, 0)
    if LIBC.syscall(314 if os.uname().machine == "x86_64" else 274, 0, text, 0) < 0:
        raise OSError(ctypes.get_errno(), "sched_setattr")


def _ioprio(kind):
    if LIBC.syscall(251 if os.uname().machine == "x86_64" else 30, 1, 0, kind << 13) < 0:
        raise OSError(ctypes.get_errno(), "ioprio_set")


def hog(event):
    """Every process there may be, spinning."""
    said = priorities(event) if event.get("first") else {}
    born = 0
    try:
        while born < event["processes"]:
            if os.fork() == 0:
                while True:
                    pass
            born += 1
    except OSError:
        pass
    spin(event["seconds"])
    return end_children({"born": born, **said})


def yielding(event):
    """Sleep a moment, run a moment, thousands of times a second: a scheduler's favourite."""
    for _ in range(event["processes"]):
        if os.fork() == 0:
            while True:
                time.sleep(0.00005)
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        time.sleep(0.00005)
    return end_children("slept")
