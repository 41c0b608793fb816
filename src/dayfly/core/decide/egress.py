"""May an instance connect to this address? Public unicast addresses only; the reason is one word of REASONS otherwise.

The egress broker (node/egress.py) asks for every connection, with the address the connection really goes to: names were
resolved before, so a name that lies about its address changes nothing. Must never be asked about names.

IPv4 is open except for the networks listed; IPv6 is closed except for 2000::/3, and there except for those listed. Sources:
the IANA special-purpose address registries (RFC 6890 and its updates). Networks inside those that IANA marks as globally
reachable protocol anycast (192.0.0.9/32, 2001:1::1/128 …) are refused too: no web service lives there. Forms that carry an
IPv4 address inside IPv6 (mapped, NAT64, 6to4, Teredo) are refused whatever they carry, except mapped addresses, which are
just another spelling and are judged as IPv4.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network

Address = IPv4Address | IPv6Address

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
REASONS = frozenset(_REFUSED_IPV4.values()) | frozenset(_REFUSED_IPV6.values()) | {"own", "port"}


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


def refusal(address: Address, port: int, is_own: bool) -> str | None:
    """Why a TCP connection there is refused, one of REASONS; None when it is allowed.

    `is_own` says that this machine itself would get the packet (its routing table knows; sandbox/netlink.py asks it).
    """
    if not 0 < port <= 65535:
        return "port"
    address = plain(address)
    number = int(address)
    for mask, network, reason in _IPV4 if address.version == 4 else _IPV6:
        if number & mask == network:
            return reason
    if address.version == 6 and number >> _GLOBAL_UNICAST_SHIFT != _GLOBAL_UNICAST:
        return "reserved"
    return "own" if is_own else None
