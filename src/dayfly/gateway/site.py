"""What all connections of one gateway share: who is connected and how many may be, the clock, the Date header, the memory that bodies take.

Nothing here reads or parses; that is gateway/server.py, whose `Connection` joins and leaves a `Site`. Made by gateway/main.py.
"""

import socket
import time
from typing import Protocol

from dayfly.core.decide.forwarded import Proxies
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.gateway.exchange import Request, Sink

NOT_COUNTED = frozenset(("", "127.0.0.1", "::1"))  # this machine itself: its proxy, its tests, its users behind `dayfly invoke`
TURNED_AWAY_MAX = 64  # refused connections that are still told why; those beyond are closed at once


class Dispatcher(Protocol):
    def open(self, request: Request) -> Sink:
        """Headers are complete. Raises Refusal when the request can be refused without its body."""
        ...


class Client(Protocol):
    """A connection, as far as the site is concerned (gateway/server.py Connection)."""

    peer: str
    deadline: float

    @property
    def receiving(self) -> bool:
        """Whether a request is on its way in."""
        ...

    def timed_out(self) -> None: ...

    def close_when_idle(self) -> None: ...

    def abort(self) -> None: ...


class Site:
    """What all connections of one gateway share."""

    dispatcher: Dispatcher  # set before the first connection: it needs others that need this

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections: set[Client] = set()
        self.turned_away: set[Client] = set()
        self.peers: dict[str, int] = {}  # counted peers → connections
        self._proxies = Proxies(settings.trusted_proxies)
        self.requests = 0
        self.buffered = 0  # bytes of request bodies in memory
        self.uploads = 0  # bodies that are passed on as they come
        self.stopping = False  # each connection's next answer is its last, and says so
        self.polite = False  # and none is closed before it had one, for others serve already
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Ten times a second: the Date header, and connections whose time is up."""
        now = time.time()
        self.date = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        clock = time.monotonic()
        for connection in [c for c in (*self.connections, *self.turned_away) if c.deadline <= clock]:
            connection.timed_out()

    def stop(self) -> None:
        """Take no new requests; idle connections close, busy ones close after their answer."""
        self.stopping = True
        self.close_idle()

    def leave_politely(self) -> None:
        """Others take new connections. On those that are here, the next answer is the last: closing one while a request is on its way to it
        would look to its client like a failure."""
        self.stopping = self.polite = True

    def close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_when_idle()

    @property
    def receiving(self) -> bool:
        """Whether a request is on its way in on any connection."""
        return any(connection.receiving for connection in self.connections)

    def join(self, connection: Client) -> Refusal | None:
        """Count a new connection in, or say why it is one too many."""
        if len(self.connections) >= self.settings.connections_max or (self.stopping and not self.polite):
            return Refusal("overloaded", "This gateway has all the connections it takes.", retry_after_seconds=1.0)
        if self._counts(connection.peer):
            peer = network_of(connection.peer)
            count = self.peers.get(peer, 0)
            if count >= self.settings.connections_per_peer_max:
                detail = f"{peer} has {count} connections, as many as one address may (connections_per_peer_max)."
                return Refusal("too_many_connections", detail, retry_after_seconds=1.0)
            self.peers[peer] = count + 1
        self.connections.add(connection)
        return None

    def _counts(self, peer: str) -> bool:
        return peer not in NOT_COUNTED and not self._proxies.trusts(peer)

    def turn_away(self, connection: Client) -> bool:
        """Whether a refused connection may stay for the moment in which its client reads why."""
        if len(self.turned_away) >= TURNED_AWAY_MAX:
            return False
        self.turned_away.add(connection)
        return True

    def replace(self, connection: Client, successor: Client) -> None:
        """The same client, spoken with in another way from now on: nobody is counted in or out."""
        self.connections.discard(connection)
        self.connections.add(successor)

    def leave(self, connection: Client) -> None:
        """A connection that joined or was turned away is gone."""
        self.turned_away.discard(connection)
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if self._counts(connection.peer):
            peer = network_of(connection.peer)
            self.peers[peer] -= 1
            if not self.peers[peer]:
                del self.peers[peer]


def network_of(peer: str) -> str:
    """Whom a peer's address stands for: an IPv4 address for itself (also mapped into IPv6), an IPv6 address for its /64."""
    if ":" not in peer:
        return peer
    packed = socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
