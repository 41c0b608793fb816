"""`dayfly up`: settings, directories, lock, port; then this process becomes the supervisor, without anything the command line loaded.

The order is chosen so that whatever can be refused is refused before anything was started. A fork stays behind only until the
platform is ready: the *announcer* prints where it is and stores the first token (in front: a child; detached: the parent).
"""

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from dayfly import __version__, app, supervisor
from dayfly.cli import database, directories, output, profile, running
from dayfly.cli.failure import EXIT_INTERRUPTED, EXIT_PLATFORM, Failure
from dayfly.core.decide.gateways import gateways_of
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy
from dayfly.sandbox import privileges

BACKLOG = 4096
TOKEN_FILE = "admin-token"  # noqa: S105 (a file's name) below DATA/control, written by control on the first start
ANNOUNCE_SECONDS_MAX = supervisor.START_SECONDS_MAX + 15


class Prepared:
    """Everything the supervisor inherits, as open descriptors."""

    def __init__(self, settings: Settings, layout: Layout, listeners: list[socket.socket], locks: list[int]) -> None:
        self.settings = settings
        self.layout = layout
        self.listeners = listeners  # the public one; with `domain` the front's for HTTPS and HTTP, too
        self.locks = locks
        # When the shell started us, in seconds since boot (to 10 ms): "ready in" counts from there.
        self.born = supervisor.process_start_ticks(os.getpid()) / os.sysconf("SC_CLK_TCK")

    @property
    def url(self) -> str:
        """The address a person would use: a wildcard is shown as loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)  # noqa: S104
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.settings.port}"


def up(settings: Settings, *, detach: bool, as_json: bool) -> None:
    """Start the platform. Returns only when detached; otherwise this process is replaced. Raises Failure when it cannot start."""
    prepared = prepare(settings)
    announce_read, announce_write = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if bool(child) is not detach:  # the parent in front, the child when detached
        try:
            become_supervisor(prepared, announce_write, detach=detach)
        except BaseException as error:
            os.write(announce_write, json.dumps({"error": f"{type(error).__name__}: {error}", "role": "supervisor"}).encode())
            os._exit(EXIT_PLATFORM)
    os.close(announce_write)
    for fd in prepared.locks:
        os.close(fd)
    for listener in prepared.listeners:
        listener.close()
    if detach:
        announce(prepared, announce_read, child, as_json=as_json)
        return
    _announce_in_front(prepared, announce_read, as_json=as_json)


def prepare(settings: Settings) -> Prepared:
    """The port, directories and locks. Raises Failure and lets go of everything when one of them cannot be had.

    What needs no directory is tried first, so that a port in use leaves no trace on the disk."""
    try:
        users = privileges.role_users(settings.data, settings.user)
    except ValueError as error:
        raise Failure(f"`user` = {settings.user!r}: {error}.", "Name an ordinary user with --user, or leave it out.") from error
    running.refuse_second(directories.locate(settings))
    url = database.address(settings)
    with ExitStack() as undo:
        listeners = _listen_all(settings, undo)
        locks: list[int] = []
        layout = directories.prepare(settings)
        for lock in (running.lock, running.lock_data):
            locks.append(lock(layout))
            undo.callback(os.close, locks[-1])
        running.clear(layout)
        gateways = gateways_of(settings.gateways, len(os.sched_getaffinity(0)))
        directories.hand_over(layout, users, front=bool(settings.domain), gateways=gateways)
        database.leave(layout, url, users["control"])
        running.write_pid(locks[0], layout, os.getpid())
        undo.pop_all()
    settings = msgspec.structs.replace(settings, gateways=gateways)
    return Prepared(_as_it_is(settings, layout, [listener.getsockname()[:2] for listener in listeners]), layout, listeners, locks)


def _listen_all(settings: Settings, undo: ExitStack) -> list[socket.socket]:
    """The public socket, and those of the TLS front if there is one. Raises Failure, also when the front cannot be had at all."""
    listeners = [undo.enter_context(listen(settings.host, settings.port))]
    if settings.domain:
        from dayfly.gateway import front

        if not front.program():
            raise Failure(
                "`domain` asks for a TLS front, and Caddy, which it is, is not installed.",
                f"{sys.executable} -m pip install 'dayfly[tls]' (or install Caddy so that it is on PATH), or leave `domain` out and put a "
                "proxy of your own in front (docs/operations.md).",
                exit_code=EXIT_PLATFORM,
            )
        host = settings.front_host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")  # noqa: S104 - the public is meant
        for port, flag in ((settings.front_https_port, "--front-https-port"), (settings.front_http_port, "--front-http-port")):
            listeners.append(undo.enter_context(listen(host, port, flag)))
    return listeners


def _as_it_is(settings: Settings, layout: Layout, addresses: list[tuple[str, int]]) -> Settings:
    """With the directory and the ports that were got, and the front, if there is one, believed about who called. Without the database's
    address: every role reads these, and the node's memory is where functions come from."""
    settings = msgspec.structs.replace(settings, run=layout.run, port=addresses[0][1], database="")
    if not settings.domain:
        return settings
    settings = msgspec.structs.replace(settings, host=addresses[0][0])  # a name may mean several; the front connects to this one
    proxies = ",".join(part for part in (settings.trusted_proxies, caddy.gateway_address(settings)) if part)
    return msgspec.structs.replace(settings, front_https_port=addresses[1][1], front_http_port=addresses[2][1], trusted_proxies=proxies)


def listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A public socket, bound and listening. Raises Failure naming who holds the port when that can be found out."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        hint = "Correct --host; 127.0.0.1 is the default." if flag == "--port" else "Correct --front-host, or leave it out."
        raise Failure(f"{host!r} is no address of this machine: {error}.", hint) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::" and flag != "--port":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(BACKLOG)
    except PermissionError as error:
        listener.close()
        raise Failure(
            f"You may not listen on port {port}.", f"Choose {flag} 1024 or above, or start as root.", exit_code=EXIT_PLATFORM
        ) from error
    except OSError as error:
        listener.close()
        from dayfly.cli.machine import port_holder

        raise Failure(
            f"Cannot listen on {host}:{port}: {error.strerror}{port_holder(port)}.",
            f"End that program or choose another port with {flag} (0 picks a free one).",
            exit_code=EXIT_PLATFORM,
            code="port_in_use",
        ) from error
    return listener


def become_supervisor(prepared: Prepared, announce_fd: int, *, detach: bool) -> NoReturn:
    """Replace this process: only descriptors survive, so that the platform carries none of the command line's memory."""
    log_file = ""
    if detach:
        os.setsid()
        log_file = directories.log_file(prepared.layout)
        _redirect(log_file)
    running.write_pid(prepared.locks[0], prepared.layout, os.getpid())
    settings_fd = os.memfd_create("dayfly-settings", os.MFD_CLOEXEC)
    os.write(settings_fd, msgspec.json.encode(prepared.settings))
    sockets = [listener.fileno() for listener in prepared.listeners]
    descriptors = [settings_fd, announce_fd, *sockets, *[-1] * (3 - len(sockets)), *prepared.locks]
    for fd in descriptors:
        if fd >= 0:
            os.set_inheritable(fd, True)
    os.chdir("/")
    os.environ.pop(database.VARIABLE, None)
    arguments = [*app.command("supervisor"), ",".join(map(str, descriptors)), log_file]
    os.execv(arguments[0], arguments)  # noqa: S606 (our own interpreter)


def _redirect(log_file: str) -> None:
    """Standard input from nowhere, output and errors to the end of the log file."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)


def _announce_in_front(prepared: Prepared, fd: int, *, as_json: bool) -> NoReturn:
    """The announcer as a child of the supervisor: whatever happens, this process ends and says nothing twice."""
    code = 0
    try:
        announce(prepared, fd, 0, as_json=as_json)
    except Failure as problem:
        output.failure(problem)
        code = problem.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    os._exit(code)


def announce(prepared: Prepared, fd: int, child: int, *, as_json: bool) -> None:
    """Wait for the supervisor's word and pass it on. `child`: the supervisor when we are its parent."""
    try:
        said = _wait_announcement(fd)
    except KeyboardInterrupt:
        if child:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        raise
    if not said.get("ready"):
        if child:
            os.waitpid(child, 0)
        raise Failure(
            f"The platform did not start: {said.get('role', 'supervisor')}: {said.get('error', 'it ended without a word')}.",
            f"Read the log: {directories.log_file(prepared.layout)}."
            if child
            else "Read the lines above; `dayfly doctor` looks at this machine.",
            fault="platform",
            exit_code=EXIT_PLATFORM,
            code="start_failed",
        )
    token = take_first_token(prepared.layout)
    warning = ""
    try:
        known = profile.remember(prepared.url, prepared.layout.data, token, run=prepared.layout.run)
    except Failure as problem:
        known, warning = bool(token), f"{problem.what} {problem.hint}"
    missing = missing_walls(prepared.url) if known and not warning else []
    pid = child or os.getppid()
    _print(prepared, pid, token, missing, as_json=as_json)
    if warning or not known:
        output.warn(warning or "no token for this data directory is stored here; set DAYFLY_TOKEN.")


def _wait_announcement(fd: int) -> dict[str, Any]:
    raw = b""
    deadline = time.monotonic() + ANNOUNCE_SECONDS_MAX
    while not raw.endswith(b"\n") and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        block = os.read(fd, 8192)
        if not block:
            break
        raw += block
    os.close(fd)
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def take_first_token(layout: Layout) -> str:
    """The admin token that control made on the first start; its file is deleted by reading it. "" on later starts."""
    path = Path(layout.control, TOKEN_FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd) as file:
        token = file.read(4096).strip()
    path.unlink(missing_ok=True)
    return token


def missing_walls(url: str) -> list[str]:
    """The isolation this machine lacks, as the node reported it; [] when nothing is missing or nobody could be asked."""
    from dayfly.cli.client import Client

    try:
        features = Client(profile.Profile(url), timeout_seconds=5).json("GET", "/api/v1/doctor").get("features", {})
    except Failure:
        return []
    return [f"{name}: {why}" for name, why in features.items() if why is not True] if isinstance(features, dict) else []


def _print(prepared: Prepared, pid: int, token: str, missing: list[str], *, as_json: bool) -> None:
    """What was started, once. The token is shown this one time."""
    ready_ms = round((time.clock_gettime(time.CLOCK_BOOTTIME) - prepared.born) * 1000)
    https = caddy.urls_of(prepared.settings.domain, prepared.settings.front_https_port)
    facts: dict[str, Any] = {
        "url": prepared.url,
        "https": https,
        "data": prepared.layout.data,
        "pid": pid,
        "isolation": prepared.settings.isolation,
    }
    if as_json:
        output.document(facts | {"missing": missing, "token": token or None, "ready_ms": ready_ms, "version": __version__})
        return
    output.result(f"Dayfly {__version__} at {prepared.url}")
    for url in https:
        output.result(f"  https      {url}")
    output.result(f"  data       {prepared.layout.data}")
    output.result(f"  isolation  {prepared.settings.isolation}" + (f", {len(missing)} of this machine's walls missing" if missing else ""))
    if token:
        output.result(f"  token      {token}  (shown once; stored in {profile.config_dir() / profile.CREDENTIALS})")
    for wall in missing:
        output.warn(f"missing wall {wall} (`dayfly doctor` says what that costs)")
    output.result(f"ready in {ready_ms} ms")
