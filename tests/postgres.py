"""A private PostgreSQL server for tests: real, durable (fsync on), on a Unix socket of its own, gone with the run.

`Server` is a context manager: Debian's programs in a temporary folder, as the account `postgres` where we are root (it refuses root),
as ourselves otherwise. The machine's own clusters are never looked at. Leaving it ends the server and removes every file, also when a test
failed; a server whose test process was killed ends by itself (PR_SET_PDEATHSIG), and only its folder stays. Fixtures, loaded for every
test by tests/conftest.py: `postgres_server` (one for the session) and `postgres` (the URL of a fresh database, dropped after the test).
"""

import ctypes
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pytest

from tests.e2e import leaks

ACCOUNT = "postgres"  # made by Debian's package; only the programs run as it
USER = "dayfly"
START_SECONDS_MAX = 60.0
PR_SET_PDEATHSIG = 1
CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{folder}'
max_connections = 60
shared_buffers = 16MB
fsync = on
synchronous_commit = on
dynamic_shared_memory_type = mmap
log_line_prefix = '%m [%p] %u@%d '
"""


def programs() -> Path | None:
    """The folder of initdb and postgres: the newest of Debian's, or what PATH has."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which("initdb")
    return Path(path).resolve().parent if path else None


class Server:
    """One cluster. `url(database)` names a database of it; `start`, `stop` and `restart` as often as a test likes."""

    def __init__(self, folder: Path | None = None, *, settings: str = "") -> None:
        """`folder`: an existing empty one to use (it is emptied at the end); else one below the temporary folder, whose name is short
        because a Unix socket's path has at most 107 bytes."""
        found = programs()
        assert found is not None, "no PostgreSQL here: scripts/test installs Debian's package"
        self.programs = found
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pg-"))
        self._made = folder is None
        self.data, self.log = self.folder / "data", self.folder / "log"
        self.password = secrets.token_urlsafe(12)
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def url(self, database: str) -> str:
        """What Dayfly's setting `database` takes: with user, password and socket."""
        return f"postgresql://{USER}:{self.password}@/{database}?host={quote(str(self.folder), safe='')}"

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [self.programs / "postgres", "-D", self.data]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent, cwd="/", **self._identity()
            )
        leaks.NOT_OURS.add(self.process.pid)
        deadline = time.monotonic() + START_SECONDS_MAX
        while self._run("pg_isready", "-q", "-h", self.folder, "-U", USER, check=False).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, f"PostgreSQL did not start:\n{self.said()}"
            select.select([], [], [], 0.02)

    def stop(self, *, crash: bool = False) -> None:
        """End it: connections are cut, what is committed is on disk. `crash`: without a checkpoint, as after a power cut."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        try:
            process.wait(START_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        leaks.NOT_OURS.discard(process.pid)

    def restart(self, *, crash: bool = False) -> None:
        """Stop, and start again with what it had."""
        self.stop(crash=crash)
        self.start()

    def close(self) -> None:
        """End it and remove every file; safe to call again."""
        try:
            self.stop()
        finally:
            if self._made:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                for path in (self.data, self.log):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def make(self, database: str) -> str:
        """A new database; its URL."""
        self.sql(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement with psql, so that a test's own driver is not what it is tested with; what it printed, rows as lines."""
        done = self._run("psql", "-h", self.folder, "-U", USER, "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement)
        return done.stdout.decode().strip()

    def dumped_schema(self, database: str) -> str:
        """pg_dump's text of all definitions in a database, without its comments and settings."""
        done = self._run("pg_dump", "-h", self.folder, "-U", USER, "--schema-only", "--no-owner", database)
        return "\n".join(line for line in done.stdout.decode().splitlines() if line and not line.startswith(("--", "SET ", "\\")))

    def said(self) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-8000:] if self.log.exists() else ""

    def _initialise(self) -> None:
        # Everybody may pass to the socket (platforms under test are users of their own), nobody without the password gets further.
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(self.folder, ACCOUNT)
        word = self.folder / "password"
        word.write_text(self.password)
        word.chmod(0o644)
        options = ["-A", "scram-sha-256", "-U", USER, f"--pwfile={word}", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
        self._run("initdb", "-D", self.data, *options)
        word.unlink()
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(folder=self.folder) + self.settings)

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"PGPASSWORD": self.password}
        command = [str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, cwd="/", **self._identity())
        assert not check or done.returncode == 0, f"{program} → {done.returncode}\n{done.stderr.decode(errors='replace')}\n{self.said()}"
        return done

    @staticmethod
    def _identity() -> dict[str, Any]:
        return {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}


def _end_with_parent() -> None:
    """In the child, after it became its user: an immediate, orderly end (no shared memory stays) when the test process dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's server. Where there is none, root's run fails (scripts/test would have installed it), others skip."""
    if programs() is None:
        message = "no PostgreSQL on this machine: apt-get install postgresql, or run scripts/test as root, which does"
        pytest.fail(message) if os.geteuid() == 0 else pytest.skip(message)
    with Server() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    name = f"t{secrets.token_hex(6)}"
    try:
        yield postgres_server.make(name)
    finally:
        if postgres_server.process is None:  # a test that stopped the server failed before it started it again
            postgres_server.start()
        postgres_server.drop(name)
