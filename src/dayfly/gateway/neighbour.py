"""Another gateway of this machine, as seen from here: whether it is there, and the connections to it that are free.

One connection carries no calls and says by its end that the other is gone or leaves: then free connections are closed, from this side, so
that no call meets a closing one, and until it is back its functions are served by whoever comes next (core/decide/share.py). Made by
gateway/several.py, asked by gateway/elsewhere.py.
"""

import asyncio
import time
from collections import deque

from dayfly.core.model.errors import Refusal
from dayfly.gateway.exchange import Request, Sink
from dayfly.gateway.moving import Moving
from dayfly.gateway.relay import Opener, Relay
from dayfly.gateway.websocket import is_upgrade

AGAIN_SECONDS = 0.02  # between two attempts to reach one that is not there
AWAY_SECONDS = 3.0  # after so long it is not just being restarted: others take over what is kept warm, too
FREE_SECONDS = 1.0  # less than a gateway that leaves waits before it closes what is silent (IDLE_GRACE_SECONDS in main.py)
FREE_MAX = 256
WATCH = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"  # then silence


class _Free(asyncio.Protocol):
    """A connection between two calls."""

    def __init__(self, neighbour: "Neighbour", transport: asyncio.Transport) -> None:
        self._neighbour = neighbour
        self.transport = transport
        self.since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.transport.abort()  # nobody asked

    def connection_lost(self, exc: Exception | None) -> None:
        self._neighbour.lost(self)


class Neighbour:
    """`path`: its socket for calls; `moves_path`: the one for connections that move. `run` keeps looking after it."""

    def __init__(self, slot: int, path: str, moves_path: str) -> None:
        self.slot = slot
        self.path = path
        self.moves_path = moves_path
        self.is_up = False
        self.looked = asyncio.Event()  # it is known whether it is up
        self._seen_at = time.monotonic()
        self._free: deque[_Free] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Neighbour {self.slot} {'up' if self.is_up else 'down'} free={len(self._free)}>"

    def is_away(self, now: float) -> bool:
        """Whether it is gone for longer than a restart takes."""
        return not self.is_up and now - self._seen_at > AWAY_SECONDS

    async def run(self) -> None:
        """Know whether it is there; ends only by cancellation."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self.path)
            except OSError:
                self.is_up = False
                self.looked.set()
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            self.is_up = True
            self.looked.set()
            try:
                writer.write(WATCH)
                while await reader.read(4096):
                    pass
            except OSError:
                pass
            finally:
                self._seen_at = time.monotonic()
                writer.close()
                while self._free:
                    self._free.popleft().transport.close()
            # Whether that was its end, or its successor has its place by now, the next attempt says.

    def open(self, request: Request, here: Opener) -> Sink:
        """Relay a call; `here` serves it if nobody can be reached. A client that asks for a WebSocket moves there."""
        if is_upgrade(request):
            return Moving(request, self.moves_path)
        relay = Relay(request, here, self.keep)
        if self._free:
            transport = self._free.pop().transport
            transport.set_protocol(relay)
            relay.connection_made(transport)
        else:
            task = asyncio.get_running_loop().create_task(self._connect(relay))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return relay

    async def _connect(self, relay: Relay) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: relay, self.path)
        except BlockingIOError:  # its queue is full: it is there, and has more to do than it can
            relay.busy(Refusal("overloaded", "The function's gateway has more connections than it can take.", retry_after_seconds=1.0))
        except OSError:
            self.is_up = False
            relay.unreachable()

    def keep(self, transport: asyncio.Transport) -> None:
        """A connection that can be used again."""
        if len(self._free) >= FREE_MAX or transport.is_closing():
            transport.close()
            return
        free = _Free(self, transport)
        transport.set_protocol(free)
        self._free.append(free)

    def lost(self, free: _Free) -> None:
        if free in self._free:
            self._free.remove(free)

    def tick(self, now: float) -> None:
        """Close what was not used for a while."""
        while self._free and now - self._free[0].since > FREE_SECONDS:
            self._free.popleft().transport.close()
