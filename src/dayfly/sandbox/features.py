"""What this machine can do, found out by trying each thing in a forked child: True, or a sentence why it is missing.

`probe` takes well under 100 ms and changes nothing outside its children. Called by node/machine.py, for the node and for `dayfly doctor`.
Control groups and networks are probed by the objects that own them (cgroup.Groups, network.Pool); node/machine.py merges all.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dayfly.sandbox import mounts, seccomp
from dayfly.sandbox import syscalls as sys_
from dayfly.sandbox.launch import OFFSPRING_FLAGS

Features = dict[str, bool | str]

RUNTIMES = ("python3.11", "python3.12", "python3.13")
_NEWER_KERNEL = "this kernel is too old for it (Linux 5.12 or newer is needed)"


def attempt(action: Callable[[], object], *, userns: bool = False) -> bool | str:
    """Run `action` in a forked child (as root of a new user namespace if asked): True, or what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = b""
        try:
            if userns:
                enter_user_namespace()
            action()
        except BaseException as error:
            message = str(getattr(error, "strerror", None) or error or type(error).__name__).encode()[:500]
        finally:
            os.write(writer, message)
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        message = answer.read()
    _, status = os.waitpid(pid, 0)
    if status:
        return f"the attempt died with status {status}"
    return message.decode() or True


def enter_user_namespace(flags: int = 0) -> None:
    """Become root of a user namespace in which only our own uid and gid exist. `flags`: more CLONE_* for the same call."""
    uid, gid = os.getuid(), os.getgid()
    sys_.unshare(sys_.CLONE_NEWUSER | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _mount_something() -> None:
    mounts.private_namespace()
    mounts.mount_tmpfs("/tmp", "size=64k")  # noqa: S108 - in the child's own namespace


def _mount_api() -> None:
    mounts.private_namespace()
    tree = mounts.detach_read_only("/usr")
    mounts.mount_tmpfs("/tmp", "size=64k")  # noqa: S108
    Path("/tmp/spot").mkdir()  # noqa: S108
    mounts.attach(tree, "/tmp/spot")  # noqa: S108


def _own_proc() -> None:
    mounts.private_namespace()
    mounts.mount_proc()


def _host_name() -> None:
    sys_.unshare(sys_.CLONE_NEWUTS)
    sys_.sethostname("probe")


def _pid_namespace() -> None:
    """A namespace, a first process in it, and its own /proc: some container hosts allow only the first two."""
    sys_.unshare(sys_.CLONE_NEWPID)
    outcome = attempt(_own_proc)
    if outcome is not True:
        raise OSError(f"its own /proc: {outcome}")


def _openat2() -> None:
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY)
    os.close(mounts.open_beneath(directory, "usr"))


def _filter() -> None:
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    sys_.seccomp_filter(seccomp.program())


def _landlock() -> None:
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    ruleset = sys_.landlock_create(1, 0, 0)
    sys_.landlock_restrict(ruleset)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _own_namespaces(uid: int) -> None:
    """What a template's child does: namespaces of every kind without any privilege, and being able to change something in them."""
    if uid:
        _become(uid)
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    sys_.unshare(OFFSPRING_FLAGS)
    sys_.sethostname("probe")


def _close_range() -> None:
    sys_.close_range(1000)


def probe(uid_example: int, *, userns: bool = False) -> Features:
    """Every feature that needs nobody else's help. `uid_example` is a uid that instances would get.

    `userns` True probes what can be had as root of a fresh user namespace: what an ordinary user gets.
    """
    root = os.geteuid() == 0
    user_namespaces = attempt(_mount_something, userns=True)
    inner = userns and not root and user_namespaces is True

    def tried(action: Callable[[], object]) -> bool | str:
        return attempt(action, userns=inner)

    return {
        "linux": platform.system() == "Linux" or "not Linux",
        "root": root or "not started by root",
        "user_namespaces": user_namespaces,
        "uids": tried(lambda: _become(uid_example)) if root else "only root can give each instance its own uid",
        "mount_namespaces": tried(_mount_something),
        "mount_api": _in_words(tried(_mount_api)),
        "pid_namespaces": tried(_pid_namespace),
        "ipc_namespaces": tried(lambda: sys_.unshare(sys_.CLONE_NEWIPC)),
        "uts_namespaces": tried(_host_name),
        "cgroup_namespaces": tried(lambda: sys_.unshare(sys_.CLONE_NEWCGROUP)),
        "capabilities": tried(sys_.drop_capabilities),
        "no_new_privs": tried(lambda: sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1, 0, 0)),
        "seccomp": tried(_filter),
        "landlock": tried(_landlock),
        "templates": tried(lambda: _own_namespaces(uid_example if root else 0)),
        "openat2": _in_words(tried(_openat2)),
        "close_range": _in_words(tried(_close_range)),
        "pidfd": tried(lambda: sys_.pidfd_open(os.getpid())),
        "memfd": tried(lambda: os.memfd_create("probe")),
    }


def _in_words(outcome: bool | str) -> bool | str:
    return f"{_NEWER_KERNEL}: {outcome}" if isinstance(outcome, str) and "not implemented" in outcome else outcome


def interpreters(usable: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Interpreters that can run functions: "python3.11" → the path of the real program, virtual environments resolved.

    The platform's own base interpreter comes first; then PATH, /usr/bin, /usr/local/bin and pyenv's versions, newest first.
    `usable` may turn one down, by its path; then the next is tried.
    """
    found: dict[str, str] = {}
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = {name: [*_in_path(name), *_in_pyenv(name)] for name in RUNTIMES}
    if own in candidates:
        candidates[own].insert(0, getattr(sys, "_base_executable", "") or sys.executable)
    for name, paths in candidates.items():
        for path in dict.fromkeys(paths):
            real = _real_interpreter(path, name)
            if real and usable(real):
                found[name] = real
                break
    return found


def _in_path(name: str) -> list[str]:
    folders = [folder for folder in os.environ.get("PATH", "").split(":") if not folder.endswith("/shims")]
    path = shutil.which(name, path=":".join([*folders, "/usr/bin", "/usr/local/bin"]))
    return [path] if path else []


def _in_pyenv(name: str) -> list[str]:
    version = name.removeprefix("python")
    folders: list[tuple[int, Path]] = []
    for home in dict.fromkeys((os.environ.get("PYENV_ROOT", ""), os.path.expanduser("~/.pyenv"))):
        with contextlib.suppress(OSError):
            for folder in (Path(home) / "versions").glob(f"{version}.*") if home else ():
                patch = re.fullmatch(r"[0-9]+", folder.name.removeprefix(version + "."))
                folders.append((int(folder.name.rpartition(".")[2]) if patch else -1, folder))
    return [str(folder / "bin" / name) for _, folder in sorted(folders, reverse=True)]


def _real_interpreter(path: str, name: str) -> str:
    """The program behind `path` when it works and is what its name says; empty otherwise. A virtual environment's is resolved to
    the interpreter it was made from."""
    question = "import sys; print(sys.version_info[0], sys.version_info[1], sys.base_prefix, sep='\\n')"
    if not os.access(path, os.X_OK):
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # -S -E: nobody's site-packages or environment may run code here.
        answer = subprocess.run([path, "-I", "-S", "-c", question], capture_output=True, text=True, timeout=5, check=True)
        major, minor, prefix = answer.stdout.splitlines()
        program = f"{prefix}/bin/{name}"
        if f"python{major}.{minor}" == name and os.access(program, os.X_OK):
            return program
    return ""
