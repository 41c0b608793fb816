"""The broker's door: only the node may come in, and whatever comes is checked. And the small pieces, without root."""

import contextlib
import os
import signal
import socket
import struct

import pytest

from dayfly.core.wire import egress as wire
from dayfly.node.egress_dns import failure, is_query, name_servers
from tests.egress.world import MACHINE, PUBLIC, Instance, Platform, attempt, wait_until

OPENING = wire.request(wire.OPEN_STEERED, 1, "internet")
QUERY = struct.pack("!HHHHHH", 7, 0x0120, 1, 0, 0, 1) + b"\x07example\x04test\0\0\1\0\1" + b"\0\0\x29\x10\0\0\0\0\0\0\0"


def _intrude(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        try:
            door.connect(path)
            door.settimeout(5)
            return repr(door.recv(16))
        except OSError as error:
            return type(error).__name__


@pytest.mark.root
def test_another_user_cannot_reach_the_door(platform: Platform) -> None:
    """The socket lies in a folder of the broker's own user; where a uid other than the node's gets there, it is shown out."""
    with platform.instance("none") as instance:
        assert instance.run(_intrude, platform.socket_path) == "PermissionError"
    folder = os.path.dirname(platform.socket_path)
    os.chmod(folder, 0o711)
    os.chmod(platform.socket_path, 0o666)
    try:
        with platform.instance("none") as instance:
            assert instance.run(_intrude, platform.socket_path) in ("b''", "ConnectionResetError")
    finally:
        os.chmod(folder, 0o700)
        os.chmod(platform.socket_path, 0o600)


@pytest.mark.root
@pytest.mark.parametrize(
    ("packet", "kinds"),
    [
        (b"x", ()),
        (b"\xff" * 16, ()),
        (bytes(64), ()),
        (OPENING, ()),
        (OPENING, ("listener",)),
        (OPENING, ("listener", "listener")),
        (OPENING, ("udp", "udp")),
        (OPENING, ("listener", "udp", "udp")),
        (OPENING, ("file", "file")),
        (wire.request(wire.OPEN_PROXY, 1, "internet"), ("tcp",)),
        (wire.request(wire.OPEN_PROXY, 1, "internet"), ("unix",)),
        (wire.request(wire.CLOSE, 1), ("listener",)),
        (wire.request(wire.OPEN_STEERED, 1), ("listener", "udp")),
        (wire.request(wire.OPEN_STEERED, 1, "everything"), ("listener", "udp")),
        (wire.request(wire.OPEN_STEERED, 1, "all", ("10.0.0.0/8",)), ("listener", "udp")),
    ],
)
def test_a_wrong_packet_ends_that_connection_and_leaks_nothing(platform: Platform, packet: bytes, kinds: tuple[str, ...]) -> None:
    """Malformed packets and wrong descriptors: the connection is closed, descriptors too, and others are served on."""
    before = platform.broker_descriptors()
    made = [_open(kind) for kind in kinds]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
        node.settimeout(5)
        node.connect(platform.socket_path)
        socket.send_fds(node, [packet], made)
        with contextlib.suppress(ConnectionResetError):
            assert node.recv(64) == b""
    for descriptor in made:
        os.close(descriptor)
    with platform.instance() as instance:
        assert MACHINE in instance.run(attempt, PUBLIC)
    platform.deliver()
    wait_until(lambda: platform.broker_descriptors() <= before + 4, "descriptors to be closed")  # + a namespace made ahead


def _open(kind: str) -> int:
    if kind == "file":
        return os.open("/dev/null", os.O_RDONLY)
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    one = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    if kind == "listener":
        one.bind(("127.0.0.1", 0))
        one.listen()
    return one.detach()


@pytest.mark.root
def test_closing_an_unknown_namespace_is_answered(platform: Platform) -> None:
    """Every CLOSE has one report, so that the node never waits for one in vain."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as node:
        node.settimeout(5)
        node.connect(platform.socket_path)
        node.send(wire.request(wire.CLOSE, 77))
        assert wire.parsed_traffic(node.recv(64)) == (77, 0, 0, 0, 0)


@pytest.mark.root
def test_without_a_broker_instances_start_all_the_same(platform: Platform) -> None:
    """take() never waits for the broker; a key that is unknown or was released already is ignored."""
    platform.kill_broker()
    descriptor = platform.take()
    try:
        assert platform.pool.key(descriptor) == os.fstat(descriptor).st_ino
        waiting = Instance(descriptor).start(attempt, PUBLIC)
        platform.start_broker()
        platform.deliver()
        assert MACHINE in waiting()
        for _ in range(2):
            platform.pool.release(platform.pool.key(descriptor))
        platform.pool.release(12345)
    finally:
        os.close(descriptor)


def test_packets_survive_the_way_and_rubbish_does_not() -> None:
    """Requests and reports are read back as sent; other lengths and kinds raise ValueError."""
    assert wire.parsed_request(wire.request(wire.CLOSE, 2**40)) == (wire.CLOSE, 2**40, "", ())
    rules = ("api.example.com", "[2001:db8::/32]:443")
    assert wire.parsed_request(wire.request(wire.OPEN_PROXY, 5, "list", rules)) == (wire.OPEN_PROXY, 5, "list", rules)
    report = wire.Traffic(1, 2, 3, 4, 5)
    assert wire.parsed_traffic(wire.traffic(report)) == report
    opening = wire.request(wire.OPEN_PROXY, 5)
    for rubbish in (
        b"",
        b"x",
        bytes(16),
        bytes(17),
        bytes(40)[:39],
        opening,
        opening + b"none",
        opening + b"list\n\xff",
        opening + b"all\nx",
    ):
        with pytest.raises(ValueError):
            wire.parsed_request(rubbish)
    for rubbish in (b"", bytes(16), bytes(41)):
        with pytest.raises(ValueError):
            wire.parsed_traffic(rubbish)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ["127.0.0.1"]),
        ("search x\nnameserver 10.0.0.1\n# nameserver 10.0.0.2\nnameserver\t::1 # why\n", ["10.0.0.1", "::1"]),
        ("nameserver fe80::1%eth0\n", ["fe80::1%eth0"]),
        ("nameserver example.test\nnameserver 1.1.1.1 2.2.2.2", ["1.1.1.1"]),
        ("nameserver 1.1.1.1\n" * 5, ["1.1.1.1"] * 3),
    ],
)
def test_name_servers_are_read_as_the_resolver_library_does(text: str, servers: list[str]) -> None:
    """At most three addresses, in order; names and comments are not addresses."""
    assert name_servers(text) == servers


def test_only_standard_queries_pass() -> None:
    """A query has more than a header, QR zero and opcode zero."""
    assert is_query(QUERY)
    for bad in (b"", QUERY[:12], QUERY[:2] + b"\x80" + QUERY[3:], QUERY[:2] + b"\x08" + QUERY[3:], bytes(4097)):
        assert not is_query(bad)


def test_a_failure_repeats_the_question() -> None:
    """SERVFAIL with the id, the question and nothing else; a question that cannot be read is left out."""
    answer = failure(QUERY)
    assert answer[:4] == QUERY[:2] + b"\x81\x82"
    assert answer[4:12] == b"\0\1\0\0\0\0\0\0"
    assert answer[12:] == QUERY[12:30]
    for broken in (QUERY[:20], QUERY[:12] + b"\xff", QUERY[:4] + b"\0\2" + QUERY[6:]):
        assert failure(broken)[4:] == bytes(8)


@pytest.mark.root
def test_many_releases_at_once_do_not_disturb_others(platform: Platform) -> None:
    """When the broker is slower than the node, packets wait: the connection, and what others have open, stays."""
    told, tell = os.pipe()
    leave, go = os.pipe()

    def hold() -> str:
        with socket.create_connection((PUBLIC, 80), 15) as peer:
            peer.sendall(b"ECHO\n")
            os.write(tell, b".")
            os.read(leave, 1)
            peer.sendall(b"x")
            return peer.recv(16).decode()

    with platform.instance() as instance:
        finish = instance.start(hold)
        assert os.read(told, 1) == b"."
        taken = [platform.take() for _ in range(300)]
        platform.deliver()
        os.kill(platform.broker_pid(), signal.SIGSTOP)
        try:
            for descriptor in taken:
                platform.pool.release(platform.pool.key(descriptor))
                os.close(descriptor)
            assert "unsent=0" not in repr(platform.pool)
        finally:
            os.kill(platform.broker_pid(), signal.SIGCONT)
        platform.pool.traffic()
        os.write(go, b".")
        assert finish() == "x"
    for descriptor in (told, tell, leave, go):
        os.close(descriptor)
    wait_until(lambda: platform.deliver() or "unsent=0" in repr(platform.pool), "all packets to be sent")
