"""Lists of hosts, private networks, and what the administrator opens and shuts: tried from inside, against the toy internet."""

import os
import socket
from collections.abc import Iterator

import pytest

from dayfly.sandbox import network
from tests.egress.world import MACHINE, OTHER, PUBLIC, Instance, Platform, World, attempt

pytestmark = pytest.mark.root
REACHED = repr([MACHINE, (PUBLIC, 80)])
RESET = "ConnectionResetError"


@pytest.fixture(scope="module")
def resolv_conf(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    path.write_text(network.RESOLV_CONF)
    return str(path)


def _resolved(name: str) -> str:
    try:
        return socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        return error.strerror or ""


def _by_number_and_name(name: str) -> list[str]:
    """By its number before its name was asked for; by its name; by its number again; and a neighbour's number."""
    return [attempt(PUBLIC), attempt(name), attempt(PUBLIC), attempt(OTHER)]


@pytest.mark.parametrize(
    ("rule", "name"),
    [("example.test", "example.test"), ("example.test:80", "EXAMPLE.test"), ("*.wild.test", "a.wild.test"), ("alias.test", "alias.test"),
     ("big.test", "big.test")],
)  # fmt: skip
def test_a_listed_name_opens_the_address_that_the_broker_was_told_and_no_other(
    platform: Platform, resolv_conf: str, rule: str, name: str
) -> None:
    """Not before it was resolved through the broker; aliases and answers over TCP count, too; knowing another address does not help."""
    with platform.instance("list", rule) as instance:
        assert instance.run(_by_number_and_name, name, resolv_conf=resolv_conf) == [RESET, REACHED, REACHED, RESET]


@pytest.mark.parametrize("rules", [("example.test:81",), ("*.example.test",), ("other.test", "10.0.0.0/8"), ("xexample.test",)])
def test_a_rule_for_another_port_or_name_opens_nothing(platform: Platform, resolv_conf: str, rules: tuple[str, ...]) -> None:
    """What the rule does not say it does not open, whether the name can be resolved or not."""
    with platform.instance("list", *rules) as instance:
        assert set(instance.run(_by_number_and_name, "example.test", resolv_conf=resolv_conf)) <= {RESET, "gaierror"}


def test_what_one_instance_resolved_opens_nothing_for_another(platform: Platform, resolv_conf: str) -> None:
    """Pins belong to an instance."""
    with platform.instance("list", "example.test") as one, platform.instance("list", "example.test") as other:
        assert one.run(attempt, "example.test", resolv_conf=resolv_conf) == REACHED
        assert other.run(attempt, PUBLIC) == RESET


def test_ranges_need_no_name(platform: Platform) -> None:
    """A network and an address with a port; other ports stay shut."""
    with platform.instance("list", "93.184.216.32/30:80") as instance:
        assert instance.run(attempt, PUBLIC) == REACHED
    with platform.instance("list", PUBLIC) as instance:
        assert [instance.run(attempt, PUBLIC), instance.run(attempt, OTHER)] == [REACHED, RESET]
    with platform.instance("list", f"{PUBLIC}:443") as instance:
        assert instance.run(attempt, PUBLIC) == RESET


def test_names_that_are_not_listed_are_asked_of_nobody(platform: Platform, resolv_conf: str) -> None:
    """DNS carries nothing out of an instance with a list; without a list it does."""
    with platform.instance("list", "example.test", "counted.test") as instance:
        assert "not known" in instance.run(_resolved, "data.secret.test", resolv_conf=resolv_conf)
        assert instance.run(_resolved, "counted.test", resolv_conf=resolv_conf) == "9.9.9.0"
    with platform.instance() as instance:
        instance.run(_resolved, "data.secret.test", resolv_conf=resolv_conf)
        assert instance.run(_resolved, "counted.test", resolv_conf=resolv_conf) != "9.9.9.0"


def _ask(packets: list[str]) -> list[str]:
    answers = []
    for packet in packets:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.sendto(bytes.fromhex(packet), ("8.8.8.8", 53))
            answers.append(asker.recv(4096).hex())
    return answers


HEADER = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0"
EXAMPLE, A = b"\x07example\x04test\0", b"\0\1\0\1"
HOSTILE = [
    HEADER[:5] + b"\2" + HEADER[6:] + EXAMPLE + A + b"\x06secret\x04test\0" + A,  # two questions
    HEADER + b"\x0cexample.test\0" + A,  # a dot inside a label
    HEADER + b"\xc0\x0c" + A,  # a name that points at itself
    HEADER + b"\x07example\x04test\x04evil\x04test\0" + A,
    HEADER + EXAMPLE + b"\0\1\0\3",  # not the internet's class
    HEADER + b"\x3fexample",
]


def test_crafted_queries_are_answered_by_the_broker_itself(platform: Platform) -> None:
    """Whatever is not one plain question for a listed name gets "no such name" at once."""
    with platform.instance("list", "example.test") as instance:
        answers = instance.run(_ask, [packet.hex() for packet in HOSTILE])
    assert [answer[:4] for answer in answers] == ["1234"] * len(HOSTILE)
    assert {answer[7:8] for answer in answers} == {"3"}


def _ask_by_tcp(names: list[str]) -> list[str]:
    found = []
    with socket.create_connection(("10.255.255.53", 53), 5) as peer:
        for name in names:
            query = HEADER + b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + A
            peer.sendall(len(query).to_bytes(2, "big") + query)
            length = int.from_bytes(peer.recv(2, socket.MSG_WAITALL), "big")
            found.append(peer.recv(length, socket.MSG_WAITALL)[-4:].hex())
    return [*found, attempt(PUBLIC)]


def test_names_over_tcp_are_judged_too(platform: Platform) -> None:
    """Several queries in one connection; the listed name is answered and opens its address, the other is not."""
    with platform.instance("list", "example.test") as instance:
        other, listed, connected = instance.run(_ask_by_tcp, ["evil.test", "example.test"])
    assert (listed, connected) == (socket.inet_aton(PUBLIC).hex(), REACHED)
    assert other != socket.inet_aton("10.1.2.3").hex()


PRIVATE = ["10.1.2.3", "192.168.7.7", "172.16.5.5", "100.64.9.9"]
NEVER = ["169.254.169.254", "198.51.100.7", "192.0.2.7", MACHINE]


def test_all_is_no_more_than_internet_unless_the_administrator_says_so(platform: Platform, resolv_conf: str) -> None:
    """Whoever may deploy cannot open the private network alone, whichever way it is asked for."""
    with platform.instance("all") as instance:
        assert instance.run(attempt, PUBLIC) == REACHED
        assert {instance.run(attempt, host) for host in [*PRIVATE, *NEVER]} == {RESET}
    with platform.instance("list", "10.0.0.0/8", "evil.test", "169.254.169.254") as instance:
        assert instance.run(attempt, "evil.test", resolv_conf=resolv_conf) == RESET
        assert {instance.run(attempt, host) for host in ("10.1.2.3", "169.254.169.254")} == {RESET}


@pytest.fixture(scope="module")
def private(world: World) -> Iterator[Platform]:
    built = Platform(world, egress_max="all")
    yield built
    built.close()


def test_all_reaches_private_networks_and_nothing_of_this_machine(private: Platform, world: World) -> None:
    """Private and carrier networks answer; metadata, reserved networks and the machine do not."""
    with world.on_machine():
        service = socket.create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    with service, private.instance("all") as instance:
        service.setblocking(False)
        for host in [PUBLIC, *PRIVATE]:
            assert host in instance.run(attempt, host), host
        assert {instance.run(attempt, host) for host in NEVER} == {RESET}
        for host in (MACHINE, "127.0.0.1", "10.255.255.1"):
            assert instance.run(attempt, host, 8080) in (RESET, "ConnectionRefusedError"), host
        with pytest.raises(BlockingIOError):
            service.accept()


def test_internet_stays_public_where_all_is_allowed(private: Platform, resolv_conf: str) -> None:
    """The setting lets functions ask; who does not ask gets no more. A list may name private hosts then."""
    with private.instance() as instance:
        assert {instance.run(attempt, host) for host in PRIVATE} == {RESET}
    with private.instance("list", "evil.test:80", "192.168.0.0/16") as instance:
        assert "10.1.2.3" in instance.run(attempt, "evil.test", resolv_conf=resolv_conf)
        assert "192.168.7.7" in instance.run(attempt, "192.168.7.7")
        assert {instance.run(attempt, host) for host in (PUBLIC, "172.16.5.5")} == {RESET}


@pytest.fixture(scope="module")
def ruled(world: World) -> Iterator[Platform]:
    allow = f"10.1.0.0/16:80, 169.254.169.254, {MACHINE}:8080, 0.0.0.0/0"
    built = Platform(world, egress_max="all", egress_allow=allow, egress_deny=f"{PUBLIC}/32, 192.168.0.0/16")
    yield built
    built.close()


def test_the_administrators_ranges(ruled: Platform, world: World) -> None:
    """What is allowed is open to "internet", too, to the port; 0.0.0.0/0 opens nothing special; what is denied is shut to everybody."""
    with ruled.instance() as instance:
        assert all(host in instance.run(attempt, host) for host in ("10.1.2.3", "169.254.169.254", OTHER))
        assert {instance.run(attempt, host) for host in (PUBLIC, "10.99.0.53", "172.16.5.5", "100.64.9.9", MACHINE)} == {RESET}
    with ruled.instance("all") as instance:
        assert "172.16.5.5" in instance.run(attempt, "172.16.5.5")
        assert {instance.run(attempt, host) for host in (PUBLIC, "192.168.7.7")} == {RESET}
    with ruled.instance("list", PUBLIC) as instance:
        assert {instance.run(attempt, host) for host in (PUBLIC, "10.1.2.3")} == {RESET}


def _greeted(host: str, port: int) -> bool:
    with socket.create_connection((host, port), 5) as peer:
        return peer.recv(5) == b"hello"


def test_one_service_of_this_machine_may_be_named(ruled: Platform, world: World) -> None:
    """An address of the machine with a port, and only that port."""
    with world.on_machine():
        services = [socket.create_server((MACHINE, port)) for port in (8080, 8081)]
    try:
        with ruled.instance() as instance:
            finish = instance.start(_greeted, MACHINE, 8080)
            accepted, _ = services[0].accept()
            with accepted:
                accepted.sendall(b"hello")
                assert finish() is True
            assert instance.run(attempt, MACHINE, 8081) == RESET
    finally:
        for service in services:
            service.close()


def test_nothing_leaves_before_the_policy_is_known(platform: Platform) -> None:
    """A namespace that has an owner's process but no policy yet: its connections wait, and are then judged by the policy."""
    with platform._world.on_machine():
        descriptor = platform.pool.take("internet")
    try:
        instance = Instance(descriptor)
        waiting, refused = instance.start(attempt, PUBLIC), instance.start(attempt, OTHER)
        platform.deliver()
        with platform.instance() as other:
            assert other.run(attempt, PUBLIC) == REACHED  # the broker is there
        platform.pool.admit(platform.pool.key(descriptor), "list", (PUBLIC,))
        assert (waiting(), refused()) == (REACHED, RESET)
    finally:
        platform.pool.release(platform.pool.key(descriptor))
        os.close(descriptor)


def test_rules_that_cannot_be_read_let_nothing_out_and_disturb_nobody(platform: Platform) -> None:
    """A gateway that forges rules costs its own instances the way out, not all others."""
    with platform.instance() as other, platform.instance("list", "no/rule/at/all") as instance:
        assert instance.run(attempt, PUBLIC) == RESET
        assert other.run(attempt, PUBLIC) == REACHED
