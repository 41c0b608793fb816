"""Whom a function may reach: a rule names hosts or addresses, a policy is what holds for one instance.

Rules are written `api.example.com`, `*.example.org:443`, `10.0.0.0/8`, `10.1.2.3:5432`, `[2001:db8::/32]:443`. A star stands for one
label or more; a rule without a port admits all. Read by core/manifest (of users), cli (of the administrator) and the egress broker, which
judges by them (core/decide/egress.py).
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

import msgspec

from dayfly.core.model.function import Egress
from dayfly.core.model.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

Way = Literal["none", "internet", "all", "list"]
RULES_MAX = 64
RULE = r"\A[a-z0-9*._:/\[\]-]{1,262}\Z"  # what travels; `parsed` says what is right
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


class Rule(msgspec.Struct, frozen=True):
    """Either a name (and all below it, but not itself, when `below`) or a network; `port` 0 is every port."""

    name: str = ""
    below: bool = False
    network: Network | None = None
    port: int = 0

    def names(self, name: str) -> bool:
        """Whether a host's name, in small letters and without a dot at its end, is one of this rule's."""
        return bool(self.name) and (name.endswith("." + self.name) if self.below else name == self.name)

    def admits(self, address: Address, port: int) -> bool:
        """Whether this is a rule of addresses that has this one."""
        return self.network is not None and address in self.network and self.port in (0, port)


class Reach(msgspec.Struct, frozen=True):
    """What the administrator permits: whether functions may ask for private networks, and ranges that are open or shut to all."""

    private: bool = False
    allowed: tuple[Rule, ...] = ()
    denied: tuple[Rule, ...] = ()


def reach(settings: Settings) -> Reach:
    """As the platform's settings say. Raises ValueError for ranges that are none."""
    return Reach(settings.egress_max == "all", parsed_ranges(settings.egress_allow), parsed_ranges(settings.egress_deny))


class Policy(msgspec.Struct, frozen=True):
    """What one instance may reach. `private`: private and carrier networks, too. `rules` None: there is no list."""

    reach: Reach = Reach()
    private: bool = False
    rules: tuple[Rule, ...] | None = None

    def ports_of(self, name: str) -> frozenset[int] | None:
        """On which ports the list admits a host of this name (0: on all); None when it does not at all."""
        found = frozenset(rule.port for rule in self.rules or () if rule.names(name))
        return found or None


def way_of(egress: Egress | tuple[str, ...]) -> tuple[Way, tuple[str, ...]]:
    """What a function's setting means: a word for the node, and the list's rules for the broker."""
    return (egress, ()) if isinstance(egress, str) else ("list", egress)


def policy(egress: str, rules: tuple[str, ...], reach: Reach) -> Policy:
    """An instance's policy: `egress` is "internet", "all" or "list". Raises ValueError for a rule that is none."""
    private = reach.private and egress in ("all", "list")
    return Policy(reach, private, tuple(map(parsed, rules)) if egress == "list" else None)


@lru_cache(maxsize=1024)
def parsed(text: str) -> Rule:
    """One rule. Raises ValueError, which says what is wrong."""
    host, port = _split(text)
    if re.fullmatch(r"[0-9.]+(/[0-9]+)?", host) or ":" in host:
        try:
            return Rule(network=ip_network(host), port=port)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
    below = host.startswith("*.")
    name = host.removeprefix("*.")
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ValueError(f"{text!r} is no host name in small letters (with '*.' before it or not), and no network")
    if below and len(labels) < 2:
        raise ValueError(f"{text!r} is everything below {name!r}: name at least two labels, as in '*.example.org'")
    return Rule(name=name, below=below, port=port)


def parsed_ranges(text: str) -> tuple[Rule, ...]:
    """The administrator's ranges, separated by commas. Raises ValueError for what is none; names are none."""
    rules = tuple(parsed(part.strip()) for part in text.split(",") if part.strip())
    if named := next((rule.name for rule in rules if rule.name), ""):
        raise ValueError(f"{named!r} is a name; ranges are addresses, as in '10.0.0.0/8'")
    return rules


def _split(text: str) -> tuple[str, int]:
    """Host and port (0: none)."""
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.+))?", text)
    host, port = bracketed.groups() if bracketed else (text, None)
    if not bracketed and text.count(":") == 1:
        host, _, port = text.partition(":")
    if port is None:
        return host, 0
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{text!r}: {port!r} is no port")
    return host, int(port)
