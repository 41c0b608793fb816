"""What a gateway has more when it is one of several: neighbours, a door for them, its part of the commons. Wiring, for gateway/main.py."""

import asyncio
import math
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dayfly.core.decide.share import Most
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.ports import Provider
from dayfly.gateway.accept import Acceptor
from dayfly.gateway.catalog import CatalogMirror
from dayfly.gateway.commons import Commons
from dayfly.gateway.dispatch import Dispatch
from dayfly.gateway.elsewhere import Elsewhere
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.moving import Arrivals, Arrived
from dayfly.gateway.neighbour import Neighbour
from dayfly.gateway.relay import InnerConnection
from dayfly.gateway.server import Connection
from dayfly.gateway.shared import Homes, SharedFleet
from dayfly.gateway.site import Site

COMMONS_FD = 9  # child.py COMMONS
BACKLOG = 4096
LOOK_SECONDS_MAX = 1.0  # that a gateway waits, before it serves, to know which others are there
TURN_SECONDS = 0.001  # a gateway with more clients than another leaves a new one to that one for so long


class Annex(Site):
    """Another way into a gateway. Bodies that came by it are held in the same memory."""

    def __init__(self, settings: Settings, main: Site) -> None:
        self._main = main
        super().__init__(settings)

    @property
    def buffered(self) -> int:
        return self._main.buffered

    @buffered.setter
    def buffered(self, size: int) -> None:
        if hasattr(self, "date"):  # otherwise it is just being made
            self._main.buffered = size


class Several:
    """Made before the fleet, in the loop."""

    def __init__(self, settings: Settings, layout: Layout, slot: int, gateways: int) -> None:
        os.set_inheritable(COMMONS_FD, False)
        self._settings = settings
        self._commons = Commons(COMMONS_FD, slot, Most(settings.instances_max, settings.starts_in_flight_max), gateways)
        self._homes = Homes(slot, gateways)
        self._path, self._moves_path = layout.gateway_socket(slot), layout.gateway_moves_socket(slot)
        self._neighbours = {
            other: Neighbour(other, layout.gateway_socket(other), layout.gateway_moves_socket(other))
            for other in range(gateways)
            if other != slot
        }
        self._waited = False
        self.inner: Site  # for what neighbours relay
        self.moved: Site  # for clients that came from neighbours: beside the public ones, and counted with them

    def fleet(self, provider: Provider, ledger: Ledger, name: str) -> SharedFleet:
        self._fleet = SharedFleet(self._settings, provider, ledger, name, self._commons, self._homes)
        return self._fleet

    def dispatcher(self, site: Site, catalog: CatalogMirror, dispatch: Dispatch) -> Elsewhere:
        """For the public site. What neighbours relay is served here, whatever it is."""
        inner = msgspec.structs.replace(
            self._settings, connections_max=1 << 62, header_timeout_seconds=math.inf, idle_timeout_seconds=math.inf,
            body_timeout_seconds=math.inf, half_closed_seconds=0.0,
        )  # fmt: skip
        self.inner = Annex(inner, site)
        self.inner.dispatcher = dispatch
        self.moved = Annex(self._settings, site)
        self.moved.connections, self.moved.peers, self.moved.turned_away = site.connections, site.peers, site.turned_away
        self.moved.dispatcher = dispatch  # nothing that came from another gateway goes on to a third
        self._site = site
        self._elsewhere = Elsewhere(catalog, self._fleet, dispatch, self._neighbours)
        return self._elsewhere

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [neighbour.run() for neighbour in self._neighbours.values()]

    async def look(self) -> None:
        """Who is there? Then be there, too: what a predecessor had is ours from now on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                for neighbour in self._neighbours.values():
                    await neighbour.looked.wait()
        self._commons.join()
        self._arrivals = Arrivals(self._moves_path, lambda: Arrived(self.moved))
        door = _listen_at(self._path)
        self._door = await asyncio.get_running_loop().create_unix_server(lambda: InnerConnection(self.inner), sock=door, backlog=BACKLOG)

    def accept(self, listener: socket.socket) -> Acceptor:
        """Take clients from the socket that is everybody's."""
        site = self._site
        return Acceptor(listener, lambda: Connection(site), self._pause)

    def _pause(self) -> float:
        """Seconds for which to leave a client to a gateway that has fewer, once for each."""
        own = len(self._site.connections)
        self._commons.connected(own)
        self._waited = not self._waited and own > self._commons.fewest_elsewhere()
        return TURN_SECONDS if self._waited else 0.0

    def tick(self, now: float) -> None:
        self.inner.tick()
        self.moved.date = self.inner.date
        self._elsewhere.tick(now)
        self._commons.connected(len(self._site.connections))

    def leave(self, *, has_successor: bool) -> None:
        """Take nothing new from neighbours. What they sent is answered, and with each answer a connection ends."""
        self._door.close()
        self._arrivals.close()
        self.inner.leave_politely()
        self.moved.leave_politely()
        for connection in list(self.inner.connections):
            if isinstance(connection, InnerConnection) and connection.watches:
                connection.close_when_idle()
        if has_successor:
            self._fleet.leave()


def _listen_at(path: str) -> socket.socket:
    """A socket that has the name from its first moment on; a predecessor's connections stay."""
    unseen = Path(f"{path}.new")
    unseen.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(str(unseen))
    door.listen(BACKLOG)
    unseen.rename(path)
    return door
