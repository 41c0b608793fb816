"""May a callback go there? An address must be everybody's (core/decide/egress.py says which are), or in a range that was allowed by name.

Unlike functions' egress, control may be allowed to reach this machine itself: somebody who names 127.0.0.1 means it.
Called by control/callbacks.py for every address that a URL's host has, and by cli/settings.py for the setting.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from dayfly.core.decide.egress import plain, refusal

RANGES_MAX = 64
Range = IPv4Network | IPv6Network


def allowed_ranges(text: str) -> tuple[Range, ...]:
    """`10.1.0.0/16,127.0.0.1/32` → ranges. Raises ValueError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) > RANGES_MAX:
        raise ValueError(f"{len(words)} ranges; at most {RANGES_MAX}")
    return tuple(ip_network(word) for word in words)


def may_call(address: IPv4Address | IPv6Address, ranges: tuple[Range, ...]) -> bool:
    """Whether a callback may go to this address."""
    address = plain(address)
    return any(address in it for it in ranges if it.version == address.version) or refusal(address, 443, is_own=False) is None
