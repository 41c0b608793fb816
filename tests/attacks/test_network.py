"""The network: neither this machine, nor its neighbours, nor metadata services, nor other instances can be reached; no other sockets.

The platform stands on the machine of tests/egress/world.py, whose internet serves every address below and forwards nothing.
"""

import pytest

from tests.attacks.arena import Arena, Attacker
from tests.egress.world import FORBIDDEN, FORBIDDEN6, MACHINE, MACHINE6, PUBLIC, PUBLIC6, attempt

pytestmark = pytest.mark.root

EGRESS = pytest.mark.parametrize("egress", ["none", "internet"])
OWN = (
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "10.255.255.1",
    "10.255.255.53",
    MACHINE,
    MACHINE6,
    f"::ffff:{MACHINE}",
)
GET = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def attacker_with(arena: Arena, egress: str) -> Attacker:
    return arena.attacker("network", name=f"net-{egress}", egress=egress)


def answers(said: dict[str, object]) -> dict[str, object]:
    return {target: answer for target, answer in said.items() if isinstance(answer, dict)}


@EGRESS
def test_the_platforms_own_port_is_out_of_reach_at_every_address(arena: Arena, egress: str) -> None:
    port = arena.platform.address[1]
    with arena.platform.placed():
        for host in ("127.0.0.1", MACHINE):
            assert "HTTP/1.1" in attempt(host, port, GET.encode()), f"the attack aims at what is there: {host}"
    said = attacker_with(arena, egress).try_("reach", targets=[[host, port] for host in OWN], command=GET)
    assert answers(said) == {}


@EGRESS
def test_metadata_private_and_reserved_addresses_are_out_of_reach(arena: Arena, egress: str) -> None:
    """As TCP and as UDP. The machine itself reaches every one of them."""
    hosts = [host for host in (*FORBIDDEN, *FORBIDDEN6) if not host.startswith("240.")]
    with arena.platform.placed():
        for host in hosts:
            assert host in attempt(host), f"the attack aims at what is there: {host}"
    attacker = attacker_with(arena, egress)
    said = attacker.try_("reach", targets=[[host, 80] for host in (*hosts, "240.0.0.7")], command="WHO\n")
    assert answers(said) == {}
    assert answers(attacker.act("datagrams", targets=[[host, 80] for host in hosts])) == {}


def test_public_addresses_are_reached_with_egress_only(arena: Arena) -> None:
    """What the tests above show is not just a network that does not work."""
    targets = [[PUBLIC, 80], [PUBLIC6, 80]]
    reached = attacker_with(arena, "internet").try_("reach", targets=targets, command="WHO\n")
    assert len(answers(reached)) == 2, reached
    assert answers(attacker_with(arena, "none").act("reach", targets=targets, command="WHO\n")) == {}


@EGRESS
def test_another_instances_loopback_is_out_of_reach(arena: Arena, egress: str) -> None:
    server = arena.attacker("network", name=f"server-{egress}", egress=egress)
    assert server.act("serve", port=9099) == "serving"
    assert answers(server.act("reach", targets=[["127.0.0.1", 9099]], command="")), "it serves itself"
    said = attacker_with(arena, egress).try_("reach", targets=[[host, 9099] for host in OWN], command="x")
    assert answers(said) == {}


@EGRESS
def test_no_raw_packet_vsock_netlink_or_other_sockets(arena: Arena, egress: str) -> None:
    said = attacker_with(arena, egress).try_("families")
    refused = {"EAFNOSUPPORT", "EPERM"}
    assert {label: answer for label, answer in said.items() if answer not in refused} == {}


@EGRESS
def test_socket_options_that_forge_or_bypass_are_refused(arena: Arena, egress: str) -> None:
    said = attacker_with(arena, egress).try_("options")
    allowed = {label for label, answer in said.items() if answer == "worked"}
    assert allowed == set()
