"""Memory, process and processor limits of instances: control groups of version 1 and 2 behind one small interface.

A group is made ahead, given limits when an instance takes it, read and removed when the instance has ended; never used twice, because
version 1 cannot reset what it counted. Entering is the child's affair, in the one cheap way of each version: v1, it writes 0 to its
own `tasks` (descriptors "tasks0"…); v2, it is born inside by clone3 (descriptor "cgroup"). Any other way waits for an RCU grace
period, about 6 ms. Called by node/; must never touch a group whose name does not carry this data directory's tag.
"""

import contextlib
import errno
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

CONTROLLERS = ("memory", "pids", "cpu")
WEIGHT_PER_GB = 100  # v2's default weight for each GiB of memory; v1's shares are 1024/100 of it
CLEAN_SECONDS_MAX = 3.0


class Usage(NamedTuple):
    """What an instance used, as far as the groups can tell: -1 where they cannot."""

    cpu_us: int
    memory_peak_bytes: int
    oom_kills: int


class Place(NamedTuple):
    """Where groups are made: the interface's version and the folder of each controller (all the same on v2)."""

    version: int
    folders: dict[str, Path]
    reasons: dict[str, str]  # controllers that cannot be used → why


def tag(data: str) -> str:
    """The name of the folder below which all of one platform's groups lie."""
    return "dayfly-" + hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:12]


def find_place(mountinfo: str, own: str, *, privileged: bool) -> Place:
    """Where this process may make groups, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    v1, v2 = _mounts(mountinfo)
    paths = {controller: line.split(":", 2)[2] for line in own.splitlines() for controller in line.split(":", 2)[1].split(",")}
    if v2 is not None and {"memory", "pids"} <= set(_read(v2 / "cgroup.controllers").split()):
        inside = v2 / paths.get("", "/").strip("/")
        base = v2 if privileged or not inside.is_dir() else inside
        return Place(2, dict.fromkeys(CONTROLLERS, base), {})
    folders, reasons = {}, {}
    for controller in CONTROLLERS:
        if controller not in v1:
            reasons[controller] = f"no cgroup controller {controller!r} on this machine"
            continue
        inside = v1[controller] / paths.get(controller, "/").strip("/")
        folders[controller] = inside if inside.is_dir() else v1[controller]
    return Place(1, folders, reasons)


def _mounts(mountinfo: str) -> tuple[dict[str, Path], Path | None]:
    """Mount points of v1 by controller, and of v2."""
    v1: dict[str, Path] = {}
    v2 = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        point = Path(before.split(" ")[4].encode().decode("unicode_escape")) if before.count(" ") >= 4 else Path("/")
        if kind == "cgroup":
            v1.update(dict.fromkeys(options.split(","), point))
        elif kind == "cgroup2":
            v2 = point
    return v1, v2


class Group:
    """The group of one instance. `descriptors` are for the child; close them with `close_descriptors` once it was started."""

    def __init__(self, version: int, folders: dict[str, Path]) -> None:
        self.version = version
        self.folders = folders
        self.unique = list(dict.fromkeys(folders.values()))
        self.made: list[Path] = []
        self._limits: tuple[int, int, int] | None = None
        self.descriptors: dict[str, int] = {}
        try:
            for folder in self.unique:
                folder.mkdir()
                self.made.append(folder)
            if version == 2:
                self.descriptors["cgroup"] = os.open(self.unique[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                for i, folder in enumerate(self.unique):
                    self.descriptors[f"tasks{i}"] = os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self.close_descriptors()
            self.remove()
            raise

    def __repr__(self) -> str:
        return f"<Group v{self.version} {self.unique[0].name}>"

    def limit(self, memory_bytes: int, pids: int, weight: int) -> None:
        """Set limits. Swap counts as memory: there is none beyond it. The same limits again cost nothing."""
        if self._limits == (memory_bytes, pids, weight):
            return
        self._limits = None
        self._write_limits(memory_bytes, pids, weight)
        self._limits = (memory_bytes, pids, weight)

    def _write_limits(self, memory_bytes: int, pids: int, weight: int) -> None:
        if (folder := self.folders.get("memory")) is not None:
            if self.version == 2:
                _write(folder / "memory.max", memory_bytes)
                _try_write(folder / "memory.swap.max", 0)
                _try_write(folder / "memory.oom.group", 1)
            else:
                # The sum with swap may never be the smaller one: on the way up it goes first, on the way down last.
                _try_write(folder / "memory.memsw.limit_in_bytes", memory_bytes)
                _write(folder / "memory.limit_in_bytes", memory_bytes)
                _try_write(folder / "memory.memsw.limit_in_bytes", memory_bytes)
        if (folder := self.folders.get("pids")) is not None:
            _write(folder / "pids.max", pids)
        if (folder := self.folders.get("cpu")) is not None:
            if self.version == 2:
                _write(folder / "cpu.weight", max(1, min(10_000, weight)))
            else:
                _write(folder / "cpu.shares", max(2, weight * 1024 // 100))

    def usage(self) -> Usage:
        """Read once the instance has ended, before `remove`."""
        memory, cpu = self.folders.get("memory"), self.folders.get("cpu")
        if self.version == 2:
            seconds = _keyed(cpu / "cpu.stat", "usage_usec") if cpu else -1
            oom = _keyed(memory / "memory.events", "oom_kill") if memory else 0
            return Usage(seconds, _number(memory / "memory.peak") if memory else -1, max(oom, 0))
        nanoseconds = _number(cpu / "cpuacct.usage") if cpu else -1
        oom = _keyed(memory / "memory.oom_control", "oom_kill") if memory else 0
        peak = _number(memory / "memory.max_usage_in_bytes") if memory else -1
        return Usage(nanoseconds // 1000 if nanoseconds >= 0 else -1, peak, max(oom, 0))

    def close_descriptors(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def kill(self) -> None:
        """SIGKILL whatever is still inside."""
        for folder in self.unique:
            _kill_all(folder)

    def remove(self) -> bool:
        """Remove the folders. False: something is still leaving; try again later."""
        for folder in list(self.made):
            if not _remove(folder):
                return False
            self.made.remove(folder)
        return True


class Groups:
    """All groups of one platform. `ready` is how many are kept made ahead; `refill` and `sweep` run off the request path."""

    def __init__(self, place: Place, tag: str, ready: int = 8) -> None:
        self.place = place
        self.reasons = dict(place.reasons)
        self.folders: dict[str, Path] = {}
        self._tag = tag
        self._ready = ready
        self._pool: list[Group] = []
        self._leaving: list[Group] = []
        self._next = 0
        self._usual = (128 << 20, 64)  # what was asked for last: groups made ahead have these limits
        self._prepare()

    def __repr__(self) -> str:
        return f"<Groups v{self.place.version} {sorted(self.folders)} ready={len(self._pool)} leaving={len(self._leaving)}>"

    def available(self) -> dict[str, bool | str]:
        """Features: `memory_cgroup`, `pids_cgroup`, `cpu_cgroup`, and the version in use as `cgroup_v1` / `cgroup_v2`."""
        features: dict[str, bool | str] = {}
        for controller in CONTROLLERS:
            features[f"{controller}_cgroup"] = controller in self.folders or self.reasons.get(controller, "not available")
        for version in (1, 2):
            used = bool(self.folders) and self.place.version == version
            features[f"cgroup_v{version}"] = used or f"this machine's limits come from cgroup v{3 - version}, or there are none"
        return features

    def take(self, memory_bytes: int, pids: int) -> Group | None:
        """A fresh group with these limits; None where there are none to be had."""
        if not self.folders:
            return None
        group = self._pool.pop() if self._pool else self._make()
        self._usual = (memory_bytes, pids)
        try:
            group.limit(memory_bytes, pids, _weight(memory_bytes))
        except OSError:
            self.give_back(group)
            raise
        return group

    def limit(self, group: Group, memory_bytes: int, pids: int) -> None:
        """Give a group that is in use already its owner's limits."""
        group.limit(memory_bytes, pids, _weight(memory_bytes))

    def give_back(self, group: Group) -> None:
        """The instance is gone (or never was): remove its group, soon."""
        group.close_descriptors()
        self._leaving.append(group)

    def refill(self) -> bool:
        """Make one group ahead. True: call again soon."""
        if self.folders and len(self._pool) < self._ready:
            group = self._make()
            self._pool.append(group)
            group.limit(*self._usual, _weight(self._usual[0]))
        return bool(self.folders) and len(self._pool) < self._ready

    def sweep(self, at_most: int = 1) -> bool:
        """Remove groups given back. True: call again soon."""
        for _ in range(min(at_most, len(self._leaving))):
            group = self._leaving.pop(0)
            if not group.remove():
                group.kill()
                self._leaving.append(group)
                return False
        return bool(self._leaving)

    def close(self) -> None:
        """Kill and remove everything that carries the tag."""
        for group in self._pool:
            group.close_descriptors()
        self._pool.clear()
        self._leaving.clear()
        for folder in dict.fromkeys(self.folders.values()):
            clean(folder)

    def _make(self) -> Group:
        self._next += 1
        name = f"i{os.getpid()}-{self._next}"
        return Group(self.place.version, {controller: folder / name for controller, folder in self.folders.items()})

    def _prepare(self) -> None:
        """Remove what an earlier platform left, make the parent folders, and see which controllers really work."""
        for controller, base in self.place.folders.items():
            folder = base / self._tag
            try:
                if controller not in self.folders and folder not in self.folders.values():
                    clean(folder)
                    if self.place.version == 2:
                        _enable_below(base, self._tag)
                    folder.mkdir()
                    if self.place.version == 2:
                        _enable(folder)
                self._require(controller, folder)
                self.folders[controller] = folder
            except OSError as error:
                self.reasons[controller] = f"cgroup v{self.place.version} {controller}: {error.strerror or error}"
        cpu = self.folders.get("cpu")
        if cpu is not None:  # all instances together weigh as much as one process per processor
            cpus = os.cpu_count() or 1
            name, value = ("cpu.weight", min(10_000, 100 * cpus)) if self.place.version == 2 else ("cpu.shares", 1024 * cpus)
            _try_write(cpu / name, value)

    def _require(self, controller: str, folder: Path) -> None:
        v1_file, v2_file = {
            "memory": ("memory.limit_in_bytes", "memory.max"),
            "pids": ("pids.max", "pids.max"),
            "cpu": ("cpu.shares", "cpu.weight"),
        }[controller]
        name = v2_file if self.place.version == 2 else v1_file
        if not os.access(folder / name, os.W_OK):
            raise OSError(errno.EACCES, f"{name} cannot be written")


def _weight(memory_bytes: int) -> int:
    return max(10, memory_bytes * WEIGHT_PER_GB // (1 << 30))


def _enable_below(base: Path, tag: str) -> None:
    """Let children of a v2 folder have controllers. A folder with processes may not: move them into a leaf first (the processes
    of a delegated folder are the platform's own)."""
    try:
        _enable(base)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = base / f"{tag}-platform"
        leaf.mkdir(exist_ok=True)
        for pid in _read(base / "cgroup.procs").split():
            with contextlib.suppress(OSError):
                _write(leaf / "cgroup.procs", int(pid))
        _enable(base)


def _enable(folder: Path) -> None:
    wanted = set(CONTROLLERS) & set(_read(folder / "cgroup.controllers").split()) - set(_read(folder / "cgroup.subtree_control").split())
    if wanted:
        _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))


def clean(folder: Path) -> None:
    """Kill everything below a folder of groups and remove it. Raises OSError when it is still busy after a few seconds."""
    deadline = time.monotonic() + CLEAN_SECONDS_MAX
    while folder.is_dir():
        children = [child for child in folder.iterdir() if child.is_dir()]
        for child in (*children, folder):
            _kill_all(child)
            _remove(child)
        if not folder.is_dir():
            return
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"{folder} still holds processes")
        time.sleep(0.005)


def clean_noted(note: Path, tag: str) -> None:
    """Clean the folders that an earlier node noted, as far as they carry the tag: it may have lived in another place of the tree."""
    for line in _read(note).splitlines():
        if Path(line).name == tag:
            with contextlib.suppress(OSError):
                clean(Path(line))


def _kill_all(folder: Path) -> None:
    for pid in _read(folder / "cgroup.procs").split():
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, value: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _try_write(path: Path, value: object) -> None:
    """For files that some kernels lack."""
    with contextlib.suppress(OSError):
        _write(path, value)


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else -1


def _keyed(path: Path, key: str) -> int:
    """The value of `key value` lines; -1 when it is not there."""
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return -1
