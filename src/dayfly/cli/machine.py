"""What `dayfly doctor` knows about this machine without a running platform: isolation features, port, disk, limits, versions.

It changes nothing and never guesses: what cannot be found out is said to be unknown. Isolation is probed by dayfly.sandbox.features in a
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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    checks = [
        Check("limits", "open files", OK, str(hard))
        if hard == resource.RLIM_INFINITY or hard >= NOFILE_WANTED
        else Check(
            "limits",
            "open files",
            WARN,
            f"{soft} (hard {hard})",
            "about one connection or instance for each two",
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
    """Each wall, from dayfly.sandbox.features in a process of its own."""
    answer = probe()
    if isinstance(answer, str):
        return [Check("isolation", "probe", BAD, answer, "functions' isolation on this machine is unknown", "report it with this output")]
    return [_wall(item) for item in answer]


def probe() -> list[dict[str, Any]] | str:
    """The features, each {"name", "here", "detail", "costs", "remedy"}; or a sentence on why they are unknown."""
    command = [sys.executable, "-I", "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS_MAX, check=False)
        value = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"the probe did not end within {PROBE_SECONDS_MAX:g} s"
    except (OSError, ValueError, IndexError):
        return f"the probe failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    return value if isinstance(value, list) else "the probe answered nonsense"


def _wall(item: dict[str, Any]) -> Check:
    there = item.get("here") is True
    return Check(
        "isolation", str(item.get("name", "?")), OK if there else BAD, *(str(item.get(key) or "") for key in ("detail", "costs", "remedy"))
    )


PROBE = """
import json
from dayfly.sandbox import features
print(json.dumps(features.report()))
"""
