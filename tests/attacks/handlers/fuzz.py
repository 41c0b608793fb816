"""A system call fuzzer of our own, and the running of others': random calls with odd arguments from many processes. In sandboxes only."""

import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import time

LIBC = ctypes.CDLL(None, use_errno=True)
# Calls that end or suspend the caller for good say nothing about the kernel: exit, exit_group, pause, rt_sigsuspend, rt_sigreturn.
SKIPPED = {60, 231, 34, 130, 15} if os.uname().machine == "x86_64" else {93, 94, 133, 139}
NUMBERS = [number for number in range(470) if number not in SKIPPED] + [548, 1000, 0x40000000, 0x400000FF, 2**31 - 1]
BUFFER = ctypes.create_string_buffer(os.urandom(65536), 65536)
ADDRESS = ctypes.addressof(BUFFER)
ODD = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    16,
    64,
    255,
    4095,
    4096,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    0xDEAD0000,
    2**47,
)
WORDS = (
    b"/tmp/f",
    b"/tmp",
    b"/proc/self/mem",
    b"/proc/self/fd/3",
    b"/dev/zero",
    b"/var/task/handler.py",
    b"",
    b"\xff" * 300,
    b"tmpfs",
    b"user",
)


def _argument(dice):
    kind = dice.randrange(6)
    if kind == 0:
        return ctypes.c_ulong(dice.choice(ODD))
    if kind == 1:
        return ctypes.c_ulong(ADDRESS + dice.randrange(0, 60000))
    if kind == 2:
        return ctypes.c_ulong(dice.randrange(0, 40))
    if kind == 3:
        return ctypes.c_ulong(dice.getrandbits(64))
    if kind == 4:
        return ctypes.c_char_p(dice.choice(WORDS))
    return ctypes.c_ulong(1 << dice.randrange(64))


def _child(seed, tally, keep):
    """Call on and on until the alarm, a wild call, or the parent ends this process."""
    if not keep:
        os.closerange(3, 64)
    resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    dice = random.Random(seed)
    while True:
        LIBC.syscall(ctypes.c_long(dice.choice(NUMBERS)), *(_argument(dice) for _ in range(6)))
        os.pwrite(tally, b"\1", dice.randrange(1 << 20)) if dice.random() < 0.01 else None


def ours(event):
    """Children with seeds that count up from the event's, for so many seconds; how many there were and how they ended."""
    tally = os.memfd_create("tally")
    end, seed, running, ended = time.monotonic() + event["seconds"], event["seed"], {}, {}
    while time.monotonic() < end:
        while len(running) < event["children"]:
            seed += 1
            try:
                pid = os.fork()
            except OSError:
                break
            if pid == 0:
                try:
                    _child(seed, tally, event["keep"])
                finally:
                    os._exit(1)
            running[pid] = seed
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            running.pop(pid, None)
            how = str(os.waitstatus_to_exitcode(status))
            ended[how] = ended.get(how, 0) + 1
        else:
            time.sleep(0.001)
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        os.close(tally)
    return {"seeds": seed - event["seed"], "ended": ended}


def program(event):
    """A fuzzer that came in the bundle, with the libraries it needs."""
    os.makedirs("/tmp/work", exist_ok=True)
    shutil.copyfile(f"/var/task/lib/{event['loader']}", "/tmp/loader")  # files of a bundle that was packed here have no mode
    os.chmod("/tmp/loader", 0o755)
    loader = ["/tmp/loader", "--library-path", "/var/task/lib", f"/var/task/bin/{event['program']}"]
    said = "/tmp/said"
    with open(said, "wb") as output:
        process = subprocess.Popen([*loader, *event["arguments"]], stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/tmp/work")
        try:
            status = process.wait(event["seconds"])
        except subprocess.TimeoutExpired:
            status = "time"
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        pass
    with open(said, "rb") as file:
        text = file.read()[-20_000:].decode("utf-8", "replace")
    shutil.rmtree("/tmp/work", ignore_errors=True)
    return {"status": status, "text": text}
