"""The kernel's own interface: no call changes walls, other processes or the machine, and no file of the kernel's does."""

import os

import pytest

from tests.attacks.arena import Arena

BOTH = True


def test_calls_that_change_walls_or_the_kernel_are_refused(arena: Arena) -> None:
    """mount, pivot_root, unshare, setns, ptrace, process_vm_*, bpf, perf_event_open, io_uring, userfaultfd, kexec, keyctl, personality …"""
    said = arena.attacker("kernel").try_("calls")
    assert len(said) > 60
    assert {name: answer for name, answer in said.items() if answer not in ("EPERM", "ENOSYS")} == {}


def test_clone_makes_no_namespaces(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("clones")
    assert len(said) == 7 and set(said.values()) == {"EPERM"}, said


def test_namespaces_cannot_be_entered(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("namespaces")
    assert set(said.values()) <= {"EPERM", "EACCES", "ENOENT"}, said


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86-64 has a second way to call the kernel")
def test_a_foreign_architectures_call_kills(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("foreign")
    assert said == {"int 0x80": -31, "nothing": 0}


def test_privileges_cannot_be_got(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("privileges")
    said.pop("dumpable")
    assert {name: answer for name, answer in said.items() if answer == "worked"} == {}


KERNEL_FILES = [
    ("/proc/sys/kernel/core_pattern", "|/tmp/x"), ("/proc/sys/kernel/modprobe", "/tmp/x"), ("/proc/sys/kernel/hostname", "mine"),
    ("/proc/sys/vm/overcommit_memory", "1"), ("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/tmp/x:"),
    ("/proc/sys/kernel/ns_last_pid", "1"),
    ("/proc/sys/kernel/pid_max", "301"), ("/proc/sysrq-trigger", "b"), ("/proc/irq/0/smp_affinity", "1"), ("/proc/bus/pci/00/00.0", "x"),
    ("/sys/kernel/uevent_helper", "/tmp/x"), ("/sys/fs/cgroup/release_agent", "/tmp/x"), ("/sys/fs/cgroup/memory/release_agent", "/tmp/x"),
    ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1"), ("/sys/power/state", "mem"), ("/sys/kernel/vmcoreinfo", "x"),
    ("/proc/self/oom_score_adj", "-1000"), ("/proc/self/oom_adj", "-17"), ("/proc/self/uid_map", "0 0 1"), ("/proc/self/gid_map", "0 0 1"),
    ("/proc/self/setgroups", "allow"), ("/proc/self/attr/current", "x"), ("/proc/self/attr/exec", "x"), ("/proc/self/loginuid", "0"),
    ("/proc/self/mountinfo", "x"), ("/proc/self/cgroup", "0::/"), ("/proc/self/ns/net", "x"), ("/proc/self/sched", "0"),
    ("/dev/kmsg", "x"), ("/dev/mem", "x"), ("/dev/watchdog", "x"), ("/dev/cpu/0/msr", "x"),
]  # fmt: skip
HARMLESS = {"/proc/self/sched"}  # clears the writer's own counters, where the kernel has that file at all


def test_files_of_the_kernels_cannot_be_written(arena: Arena) -> None:
    """core_pattern, modprobe, release_agent, sysrq, and what a process may set about itself: nothing that helps it."""
    said = arena.attacker("kernel").try_("write", paths=KERNEL_FILES)
    assert {path for path, answer in said.items() if answer == "worked"} <= HARMLESS, said


def test_control_groups_cannot_be_seen_or_left(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("cgroups")
    assert said["mounts"] == said["found"] == [] and said["sys"] is False
    if arena.mode == "root":
        assert "dayfly" not in said["own"]


def test_programs_that_run_cannot_be_overwritten(arena: Arena) -> None:
    """/proc/self/exe and a child's: read-only mounts, whoever runs."""
    before = os.stat(os.path.realpath(arena.platform.python)).st_mtime_ns
    said = arena.attacker("kernel").try_("exe")
    assert len(said) == 6 and set(said.values()) <= {"ETXTBSY", "EROFS", "EACCES", "EPERM"}, said
    assert os.stat(os.path.realpath(arena.platform.python)).st_mtime_ns == before


def test_a_crash_leaves_no_core(arena: Arena) -> None:
    said = arena.attacker("kernel").try_("core")
    assert said == {"signal": 11, "dumped": False, "files": []}
