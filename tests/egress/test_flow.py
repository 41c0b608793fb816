"""Connections through the broker: bytes, ends and resets pass unchanged, nobody waits for another, and every limit holds."""

import hashlib
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator

import pytest

from tests.egress.world import MACHINE, PUBLIC, Platform, World, attempt, wait_until

pytestmark = pytest.mark.root
MEBIBYTE = 1 << 20


def _echo(mebibytes: int) -> list[str]:
    """Send and receive at once; the digests of both, and what came behind the echo after the half-close."""
    sent, received, tail = hashlib.sha256(), hashlib.sha256(), b""
    pending = memoryview(b"")
    left, back = mebibytes, mebibytes * MEBIBYTE
    with socket.create_connection((PUBLIC, 80), 10) as peer, selectors.DefaultSelector() as waiting:
        peer.sendall(b"ECHO\n")
        peer.setblocking(False)
        waiting.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            events = waiting.select(10)[0][1]
            if events & selectors.EVENT_READ:
                data = peer.recv(MEBIBYTE)
                if not data:
                    return [sent.hexdigest(), received.hexdigest(), tail.decode()]
                received.update(data[:back])
                tail += data[back:]
                back = max(0, back - len(data))
            if events & selectors.EVENT_WRITE:
                if not pending and left:
                    block = os.urandom(MEBIBYTE)
                    sent.update(block)
                    pending, left = memoryview(block), left - 1
                if pending:
                    pending = pending[peer.send(pending) :]
                if not pending and not left:
                    peer.shutdown(socket.SHUT_WR)
                    waiting.modify(peer, selectors.EVENT_READ)


def test_large_transfers_pass_unchanged_both_ways_at_once_and_half_close_passes(platform: Platform) -> None:
    """32 MiB out and back while the other direction runs; what the server says after end-of-file still arrives."""
    with platform.instance() as instance:
        sent, received, tail = instance.run(_echo, 32)
    assert sent == received
    assert tail == "bye"


def test_an_upload_ends_by_half_close_and_the_answer_comes_back(platform: Platform) -> None:
    """The server sees end-of-file exactly at the end, and its answer reaches the client."""
    with platform.instance() as instance:
        assert instance.run(attempt, PUBLIC, 80, b"SINK\n" + b"x" * 3_000_000) == "3000000"


def _many(count: int) -> int:
    """So many connections open at once; how many of them are answered."""
    peers = [socket.create_connection((PUBLIC, 80), 15) for _ in range(count)]
    for peer in peers:
        peer.sendall(b"HOLD\n")
    answered = sum(peer.recv(16) == b"held" for peer in peers)
    for peer in peers:
        peer.close()
    return answered


def test_two_hundred_connections_at_once(platform: Platform) -> None:
    """All are served while all are open."""
    with platform.instance() as instance:
        assert instance.run(_many, 200) == 200


def _slow_reader(told: int, leave: int) -> int:
    """Ask for much, read nothing until told to, then everything."""
    with socket.create_connection((PUBLIC, 80), 15) as peer:
        peer.sendall(b"SEND 30000000\n")
        os.write(told, b".")
        os.read(leave, 1)
        total = 0
        while data := peer.recv(MEBIBYTE):
            total += len(data)
        return total


def test_a_slow_reader_stalls_nobody_and_loses_nothing(platform: Platform) -> None:
    """While one connection is not read, others (of the same and of another instance) run; the broker does not buffer it all."""
    told, tell = os.pipe()
    leave, go = os.pipe()
    with platform.instance() as one, platform.instance() as other:
        before = _memory_kib(platform)
        finish = one.start(_slow_reader, tell, leave)
        assert os.read(told, 1) == b"."
        for instance in (one, other):
            sent, received, _ = instance.run(_echo, 4)
            assert sent == received
        assert _memory_kib(platform) - before < 20_000
        os.write(go, b".")
        assert finish() == 30_000_000
    for descriptor in (told, tell, leave, go):
        os.close(descriptor)


def _memory_kib(platform: Platform) -> int:
    with open(f"/proc/{platform.broker_pid()}/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


def test_closed_ports_break_at_once(platform: Platform) -> None:
    """Where the destination refuses, the instance's connection is reset, not left hanging."""
    with platform.instance() as instance:
        began = time.monotonic()
        assert instance.run(attempt, PUBLIC, 81) == "ConnectionResetError"
        assert time.monotonic() - began < 4


def test_traffic_is_counted_per_instance(platform: Platform) -> None:
    """A released instance's totals come back: bytes both ways, connections, refusals."""
    with platform.instance() as instance:
        key = platform.pool.key(instance.descriptor)
        assert instance.run(attempt, PUBLIC, 80, b"SINK\n" + b"x" * 1000) == "1000"
        assert instance.run(attempt, "10.1.2.3") == "ConnectionResetError"
    reports: list[tuple[int, ...]] = []
    wanted = (key, 1005, 4, 1, 1)
    wait_until(lambda: reports.extend(platform.pool.traffic()) or wanted in reports, f"the report {wanted}")


def _hold_until_broken(told: int) -> str:
    with socket.create_connection((PUBLIC, 80), 15) as peer:
        peer.sendall(b"HOLD\n")
        assert peer.recv(16) == b"held"
        os.write(told, b".")
        try:
            return peer.recv(16).decode() or "ended"
        except OSError as error:
            return type(error).__name__


def test_release_breaks_what_is_still_connected(platform: Platform) -> None:
    """Giving a namespace back ends its connections, also when a process is still there."""
    told, tell = os.pipe()
    with platform.instance() as instance:
        finish = instance.start(_hold_until_broken, tell)
        assert os.read(told, 1) == b"."
        platform.pool.release(platform.pool.key(instance.descriptor))
        assert finish() == "ConnectionResetError"
    os.close(told)
    os.close(tell)


def test_a_killed_broker_breaks_connections_and_a_new_one_serves_the_same_instances(platform: Platform) -> None:
    """kill -9: open connections break; connections made meanwhile wait in the kernel; after the restart all is as before."""
    told, tell = os.pipe()
    with platform.instance() as one, platform.instance() as other:
        finish = one.start(_hold_until_broken, tell)
        assert os.read(told, 1) == b"."
        platform.kill_broker()
        assert finish() in ("ConnectionResetError", "ended")
        waiting = other.start(attempt, PUBLIC)
        with platform.instance("none"):
            pass  # calls without network do not notice
        with platform.instance() as born_meanwhile:
            platform.start_broker()
            platform.deliver()
            assert MACHINE in waiting()
            for instance in (one, other, born_meanwhile):
                assert MACHINE in instance.run(attempt, PUBLIC)
    os.close(told)
    os.close(tell)


def test_a_thousand_starts_leave_nothing_behind(platform: Platform) -> None:
    """Descriptors of the node and of the broker are the same after as before, whether or not the network was used."""
    with platform.instance() as instance:
        instance.run(attempt, PUBLIC)
    platform.deliver()
    seen: deque[int] = deque(maxlen=20)
    wait_until(lambda: seen.append(platform.broker_descriptors()) or [*seen] == [seen[0]] * 20, "the broker to be done with the first")
    brokers = seen[0]
    own = len(os.listdir("/proc/self/fd"))
    for turn in range(1000):
        with platform.instance("internet" if turn % 2 else "none") as instance:
            if turn % 100 == 1:
                assert MACHINE in instance.run(attempt, PUBLIC)
        platform.deliver()
    platform.pool.traffic()
    assert len(os.listdir("/proc/self/fd")) == own
    wait_until(lambda: platform.broker_descriptors() <= brokers, "the broker's descriptors to be closed")


@pytest.fixture
def slow(world: World) -> Iterator[Platform]:
    """A platform where an instance moves 400 kB a second."""
    built = Platform(world, egress_bytes_per_second_max=400_000)
    try:
        yield built
    finally:
        built.close()


def _download(size: int) -> list[float]:
    """Bytes that came, and after how many seconds."""
    began, total = time.monotonic(), 0
    with socket.create_connection((PUBLIC, 80), 15) as peer:
        peer.sendall(b"SEND %d\n" % size)
        while data := peer.recv(65536):
            total += len(data)
    return [total, time.monotonic() - began]


def test_an_instance_over_its_rate_waits_and_others_do_not(slow: Platform) -> None:
    """800 kB at 400 kB a second, of which the first second is free: not before a second is over, and whole. Upload counts, too."""
    with slow.instance() as one, slow.instance() as other:
        finish = one.start(_download, 800_000)
        assert other.run(attempt, PUBLIC, 80, b"SINK\n" + b"x" * 100_000) == "100000"
        total, seconds = finish()
        assert total == 800_000
        assert seconds > 0.9
        began = time.monotonic()
        assert one.run(attempt, PUBLIC, 80, b"SINK\n" + b"x" * 800_000) == "800000"
        assert time.monotonic() - began > 0.9


@pytest.fixture
def tight(world: World) -> Iterator[Platform]:
    """A platform whose limits are reached at once."""
    built = Platform(
        world,
        egress_connections_per_instance_max=3,
        egress_connections_max=5,
        egress_connect_timeout_seconds=0.3,
        egress_idle_timeout_seconds=0.5,
        egress_queries_per_instance_max=2,
        egress_query_timeout_seconds=0.2,
    )
    try:
        yield built
    finally:
        built.close()


def _held(count: int, told: int) -> list[int]:
    """Open connections one after the other without closing any; in which order of time they were answered is the server's."""
    peers = [socket.create_connection((PUBLIC, 80), 15) for _ in range(count)]
    for peer in peers:
        peer.settimeout(15)
        peer.sendall(b"HOLD\n")
    answers = []
    for index, peer in enumerate(peers):
        if peer.recv(16) == b"held":
            answers.append(index)
            os.write(told, b".")
    return answers


def test_connections_over_the_limit_wait_for_a_free_place(tight: Platform) -> None:
    """The fourth connection of an instance is served when one of the first three ends (here: by the idle timeout)."""
    told, tell = os.pipe()
    with tight.instance() as one, tight.instance() as other:
        first, second = one.start(_held, 7, tell), other.start(_held, 4, tell)
        assert first() == list(range(7))
        assert second() == list(range(4))
    os.close(told)
    os.close(tell)


def test_an_idle_connection_is_reset(tight: Platform) -> None:
    """Nothing moves for the idle timeout: both ends learn it."""
    told, tell = os.pipe()
    with tight.instance() as instance:
        assert instance.run(_hold_until_broken, tell) == "ConnectionResetError"
    os.close(told)
    os.close(tell)


def _ask_often(count: int) -> list[str]:
    """Codes of the answers to so many queries for a name that is never answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        for number in range(count):
            asker.sendto(bytes([1, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + b"\x06silent\x04test\0\0\1\0\1", ("10.255.255.53", 53))
        answers = []
        try:
            while True:
                answers.append(asker.recv(512)[3:4].hex())
        except TimeoutError:
            return answers


def test_queries_over_the_limit_are_dropped_and_unanswered_ones_fail(tight: Platform) -> None:
    """Two queries may wait: they get SERVFAIL when the server stays silent; the third is dropped."""
    with tight.instance() as instance:
        assert instance.run(_ask_often, 3) == ["82", "82"]
