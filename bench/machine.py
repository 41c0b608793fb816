"""The machine a figure was taken on, and how busy it was with other things meanwhile. Used by bench/report.py."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


def facts() -> dict[str, object]:
    """What decides a figure beside our code: processor, cores, memory, kernel, Python, system, user."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine()
    )
    memory = next((int(line.split()[1]) // 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    system = next(
        (line.split("=", 1)[1].strip('"') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME")),
        platform.system(),
    )
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": memory,
        "system": system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "ordinary",
    }


@dataclass(frozen=True)
class Busy:
    """A moment's load: 1-minute load average, and CPU jiffies in all and stolen by the host."""

    load: float
    jiffies: int
    stolen: int

    @classmethod
    def now(cls) -> "Busy":
        values = [int(value) for value in _lines("/proc/stat")[0].split()[1:9]]
        return cls(os.getloadavg()[0], sum(values), values[7])

    def until(self, later: "Busy") -> dict[str, float]:
        """Load before and after, and the share of CPU time that the host took away between, in per cent."""
        stolen = 100.0 * (later.stolen - self.stolen) / max(1, later.jiffies - self.jiffies)
        return {"load_before": round(self.load, 2), "load_after": round(later.load, 2), "steal_percent": round(stolen, 2)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return [""]
