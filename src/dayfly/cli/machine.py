"""What `dayfly doctor` knows about this machine without a running platform: isolation features, port, disk, limits, versions.

It changes nothing and never guesses: what cannot be found out is said to be unknown. Isolation is found out by the node's own code in a
process of its own, because a probe may unshare, mount and die.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PROBE_SECONDS_MAX = 20.0
DISK_BYTES_WANTED = 1024**3
NOFILE_WANTED = 4096
PIDS_WANTED = 2000
OK, WARN, BAD = "ok", "warning", "missing"
LISTEN = "0A"  # state of a listening socket in /proc/net/tcp


class Check:
    """One line of the doctor: what was looked at, how it stands, what a lack costs, how to get it."""

    def __init__(self, group: str, name: str, state: str, found: str = "", costs: str = "", remedy: str = "") -> None:
        self.group = group
        self.name = name
        self.state = state
        self.found = found
        self.costs = costs
        self.remedy = remedy

    def as_json(self) -> dict[str, str]:
        return {key: value for key, value in vars(self).items() if value}


def port_holder(port: int) -> str:
    """' (held by NAME, pid N)' for a listening TCP port, '' when it cannot be found out (another user's process)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == LISTEN and int(parts[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{parts[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, inodes):
            name = (process / "comm").read_text().strip() if (process / "comm").exists() else "?"
            return f" (held by {name}, pid {process.name})"
    return ""


def _holds(process: Path, inodes: set[str]) -> bool:
    with suppress(OSError):
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(fd) in inodes:  # noqa: PTH115 (a socket's link is no path)
                    return True
    return False


def versions() -> list[Check]:
    """Python, uv, kernel, Dayfly."""
    from dayfly import __version__

    kernel = os.uname()
    checks = [
        Check("versions", "dayfly", OK, __version__),
        Check("versions", "python", OK, f"{sys.version.split()[0]} ({sys.executable})"),
        Check("versions", "kernel", OK, f"{kernel.sysname} {kernel.release} {kernel.machine}"),
    ]
    uv = _uv()
    if uv:
        checks.append(Check("versions", "uv", OK, uv))
    else:
        checks.append(Check("versions", "uv", BAD, "not found", "functions with dependencies cannot be built", "pip install uv"))
    return checks


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    path = str(beside) if beside.exists() else shutil.which("uv")
    if not path:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""


def limits() -> list[Check]:
    """Open files and processes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the platform raises the soft one to it
    checks = [
        Check("limits", "open files", OK, str(hard))
        if hard == resource.RLIM_INFINITY or hard >= NOFILE_WANTED
        else Check(
            "limits",
            "open files",
            WARN,
            str(hard),
            "each instance takes two, each connection one; beyond that calls are refused (503)",
            f"ulimit -Hn {NOFILE_WANTED * 4}, or LimitNOFILE= in the unit",
        )
    ]
    pids = _pids_max()
    checks.append(
        Check("limits", "processes", OK, str(pids or "unlimited"))
        if not pids or pids >= PIDS_WANTED
        else Check(
            "limits", "processes", WARN, str(pids), "each instance needs at least one", "raise pids.max of this cgroup and ulimit -u"
        )
    )
    return checks


def _pids_max() -> int:
    """The lowest limit on processes that holds for us; 0 = none."""
    found = []
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    with suppress(OSError, ValueError):
        found.append(int(Path("/proc/sys/kernel/pid_max").read_text()))
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            base = "/sys/fs/cgroup" if number == "0" else "/sys/fs/cgroup/pids"
            if number == "0" or "pids" in controllers.split(","):
                with suppress(OSError, ValueError):
                    found.append(int(Path(base + path, "pids.max").read_text()))
    return min(found, default=0)


def processors(root: str = "/") -> list[Check]:
    """How many a platform would count on, and whether the kernel says when they are short (gateway/processors.py)."""
    from dayfly.gateway.processors import Processors

    found = Processors(root)
    name, known = "pressure", f"{found.cores:g} cores"
    if found.reading(os.getpid()) is None:
        costs = "functions that compute are started beyond what the processors can run; metric = 'cpu' sees nothing"
        return [Check("processors", name, WARN, f"{known}, processes' times are hidden", costs, "mount /proc without hidepid")]
    if found.source == "psi":
        return [Check("processors", name, OK, f"{known}, /proc/pressure/cpu")]
    costs = "whether processors are short is guessed from the number of threads that could run, ten times a second"
    return [Check("processors", name, WARN, f"{known}, no /proc/pressure/cpu", costs, "a kernel with CONFIG_PSI, booted with psi=1")]


def disk(data: str) -> list[Check]:
    """Room for the data directory, and whether a stranger's tree is in the way."""
    folder = Path(data)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free // 1024**2} MB free at {folder}"
    if free >= DISK_BYTES_WANTED:
        return [Check("disk", "space", OK, found)]
    return [
        Check(
            "disk",
            "space",
            WARN,
            found,
            "deploys and logs are refused when it is full",
            "free space, or name another directory with --data",
        )
    ]


def port(host: str, number: int, *, ours: bool) -> list[Check]:
    """Whether the public port can be had, or is ours already."""
    import socket

    if ours:
        return [Check("ports", f"{host}:{number}", OK, "served by this Dayfly")]
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, number))
        probe.listen(1)
        return [Check("ports", f"{host}:{number}", OK, "free")]
    return [
        Check(
            "ports",
            f"{host}:{number}",
            BAD,
            "in use" + port_holder(number),
            "`dayfly up` refuses to start",
            "end that program or choose --port",
        )
    ]


def isolation() -> list[Check]:
    """Each wall around an instance, as the node itself would find it; tried in a process of its own."""
    answer = probe()
    if isinstance(answer, str):
        return [Check("isolation", "probe", BAD, answer, "functions' isolation on this machine is unknown", "report it with this output")]
    checks = [_wall(name, there) for name, there in answer["walls"].items()]
    checks += [_extra(name, there) for name, there in answer["extras"].items()]
    runtimes = ", ".join(sorted(answer["runtimes"]))
    if runtimes:
        return [*checks, Check("runtimes", "interpreters", OK, runtimes)]
    return [*checks, Check("runtimes", "interpreters", BAD, "none", "no function can run", "install Python 3.11, 3.12 or 3.13")]


def probe() -> dict[str, dict[str, Any]] | str:
    """{"walls": {name: True or why not}, "extras": the same, "runtimes": {name: path}}; or a sentence on why they are unknown."""
    command = [sys.executable, "-I", "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the probe could not be carried out: {error}"
    try:
        value = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"the probe failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    return value if isinstance(value, dict) else "the probe answered nonsense"


def _wall(name: str, there: object) -> Check:
    if there is True:
        return Check("isolation", name, OK)
    costs, remedy = WALLS.get(name, ("this wall stands around no function", "docs/security.md"))
    return Check("isolation", name, BAD, str(there), costs, remedy)


def _extra(name: str, there: object) -> Check:
    if there is True:
        return Check("isolation", name, OK)
    return Check("isolation", name, WARN, str(there), *EXTRAS.get(name, ("", "docs/security.md")))


_NAMESPACES = "start as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 (in a container: its seccomp profile)"
_CGROUPS = "start as root, or in a unit with Delegate=yes (systemd-run --user --scope -p Delegate=yes dayfly up)"

# Wall (core/decide/isolate.py WALLS) → what its lack costs, how to get it. A test compares the names.
WALLS: dict[str, tuple[str, str]] = {
    "pidns": ("functions see and may signal each other's processes of the same user", _NAMESPACES),
    "mountns": ("functions read whatever their user may read", f"Linux 5.12 or newer; {_NAMESPACES}"),
    "ipcns": ("functions share System V memory and queues", _NAMESPACES),
    "utsns": ("functions see this machine's name", _NAMESPACES),
    "cgroupns": ("functions see the names of this machine's control groups", _NAMESPACES),
    "netns": ("functions reach every network that this machine reaches", _NAMESPACES),
    "uid": ("all functions are one user: what one may signal or trace, all may", "start as root"),
    "capabilities": ("functions keep privileges in their user namespace", "report it: this needs nothing"),
    "no_new_privs": ("setuid programs work inside functions", "Linux 3.5 or newer"),
    "seccomp": ("functions may use every system call", "a kernel with CONFIG_SECCOMP_FILTER"),
    "landlock": ("files have one wall instead of two", "Linux 5.13 or newer with landlock in the lsm= boot parameter"),
    "memory": ("one function may use all memory; memory_mb is not enforced", _CGROUPS),
    "pids": ("one function may use all process ids", _CGROUPS),
    "cpu": ("one function may starve the others of processor time", _CGROUPS),
    "egress": ('a function with egress = "none" still reaches the network', _NAMESPACES),
    "egress_internet": ('egress = "internet" is not confined to public addresses', _NAMESPACES),
}

# Nobody needs these (core/decide/isolate.py EXTRAS) → what their lack costs, how to get them.
EXTRAS: dict[str, tuple[str, str]] = {
    "cpu_ceiling": ("a function that sets cpu gets a share instead of a ceiling", f"a kernel with CONFIG_CFS_BANDWIDTH; {_CGROUPS}"),
    "io": ("functions that read much from disk slow down others", f"a disk scheduler with weights (bfq, iocost); {_CGROUPS}"),
    "egress_steering": ("only clients that honour HTTPS_PROXY reach the internet", "start as root, on Linux 5.9 or newer"),
}

PROBE = """
import json, os
from dayfly.core.decide import isolate
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.node import machine, server
layout = Layout(data=f"/nonexistent/doctor-{os.getpid()}", run=f"/nonexistent/doctor-{os.getpid()}")
try:
    found = machine.Machine(Settings(), layout)
    print(json.dumps({"walls": isolate.walls(found.features), "extras": isolate.extras(found.features), "runtimes": found.interpreters}))
finally:
    server.cleanup(layout)
"""
