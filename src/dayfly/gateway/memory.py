"""How much memory this machine (or the container around us) has left, and whether idle instances must leave because of it.

Real memory, not what functions were configured with: an idle instance is a fork that shares most of its pages, so a thousand of them fit
where a thousand times `memory_mb` would not. Two small files are read a few times a second. Called by gateway/main.py's clock;
core/decide/evict.py says who leaves.
"""

from contextlib import suppress
from pathlib import Path

from dayfly.gateway.fleet import Fleet

LOOK_SECONDS = 0.2
RELEASED_PER_LOOK_MAX = 8  # memory comes back with a delay


class MemoryWatch:
    """Asks idle instances to leave while less than `bytes_min` is available; 0 turns it off."""

    def __init__(self, fleet: Fleet, bytes_min: int, root: Path = Path("/")) -> None:
        self._fleet = fleet
        self._bytes_min = bytes_min
        self._root = root
        self._looked_at = 0.0

    def tick(self, now: float) -> None:
        """Look, at most five times a second."""
        if not self._bytes_min or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at, released = now, 0
        if available_bytes(self._root) < self._bytes_min:
            while released < RELEASED_PER_LOOK_MAX and self._fleet.release_one():
                released += 1


def available_bytes(root: Path = Path("/")) -> float:
    """What the kernel says can be had without swapping, or what the container's limit leaves, if that is less; infinity if unknown."""
    found = float("inf")
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024.0
    with suppress(OSError, ValueError):  # version 2, seen from inside a container; "max" is no number and means no limit
        limit = int((root / "sys/fs/cgroup/memory.max").read_text())
        used = int((root / "sys/fs/cgroup/memory.current").read_text())
        found = min(found, float(limit - used + _reclaimable(root / "sys/fs/cgroup/memory.stat")))
    return found


def _reclaimable(statistics: Path) -> int:
    """Page cache that was not used lately: the kernel takes it back before it runs short."""
    for line in statistics.read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0
