"""Memory, process and processor limits of instances: control groups of version 1 and 2 behind one small interface.

A group is made ahead, given limits when an instance takes it, read when the instance has ended, and then removed, or used again where
that can be made sure (`Group.renew`): its making and removal cost more than all else that a node does for a start. Entering is the
child's affair, in the one cheap way of each version: v1, it writes 0 to its own `tasks` (descriptors "tasks0"…); v2, it is born inside
by clone3 (descriptor "cgroup"). Any other way waits for an RCU grace period, about 6 ms. Called by node/; must never touch a group
whose name does not carry this data directory's tag.
"""

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

from dayfly.sandbox.cgroupfs import (
    CONTROLLERS,
    Place,
    clean,
    clean_noted,
    enable,
    enable_below,
    find_place,
    has_swap,
    keyed,
    kill_all,
    number,
    remove,
    tag,
    try_write,
    write,
)

QUOTA_PERIOD_US, QUOTA_US_MIN = 100_000, 1_000  # sched-bwc: the kernel's own period, and the least it takes
IO_WEIGHT = 50  # of all instances together, where others have 100
_V1_IO_WEIGHTS = ("blkio.bfq.weight", "blkio.weight")
WEIGHT_PER_GB = 800  # of the kernel's weights for each GiB of memory: 128 MiB have v2's default; v1's shares are 1024/100 of it


AGAIN_MAX = 32  # groups that wait to be used again
AGAIN_SECONDS_MAX = 10.0  # without a start, and no more wait than are made ahead anyway
LEFT_BYTES_MAX = 1 << 20  # still charged to a group whose processes are dead (kernel objects, charges taken ahead): more, and it goes


class Usage(NamedTuple):
    """What an instance used, as far as the groups can tell: -1 where they cannot."""

    cpu_us: int
    memory_peak_bytes: int
    oom_kills: int


class Limits(NamedTuple):
    """What one instance may use. Swap counts as memory. `cpu_millicores` is a ceiling (0: none) beside the weight."""

    memory_bytes: int
    pids: int
    weight: int
    cpu_millicores: int = 0


class Group:
    """The group of one instance. `descriptors` are for the child; close them with `close_descriptors` once it was started."""

    def __init__(self, version: int, folders: dict[str, Path], *, io: bool = False, counts_cpu: bool = True) -> None:
        self.version = version
        self.counts_cpu = counts_cpu  # v1: whether `cpuacct` is mounted with `cpu`
        self.folders = folders
        self.io = io  # v2: whether there is a weight for disk input and output
        self.unique = list(dict.fromkeys(folders.values()))
        self.made: list[Path] = []
        self._limits: Limits | None = None
        self._ceiling = 0
        self.descriptors: dict[str, int] = {}
        try:
            for folder in self.unique:
                os.mkdir(folder)
                self.made.append(folder)
            if version == 2:
                self.descriptors["cgroup"] = os.open(self.unique[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                self.open_tasks()
        except OSError:
            self.close_descriptors()
            self.remove()
            raise

    def __repr__(self) -> str:
        return f"<Group v{self.version} {self.unique[0].name}>"

    def limit(self, limits: Limits) -> None:
        """Set limits. Those that are set already cost nothing."""
        before, self._limits = self._limits, None
        if before is None or limits.memory_bytes != before.memory_bytes:
            self._limit_memory(limits.memory_bytes)
        if (before is None or limits.pids != before.pids) and (folder := self.folders.get("pids")) is not None:
            write(f"{folder}/pids.max", limits.pids)
        if before is None or limits.weight != before.weight:
            self._weigh(limits.weight)
        if limits.cpu_millicores != self._ceiling:
            self._ceiling = -1  # whatever it is, should this fail
            self._cap(limits.cpu_millicores)
            self._ceiling = limits.cpu_millicores
        self._limits = limits

    def _limit_memory(self, memory_bytes: int) -> None:
        folder = self.folders.get("memory")
        if folder is None:
            return
        if self.version == 2:
            write(f"{folder}/memory.max", memory_bytes)
            try_write(f"{folder}/memory.swap.max", 0)
            try_write(f"{folder}/memory.oom.group", 1)
        else:
            # The sum with swap may never be the smaller one: on the way up it goes first, on the way down last.
            both = try_write(f"{folder}/memory.memsw.limit_in_bytes", memory_bytes)
            write(f"{folder}/memory.limit_in_bytes", memory_bytes)
            if not both:
                try_write(f"{folder}/memory.memsw.limit_in_bytes", memory_bytes)
            # What waits in IP sockets is counted apart here, and only once it has a limit.
            try_write(f"{folder}/memory.kmem.tcp.limit_in_bytes", memory_bytes)

    def _weigh(self, weight: int) -> None:
        folder = self.folders.get("cpu")
        if folder is None:
            return
        if self.version == 2:
            write(f"{folder}/cpu.weight", max(1, min(10_000, weight)))
            if self.io:
                try_write(f"{folder}/io.weight", max(1, min(10_000, weight)))
        else:
            write(f"{folder}/cpu.shares", max(2, weight * 1024 // 100))

    def _cap(self, millicores: int) -> None:
        """A ceiling of processor time; 0 takes it away. Raises OSError where the kernel has none."""
        folder = self.folders.get("cpu")
        if folder is None:
            return
        quota = max(QUOTA_US_MIN, millicores * QUOTA_PERIOD_US // 1000)
        if self.version == 2:
            write(f"{folder}/cpu.max", f"{quota if millicores else 'max'} {QUOTA_PERIOD_US}")
        else:
            write(f"{folder}/cpu.cfs_quota_us", quota if millicores else -1)

    def weigh(self, permille: int) -> None:
        """So many thousandths of what follows from its memory; for the owner that it has now. Raises OSError."""
        if self._limits is not None:
            self.limit(self._limits._replace(weight=max(1, _weight(self._limits.memory_bytes) * permille // 1000)))

    def enter(self, pid: int) -> None:
        """Move a process in from outside (v2): the dear way, for one that could not be born inside."""
        write(self.unique[0] / "cgroup.procs", pid)

    def usage(self) -> Usage:
        """Read once the instance has ended, before `remove`."""
        memory, cpu = self.folders.get("memory"), self.folders.get("cpu")
        if self.version == 2:
            seconds = keyed(cpu / "cpu.stat", "usage_usec") if cpu else -1
            oom = keyed(memory / "memory.events", "oom_kill") if memory else 0
            return Usage(seconds, number(memory / "memory.peak") if memory else -1, max(oom, 0))
        nanoseconds = number(f"{cpu}/cpuacct.usage") if cpu and self.counts_cpu else -1
        oom = keyed(f"{memory}/memory.oom_control", "oom_kill") if memory else 0
        peak = number(f"{memory}/memory.max_usage_in_bytes") if memory else -1
        return Usage(nanoseconds // 1000 if nanoseconds >= 0 else -1, peak, max(oom, 0))

    def renew(self) -> bool:
        """Make a group whose processes are dead as good as new: what it counted is 0 again. False: it cannot be (v2 resets nothing;
        something is alive; a kill for want of memory stays counted; too much memory is still charged to it), so it must go."""
        memory, pids, cpu = (self.folders.get(name) for name in ("memory", "pids", "cpu"))
        if self.version != 1 or memory is None or pids is None or cpu is None:
            return False
        try:
            if number(f"{pids}/pids.current") != 0 or keyed(f"{memory}/memory.oom_control", "oom_kill") != 0:
                return False
            write(f"{memory}/memory.max_usage_in_bytes", 0)
            if number(f"{memory}/memory.max_usage_in_bytes") > LEFT_BYTES_MAX:
                return False
            if self.counts_cpu:
                write(f"{cpu}/cpuacct.usage", 0)
            self.open_tasks()
        except OSError:
            return False
        return True

    def open_tasks(self) -> None:
        """v1: what a child enters by. Raises OSError; those opened by then are in `descriptors`."""
        for i, folder in enumerate(self.unique):
            self.descriptors[f"tasks{i}"] = os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC)

    def close_descriptors(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def kill(self) -> None:
        """SIGKILL whatever is still inside."""
        for folder in self.unique:
            kill_all(folder)

    def remove(self) -> bool:
        """Remove the folders. False: something is still leaving; try again later."""
        for folder in list(self.made):
            if not remove(folder):
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
        self._taken_at = 0.0
        self._usual = Limits(128 << 20, 64, _weight(128 << 20))  # what was asked for last: groups made ahead have these limits
        cpu = place.folders.get("cpu")
        self._counts_cpu = cpu is not None and (cpu / "cpuacct.usage").exists()
        self._io: bool | str = f"no cgroup controller for disk input and output ({'io' if place.version == 2 else 'blkio'}) is used"
        self._io_folder: Path | None = None  # v1: the one group for all
        self._prepare()

    def __repr__(self) -> str:
        return f"<Groups v{self.place.version} {sorted(self.folders)} ready={len(self._pool)} leaving={len(self._leaving)}>"

    def available(self) -> dict[str, bool | str]:
        """Features: `memory_cgroup`, `pids_cgroup`, `cpu_cgroup`; whether swap is limited, processor time has a ceiling and disk input
        and output a weight (`swap_cgroup`, `cpu_quota_cgroup`, `io_cgroup`); and the version in use as `cgroup_v1` / `cgroup_v2`."""
        features: dict[str, bool | str] = {}
        for controller in CONTROLLERS:
            features[f"{controller}_cgroup"] = controller in self.folders or self.reasons.get(controller, "not available")
        for version in (1, 2):
            used = bool(self.folders) and self.place.version == version
            features[f"cgroup_v{version}"] = used or f"this machine's limits come from cgroup v{3 - version}, or there are none"
        memory, cpu, second = self.folders.get("memory"), self.folders.get("cpu"), self.place.version == 2
        swap = memory is not None and (memory / ("memory.swap.max" if second else "memory.memsw.limit_in_bytes")).exists()
        features["swap_cgroup"] = swap or not has_swap() or "this kernel does not limit swap (boot parameter swapaccount=1)"
        quota = cpu is not None and (cpu / ("cpu.max" if second else "cpu.cfs_quota_us")).exists()
        there = features["cpu_cgroup"]
        features["cpu_quota_cgroup"] = quota or ("this kernel has no ceiling (CONFIG_CFS_BANDWIDTH)" if there is True else there)
        features["io_cgroup"] = self._io
        return features

    def take(self, memory_bytes: int, pids: int, cpu_millicores: int = 0) -> Group | None:
        """A fresh group with these limits; None where there are none to be had."""
        if not self.folders:
            return None
        self._taken_at = time.monotonic()
        group = self._pool.pop() if self._pool else self._make()
        limits = Limits(memory_bytes, pids, _weight(memory_bytes), cpu_millicores)
        self._usual = limits._replace(cpu_millicores=0)
        try:
            group.limit(limits)
        except OSError:
            self.give_back(group)
            raise
        return group

    def limit(self, group: Group, memory_bytes: int, pids: int, cpu_millicores: int = 0) -> None:
        """Give a group that is in use already its owner's limits."""
        group.limit(Limits(memory_bytes, pids, _weight(memory_bytes), cpu_millicores))

    def roots(self) -> list[Path]:
        """Every folder below which this platform has groups."""
        return [*dict.fromkeys(self.folders.values()), *([self._io_folder] if self._io_folder is not None else [])]

    def shared(self) -> list[str]:
        """Files that the parent of all instances writes 0 to, before it has any: groups that all of them share."""
        return [f"{self._io_folder}/tasks"] if self._io_folder is not None else []

    def give_back(self, group: Group) -> None:
        """The instance is gone (or never was): its group serves again, or is removed, soon."""
        group.close_descriptors()
        if len(self._pool) < AGAIN_MAX and group.renew():
            self._pool.append(group)
        else:
            group.close_descriptors()
            self._leaving.append(group)

    def refill(self) -> bool:
        """Make one group ahead. True: call again soon."""
        if self.folders and len(self._pool) < self._ready:
            group = self._make()
            self._pool.append(group)
            group.limit(self._usual)
        return bool(self.folders) and len(self._pool) < self._ready

    def sweep(self, at_most: int = 1) -> bool:
        """Remove groups given back, and those that nobody will use again soon. True: call again soon."""
        if len(self._pool) > self._ready and time.monotonic() - self._taken_at > AGAIN_SECONDS_MAX:
            group = self._pool.pop(0)
            group.close_descriptors()
            self._leaving.append(group)
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
        for folder in self.roots():
            clean(folder)

    def _make(self) -> Group:
        self._next += 1
        name = f"i{os.getpid()}-{self._next}"
        folders = {controller: folder / name for controller, folder in self.folders.items()}
        return Group(self.place.version, folders, io=self.place.version == 2 and self._io is True, counts_cpu=self._counts_cpu)

    def _prepare(self) -> None:
        """Remove what an earlier platform left, make the parent folders, and see which controllers really work."""
        for controller, base in self.place.folders.items():
            folder = base / self._tag
            try:
                if controller not in self.folders and folder not in self.folders.values():
                    clean(folder)
                    if self.place.version == 2:
                        enable_below(base, self._tag)
                    folder.mkdir()
                    if self.place.version == 2:
                        enable(folder)
                self._require(controller, folder)
                self.folders[controller] = folder
            except OSError as error:
                self.reasons[controller] = f"cgroup v{self.place.version} {controller}: {error.strerror or error}"
        cpu = self.folders.get("cpu")
        if cpu is not None:  # all instances together weigh as much as one process per processor
            cpus = os.cpu_count() or 1
            name, value = ("cpu.weight", min(10_000, 100 * cpus)) if self.place.version == 2 else ("cpu.shares", 1024 * cpus)
            try_write(cpu / name, value)
        self._prepare_io()

    def _prepare_io(self) -> None:
        """Disk input and output: a lower weight for all instances together. A machine without it lacks no wall: instances have no
        disk to write to, and what they read is in memory soon."""
        folder: Path | None = None
        names: tuple[str, ...] = ("io.weight", "io.bfq.weight")
        if self.place.version == 2:
            folder = self.folders.get("cpu")
        elif self.place.blkio is not None and self.folders:
            folder, names = self.place.blkio / self._tag, _V1_IO_WEIGHTS
            try:
                clean(folder)
                folder.mkdir()
            except OSError as error:
                self._io = f"cgroup v1 blkio: {error.strerror or error}"
                return
        if folder is None:
            return
        if any(try_write(folder / name, IO_WEIGHT) for name in names):
            self._io = True
            self._io_folder = folder if self.place.version == 1 else None
        else:
            self._io = "no disk scheduler of this kernel has weights (bfq, iocost)"
            remove(folder)  # v2's is not empty: it stays

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


__all__ = ["CONTROLLERS", "Group", "Groups", "Limits", "Place", "Usage", "clean", "clean_noted", "find_place", "tag"]
