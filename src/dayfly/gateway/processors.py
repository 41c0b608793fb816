"""How pressed this machine's processors are, and how much processor time a process has used: four small files of /proc, read now and then.

An ordinary user may read all of them. What is not there is said to be unknown: without /proc/pressure (kernels without CONFIG_PSI, or
booted with psi=0) the number of threads that could run stands in, and where a process's times are hidden (hidepid), nobody is held back.
Called by gateway/scaling.py and `dayfly doctor`; core/decide/pressure.py makes sense of it. A read takes about six microseconds.
"""

import os
from contextlib import suppress

from dayfly.core.decide.pressure import Reading

SMALL_BYTES = 1024
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Processors:
    """This machine's. `source`: what says how pressed they are."""

    def __init__(self, root: str = "/") -> None:
        self._root = root.rstrip("/")
        self.source = "psi" if self.stalled_us() >= 0 else "loadavg" if self.running() >= 0 else ""
        self.cores = self._cores()

    def __repr__(self) -> str:
        return f"<Processors {self.cores:g} cores, {self.source or 'unknown'}>"

    def stalled_us(self) -> int:
        """Time in which at least one thread that could run waited for a processor, since boot; -1 when the kernel does not count it."""
        with suppress(OSError, ValueError, IndexError):
            return int(self._read("/proc/pressure/cpu").split(b"some ", 1)[1].split(b"total=", 1)[1].split(b"\n", 1)[0])
        return -1

    def running(self) -> int:
        """Threads that run or could, this one left out; -1 when unknown."""
        with suppress(OSError, ValueError, IndexError):
            return int(self._read("/proc/loadavg").split()[3].split(b"/")[0]) - 1
        return -1

    def reading(self, pid: int) -> Reading | None:
        """Of all threads of a process and of its children that have ended; None when it is gone or hidden."""
        with suppress(OSError, ValueError, IndexError):
            times = self._read(f"/proc/{pid}/stat").rpartition(b")")[2].split()  # its name may hold anything
            whole = sum(map(int, times[11:15])) / TICKS_PER_SECOND
            main, delay = self._schedule(pid)
            return Reading(max(whole, main), delay)  # the one counts every thread, the other counts finely
        return None

    def _schedule(self, pid: int) -> tuple[float, float]:
        """Of its main thread: seconds on a processor, and waiting for one. Zeros on kernels that do not count them."""
        with suppress(OSError, ValueError):
            ran, waited, _ = self._read(f"/proc/{pid}/schedstat").split()
            return int(ran) * 1e-9, int(waited) * 1e-9
        return 0.0, 0.0

    def _cores(self) -> float:
        """Those that this process may use, or what its container's ceiling leaves, if that is less."""
        cores = float(len(os.sched_getaffinity(0)))
        with suppress(OSError, ValueError):  # version 2, seen from inside a container; "max" is no number and means no ceiling
            quota, period = map(int, self._read("/sys/fs/cgroup/cpu.max").split())
            cores = min(cores, quota / period)
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota = int(self._read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
            if quota > 0:
                cores = min(cores, quota / int(self._read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")))
        return max(cores, 0.1)

    def _read(self, path: str) -> bytes:
        descriptor = os.open(self._root + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, SMALL_BYTES)
        finally:
            os.close(descriptor)
