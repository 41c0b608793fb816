"""The decision where instances may connect: Python's `ipaddress` is the independent oracle, plus what we refuse beyond it."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.egress import REASONS, plain, refusal

# Public by IANA's registries, refused by us: protocol anycast, relays, and IPv6 forms that carry an IPv4 address.
BEYOND = [
    ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b::/96", "2001::/23", "2002::/16", "3fff::/20", "5f00::/16")
]
EDGES = sorted(
    {
        ip_network(text)
        for text in (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
            "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
            "224.0.0.0/4", "240.0.0.0/4",
        )
    }
)  # fmt: skip
ports = st.integers(1, 65535)


def beyond(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in BEYOND if network.version == address.version)


@given(st.ip_addresses(v=4), ports)
def test_an_allowed_ipv4_address_is_global_and_a_global_one_is_allowed(address: IPv4Address, port: int) -> None:
    """The table and ipaddress.is_global agree on every IPv4 address, except for what we refuse beyond it."""
    allowed = refusal(address, port, False) is None
    assert allowed == (address.is_global and not address.is_multicast and not beyond(address))


@given(st.ip_addresses(v=6) | st.integers(1 << 125, (1 << 126) - 1).map(IPv6Address), ports)
def test_an_allowed_ipv6_address_is_global_unicast(address: IPv6Address, port: int) -> None:
    """Allowed means global by ipaddress and inside 2000::/3; inside it, only what is special is refused."""
    judged = plain(address)
    allowed = refusal(address, port, False) is None
    if judged.version == 4:
        assert allowed == (judged.is_global and not judged.is_multicast and not beyond(judged))
    else:
        inside = int(judged) >> 125 == 1
        assert allowed == (inside and judged.is_global and not beyond(judged))


@pytest.mark.parametrize("network", EDGES, ids=str)
def test_the_edges_of_every_special_network_are_refused(network: object) -> None:
    """First and last address, also when spelt as an IPv4-mapped IPv6 address."""
    for address in (network[0], network[-1]):  # type: ignore[index]
        assert refusal(address, 80, False) in REASONS
        assert refusal(IPv6Address(f"::ffff:{address}"), 80, False) in REASONS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("169.254.169.254", "link-local"),
        ("fd00:ec2::254", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::a00:1", "transition"),
        ("64:ff9b::808:808", "transition"),
        ("64:ff9b:1::a00:1", "transition"),
        ("2002:a00:1::1", "transition"),
        ("2001:0:a00:1::", "transition"),
        ("::10.0.0.1", "reserved"),  # IPv4-compatible
        ("::ffff:0:10.0.0.1", "reserved"),  # IPv4-translated
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0", "unspecified"),
        ("100.127.255.255", "carrier"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    """Each trick gets the reason that names it."""
    assert refusal(ip_address(text), 80, False) == reason


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255",
     "2606:2800:220:1::34", "2001:4860:4860::8888", "2a00::1", "::ffff:8.8.8.8"],
)  # fmt: skip
def test_public_addresses_are_allowed_unless_they_are_this_machines(text: str) -> None:
    """The neighbours of the special networks are public; an own address is refused whatever it looks like."""
    assert refusal(ip_address(text), 443, False) is None
    assert refusal(ip_address(text), 443, True) == "own"


@given(st.ip_addresses(), st.integers(-5, 70_000), st.booleans())
def test_own_addresses_and_impossible_ports_are_never_allowed(address: IPv4Address | IPv6Address, port: int, own: bool) -> None:
    """Whatever the address, and the reason is always one of the known ones."""
    reason = refusal(address, port, own)
    assert reason is None or reason in REASONS
    if own or not 0 < port < 65536:
        assert reason is not None
