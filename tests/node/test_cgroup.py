"""sandbox/cgroup.py: both versions. v1 against this machine's kernel; v2 against a folder that looks like cgroupfs, and, for being born
inside a group, against this machine's kernel."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.sandbox import cgroup, cgroupfs, syscalls
from dayfly.sandbox.cgroup import Groups, Place, find_place

V1_MOUNTS = """\
30 29 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 29 0:2 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 29 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 29 0:4 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,freezer
"""
FILES_V2 = (
    "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight", "cpu.max", "memory.events", "memory.peak", "cpu.stat",
    "io.weight",
)  # fmt: skip


class FakeV2(Groups):
    """Groups in an ordinary folder: the kernel's files are made where the kernel would make them, and vanish with their folder."""

    def _make(self) -> cgroup.Group:
        group = super()._make()
        furnish(group.unique[0])
        return group


def furnish(folder: Path) -> None:
    for name in FILES_V2:
        (folder / name).write_text("")


def strip(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A v2 mount with the three controllers, not yet enabled below."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("")
    return tmp_path


def prepared(fake: Path, monkeypatch: pytest.MonkeyPatch) -> FakeV2:
    """Groups below the fake, whose parent folder gets its files as it is made."""
    real = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        real(self, mode, parents, exist_ok)
        if fake in self.parents and not self.name.startswith("i"):
            furnish(self)
            for name in ("cgroup.controllers", "cgroup.subtree_control", "cgroup.procs"):
                (self / name).write_text((fake / "cgroup.controllers").read_text() if name == "cgroup.controllers" else "")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    return FakeV2(Place(2, dict.fromkeys(cgroup.CONTROLLERS, fake), {}), "dayfly-test", ready=2)


def test_v2_limits_and_usage(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v2: controllers are enabled on the way down, limits are written under their v2 names, usage is read under them."""
    groups = prepared(fake, monkeypatch)
    assert (fake / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"
    assert [groups.available()[f"{name}_cgroup"] for name in ("swap", "cpu_quota", "io")] == [True] * 3
    assert (fake / "dayfly-test" / "io.weight").read_text() == "50"
    assert groups.shared() == []
    assert groups.available()["memory_cgroup"] is True
    assert groups.available()["cgroup_v2"] is True
    assert groups.available()["cgroup_v1"] is not True
    assert groups.refill() is True
    assert groups.refill() is False
    group = groups.take(128 << 20, 64)
    assert group is not None
    folder = group.unique[0]
    assert list(group.descriptors) == ["cgroup"]
    wanted = {"memory.max": str(128 << 20), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "64", "cpu.weight": "100"}
    wanted |= {"io.weight": "100", "cpu.max": ""}
    assert {name: (folder / name).read_text() for name in wanted} == wanted
    for permille, text in ((2500, "250"), (20, "2"), (1, "1"), (1000, "100")):
        (folder / "cpu.weight").write_text("")  # a file of the kernel has no old content behind the new
        group.weigh(permille)
        assert (folder / "cpu.weight").read_text() == text
    (folder / "cpu.stat").write_text("usage_usec 4711\nuser_usec 1\n")
    (folder / "memory.peak").write_text("5000000\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    assert group.usage() == cgroup.Usage(4711, 5_000_000, 1)
    groups.give_back(group)
    strip(folder)
    assert groups.sweep() is False
    assert not folder.exists()


def test_v2_ceilings_change(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota in a tenth of a second, never less than the kernel takes; only what differs is written again."""
    group = prepared(fake, monkeypatch).take(128 << 20, 64, 1500)
    assert group is not None
    folder = group.unique[0]
    assert (folder / "cpu.max").read_text() == "150000 100000"
    (folder / "memory.max").write_text("untouched")
    for millicores, text in ((1, "1000 100000"), (0, "max 100000")):
        (folder / "cpu.max").write_text("")  # a file of the kernel has no old content behind the new
        group.limit(cgroup.Limits(128 << 20, 64, 12, millicores))
        assert (folder / "cpu.max").read_text() == text
    group.limit(cgroup.Limits(128 << 20, 32, 12))
    assert [(folder / name).read_text() for name in ("memory.max", "pids.max")] == ["untouched", "32"]
    group.close_descriptors()


def test_v2_without_the_luxuries(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No controller for disks, no quota, swap that is there and not limited: each says so, and the rest works."""
    (fake / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr("tests.node.test_cgroup.FILES_V2", ("memory.max", "pids.max", "cpu.weight"))
    monkeypatch.setattr(cgroup, "has_swap", lambda: True)  # this machine's own is not for a test to change
    groups = prepared(fake, monkeypatch)
    found = groups.available()
    assert all(found[f"{name}_cgroup"] is True for name in cgroup.CONTROLLERS)
    assert all(isinstance(found[f"{name}_cgroup"], str) for name in ("swap", "cpu_quota"))
    assert (fake / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_v2_busy_folder_moves_its_processes_to_a_leaf(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delegated folder that holds the platform's own processes: they move to a leaf, then controllers can be enabled."""
    (fake / "cgroup.procs").write_text("41\n42\n")
    moved: list[str] = []
    real = cgroupfs.write

    def write(path: Path, value: object) -> None:
        if path == fake / "cgroup.subtree_control" and len(moved) < 2:
            raise OSError(16, "busy")
        if path.parent.name.endswith("-platform"):
            moved.append(str(value))
        real(path, value)

    monkeypatch.setattr(cgroupfs, "write", write)
    groups = prepared(fake, monkeypatch)
    assert moved == ["41", "42"]
    assert set(groups.folders) == set(cgroup.CONTROLLERS)


def test_places() -> None:
    """Where groups go, from the kernel's texts: v1 by controller, v2 when it has what is needed, reasons where nothing is."""
    place = find_place(V1_MOUNTS, "4:memory:/\n3:pids:/\n2:cpu,cpuacct:/\n", privileged=True)
    assert place.version == 1
    assert {name: str(path) for name, path in place.folders.items()} == {
        "memory": "/sys/fs/cgroup/memory", "pids": "/sys/fs/cgroup/pids", "cpu": "/sys/fs/cgroup/cpu,cpuacct",
    }  # fmt: skip
    none = find_place("", "", privileged=True)
    assert none.folders == {}
    assert set(none.reasons) == set(cgroup.CONTROLLERS)


def test_v2_is_preferred_when_it_has_the_controllers(fake: Path) -> None:
    """A unified hierarchy wins; an ordinary user stays below its own folder, root may use the top."""
    (fake / "user").mkdir()
    mountinfo = f"30 29 0:1 / {fake} rw - cgroup2 cgroup2 rw\n" + V1_MOUNTS
    assert find_place(mountinfo, "0::/user\n", privileged=False).folders["memory"] == fake / "user"
    assert find_place(mountinfo, "0::/user\n", privileged=True).folders["memory"] == fake


@pytest.fixture
def real_v1() -> Iterator[Groups]:
    place = find_place(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text(), privileged=True)
    if os.geteuid() != 0 or place.version != 1 or place.reasons:
        pytest.skip("needs root and the v1 controllers")
    groups = Groups(place, f"dayfly-test-{os.getpid()}", ready=2)
    yield groups
    groups.close()
    assert not any(folder.exists() for folder in groups.folders.values())


@pytest.mark.root
def test_v1_for_real(real_v1: Groups) -> None:
    """v1 on this kernel: a process that writes itself into `tasks` is limited, counted, and its group goes when it is gone."""
    group = real_v1.take(32 << 20, 8)
    assert group is not None
    os.waitpid(begin(group, 8 << 20), 0)
    usage = group.usage()
    assert 8 << 20 < usage.memory_peak_bytes < 32 << 20
    assert usage.oom_kills == 0
    folders = group.unique
    assert (group.folders["memory"] / "memory.limit_in_bytes").read_text().strip() == str(32 << 20)
    assert (group.folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "-1"
    real_v1.give_back(group)
    real_v1.close()
    assert not any(folder.exists() for folder in folders)


def begin(group: cgroup.Group, size: int, *, stays: bool = False) -> int:
    """A process in this group that writes to so much memory, and then ends or stays."""
    pid = os.fork()
    if pid == 0:
        for descriptor in group.descriptors.values():
            os.write(descriptor, b"0")
        data = bytearray(size)
        data[::4096] = b"x" * len(data[::4096])
        while stays:
            signal.pause()
        os._exit(0)
    return pid


@pytest.mark.root
def test_v1_group_serves_again_with_nothing_counted(real_v1: Groups) -> None:
    """The next one in the same group has its own limits, and what the last one used is not its own: 16 MB of memory, processor time."""
    group = real_v1.take(64 << 20, 8, 500)
    assert group is not None
    os.waitpid(begin(group, 16 << 20), 0)
    assert group.usage().memory_peak_bytes > 16 << 20
    real_v1.give_back(group)
    again = real_v1.take(32 << 20, 16)
    assert again is group
    assert again.usage().memory_peak_bytes <= cgroup.LEFT_BYTES_MAX
    assert again.usage().cpu_us <= 1000
    assert (again.folders["memory"] / "memory.limit_in_bytes").read_text().strip() == str(32 << 20)
    assert (again.folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "-1"
    assert (again.folders["pids"] / "pids.max").read_text().strip() == "16"
    os.waitpid(begin(again, 1 << 20), 0)
    assert 1 << 20 < again.usage().memory_peak_bytes < 4 << 20
    real_v1.give_back(again)


@pytest.mark.root
def test_v1_group_that_killed_for_memory_is_not_used_again(real_v1: Groups) -> None:
    """Such kills stay counted, and the next one's crash would be called one."""
    group = real_v1.take(16 << 20, 8)
    assert group is not None
    os.waitpid(begin(group, 64 << 20), 0)
    assert group.usage().oom_kills
    real_v1.give_back(group)
    assert real_v1.take(16 << 20, 8) is not group
    while real_v1.sweep():
        pass
    assert not any(folder.exists() for folder in group.unique)


@pytest.mark.root
def test_v1_group_with_something_alive_in_it_is_emptied_and_removed(real_v1: Groups) -> None:
    """Whatever lives in it would share the next one's limits."""
    group = real_v1.take(32 << 20, 8)
    assert group is not None
    pid = begin(group, 1 << 20, stays=True)
    while str(pid) not in (group.folders["pids"] / "cgroup.procs").read_text().split():
        os.sched_yield()
    real_v1.give_back(group)
    assert real_v1.take(32 << 20, 8) is not group
    real_v1.sweep()  # it is busy: what is in it is killed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    while real_v1.sweep():
        pass
    assert not any(folder.exists() for folder in group.unique)


@pytest.mark.root
def test_v1_keeps_no_more_groups_than_its_bound(real_v1: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that come back at once, AGAIN_MAX serve again and the others are removed."""
    monkeypatch.setattr(cgroup, "AGAIN_MAX", 2)
    groups = [real_v1.take(32 << 20, 8) for _ in range(4)]
    for group in groups:
        assert group is not None
        real_v1.give_back(group)
    while real_v1.sweep():
        pass
    assert sum(group.unique[0].exists() for group in groups if group is not None) == 2


@pytest.mark.root
def test_v1_groups_wait_no_longer_than_their_time(real_v1: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst no more groups stay than are made ahead anyway (two, here)."""
    groups = [real_v1.take(32 << 20, 8) for _ in range(5)]
    for group in groups:
        assert group is not None
        real_v1.give_back(group)
    assert real_v1.sweep() is False
    assert sum(group.unique[0].exists() for group in groups if group is not None) == 5
    monkeypatch.setattr(cgroup, "AGAIN_SECONDS_MAX", 0.0)
    for _ in range(5):
        real_v1.sweep()
    assert sum(group.unique[0].exists() for group in groups if group is not None) == 2


@pytest.mark.root
@pytest.mark.parametrize("megabytes", [64, 512])
def test_limits_of_groups_made_ahead_change(real_v1: Groups, megabytes: int) -> None:
    """A group made ahead for the usual limits takes higher and lower ones, swap included."""
    real_v1.refill()
    group = real_v1.take(megabytes << 20, 16)
    assert group is not None
    folder = group.folders["memory"]
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if (folder / name).exists():
            assert (folder / name).read_text().strip() == str(megabytes << 20)
    assert (group.folders["pids"] / "pids.max").read_text().strip() == "16"
    real_v1.give_back(group)


@pytest.mark.root
def test_v1_ceiling_holds_for_real(real_v1: Groups) -> None:
    """A tenth of a core: a process that would compute for 0.2 s is stopped by the kernel again and again, and counted."""
    group = real_v1.take(64 << 20, 8, 100)
    assert group is not None
    assert (group.folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "10000"
    pid = os.fork()
    if pid == 0:
        for descriptor in group.descriptors.values():
            os.write(descriptor, b"0")
        while sum(os.times()[:2]) < 0.2:
            pass
        os._exit(0)
    os.waitpid(pid, 0)
    stopped = cgroupfs.keyed(group.folders["cpu"] / "cpu.stat", "nr_throttled")
    real_v1.give_back(group)
    assert stopped > 3


@pytest.mark.root
def test_v1_ceiling_is_not_inherited(real_v1: Groups) -> None:
    """A group that serves again has no ceiling for who asks for none."""
    first = real_v1.take(64 << 20, 8, 100)
    assert first is not None
    real_v1.give_back(first)
    second = real_v1.take(64 << 20, 8)
    assert second is not None
    assert second.unique == first.unique, "it was not used again"
    assert (second.folders["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "-1"
    real_v1.give_back(second)


@pytest.mark.root
def test_v1_disk_weight_is_of_all_together(real_v1: Groups) -> None:
    """Where the kernel has weights, one group is there for the parent of all instances to join; otherwise a reason."""
    if real_v1.available()["io_cgroup"] is not True:
        assert "blkio" in str(real_v1.available()["io_cgroup"]) or "weights" in str(real_v1.available()["io_cgroup"])
        assert real_v1.shared() == []
        return
    (tasks,) = real_v1.shared()
    assert any(
        (Path(tasks).parent / name).read_text().split()[-1] == "50"
        for name in ("blkio.bfq.weight", "blkio.weight")
        if (Path(tasks).parent / name).exists()
    )
    real_v1.close()
    assert not Path(tasks).parent.exists()


@pytest.mark.root
def test_leftovers_are_killed_and_removed(real_v1: Groups) -> None:
    """What a killed node left, processes included, is gone after `clean`; that is how a new node begins."""
    group = real_v1.take(32 << 20, 8)
    assert group is not None
    pid = os.fork()
    if pid == 0:
        for descriptor in group.descriptors.values():
            os.write(descriptor, b"0")
        signal.pause()
    group.close_descriptors()
    for folder in group.unique:
        while str(pid) not in (folder / "cgroup.procs").read_text().split():
            os.sched_yield()
    parents = set(real_v1.folders.values())
    # Its parent must reap it, or it stays in the group as a zombie for nobody.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for folder in parents:
            cgroup.clean(folder)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert not any(folder.exists() for folder in parents)


PROGRAM = """
import os, sys, threading
from dayfly.sandbox import syscalls
address = syscalls.find_thread_id_address()
group = os.open(sys.argv[1], os.O_RDONLY)
pid = syscalls.fork_with(0, group, address)
if pid == 0:
    inside = open("/proc/self/cgroup").read()
    found = []
    thread = threading.Thread(target=lambda: found.append(threading.get_native_id()))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        os._exit(7)
    ok = sys.argv[2] in inside and found and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.root
def test_born_in_a_v2_group() -> None:
    """clone3 with CLONE_INTO_CGROUP on this kernel: the child is in the group from the start, and threads and forks work in it."""
    import subprocess

    unified = Path("/sys/fs/cgroup/unified")
    mount = unified if unified.is_dir() else Path("/sys/fs/cgroup")
    if not (mount / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 here")
    folder = mount / f"dayfly-test-{os.getpid()}"
    folder.mkdir()
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), folder.name], capture_output=True, text=True, timeout=20)
        assert done.stdout.strip() == "0", done
    finally:
        folder.rmdir()


def test_fork_with_no_flags() -> None:
    """The raw fork behaves as fork does: two processes, one return value each."""
    pid = syscalls.fork_with(0, -1, syscalls.find_thread_id_address())
    if pid == 0:
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
