"""Using up: whatever a function takes, it takes from its own, and is stopped where its own ends; neighbours do not notice.

Root's platform only: without control groups an instance's memory is bounded by other means or not at all (docs/security.md).
"""

import os
from pathlib import Path

import pytest

from tests.attacks.arena import Arena, Attacker
from tests.e2e.harness import descendants

pytestmark = pytest.mark.root

MEMORY_MB = 64
PROCESSES_MAX = 64  # core/decide/isolate.py PIDS_MAX
BALLAST_MB = 160


def spender(arena: Arena, **config: object) -> Attacker:
    """An attacker with little memory; its name holds its settings."""
    name = "-".join(["spender", *(f"{key.partition('_')[0]}{value}" for key, value in config.items())])
    return arena.attacker("exhaustion", name=name.lower(), **({"memory_mb": MEMORY_MB, "tmp_mb": 16, "timeout_seconds": 20} | config))


def processes_of(arena: Arena) -> set[int]:
    return set(descendants(arena.platform.roles()["node"]))


# Processes and threads


def test_a_fork_bomb_is_bounded(arena: Arena) -> None:
    attacker, seen = spender(arena, memory_mb=256), [0]
    bomb = lambda: attacker.act("fork_bomb", seconds=1, mark="the-bomb")  # noqa: E731  # what goes on while it is watched
    assert arena.unharmed(bomb, lambda: seen.append(len(arena.marked("the-bomb")))) > 0
    assert 1 < max(seen) <= PROCESSES_MAX
    attacker.call("go")
    arena.platform.wait_for("its processes are gone", lambda: not arena.marked("the-bomb"))
    attacker.works()


def test_a_thread_bomb_is_bounded(arena: Arena) -> None:
    attacker = spender(arena)
    said = attacker.try_("thread_bomb", seconds=0.3)
    assert 0 < said["count"] <= PROCESSES_MAX and said["error"] == "RuntimeError"
    attacker.works()


# Memory


def test_a_memory_bomb_ends_its_instance_only(arena: Arena) -> None:
    attacker = spender(arena)

    answer = arena.unharmed(lambda: attacker.over_and_over("anonymous"))
    assert "memory limit exceeded" in answer.json()["errorMessage"]
    attacker.works()


@pytest.mark.parametrize(
    "kind", ["anonymous_children", "memory_files", "shared_memory", "pipes", "unix_sockets", "tcp_sockets", "udp_sockets"]
)
def test_memory_of_every_kind_is_the_instances_own(arena: Arena, kind: str) -> None:
    """Taken by many processes at once, as anonymous pages, memory files, SysV segments, pipes, or what waits in sockets: never more is
    held than the function may have. (Some of its processes, or all, are ended on the way.)"""
    attacker = spender(arena)
    answer = arena.unharmed(lambda: attacker.over_and_over(kind, children=40, seconds=0.5))
    if "x-amz-function-error" in answer.headers:
        assert "memory limit exceeded" in answer.json()["errorMessage"], answer.body
    else:
        said = answer.json()
        assert 1 < said["held_mb"] <= 1.5 * MEMORY_MB, said  # those being ended count a moment longer than what they held
    attacker.works()


def test_page_cache_is_the_instances_own(arena: Arena) -> None:
    """Reading a file far larger than its memory works, and the pages that are kept of it are within that memory."""
    attacker = arena.attacker("exhaustion", name="reader", files={"ballast": bytes(BALLAST_MB << 20)}, memory_mb=MEMORY_MB)
    said = attacker.try_("page_cache")
    assert said["read_mb"] == 3 * BALLAST_MB
    peak, limit = memory_peak(arena, said["uid"])
    assert peak <= limit <= 2 * MEMORY_MB << 20


def memory_peak(arena: Arena, uid: int) -> tuple[int, int]:
    """The most that the instance of this user has used, and its limit, in bytes, from its control group."""
    (pid,) = (pid for pid in processes_of(arena) if os.stat(f"/proc/{pid}").st_uid == uid)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/memory" + path)
            return int((folder / "memory.max_usage_in_bytes").read_text()), int((folder / "memory.limit_in_bytes").read_text())
        if not controllers and (folder := Path("/sys/fs/cgroup" + path) / "memory.max").exists():
            return int((folder.parent / "memory.peak").read_text()), int(folder.read_text())
    raise AssertionError("the instance has no control group for memory")


def test_tmp_is_bounded_in_bytes(arena: Arena) -> None:
    attacker = spender(arena)
    said = attacker.try_("tmpfs")["tmp"]
    assert said["errno"] in (27, 28) and said["count"] <= 16, "file too large, or no space left"
    attacker.works()


def test_a_tmp_larger_than_memory_counts_as_memory(arena: Arena) -> None:
    attacker = spender(arena, tmp_mb=512)
    answer = arena.unharmed(lambda: attacker.over_and_over("tmpfs"))
    assert "memory limit exceeded" in answer.json()["errorMessage"]
    attacker.works()


# Descriptors and files


def test_descriptors_are_bounded(arena: Arena) -> None:
    attacker = spender(arena)
    said = attacker.try_("descriptors", children=40, seconds=0.3)
    assert said.pop("inotify") == 0, "the machine's files are not watched at all"
    assert len(said) == 6 and max(said.values()) <= 1024 and min(said.values()) > 10, said
    flying = attacker.try_("in_flight")
    assert flying["error"] is not None and flying["count"] * 250 <= 2 * 1024, flying
    attacker.works()


def test_a_million_files_are_refused(arena: Arena) -> None:
    attacker = spender(arena)
    said = attacker.try_("million_files")
    for kind in ("files", "folders"):
        assert said[kind]["errno"] == 28 and said[kind]["count"] <= 16 * 256, said
    attacker.works()


# Logs


@pytest.mark.parametrize("way", ["print", "logging", "blocks", "descriptor", "child"])
def test_a_flood_of_log_lines_is_cut(arena: Arena, way: str) -> None:
    """10^5 lines as fast as they go: the function may be slowed down, never its neighbours; what is dropped is said."""
    attacker = spender(arena, memory_mb=128)
    assert attacker.try_("flood", way=way, lines=100_000) == 100_000
    attacker.works()


def test_the_disk_is_not_filled_by_logs(arena: Arena) -> None:
    """A hundred times the rate that is kept, for seconds: the log's files grow by no more than the rate allows, and the rest is counted."""
    attacker = spender(arena, memory_mb=128)
    rate = 1024 * 1024  # log_bytes_per_second_max
    before, begun = log_bytes(arena), os.times().elapsed
    for _ in range(2):
        attacker.try_("flood", way="descriptor", lines=10_000, size=16_000)
    seconds = os.times().elapsed - begun
    kept = log_bytes(arena) - before
    assert kept <= 3 * rate * (seconds + 2), f"{kept >> 20} MB in {seconds:.1f} s"
    records = arena.platform.request("GET", f"/api/v1/logs?function={attacker.name}&limit=10000").body
    assert b"log records were dropped" in records


def log_bytes(arena: Arena) -> int:
    return sum(path.stat().st_size for path in (arena.platform.data / "control").glob("logs.db*"))


# Processor


@pytest.mark.parametrize("processes", [1, 8, PROCESSES_MAX])
def test_a_processor_hog_leaves_neighbours_their_share(arena: Arena, processes: int) -> None:
    attacker = spender(arena, memory_mb=128)
    attacker.try_("hog", processes=processes, seconds=0.5)
    attacker.works()


def test_many_hogs_leave_neighbours_their_share(arena: Arena) -> None:
    """Six functions at once, eight spinning processes each."""
    import threading

    attackers = [arena.attacker("exhaustion", name=f"hog{number}") for number in range(6)]

    def together() -> None:
        threads = [threading.Thread(target=attacker.call, args=("hog",), kwargs={"processes": 8, "seconds": 1}) for attacker in attackers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    arena.unharmed(together)
    for attacker in attackers:
        attacker.works()


def test_priorities_cannot_be_raised(arena: Arena) -> None:
    attacker = spender(arena, memory_mb=128)
    said = attacker.try_("hog", first=True, processes=8, seconds=0.5)
    said.pop("born")
    assert len(said) == 12 and "worked" not in said.values(), said
    attacker.try_("yielding", processes=16, seconds=0.5)
    attacker.works()
