"""Runs a Supervisor over toy roles in a process of its own. `Toys` is the handle the tests hold."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_SECONDS = 20.0
TOY = str(Path(__file__).with_name("toy.py"))


class Toys:
    """`plan`: (name, how) in starting order; how "listens" gets the public socket."""

    def __init__(self, folder: Path, *plan: tuple[str, str], stop_seconds: float = 5.0, start_seconds: float = 30.0) -> None:
        self.folder = folder
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.announce_read, announce_write = os.pipe()
        settings = os.memfd_create("settings")
        fds = [settings, self.listener.fileno(), announce_write]
        words = json.dumps([plan, stop_seconds, fds, str(folder), start_seconds])
        self.process = subprocess.Popen(
            [sys.executable, __file__, words], pass_fds=fds, stderr=(folder / "log").open("ab"), stdin=subprocess.DEVNULL
        )
        os.close(announce_write)
        os.close(settings)

    def announcement(self) -> dict[str, object]:
        """What the supervisor says once."""
        assert select.select([self.announce_read], [], [], DEADLINE_SECONDS)[0], "no announcement"
        return json.loads(os.read(self.announce_read, 65536) or b"{}")

    def state(self) -> dict[str, object]:
        return json.loads((self.folder / "state.json").read_text())

    def pid(self, name: str) -> int:
        return self.state()["roles"][name]["pid"]

    def events(self) -> list[str]:
        """`name event` lines so far, in order."""
        path = self.folder / "events"
        return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines() if line.startswith("{")]

    def wait(self, condition, what: str) -> None:
        """Until `condition()` holds; the deadline is only for a broken supervisor."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen; events {self.events()}"
            select.select([], [], [], 0.01)

    def restart(self, signal_number: int) -> dict[str, object]:
        """Ask for a restart and wait until it is over; what the state file says of it."""
        before = self.state()["restart"]["number"]
        self.process.send_signal(signal_number)
        self.wait(lambda: self.restarted()["number"] > before and not self.restarted()["running"], "the end of the restart")
        return self.restarted()

    def restarted(self) -> dict[str, object]:
        return self.state()["restart"]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_SECONDS)

    def pids(self) -> list[int]:
        path = self.folder / "events"
        return sorted({int(line.split()[-1]) for line in path.read_text().splitlines()}) if path.exists() else []

    def close(self) -> None:
        """Nothing of it stays, also when a test failed."""
        self.process.kill()
        self.process.wait()
        for pid in self.pids():
            if TOY.encode() in _cmdline(pid):
                os.kill(pid, signal.SIGKILL)
        self.listener.close()
        os.close(self.announce_read)


def alive(pid: int) -> bool:
    return TOY.encode() in _cmdline(pid)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main(words: str) -> int:
    """The supervisor's process; `again FD` and `check FD` are what it becomes, and asks, at a restart."""
    from dayfly import handover
    from dayfly.supervisor import LISTENER, Role, Supervisor

    plan, stop_seconds, (settings, listener, announce), folder, start_seconds = json.loads(words)
    held = handover.Held.given(*sys.argv[2:4] if len(sys.argv) > 2 else (f"{settings},{announce},{listener},-1,-1", ""))
    if handover.CHECK in sys.argv:
        return int(Path(folder, "broken").exists())
    toys = [
        Role(
            name, [sys.executable, TOY, name, how, folder], stop_seconds=stop_seconds, listeners=(LISTENER,) if how == "listens" else (),
            manners={"control": "alone", "egress": "first"}.get(name, ""),
        )
        for name, how in plan
    ]  # fmt: skip
    return Supervisor(
        toys,
        held,
        state_file=f"{folder}/state.json",
        facts={"log_level": "debug", "data": folder},
        command=(sys.executable, __file__, words),
        start_seconds=start_seconds,
    ).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
