"""What the documents for users tell people to type works, and prints what they say it prints.

Each document is followed from top to bottom against a real platform: the one that its own `dayfly up -d` starts, or, for a page
that supposes a running platform, one started before. The convention is described in console.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly import __version__
from tests.conftest import REPOSITORY
from tests.docs.console import EVENTUALLY, EVENTUALLY_SECONDS_MAX, Shell, Step, first_missing, plain, steps_of
from tests.e2e.harness import descendants

SHOWN = "127.0.0.1:8080"  # the address in the documents; the test's platform has another port
DOCUMENTS = ("README.md", "docs/quickstart.md", "docs/functions.md", "docs/operations.md", "docs/schedules.md", "docs/maps.md")


class Reader:
    """Somebody who follows a document in a folder of their own, with a platform, settings and credentials of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "config"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DAYFLY_") and name != "PYTHONPATH"}
        own = {"HOME": folder, "DAYFLY_DATA": self.data, "DAYFLY_PORT": 0, "DAYFLY_CONFIG_DIR": self.config}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        self.environment = {**kept, **{name: str(value) for name, value in own.items()}, "PATH": path}

    def address(self) -> str:
        """host:port of the platform that `dayfly up` started last; what documents show while there is none."""
        try:
            return str(json.loads((self.config / "credentials.json").read_text())["current"]).removeprefix("http://")
        except (OSError, ValueError, KeyError):
            return SHOWN

    def follow(self, shell: Shell, step: Step) -> str:
        """Do what one step says. Returns what went wrong, "" when nothing did."""
        if step.name:
            path = shell.folder / step.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            return ""
        deadline = time.monotonic() + EVENTUALLY_SECONDS_MAX
        while True:
            status, output = shell.type(step.text.replace(SHOWN, self.address()))
            output = output.replace(self.address(), SHOWN)
            missing = first_missing(step.expected, output)
            if status == step.status and not missing:
                return ""
            if not step.text.startswith(EVENTUALLY) or time.monotonic() > deadline:
                return f"line {step.line}: $ {step.text}\nexit status {status}, missing: {missing!r}\nit printed:\n{output}"

    def end(self) -> None:
        """Whatever happened: no platform stays."""
        try:
            supervisor = int((self.data / "run" / "supervisor.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return
        tree = list(descendants(supervisor))
        done = subprocess.run([sys.executable, "-m", "dayfly", "down"], env=self.environment, capture_output=True, text=True, timeout=60)
        left = [pid for pid in tree if lives(pid)]
        assert not left, f"`dayfly down` left {left} behind; it said {done.stdout}{done.stderr}"


def lives(pid: int) -> bool:
    """Whether a process is there and is more than a zombie, which only waits for the parent it was left to."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """In a short folder: instances must be able to reach it, and Unix sockets have short paths."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="dfydoc-"))
    folder.chmod(0o755)
    someone = Reader(folder)
    try:
        yield someone
    finally:
        try:
            someone.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_does_what_it_says(name: str, reader: Reader) -> None:
    """Every command of the document ends as it says and prints what it shows."""
    steps = [step for step in steps_of((REPOSITORY / name).read_text()) if not is_installation(step)]
    assert steps, f"{name} has nothing to run; see tests/docs/console.py for the convention"
    work = reader.folder / "work"
    work.mkdir()
    with Shell(work, reader.environment) as shell:
        if not any(step.text.startswith("dayfly up") for step in steps):
            status, said = shell.type("dayfly up -d")
            assert status == 0, said
        for step in steps:
            problem = reader.follow(shell, step)
            assert not problem, f"{name}, {problem}"


def is_installation(step: Step) -> bool:
    """Installing is tested below, in a copy of the repository."""
    return not step.name and ("pip install" in step.text or "venv" in step.text)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_installation_works_in_a_clean_clone(reader: Reader) -> None:
    """The quickstart's first commands, in a folder that holds what is committed or about to be, make a `dayfly` that runs."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    clone = reader.folder / "clone"
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((REPOSITORY / name).read_bytes())
    steps = [step for step in steps_of((REPOSITORY / "docs/quickstart.md").read_text()) if is_installation(step)]
    assert steps
    # The interpreter behind a virtual environment, so that the new one is not made from ours.
    base = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent)
    environment = {**reader.environment, "PATH": f"{base}:{os.environ.get('PATH', '')}"}
    with Shell(clone, environment) as shell:
        for step in steps:
            problem = reader.follow(shell, step)
            assert not problem, problem
        status, said = shell.type("dayfly --version")
    assert status == 0 and said.strip() == __version__, said


@pytest.mark.parametrize(
    ("wanted", "printed", "matches"),
    [
        ("ready in 621 ms", "ready in 2863 ms", True),
        ("call 82ff2a58-894f-41a9-b1ef-c3e33ef340fb  version 1", "call b631621d-fb4c-4b32-ae01-08062da8e277 version 1", True),
        ("call …  version 1", "call b631621d-fb4c-4b32-ae01-08062da8e277 version 2", False),
        ("HTTP/1.1 200 OK", "HTTP/1.1 401 Unauthorized", False),
        ("Hello, …!", "Hello, Ada!", True),
    ],
)
def test_times_and_ids_may_differ_and_nothing_else(wanted: str, printed: str, matches: bool) -> None:
    """What the comparison lets through is what must differ from run to run."""
    assert (first_missing((wanted,), printed) == "") is matches, (plain(wanted), plain(printed))


def test_expected_lines_must_come_in_order() -> None:
    assert first_missing(("a", "b"), "a\nx\nb\n") == ""
    assert first_missing(("b", "a"), "a\nx\nb\n") == "a"


def test_a_session_is_read_as_commands_and_what_they_print() -> None:
    """Continuation lines belong to the command, `# exit status` says how it ends, named blocks are files."""
    text = "```python f.py\nx = 1\n```\n\n```console\n$ a \\\n    b\nout\n$ false  # exit status 1\n```\n```sh\nrm -rf /\n```\n"
    file, first, second = steps_of(text)
    assert (file.name, file.text, file.line) == ("f.py", "x = 1\n", 2)
    assert (first.text, first.expected, first.status, first.line) == ("a \\\n    b", ("out",), 0, 6)
    assert (second.status, second.expected) == (1, ())
