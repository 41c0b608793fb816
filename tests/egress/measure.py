"""The figures of docs/decisions/0011-egress.md: `python -m tests.egress.measure`, as root, about a minute. Not a test.

Everything runs in the tests' own machine and internet (network namespaces); "direct" is the same client on the machine itself.
"""

import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.egress.world import PUBLIC, Instance, Platform, World, wait_until

ROUNDS = 200


def milliseconds(work: Callable[[], Any], rounds: int = ROUNDS) -> list[float]:
    """Durations of so many calls, sorted."""
    durations = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        durations.append((time.perf_counter() - began) * 1000)
    return sorted(durations)


def show(what: str, durations: list[float]) -> None:
    print(f"{what:58} p50 {statistics.median(durations):8.4f} ms   p99 {durations[len(durations) * 99 // 100]:8.4f} ms", flush=True)


def exchange() -> None:
    """Connect, ask, read the answer."""
    with socket.create_connection((PUBLIC, 80), 10) as peer:
        peer.sendall(b"WHO\n")
        peer.recv(4096)


def download(size: int = 512_000_000) -> float:
    """Megabytes per second."""
    buffer = bytearray(1 << 20)
    with socket.create_connection((PUBLIC, 80), 10) as peer:
        peer.sendall(b"SEND %d\n" % size)
        began, total = time.perf_counter(), 0
        while count := peer.recv_into(buffer):
            total += count
    return total / (time.perf_counter() - began) / 1e6


def upload(size: int = 512_000_000) -> float:
    """Megabytes per second."""
    block = bytes(1 << 20)
    with socket.create_connection((PUBLIC, 80), 10) as peer:
        peer.sendall(b"SINK\n")
        began = time.perf_counter()
        for _ in range(size // len(block)):
            peer.sendall(block)
        peer.shutdown(socket.SHUT_WR)
        peer.recv(64)
    return size / (time.perf_counter() - began) / 1e6


def exchanges() -> list[float]:
    return milliseconds(exchange)


class OnMachine(Instance):
    """The same work on the machine itself."""


def starts(platform: Platform) -> None:
    """take() with one waiting and with none."""
    for egress in ("none", "internet"):
        hits, misses, admitted = [], [], []
        for _ in range(ROUNDS):
            platform.deliver()
            for durations, waiting in ((hits, True), (misses, False)):
                if not waiting:
                    for namespace in platform.pool._waiting[egress]:
                        platform.pool.release(_live(platform, namespace))
                    platform.pool._waiting[egress].clear()
                with platform._world.on_machine():
                    began = time.perf_counter()
                    descriptor = platform.pool.take(egress)
                    durations.append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    platform.pool.admit(platform.pool.key(descriptor), egress)
                    admitted.append((time.perf_counter() - began) * 1000)
                platform.pool.release(platform.pool.key(descriptor))
                os.close(descriptor)
        show(f"take({egress!r}), one waiting", sorted(hits))
        show(f"take({egress!r}), none waiting", sorted(misses))
        show(f"admit({egress!r})", sorted(admitted))


def _live(platform: Platform, namespace: Any) -> int:
    """Make a waiting namespace one that can be released."""
    key = namespace.key()
    if namespace.sockets:
        platform.pool._live[key] = namespace
    else:
        namespace.close()
    return int(key)


def broker_cost(platform: Platform) -> tuple[int, float]:
    """(resident KiB, CPU seconds so far)."""
    with open(f"/proc/{platform.broker_pid()}/status") as status:
        memory = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    with open(f"/proc/{platform.broker_pid()}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return memory, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def slab_kib() -> int:
    """Kernel memory in slabs, whole machine."""
    with open("/proc/meminfo") as meminfo:
        return sum(int(line.split()[1]) for line in meminfo if line.startswith(("Slab:", "Percpu:")))


def idle(platform: Platform, count: int) -> None:
    """Many namespaces that do nothing."""
    memory, _ = broker_cost(platform)
    slab = slab_kib()
    taken = []
    for _ in range(count):
        taken.append(platform.take())
        platform.deliver()
    after, began_cpu = broker_cost(platform)
    used = slab_kib() - slab
    time.sleep(10)
    _, ended_cpu = broker_cost(platform)
    print(f"{count} idle namespaces: broker +{(after - memory) / count:.2f} KiB each, kernel {used / count:.0f} KiB each, "
          f"broker CPU {(ended_cpu - began_cpu) * 10:.2f} % of a core", flush=True)  # fmt: skip
    show(f"connect, ask, answer through the broker, beside {count}", Instance(taken[0]).run(exchanges))
    for descriptor in taken:
        platform.pool.release(platform.pool.key(descriptor))
        os.close(descriptor)


def churn(platform: Platform, count: int) -> None:
    """Many starts one after the other; what is left."""
    wait_until(lambda: platform.deliver() or "unsent=0" in repr(platform.pool), "the last measurement's releases to be sent")
    time.sleep(3)  # and what it left is freed
    own, brokers, slab = len(os.listdir("/proc/self/fd")), platform.broker_descriptors(), slab_kib()
    memory, _ = broker_cost(platform)
    began = time.perf_counter()
    for _ in range(count):
        with platform.instance():
            pass
        platform.deliver()
    rate = count / (time.perf_counter() - began)
    platform.pool.traffic()
    time.sleep(2)
    print(f"{count} starts with internet: {rate:.0f}/s; descriptors node {len(os.listdir('/proc/self/fd')) - own:+d}, broker "
          f"{platform.broker_descriptors() - brokers:+d}; broker memory {broker_cost(platform)[0] - memory:+d} KiB, "
          f"kernel slabs {(slab_kib() - slab) / 1024:+.1f} MiB", flush=True)  # fmt: skip


def main() -> None:
    world = World()
    try:
        platform = Platform(world)
        try:
            starts(platform)
            machine = OnMachine(os.open(f"/run/netns/{world.machine}", os.O_RDONLY))
            with platform.instance() as instance:
                for name, place in (("direct", machine), ("through the broker", instance)):
                    show(f"connect, ask, answer: {name}", place.run(exchanges))
                    rates = [(place.run(download), place.run(upload)) for _ in range(3)]
                    down, up = (statistics.median(column) for column in zip(*rates, strict=True))
                    print(f"{name}: download {down:.0f} MB/s, upload {up:.0f} MB/s", flush=True)
            os.close(machine.descriptor)
            idle(platform, 1000)
            churn(platform, 10_000)
        finally:
            platform.close()
    finally:
        world.close()


if __name__ == "__main__":
    main()
