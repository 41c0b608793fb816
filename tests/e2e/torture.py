"""The function that the tests of bad calls deploy: each event names one thing that user code should not do. Runs in sandboxes only."""

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text for you")


def raise_(event):
    raise KeyError("the-secret-detail")


def raise_unprintable(event):
    raise Unprintable


def recurse(event):
    return recurse(event)


def not_json(event):
    return object()


def circular(event):
    ring = []
    ring.append(ring)
    return ring


def nan(event):
    return math.nan


def as_bytes(event):
    return b"\x00\xffbytes"


def too_large(event):
    return "x" * (6 * 1024 * 1024 + 200)


def large(event):
    return "x" * (6 * 1024 * 1024 - 1024)


def bad_status(event):
    return {"statusCode": "fine", "body": ""}


def split_header(event):
    return {"statusCode": 200, "headers": {"x-a": "b\r\nset-cookie: stolen=1"}, "body": "hello"}


def exit_now(event):
    os._exit(event.get("status", 3))


def segfault(event):
    ctypes.string_at(0)


def abort(event):
    os.abort()


def sys_exit(event):
    sys.exit(4)


def loop(event):
    while True:
        pass


def sleep(event):
    time.sleep(3600)


def swallow(event):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            continue


def daemons(event):
    """Leave processes behind that have left the session and lost their parents, and answer."""
    for _ in range(event.get("count", 3)):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(3600)
            os._exit(0)
    return "left some"


def child_program(event):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    return "left a program"


def memory_bomb(event):
    blocks = []
    while True:
        blocks.append(b"\x01" * (8 << 20))


def child_memory_bomb(event):
    done = subprocess.run([sys.executable, "-c", "b=[]\nwhile 1: b.append(b'1'*(8<<20))"])
    return done.returncode


def fork_bomb(event):
    """Processes until no more are given, all of which keep forking; then wait for the end."""
    started = time.monotonic()
    while time.monotonic() - started < event.get("seconds", 1):
        try:
            os.fork()
        except OSError:
            time.sleep(0.001)
    time.sleep(3600)


def threads(event):
    import threading

    count = 0
    try:
        for _ in range(100_000):
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            count += 1
    except RuntimeError:
        return count
    return count


def fill_tmp(event):
    try:
        with open(os.environ.get("TMPDIR", "/tmp") + "/fill", "wb", buffering=0) as file:
            for _ in range(10_000):
                file.write(b"\x01" * (1 << 20))
    except OSError as error:
        return {"errno": error.errno, "name": os.strerror(error.errno)}
    return "never full"


def many_files(event):
    try:
        for number in range(2_000_000):
            os.close(os.open(f"/tmp/f{number}", os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return {"errno": error.errno, "name": os.strerror(error.errno)}
    return "never full"


def close_everything(event):
    os.closerange(0, 65536)
    return "closed"


def shout(event):
    for number in range(event["lines"]):
        print("x" * 200, number)
    return "shouted"


def garbage(event):
    for descriptor in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\xff" * 4096)
    return "wrote"


def environment(event):
    with open("/proc/self/environ", "rb") as file:
        before = file.read().decode("latin-1")
    return {"now": dict(os.environ), "before": before}


def who(event):
    return {"pid": os.getpid(), "host": os.uname().nodename}


def handler(event, context):
    if "requestContext" in event:  # the HTTP door: /function/NAME/ACT
        act, arguments = event["rawPath"].rpartition("/")[2], event.get("queryStringParameters") or {}
    else:
        act, arguments = event["act"], event
    json.dumps(arguments)
    return globals()[act](arguments)
