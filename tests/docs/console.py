"""Reads the runnable parts of a document and runs them in one shell, as a reader would who types them.

The convention, for whoever writes a document:

    ```console      a session: lines with `$ ` are typed, the lines below each must appear in what it prints, in this order.
                    `…` stands for anything. What differs from run to run (times, ids, tokens) is compared by its kind, so real
                    output may be pasted as it came. A command ends with 0, or with N when `# exit status N` stands behind it.
    ```python NAME  a file with this name, made when the reader gets there (any language word does)
    ```sh           shown only; never run

Used by test_documents_run.py. Standard library only.
"""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

FENCE = re.compile(r"^```(?P<language>\w+)(?: (?P<name>\S+))?\n(?P<text>.*?)^```$", re.M | re.S)
STATUS = re.compile(r"#\s*exit status (\d+)\s*$")
COMMAND_SECONDS_MAX = 200.0
# Numbers and logs reach control up to a second after the call: these commands are asked again until they show what is expected.
EVENTUALLY = ("dayfly logs ", "dayfly describe ", "dayfly cost", "dayfly top ")
EVENTUALLY_SECONDS_MAX = 10.0
COLUMNS = 100
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
KINDS = (
    (re.compile(r"\bdfy_\w+"), "TOKEN"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{3}\b"), "ID"),
    (re.compile(r"\bg[0-9a-f]+-[0-9a-z]+\b"), "INSTANCE"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "DIGEST"),
    (re.compile(r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4}\b"), "DATE"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "DATE"),
    (re.compile(r"\b\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b"), "TIME"),
    (re.compile(r"\b(dur=|pid )[\d.]+"), r"\1N"),
    (re.compile(r"\b\d+(?:\.\d+)?(?: ?(?:ms|s|MiB)\b)"), "AMOUNT"),
    (re.compile(r"\b0\.\d{3,}\b"), "AMOUNT"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Step:
    """Something the reader does: type a command (`name` empty), or make the file `name`. `line` is where in the document."""

    text: str
    line: int
    name: str = ""
    expected: tuple[str, ...] = ()
    status: int = 0


def steps_of(document: str) -> list[Step]:
    """All steps in the order of the document. Raises ValueError for a session that begins with something else than a command."""
    found: list[Step] = []
    for fence in FENCE.finditer(document):
        line = document.count("\n", 0, fence.start()) + 2
        if fence["language"] == "console":
            found += _commands(fence["text"], line)
        elif fence["name"]:
            found.append(Step(fence["text"], line, fence["name"]))
    return found


def _commands(session: str, first: int) -> list[Step]:
    commands: list[tuple[str, int, list[str]]] = []
    for number, line in enumerate(session.splitlines(), first):
        if line.startswith("$ "):
            commands.append((line[2:], number, []))
        elif commands and commands[-1][0].endswith("\\"):
            commands[-1] = (commands[-1][0] + "\n" + line, *commands[-1][1:])
        elif commands:
            commands[-1][2].append(line)
        else:
            raise ValueError(f"line {number}: a console block begins with a command, not with {line!r}")
    return [
        Step(text, number, "", tuple(filter(str.strip, expected)), int(status[1]) if (status := STATUS.search(text)) else 0)
        for text, number, expected in commands
    ]


def plain(text: str) -> str:
    """A line without what differs from run to run."""
    text = ESCAPES.sub("", text).replace("\r", "")
    for pattern, kind in KINDS:
        text = pattern.sub(kind, text)
    return text.strip()


def first_missing(expected: tuple[str, ...], output: str) -> str:
    """The first expected line that does not come, in order; "" when all do."""
    lines = iter([plain(line) for line in output.splitlines()])
    for wanted in expected:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in plain(wanted).split("…")).replace(r"\ ", " ?"))
        if plain(wanted) != "…" and not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return ""


class Shell:
    """One bash on a terminal of its own, in `folder`. A context manager; leaving it ends what it started in the foreground."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._end = f"--- end {os.urandom(8).hex()} ---"
        self._terminal, theirs = pty.openpty()
        surroundings = {**environment, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(COLUMNS)}
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=surroundings,
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        os.close(self._terminal)

    def type(self, command: str) -> tuple[int, str]:
        """Run one command. Returns its exit status and everything it printed. Raises AssertionError when it does not end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\nprintf '\\n%s %s\\n' '{self._end}' $?\n".encode())
        self.process.stdin.flush()
        said, deadline, end = b"", time.monotonic() + COMMAND_SECONDS_MAX, re.compile(self._end.encode() + rb" (\d+)")
        while not (found := end.search(said)):
            if not select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{command!r} did not end; it said {said!r}")
            said += os.read(self._terminal, 65536)
        return int(found[1]), said[: found.start()].decode(errors="replace")
