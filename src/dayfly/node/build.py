"""Builds: uv installs a function's dependencies in a sandbox that has the host's network and nothing else of the host.

The first process of the sandbox (`_Box`, still privileged, but alone with a watch and a folder) makes the walls, starts uv as a uid of
its own, kills it when the result grows too large, and hands the finished files to control's user. It must never parse what uv installs.
No package code runs: wheels only, nothing is built from source. Called by node/server.py; messages: core/wire/node.py `Build`.
"""

import contextlib
import os
import resource
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from dayfly.core.model.layout import Layout
from dayfly.core.wire.node import Build as BuildMessage
from dayfly.core.wire.node import Built
from dayfly.node import leftovers
from dayfly.node.log import log
from dayfly.node.machine import Machine
from dayfly.node.nursery import become_child, fork_first
from dayfly.sandbox import cgroup, launch, mounts, seccomp
from dayfly.sandbox import syscalls as sys_

BUILDS_MAX = 4
OUT_BYTES_MAX = 512 * 1024 * 1024
OUT_FILES_MAX = 50_000
MEMORY_BYTES_MAX = 2 << 30
PIDS_MAX = 128
TMP_BYTES_MAX = 256 * 1024 * 1024
REQUIREMENTS_BYTES_MAX = 1024 * 1024
CHECK_SECONDS = 0.25
FOREVER_SECONDS = 3600.0
# Taken over from the platform's own environment: where packages come from, and whom to trust. May hold credentials: never logged.
PASSED_ON = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
)  # fmt: skip
ETC_FILES = ("resolv.conf", "hosts")
EXIT_TOO_LARGE, EXIT_SANDBOX = 90, 91


class Build(msgspec.Struct):
    """A running build."""

    layer: str
    pid: int
    deadline: float
    tell: Callable[[Built], None]
    uid: int
    group: cgroup.Group | None
    timed_out: bool = False
    failed: str = ""  # why, once it has; from then on `pid` is a child that removes what it left


class Builder:
    """All running builds. One thread; `ended` is called when a build's first process was reaped."""

    def __init__(self, machine: Machine, layout: Layout, owner: int) -> None:
        self._machine = machine
        self._layout = layout
        self._owner = owner  # who gets the files
        self._running: list[Build] = []

    def __repr__(self) -> str:
        return f"<Builder running={[build.layer[:8] for build in self._running]}>"

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[Build]:
        return list(self._running)

    def start(self, message: BuildMessage, output: int, tell: Callable[[Built], None]) -> None:
        """Begin a build; `tell` hears of its end. Takes over `output`."""
        try:
            self._start(message, output, tell)
        except (OSError, ValueError) as error:
            log("warning", "build_refused", layer=message.layer, detail=str(error))
            tell(Built(message.layer, ok=False, detail=str(error)))
        finally:
            os.close(output)

    def _start(self, message: BuildMessage, output: int, tell: Callable[[Built], None]) -> None:
        if len(self._running) >= BUILDS_MAX:
            raise ValueError(f"{BUILDS_MAX} builds are running, as many as may")
        if any(build.layer == message.layer for build in self._running):
            raise ValueError("this layer is being built")
        if message.runtime not in self._machine.interpreters:
            raise ValueError(f"there is no {message.runtime} on this machine")
        uv = find_uv()
        group = self._machine.groups.take(MEMORY_BYTES_MAX, PIDS_MAX)
        uid = self._machine.uids.take() if self._machine.root else 0
        pid = fork_first(self._machine.has("pid_namespaces"))
        if pid == 0:
            _Box(self._machine, self._layout, self._owner, uid, group).run(message, output, uv)
        if group is not None:
            group.close_descriptors()
        self._running.append(Build(message.layer, pid, time.monotonic() + message.timeout_seconds, tell, uid, group))
        log("info", "build_started", layer=message.layer, pid=pid)

    def patience(self, now: float) -> float:
        """Seconds until the next deadline."""
        return max(0.0, min((build.deadline - now for build in self._running if not build.timed_out), default=FOREVER_SECONDS))

    def check_deadlines(self, now: float) -> None:
        for build in self._running:
            if now >= build.deadline and not build.timed_out:
                build.timed_out = True
                self._kill(build)

    def ended(self, build: Build, status: int) -> None:
        """Reaped: take everything back, remove what a failed build left, then tell."""
        if not build.failed:
            code = os.waitstatus_to_exitcode(status)
            detail = "" if code == 0 else _explain(build, code)
            log("info" if code == 0 else "warning", "build_ended", layer=build.layer, code=code, detail=detail)
            if build.group is not None:
                self._machine.groups.give_back(build.group)
                build.group = None
            if detail and build.uid and self._remove_left(build, detail):
                return
            build.failed = detail
        self._running.remove(build)
        self._clear(build)
        build.tell(Built(build.layer, ok=not build.failed, detail=build.failed))

    def _remove_left(self, build: Build, detail: str) -> bool:
        """Remove the installer's files, which control may not, in a child: there may be many. Until it ends, the uid is not used again."""
        try:
            pid = os.fork()
        except OSError:
            return False
        if pid == 0:
            try:
                become_child()
                leftovers.remove(self._layout.builds, build.layer)
            finally:
                os._exit(0)
        build.pid, build.failed, build.timed_out = pid, detail, True
        return True

    def _kill(self, build: Build) -> None:
        for end in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(build.pid, signal.SIGKILL)

    def _clear(self, build: Build) -> None:
        if build.group is not None:
            self._machine.groups.give_back(build.group)
        if build.uid:
            self._machine.uids.give_back(build.uid)

    def close(self) -> None:
        for build in self._running:
            self._kill(build)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(build.pid, 0)
            self._clear(build)
        self._running.clear()


def _explain(build: Build, code: int) -> str:
    if build.timed_out:
        return "the build took longer than its timeout"
    if build.group is not None and build.group.usage().oom_kills:
        return f"the build needed more than {MEMORY_BYTES_MAX >> 20} MiB of memory"
    if code == EXIT_TOO_LARGE:
        return f"the installed packages are over {OUT_BYTES_MAX >> 20} MiB or {OUT_FILES_MAX} files"
    if code == EXIT_SANDBOX:
        return "the sandbox of the build could not be made: see the installer's output"
    return f"the installer ended with {'signal' if code < 0 else 'status'} {abs(code)}"


def find_uv() -> str:
    """The uv program: the one installed with us, else in PATH. Raises OSError when there is none."""
    homes = [sys.prefix, *(str(Path(path).parents[2]) for path in sys.path if path.endswith("site-packages"))]
    for path in (*(f"{home}/bin/uv" for home in homes), shutil.which("uv")):
        if path and os.access(path, os.X_OK):
            return os.path.realpath(path)
    raise OSError("the program uv is not installed beside Dayfly")


class _Box:
    """The first process of a build's sandbox. Lives in the child that `fork_first` made; never returns from `run`."""

    def __init__(self, machine: Machine, layout: Layout, owner: int, uid: int, group: cgroup.Group | None) -> None:
        self.machine = machine
        self.layout = layout
        self.owner = owner
        self.uid = uid
        self.group = group
        self.environment = {name: value for name in PASSED_ON if (value := os.environ.get(name))}

    def run(self, message: BuildMessage, output: int, uv: str) -> NoReturn:
        code = EXIT_SANDBOX
        try:
            become_child()
            launch.use_processors(self.machine.processors)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._join_group()
            folder = self._open_folder(message.layer)
            interpreter = self.machine.interpreters[message.runtime]
            uv, work = self._walls(folder, interpreter, uv)
            code = self._install(uv, interpreter, work)
            if code == 0:
                self._hand_over(work)
        except BaseException as error:
            os.write(2, f"build sandbox: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def _join_group(self) -> None:
        for name, descriptor in self.group.descriptors.items() if self.group is not None else ():
            if name == "cgroup":  # a build may wait for the kernel's slow way in
                descriptor = os.open("cgroup.procs", os.O_WRONLY, dir_fd=descriptor)
            os.write(descriptor, b"0")

    def _open_folder(self, layer: str) -> int:
        builds = os.open(self.layout.builds, os.O_PATH | os.O_DIRECTORY)
        handle = mounts.open_beneath(builds, layer)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)

    def _walls(self, folder: int, interpreter: str, uv: str) -> tuple[str, str]:
        """Make folders to write in, and the small root around them. Returns the paths of uv and of the build's folder inside."""
        for name in ("out", "cache"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(name, dir_fd=folder)
            os.mkdir(name, 0o755, dir_fd=folder)
            if self.uid:
                os.chown(name, self.uid, self.uid, dir_fd=folder, follow_symlinks=False)
        requirements = os.open("requirements.txt", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        content = os.read(requirements, REQUIREMENTS_BYTES_MAX + 1)
        if len(content) > REQUIREMENTS_BYTES_MAX:
            raise ValueError("requirements.txt is over 1 MiB")
        if not self.machine.private_root:
            path = os.readlink(f"/proc/self/fd/{folder}")
            sys_.close_range(3)
            return uv, path
        tree = sys_.open_tree(folder)  # before the new namespace, in which this descriptor's mount is a stranger
        mounts.private_namespace(sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS)
        sys_.mount_setattr(tree, sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV)
        self._root(tree, content, interpreter, uv).enter()
        if self.machine.has("pid_namespaces") and not self.machine.in_user_namespace:
            mounts.mount_proc()
        mounts.mount_tmpfs("/tmp", f"mode=1777,size={TMP_BYTES_MAX}")  # noqa: S108
        sys_.close_range(3)
        if self.machine.root:
            os.chmod("/build", 0o711)  # noqa: S103 - the installer's uid must pass through
        os.chdir("/build")
        return "/opt/uv", "/build"

    def _root(self, tree: int, requirements: bytes, interpreter: str, uv: str) -> mounts.Root:
        root = mounts.Root()
        root.add_system(str(Path(interpreter).parents[1]))
        root.add_devices()
        for name in ("/proc", "/tmp"):  # noqa: S108
            root.add_folder(name)
        for name in ETC_FILES:
            root.add_file(f"/etc/{name}", mounts.read_file(f"/etc/{name}") or b"")
        if (certificates := self.environment.get("SSL_CERT_FILE")) and (content := mounts.read_file(certificates)):
            root.add_file("/etc/dayfly-certificates.pem", content)
            self.environment["SSL_CERT_FILE"] = "/etc/dayfly-certificates.pem"
        self.environment.pop("SSL_CERT_DIR", None) if certificates else None
        for place in self.environment.get("UV_FIND_LINKS", "").replace(",", " ").split():
            path = place.removeprefix("file://")
            if path.startswith("/") and Path(path).is_dir():
                root.add_tree(path)
        if self.machine.in_user_namespace:
            root.add_proc()
        root.add_tree(uv, "/opt/uv")
        root.add_file("/etc/requirements.txt", requirements)
        root.add_descriptor(tree, "/build")
        return root

    def _install(self, uv: str, interpreter: str, work: str) -> int:
        """Run uv, watch the size of what it writes. Returns its exit status, or EXIT_TOO_LARGE."""
        requirements = "/etc/requirements.txt" if work == "/build" else f"{work}/requirements.txt"
        argv = [
            uv, "pip", "install", "--target", f"{work}/out", "--python", interpreter, "--only-binary", ":all:", "--compile-bytecode",
            "--no-config", "--no-python-downloads", "--cache-dir", f"{work}/cache", "--link-mode", "hardlink", "--no-progress",
            "--color", "never", "-r", requirements,
        ]  # fmt: skip
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        child = os.fork()
        if child == 0:
            self._become_uv(argv, work)
        while True:
            signal.sigtimedwait({signal.SIGCHLD}, CHECK_SECONDS)
            too_large = _measure(work) > OUT_BYTES_MAX
            if too_large:
                os.kill(child, signal.SIGKILL)
            while (found := os.waitpid(-1, 0 if too_large else os.WNOHANG))[0]:
                if found[0] == child:
                    self._kill_rest()
                    return EXIT_TOO_LARGE if too_large else abs(os.waitstatus_to_exitcode(found[1]))

    def _become_uv(self, argv: list[str], work: str) -> NoReturn:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (OUT_BYTES_MAX, OUT_BYTES_MAX))
            if self.machine.root or self.machine.in_user_namespace:
                sys_.drop_bounding_set()
            if self.uid:
                os.setgroups([])
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
            sys_.drop_capabilities()
            sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)
            sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
            if self.machine.has("seccomp"):
                sys_.seccomp_filter(seccomp.program())
            home = "/tmp" if work == "/build" else f"{work}/cache"  # noqa: S108
            environment = {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", **self.environment}
            os.execve(argv[0], argv, environment)  # noqa: S606
        except BaseException as error:
            os.write(2, f"build sandbox: {error}\n".encode())
        finally:
            os._exit(EXIT_SANDBOX)

    def _kill_rest(self) -> None:
        """As pid 1, everybody we can signal is in our sandbox."""
        if os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)

    def _hand_over(self, work: str) -> None:
        """Nobody else runs in here any more: drop the cache, and give the files to control's user with plain modes."""
        shutil.rmtree(f"{work}/cache", ignore_errors=True)
        for _, folders, files, handle in os.fwalk(f"{work}/out", follow_symlinks=False):
            for name in (*folders, *files):
                self._plain(name, handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{work}/out/.lock")  # the installer's own
        handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        self._plain("out", handle)

    def _plain(self, name: str, handle: int) -> None:
        mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=handle)  # wheels hold files and folders; anything else has no business here
            return
        if self.owner:
            os.chown(name, self.owner, self.owner, dir_fd=handle, follow_symlinks=False)
        os.chmod(name, 0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644, dir_fd=handle)


def _measure(work: str) -> int:
    """Bytes on disk below the build's folder, hard links counted once; more than allowed when there are too many files."""
    seen: set[int] = set()
    total = 0
    stack = [work]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_blocks * 512
        if len(seen) > 2 * OUT_FILES_MAX:
            return OUT_BYTES_MAX + 1
    return total
