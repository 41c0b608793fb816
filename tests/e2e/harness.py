"""A real platform for tests and benchmarks: `dayfly up` on a free port in a private folder, driven through the real command line.

`Platform` is a context manager; leaving it ends everything, also when the body failed, and a platform whose test process was
killed ends by itself (PR_SET_PDEATHSIG). Standard library only. Used by tests/e2e (fixtures in conftest.py) and by bench/.
"""

import ctypes
import http.client
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

START_SECONDS_MAX = 45.0
STOP_SECONDS_MAX = 20.0
PR_SET_PDEATHSIG = 1
ORDINARY_UID = 64_321  # a user of no account: what an ordinary user may do, and no more


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are in lower case; of repeated headers the values are joined with ', '."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises AssertionError with the body's beginning when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f"no JSON in a {self.status} answer: {self.body[:500]!r}") from None


class CommandFailed(AssertionError):
    """A `dayfly` command ended with another status than expected; the message has all it printed."""


@dataclass
class Platform:
    """One platform. `as_uid` 0 is the present user; another uid runs everything as that user (root's tests only)."""

    settings: Mapping[str, object] = field(default_factory=dict)
    as_uid: int = 0
    python: str = sys.executable
    url: str = ""
    token: str = ""
    process: subprocess.Popen[bytes] | None = None
    made: ClassVar[list[Path] | None] = None  # folders of all platforms, where somebody wants to know (tests/e2e/conftest.py)

    def __post_init__(self) -> None:
        # Unix socket paths have at most 107 bytes: a short name, directly below the temporary folder.
        self.folder = Path(tempfile.mkdtemp(prefix="dfy-"))
        if self.made is not None:
            self.made.append(self.folder)
        self.data = self.folder / "data"
        self.log = self.folder / "platform.log"
        # Instances run as other users still and must be able to reach their code below.
        self.folder.chmod(0o755)
        if self.as_uid:
            os.chown(self.folder, self.as_uid, self.as_uid)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        assert self.process is not None, "the platform was not started"
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the public socket."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def environment(self) -> dict[str, str]:
        """What a command line of this platform's user sees: no settings of whoever runs the test."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DAYFLY_") and name != "PYTHONPATH"}
        home = {
            "HOME": str(self.folder),
            "DAYFLY_CONFIG_DIR": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "E2E_CANARY": "what the person who starts the platform has in the environment",
        }
        return kept | home | ({"DAYFLY_URL": self.url} if self.url else {})

    def start(self) -> None:
        """`dayfly up` in front; returns when it says it is ready. Raises CommandFailed with its log when it does not."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in ({"port": 0} | dict(self.settings)).items()]
        command = [self.python, "-m", "dayfly", "up", "--json", f"--data={self.data}", *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
                **self._identity(),
            )
        said = self._wait_ready()
        self.url = str(said["url"])
        self.token = str(said.get("token") or self.token)

    def _identity(self) -> dict[str, Any]:
        return {"user": self.as_uid, "group": self.as_uid, "extra_groups": []} if self.as_uid else {}

    def _wait_ready(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        descriptor, said, deadline = self.process.stdout.fileno(), b"", time.monotonic() + START_SECONDS_MAX
        while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            block = os.read(descriptor, 65536)
            said += block
            with suppress(ValueError):
                document = json.loads(said)
                if isinstance(document, dict):
                    return document
            if not block:
                break
        raise CommandFailed(f"the platform did not start; it said {said!r}, and its log:\n{self.log_text()}")

    def log_text(self) -> str:
        """The platform's own log, the last 20 KB."""
        return self.log.read_text(errors="replace")[-20_000:] if self.log.exists() else ""

    def stop(self) -> int:
        """SIGTERM and wait. Returns the exit status; a platform that does not end in time is killed and gives -9."""
        if self.process is None:
            return 0
        tree = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            for pid in tree:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return self.process.wait(5)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def close(self) -> None:
        """Stop and remove everything; safe to call again."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Pids of supervisor, roles, zygotes and instances that live now, parents first."""
        return list(descendants(self.pid)) if self.process is not None else []

    def roles(self) -> dict[str, int]:
        """Role → pid, as the supervisor wrote it down (state file in the run directory)."""
        state = json.loads((self.data / "run" / "state.json").read_text())
        return {name: int(role["pid"]) for name, role in state["roles"].items()}

    # Commands

    def cli(self, *arguments: str, status: int | None = 0, stdin: str | None = None, cwd: Path | None = None) -> str:
        """Run `dayfly ARGUMENTS` as this platform's user and return its standard output.

        Raises CommandFailed when it ends with another status than `status` (None: any will do)."""
        done = subprocess.run(
            [self.python, "-m", "dayfly", *arguments],
            cwd=cwd or self.folder,
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=330,
            **self._identity(),
        )
        if status is not None and done.returncode != status:
            raise CommandFailed(
                f"dayfly {' '.join(arguments)} → {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log_text()[-4000:]}"
            )
        return str(done.stdout)

    def cli_json(self, *arguments: str, stdin: str | None = None) -> Any:
        """`dayfly ARGUMENTS --json`, its output decoded; of several lines, the last one's."""
        said = self.cli(*arguments, "--json", stdin=stdin)
        try:
            return json.loads(said)
        except ValueError:
            return json.loads(said.strip().splitlines()[-1])

    def write(self, name: str, text: str | bytes) -> Path:
        """A file of the test's own, below this platform's folder where its user may read it; `name` may hold folders."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def copy(self, folder: Path) -> Path:
        """A copy of a folder of ours where this platform's user may read it."""
        target = self.folder / "files" / folder.name
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return target

    def deploy(self, path: Path, *flags: str) -> dict[str, Any]:
        """`dayfly deploy PATH`; returns its last event: version, url, unchanged, seconds …"""
        event: dict[str, Any] = self.cli_json("deploy", str(path), *flags)
        return event

    # HTTP

    def upload(
        self, name: str, bundle: bytes, config: Mapping[str, object], *, namespace: str = "default", token: str | None = None
    ) -> Answer:
        """PUT a bundle as the command line does, whatever it holds; the answer is a stream of JSON lines, or an error."""
        edge = "dayfly-test-edge-6c1f"
        body = b"".join(
            b'--%b\r\ncontent-disposition: form-data; name="%b"; filename="%b"\r\ncontent-type: %b\r\n\r\n%b\r\n'
            % (edge.encode(), part, part, kind, content)
            for part, kind, content in (
                (b"config", b"application/json", json.dumps(dict(config)).encode()),
                (b"bundle", b"application/zip", bundle),
            )
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        path = f"/api/v1/functions/{name}?namespace={namespace}"
        return self.request("PUT", path, body + f"--{edge}--\r\n".encode(), headers, token=token)

    def try_put(
        self, name: str, source: str | Mapping[str, str | bytes], *, namespace: str = "default", **config: object
    ) -> dict[str, Any]:
        """Deploy through the API, without the command line's half second: the last event, `deployed` or `failed`."""
        answer = self.upload(name, zipped(source), config, namespace=namespace)
        if answer.status != 200:
            raise AssertionError(f"deploy of {name!r} → {answer.status} {answer.body[:2000]!r}")
        event: dict[str, Any] = json.loads(answer.body.strip().splitlines()[-1])
        return event

    def put(self, name: str, source: str | Mapping[str, str | bytes], *, namespace: str = "default", **config: object) -> dict[str, Any]:
        """Deploy `source` (a handler.py's text, or files by name); raises AssertionError with the event when that fails."""
        event = self.try_put(name, source, namespace=namespace, **config)
        assert event["event"] == "deployed", f"deploy of {name!r}: {json.dumps(event)[:4000]}"
        return event

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
    ) -> Answer:
        """One HTTP request on a connection of its own, with the admin token unless `token` says otherwise ('' sends none)."""
        bearer = self.token if token is None else token
        sent = ({"Authorization": f"Bearer {bearer}"} if bearer else {}) | dict(headers or {})
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            given: dict[str, str] = {}
            for name, value in answer.getheaders():
                given[name.lower()] = f"{given[name.lower()]}, {value}" if name.lower() in given else value
            return Answer(answer.status, given, answer.read())
        finally:
            connection.close()

    def invoke(self, name: str, event: object = None, **headers: str) -> Answer:
        """Direct invoke: JSON in, JSON out."""
        sent = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        return self.request("POST", f"/api/v1/functions/{name}/invoke", json.dumps(event).encode(), sent)

    def wait_for(self, true: str, condition: Callable[[], object], *, seconds: float = 20.0) -> None:
        """Poll until `condition()` holds. `true` names it for the failure."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {true}"
            select.select([], [], [], 0.02)

    def wait_until(self, true: str, path: str, condition: Any, *, seconds: float = 20.0) -> Any:
        """Ask a control route until `condition(document)` holds; returns the document. `true` names it for the failure."""
        deadline, document = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            document = self.request("GET", path).json()
            if condition(document):
                return document
            select.select([], [], [], 0.05)
        raise AssertionError(f"not within {seconds} s: {true}; last seen: {json.dumps(document)[:2000]}")


def zipped(source: str | Mapping[str, str | bytes]) -> bytes:
    """A bundle in memory: one handler.py, or files by name."""
    import io
    import zipfile

    files = {"handler.py": source} if isinstance(source, str) else source
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def end_with_parent() -> None:
    """In the child, after it became its user (a change of user clears the mark): die in order when the parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def parent_of(pid: int) -> int:
    """The parent's pid, 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def descendants(pid: int) -> Iterator[int]:
    """`pid` and every process below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        current = waiting.pop(0)
        yield current
        waiting += sorted(children.get(current, []))


def ordinary_uid() -> int:
    """The uid for `Platform(as_uid=…)` that stands for an ordinary user: ours when we are not root."""
    if os.geteuid() != 0:
        return 0
    with suppress(KeyError):
        pwd.getpwuid(ORDINARY_UID)
        raise AssertionError(f"uid {ORDINARY_UID} has an account here; choose another in tests/e2e/harness.py")
    return ORDINARY_UID
