"""Who called, when proxies stand between? What X-Forwarded-… headers say is believed from the administrator's proxies, else from nobody.

The client is the address that the outermost believed proxy saw: X-Forwarded-For is read from the right, past addresses of such proxies,
to the first that is none. Whatever stands further left, a client may have written itself. Called by gateway/dispatch.py.
"""

from ipaddress import ip_address, ip_network
from typing import NamedTuple

from dayfly.core.decide.egress import plain

NAMES = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"))
RANGES_MAX = 256
HOPS_MAX = 32  # proxies in a row; beyond, whoever stands there is taken for the client
_REMEMBERED_MAX = 4096
_SCHEMES = ("http", "https")


class Proxies:
    """The administrator's `trusted_proxies`. False when there are none: then nobody need be asked about."""

    def __init__(self, text: str) -> None:
        """`text`: ranges with commas between them. Raises ValueError for what is none."""
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if len(parts) > RANGES_MAX:
            raise ValueError(f"{len(parts)} ranges; at most {RANGES_MAX}")
        self._networks = tuple(map(ip_network, parts))
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether this is one of them. Remembered: the same few addresses connect again and again."""
        found = self._known.get(address)
        if found is None:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            found = self._known[address] = self._trusts(address)
        return found

    def _trusts(self, text: str) -> bool:
        try:
            address = plain(ip_address(text))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class Told(NamedTuple):
    """What a believed proxy told: the client's address, its scheme, and the header lines that go on to the function."""

    client: str
    scheme: str
    lines: list[bytes]


def told(headers: list[tuple[bytes, bytes]], peer: str, proxies: Proxies) -> Told:
    """Read a request that `peer`, a believed proxy, passed on."""
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in NAMES:
            values[name] = values[name] + b", " + value if name in values else value
    hops = values.get(b"x-forwarded-for", b"")
    lines = [b"x-forwarded-for: %b%b%b" % (hops, b", " if hops else b"", peer.encode())]
    lines += [b"%b: %b" % (name, values[name]) for name in (b"forwarded", b"x-forwarded-host", b"x-forwarded-port") if name in values]
    scheme = last(values.get(b"x-forwarded-proto", b"")).lower()
    return Told(_client(hops.decode("latin-1"), peer, proxies), scheme if scheme in _SCHEMES else "http", lines)


def last(value: bytes) -> str:
    """The last item of a header's list: what the proxy next to us added."""
    return value.rpartition(b",")[2].strip().decode("latin-1")


def _client(hops: str, peer: str, proxies: Proxies) -> str:
    client = peer
    for hop in reversed(hops.rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
        try:
            client = str(ip_address(hop.strip()))
        except ValueError:
            break  # "unknown", a name, nothing: whoever wrote it knew no address
        if not proxies.trusts(client):
            break
    return client
