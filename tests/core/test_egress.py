"""The decision where instances may connect: Python's `ipaddress` is the independent oracle, plus what we refuse beyond it."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.egress import PIN_SECONDS_MAX, PIN_SECONDS_MIN, PINS_MAX, REASONS, Pins, plain, refusal
from dayfly.core.model.egress import Policy, Reach, parsed, parsed_ranges, policy, way_of
from dayfly.core.wire.node import Start, decode_to_node, encode

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


ADMINISTRATORS = st.builds(
    Reach,
    private=st.booleans(),
    allowed=st.sampled_from(["", "0.0.0.0/0, ::/0", "10.0.0.0/8", "169.254.169.254:80", "127.0.0.1, 224.0.0.0/4, ::1"]).map(parsed_ranges),
    denied=st.sampled_from(["", "10.0.0.0/8", "0.0.0.0/0, ::/0", "8.8.8.8"]).map(parsed_ranges),
)
POLICIES = st.builds(policy, st.sampled_from(["internet", "all", "list"]), st.just(("a.test", "10.1.2.3", "8.8.8.8:443")), ADMINISTRATORS)
ADDRESSES = st.ip_addresses() | st.sampled_from(["10.1.2.3", "8.8.8.8", "169.254.169.254", "127.0.0.1", "100.64.0.1"]).map(ip_address)


@given(ADDRESSES, ports, st.booleans(), POLICIES, st.booleans())
def test_no_policy_opens_what_must_stay_shut(address: IPv4Address | IPv6Address, port: int, own: bool, chosen: Policy, named: bool) -> None:
    """Loopback, multicast and what is denied: never. Whatever a policy opens beyond "internet" is allowed by name or private."""
    reason = refusal(address, port, own, chosen, named=named)
    usual = refusal(address, port, own)
    assert reason is None or reason in REASONS
    judged = plain(address)
    if judged.is_loopback or judged.is_multicast or any(rule.admits(judged, port) for rule in chosen.reach.denied):
        assert reason is not None
    if reason is None and usual is not None:
        permitted = any(rule.admits(judged, port) for rule in chosen.reach.allowed)
        assert permitted or (chosen.private and usual in ("private", "carrier"))
    if reason is None and chosen.rules is not None:
        assert named or any(rule.admits(judged, port) for rule in chosen.rules)


@pytest.mark.parametrize(
    ("allowed", "address", "port", "own", "reason"),
    [
        ("10.0.0.0/8", "10.1.2.3", 80, False, None),
        ("10.0.0.0/8:443", "10.1.2.3", 80, False, "private"),
        ("10.0.0.0/7", "10.1.2.3", 80, False, "private"),  # half of it is not private: that was no decision about private networks
        ("0.0.0.0/0", "10.1.2.3", 80, False, "private"),
        ("10.0.0.0/8", "10.1.2.3", 80, True, "own"),
        ("10.1.2.3", "10.1.2.3", 80, True, None),
        ("10.1.2.3:80", "10.1.2.3", 8080, True, "own"),
        ("1.2.3.4", "1.2.3.4", 80, True, None),
        ("127.0.0.1", "127.0.0.1", 80, True, "loopback"),
        ("169.254.0.0/16", "169.254.169.254", 80, False, None),
        ("64:ff9b::/96", "64:ff9b::808:808", 80, False, None),
        ("fd00::/8", "fd00:ec2::254", 80, False, None),
    ],
)
def test_what_the_administrator_allows(allowed: str, address: str, port: int, own: bool, reason: str | None) -> None:
    """A range opens the special network that it lies in; an own address must be named alone; loopback never opens."""
    assert refusal(ip_address(address), port, own, Policy(Reach(allowed=parsed_ranges(allowed)))) == reason


@pytest.mark.parametrize(
    ("rule", "name", "admits"),
    [
        ("api.example.com", "api.example.com", True),
        ("api.example.com", "x.api.example.com", False),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "evilexample.org", False),
        ("db", "db", True),
        ("10.0.0.0/8", "10.0.0.0", False),
    ],
)
def test_names_of_a_rule(rule: str, name: str, admits: bool) -> None:
    assert parsed(rule).names(name) is admits


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.org", "*.*.example.org", "a..b", "-a.test", "a-.test", "A.test", "a.test:0", "a.test:65536", "a.test:http", "a.test:",
     "10.0.0.1/8", "10.0.0.256", "1.2.3", "example.1", "[::1", "[a.test]:80x", "http://a.test", "a.test/x", "a" * 64 + ".test", "a_b.test.",
     "*example.org"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    """Typing errors must not become rules that mean something else."""
    with pytest.raises(ValueError):
        parsed(text)
    with pytest.raises(ValueError):
        parsed_ranges("a.test")


def test_pins_hold_for_their_time_and_port_and_are_bounded() -> None:
    """At least a minute, at most an hour; the longest of several answers; oldest out first."""
    pins, first = Pins(), ip_address("1.2.3.4")
    pins.note(first, frozenset((443,)), 0, 100.0)
    pins.note(ip_address("::ffff:5.6.7.8"), frozenset((0,)), 1e9, 100.0)
    assert pins.admits(first, 443, 100.0 + PIN_SECONDS_MIN - 1)
    assert not pins.admits(first, 443, 100.0 + PIN_SECONDS_MIN)
    assert not pins.admits(first, 80, 100.0)
    assert pins.admits(ip_address("5.6.7.8"), 9, 99.0 + PIN_SECONDS_MAX)
    assert not pins.admits(ip_address("5.6.7.8"), 9, 101.0 + PIN_SECONDS_MAX)
    for number in range(PINS_MAX):
        pins.note(ip_address(number), frozenset((0,)), 60, 100.0)
    assert not pins.admits(first, 443, 100.0)
    assert pins.admits(ip_address(PINS_MAX - 1), 1, 100.0)


def test_the_setting_becomes_a_message_that_the_node_accepts() -> None:
    """Words as they are, a list as rules; what is no rule by its letters does not even travel."""
    assert way_of("all") == ("all", ())
    way, rules = way_of(("*.example.org:443", "[2001:db8::/32]:80", "10.0.0.0/8"))
    start = Start(
        instance="i", tenant="t", runtime="python3.11", code="0" * 64, layer="", memory_mb=128, tmp_mb=16, egress=way, egress_rules=rules
    )
    assert decode_to_node(encode(start)) == start
    for wrong in (("A.test",), ("a\nb",), ("",), ("a.test",) * 65):
        with pytest.raises(msgspec.ValidationError):
            decode_to_node(encode(msgspec.structs.replace(start, egress_rules=wrong)))
