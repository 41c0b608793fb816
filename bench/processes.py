"""What processes cost, from /proc: CPU time and memory of a tree. Used by every benchmark; changes nothing."""

import os
from pathlib import Path

from tests.e2e.harness import descendants

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(roots: list[int]) -> float:
    """CPU time of all processes below `roots`, with that of their children which ended and were waited for.

    A child's time moves to its parent when it is reaped, so differences of this sum stay right while instances come and go."""
    ticks = 0
    for pid in {pid for root in roots for pid in descendants(root)}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / TICKS_PER_SECOND


def memory_bytes(pid: int, *names: str) -> int:
    """Sum of fields of smaps_rollup, such as 'Pss' or 'Private_Dirty'; 0 when the process is gone. Raises PermissionError."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    wanted = tuple(f"{name}:" for name in names)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


def uss_bytes(pid: int) -> int:
    """Memory that would be free if this process ended: its own pages, shared with nobody."""
    return memory_bytes(pid, "Private_Clean", "Private_Dirty")


def pss_bytes(pid: int) -> int:
    """Its own pages and its part of the shared ones: adds up over processes."""
    return memory_bytes(pid, "Pss")


def kernel_threads() -> dict[int, float]:
    """CPU seconds of each kernel thread: what is done for everybody after the fact, such as taking network namespaces apart."""
    seconds: dict[int, float] = {}
    for pid in descendants(2):
        try:
            seconds[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue  # it has ended, or the kernel keeps no such count
    return seconds


def grown(before: dict[int, float], after: dict[int, float]) -> float:
    """What those that are still there have added, and all of those that are new."""
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in after.items())


def page_table_bytes(pid: int) -> int:
    """Memory of its page tables; 0 when the process is gone."""
    return status_number(pid, "VmPTE") * 1024


def status_number(pid: int, name: str) -> int:
    """The first number of a line of /proc/PID/status; 0 when there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def machine_memory() -> dict[str, int]:
    """Every figure of /proc/meminfo, in bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def slab_memory() -> dict[str, int]:
    """Bytes of each cache of kernel objects, full or not; empty where only root may ask (slabinfo(5))."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0]: int(row[14]) * int(row[5]) * os.sysconf("SC_PAGE_SIZE") for row in rows}


def reset_peak(pid: int) -> int:
    """Let VmHWM of /proc/PID/status count from now. Returns the resident bytes it begins with; 0 where that may not be done."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return 0
    return status_number(pid, "VmRSS") * 1024
