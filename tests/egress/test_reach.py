"""What an instance can reach: the public internet when it may, itself always, and nothing else ever."""

import os
import socket
import struct

import pytest

from dayfly.sandbox import netns, network
from tests.egress.world import FORBIDDEN, FORBIDDEN6, MACHINE, MACHINE6, PUBLIC, PUBLIC6, Instance, Platform, World, attempt

pytestmark = pytest.mark.root

HERE_ADDRESSES = ["127.0.0.1", "127.1.2.3", "10.255.255.1", "0.0.0.0"]
NOT_FOUND = ("ConnectionResetError", "ConnectionRefusedError", "OSError", "TimeoutError")


def test_public_addresses_answer_and_see_the_machine_as_the_sender(platform: Platform) -> None:
    """TCP to a public address works over IPv4 and IPv6, and arrives there from the machine's own address."""
    with platform.instance() as instance:
        assert instance.run(attempt, PUBLIC) == repr([MACHINE, (PUBLIC, 80)])
        assert instance.run(attempt, PUBLIC6) == repr([MACHINE6, (PUBLIC6, 80)])


@pytest.mark.parametrize("host", [*FORBIDDEN, *FORBIDDEN6])
def test_forbidden_addresses_are_reset_although_the_machine_reaches_them(platform: Platform, world: World, host: str) -> None:
    """The toy internet serves each of these addresses to the machine; an instance gets a reset, or no connection."""
    if not host.startswith("240."):  # the kernel itself may refuse that one
        with world.on_machine():
            assert host in attempt(host)
    with platform.instance() as instance:
        assert instance.run(attempt, host) in ("ConnectionResetError", "ConnectionRefusedError")


def test_the_machine_itself_is_out_of_reach_on_all_its_addresses(platform: Platform, world: World) -> None:
    """A service of the machine on all of its addresses, public ones included, is never reached by an instance."""
    with world.on_machine():
        service = socket.create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    with service, platform.instance() as instance:
        service.setblocking(False)
        for host in [MACHINE, MACHINE6, f"::ffff:{MACHINE}", "93.184.215.255", *HERE_ADDRESSES, "::1", "::ffff:127.0.0.1", "::"]:
            assert instance.run(attempt, host, 8080) in NOT_FOUND, host
        with pytest.raises(BlockingIOError):
            service.accept()


def _serve_itself(bound: str, host: str) -> str:
    """A server and a client in one instance."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 8000), family=family) as server, socket.create_connection((host, 8000), 5) as client:
        client.sendall(b"hello")
        accepted, _ = server.accept()
        with accepted:
            return accepted.recv(16).decode()


@pytest.mark.parametrize("egress", ["none", "internet"])
def test_an_instance_can_serve_itself_on_loopback(platform: Platform, egress: str) -> None:
    """127.0.0.1 and ::1 are the instance's own, with and without internet."""
    with platform.instance(egress) as instance:
        assert instance.run(_serve_itself, "127.0.0.1", "127.0.0.1") == "hello"
        assert instance.run(_serve_itself, "0.0.0.0", "127.0.0.1") == "hello"
        assert instance.run(_serve_itself, "::1", "::1") == "hello"


def _connects(host: str, port: int) -> bool:
    with socket.create_connection((host, port), 5):
        return True


@pytest.mark.parametrize("egress", ["none", "internet"])
def test_two_instances_do_not_share_their_loopback(platform: Platform, egress: str) -> None:
    """What one instance serves on its loopback is refused to another, also on the address both have."""
    with platform.instance(egress) as one, platform.instance(egress) as other:
        assert platform.pool.key(one.descriptor) != platform.pool.key(other.descriptor)
        ready, told = os.pipe()
        leave, left = os.pipe()

        def serve() -> str:
            with socket.create_server(("0.0.0.0", 8000)):
                os.write(told, b".")
                os.close(left)
                os.read(leave, 1)
            return "done"

        finish = one.start(serve)
        try:
            assert os.read(ready, 1) == b"."
            assert one.run(_connects, "127.0.0.1", 8000)
            for host in ["127.0.0.1", "10.255.255.1"]:
                assert other.run(attempt, host, 8000) in ("ConnectionRefusedError", "OSError")
        finally:
            os.close(left)
            for descriptor in (ready, told, leave):
                os.close(descriptor)
        assert finish() == "done"


@pytest.mark.parametrize("host", [PUBLIC, PUBLIC6, *FORBIDDEN[:4], MACHINE])
def test_without_egress_there_is_no_network_at_all(platform: Platform, host: str) -> None:
    """`egress = "none"`: every address but its own loopback is unreachable at once."""
    with platform.instance("none") as instance:
        assert instance.run(attempt, host) == "OSError"  # ENETUNREACH


def _udp(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(2)
        try:
            sender.connect((host, port))
            sender.send(b"hello")
            return sender.recv(100).decode()
        except OSError as error:
            return type(error).__name__


def test_udp_other_than_dns_goes_nowhere(platform: Platform) -> None:
    """A datagram to another port is refused at once, so that clients of UDP protocols fall back without waiting."""
    with platform.instance() as instance:
        assert instance.run(_udp, PUBLIC, 443) == "ConnectionRefusedError"
        assert instance.run(_udp, "10.1.2.3", 443) == "ConnectionRefusedError"


def _squat() -> list[str]:
    """Bind what the steering uses, as far as an instance may, and connect to the public address afterwards."""
    seen = []
    with socket.create_server(("0.0.0.0", 8080)), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        for address in [(PUBLIC, 5000), ("10.255.255.53", 53)]:
            try:
                bound.bind(address)
                bound.listen()
                seen.append("bound")
            except OSError as error:
                seen.append(type(error).__name__)
    return [*seen, attempt(PUBLIC)]


def test_an_instance_cannot_take_the_place_of_the_steering(platform: Platform) -> None:
    """Listening on a public address inside the namespace is harmless, and port 53 is nobody's: connections still leave."""
    with platform.instance() as instance:
        bound, port_53, answer = instance.run(_squat)
        assert bound == "bound"
        assert port_53 in ("PermissionError", "OSError")
        assert MACHINE in answer


def _packet_socket() -> str:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        return "refused"
    return "opened"


def test_an_instance_has_no_power_over_its_namespace(platform: Platform) -> None:
    """Unprivileged code cannot open packet sockets (and so cannot forge what the broker sees)."""
    with platform.instance() as instance:
        assert instance.run(_packet_socket) == "refused"


def _resolve(name: str) -> str:
    try:
        return socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        return error.strerror or ""


@pytest.fixture
def resolv_conf(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    path.write_text(network.RESOLV_CONF)
    return str(path)


def test_names_resolve_through_the_machines_name_servers(platform: Platform, resolv_conf: str) -> None:
    """The C library in an instance resolves names with the sandbox's resolv.conf; unknown names fail at once."""
    with platform.instance() as instance:
        assert instance.run(_resolve, "example.test", resolv_conf=resolv_conf) == PUBLIC
        assert "not known" in instance.run(_resolve, "nowhere.test", resolv_conf=resolv_conf)


def test_truncated_answers_are_fetched_again_by_tcp(platform: Platform, resolv_conf: str) -> None:
    """An answer too large for UDP reaches the instance over TCP port 53."""
    with platform.instance() as instance:
        assert instance.run(_resolve, "big.test", resolv_conf=resolv_conf) == PUBLIC


def test_a_name_that_points_inside_does_not_help(platform: Platform, resolv_conf: str) -> None:
    """DNS rebinding: the name resolves to a private address, and the connection there is reset."""
    with platform.instance() as instance:
        assert instance.run(_resolve, "evil.test", resolv_conf=resolv_conf) == "10.1.2.3"
        assert instance.run(attempt, "evil.test", resolv_conf=resolv_conf) == "ConnectionResetError"
        assert MACHINE in instance.run(attempt, "example.test", resolv_conf=resolv_conf)


def _ask(server: str, packet: bytes) -> tuple[str, str]:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asker:  # not connected: steering must let the answer in
        asker.settimeout(3)
        asker.sendto(packet, (server, 53))
        try:
            answer, sender = asker.recvfrom(4096)
        except OSError as error:
            return type(error).__name__, ""
        return answer.hex(), sender[0]


QUERY = struct.pack("!HHHHHH", 0xABCD, 0x0100, 1, 0, 0, 0) + b"\x07example\x04test\0\0\1\0\1"


@pytest.mark.parametrize("server", ["10.255.255.53", "8.8.8.8", "2001:4860:4860::8888"])
def test_any_name_server_an_instance_asks_is_answered_by_ours(platform: Platform, server: str) -> None:
    """Queries to any address are caught, and the answer comes from the address that was asked."""
    with platform.instance() as instance:
        answer, sender = instance.run(_ask, server, QUERY)
        assert bytes.fromhex(answer)[-4:] == socket.inet_aton(PUBLIC)
        assert sender == server


def _ask_rubbish_then(packets: list[str], query: str) -> list[str]:
    """Answers (hex) to all packets: the ones to the rubbish would come before the last one's, because nothing delays them."""
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        for packet in [*packets, query]:
            asker.sendto(bytes.fromhex(packet), ("10.255.255.53", 53))
        while not answers or answers[-1][:4] != query[:4]:
            answers.append(asker.recv(4096).hex())
    return answers


def test_what_is_no_query_is_not_forwarded(platform: Platform) -> None:
    """Answers, updates and rubbish sent to port 53 are dropped; queries behind them are answered."""
    other = b"\x11\x11"
    rubbish = [b"", b"x", bytes(12), other + b"\x81" + QUERY[3:], other + b"\x28" + QUERY[3:], bytes(5000)]
    with platform.instance() as instance:
        answers = instance.run(_ask_rubbish_then, [packet.hex() for packet in rubbish], QUERY.hex())
        assert len(answers) == 1


def test_a_kernel_without_ipv6_gets_the_same_over_ipv4(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """With IPv4-only sockets, connections and name queries work and answers come from where they were asked."""
    monkeypatch.setattr(netns, "_open_socket", lambda kind: socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK))
    monkeypatch.setattr(netns, "has_global_ipv6", lambda: False)  # such a kernel cannot be had in a test
    taken = [platform.take() for _ in range(3)]  # two were waiting
    instance = Instance(taken[-1])
    try:
        assert instance.run(attempt, PUBLIC) == repr([MACHINE, (PUBLIC, 80)])
        assert instance.run(attempt, "10.1.2.3") == "ConnectionResetError"
        assert instance.run(attempt, PUBLIC6) == "OSError"  # unreachable at once, so that clients try IPv4
        answer, sender = instance.run(_ask, "8.8.8.8", QUERY)
        assert (bytes.fromhex(answer)[-4:], sender) == (socket.inet_aton(PUBLIC), "8.8.8.8")
    finally:
        for descriptor in taken:
            platform.pool.release(platform.pool.key(descriptor))
            os.close(descriptor)
