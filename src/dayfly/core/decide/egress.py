"""May an instance connect to this address? Public unicast addresses only, unless its policy has more or less; the reason is one word of
REASONS otherwise.

The egress broker (node/egress.py) asks for every connection, with the address the connection really goes to: names were
resolved before, so a name that lies about its address changes nothing. Names count only for a list of hosts, and only as the broker
itself resolved them (`Pins`): whatever an instance says about where it connects to (SNI, Host) it can forge.

IPv4 is open except for the networks listed; IPv6 is closed except for 2000::/3, and there except for those listed. Sources:
the IANA special-purpose address registries (RFC 6890 and its updates). Networks inside those that IANA marks as globally
reachable protocol anycast (192.0.0.9/32, 2001:1::1/128 …) are refused too: no web service lives there. Forms that carry an
IPv4 address inside IPv6 (mapped, NAT64, 6to4, Teredo) are refused whatever they carry, except mapped addresses, which are
just another spelling and are judged as IPv4.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_network

from dayfly.core.model.egress import Address, Policy, Rule

_REFUSED_IPV4 = {
    "0.0.0.0/8": "unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",  # cloud metadata lives at 169.254.169.254
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "transition",  # 6to4 relay anycast
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmark",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "255.255.255.255/32": "broadcast",
    "240.0.0.0/4": "reserved",
}
_REFUSED_IPV6 = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "64:ff9b::/96": "transition",  # NAT64: the last four bytes may be any IPv4 address
    "64:ff9b:1::/48": "transition",
    "2001::/32": "transition",  # Teredo
    "2001::/23": "reserved",
    "2001:db8::/32": "documentation",
    "2002::/16": "transition",  # 6to4
    "3fff::/20": "documentation",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "private",  # site-local, deprecated and still routed by some
    "ff00::/8": "multicast",
}
REASONS = frozenset(_REFUSED_IPV4.values()) | frozenset(_REFUSED_IPV6.values()) | {"own", "port", "denied", "unlisted"}
_NEVER = frozenset(("unspecified", "loopback", "multicast", "broadcast"))  # no administrator's rule opens these
_PRIVATE = frozenset(("private", "carrier"))
PIN_SECONDS_MIN, PIN_SECONDS_MAX = 60, 3600  # how long a resolved address stays reachable, whatever its record says
PINS_MAX = 1024  # of one instance


def _compiled(networks: dict[str, str]) -> tuple[tuple[int, int, str], ...]:
    parsed = [(ip_network(text), reason) for text, reason in networks.items()]
    return tuple((int(network.netmask), int(network.network_address), reason) for network, reason in parsed)


_IPV4, _IPV6 = _compiled(_REFUSED_IPV4), _compiled(_REFUSED_IPV6)
_GLOBAL_UNICAST_SHIFT, _GLOBAL_UNICAST = 125, 1  # 2000::/3


def plain(address: Address) -> Address:
    """An IPv4-mapped address (::ffff:a.b.c.d) as the IPv4 address it is; any other as it came."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def refusal(address: Address, port: int, is_own: bool, policy: Policy = Policy(), *, named: bool = False) -> str | None:  # noqa: B008 - frozen
    """Why a TCP connection there is refused, one of REASONS; None when it is allowed.

    `is_own` says that this machine itself would get the packet (its routing table knows; sandbox/netlink.py asks it). `named`: the
    policy's list has a name for it. The administrator's denials win over everything; what he allows opens a special network only when the
    rule lies inside of it (so 0.0.0.0/0 opens none), and an address of this machine only when it names that one address.
    """
    if not 0 < port <= 65535:
        return "port"
    address = plain(address)
    reason = _special(address)
    if reason in _NEVER:
        return reason
    if _admitted(policy.reach.denied, address, port):
        return "denied"
    opened = [rule for rule in policy.reach.allowed if rule.admits(address, port)]
    if is_own and not any(rule.network is not None and rule.network.num_addresses == 1 for rule in opened):
        return "own"
    by_administrator = any(network and _special(network[0]) == _special(network[-1]) == reason for network in (it.network for it in opened))
    if reason is not None and not by_administrator and not (policy.private and reason in _PRIVATE):
        return reason
    if policy.rules is not None and not named and not _admitted(policy.rules, address, port):
        return "unlisted"
    return None


def _special(address: Address) -> str | None:
    """Why this is no public unicast address."""
    number = int(address)
    for mask, network, reason in _IPV4 if address.version == 4 else _IPV6:
        if number & mask == network:
            return reason
    if address.version == 6 and number >> _GLOBAL_UNICAST_SHIFT != _GLOBAL_UNICAST:
        return "reserved"
    return None


def _admitted(rules: Iterable[Rule], address: Address, port: int) -> bool:
    return any(rule.admits(address, port) for rule in rules)


class Pins:
    """To which addresses the names of one instance's list resolved, as answered to the broker itself, and until when. Bounded: the oldest
    go first."""

    def __init__(self) -> None:
        self._until: dict[tuple[Address, int], float] = {}

    def __repr__(self) -> str:
        return f"<Pins {len(self._until)}>"

    def note(self, address: Address, ports: frozenset[int], ttl_seconds: float, now: float) -> None:
        """A name that the list admits on `ports` (0: all) has this address."""
        until = now + min(max(ttl_seconds, PIN_SECONDS_MIN), PIN_SECONDS_MAX)
        for port in ports:
            key = (plain(address), port)
            self._until[key] = max(until, self._until.pop(key, 0.0))
            if len(self._until) > PINS_MAX:
                del self._until[next(iter(self._until))]

    def admits(self, address: Address, port: int, now: float) -> bool:
        """Whether some name of the list had this address lately, for this port."""
        return any(self._until.get((plain(address), at), 0.0) > now for at in (0, port))
