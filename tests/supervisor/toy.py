"""A toy role: `toy.py NAME HOW FOLDER`. Speaks the supervisor's protocol and appends what happens to FOLDER/events."""

import os
import signal
import sys
from pathlib import Path

from dayfly.supervisor import LIFELINE, LISTENER, PREPARED_BYTE, READY, READY_BYTE

name, how, folder = sys.argv[1:]


def note(event: str) -> None:
    fd = os.open(Path(folder, "events"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{name} {event} {os.getpid()}\n".encode())
    os.close(fd)


def on_term(*_: object) -> None:
    note("term")
    if how != "stubborn":
        raise SystemExit


def on_relief(*_: object) -> None:
    note("relieved")
    raise SystemExit


signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGUSR1, on_relief)
note("start")
if Path(folder, f"{name}.ill").exists():
    os.write(READY, b"it is ill")
    raise SystemExit(1)
os.write(READY, PREPARED_BYTE)
if os.read(LIFELINE, 1) == b"":
    raise SystemExit
note("go")
if how == "refuses":
    os.write(READY, b"the store is of a newer version")
    raise SystemExit(1)
if how == "dies-again" and Path(folder, f"{name}.once").exists():
    raise SystemExit(7)
Path(folder, f"{name}.once").touch()
if how == "listens":
    os.fstat(LISTENER)
if how != "late" and not Path(folder, f"{name}.slow").exists():
    note("ready")
    os.write(READY, READY_BYTE)
    os.close(READY)
while os.read(LIFELINE, 1):
    pass
note("orphaned")
