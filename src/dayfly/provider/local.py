"""Instances on this machine: a client of the node, which forks them into sandboxes.

One SOCK_SEQPACKET connection to RUN/node.sock, descriptors ride beside the messages (SCM_RIGHTS). Never blocks: what does not go out at
once waits in a bounded queue, beyond which `start` says no. When the node is gone `on_lost` is told and the connection is made again.
Called by gateway/fleet.py through the port in core/ports.py.
"""

import array
import asyncio
import socket
from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from dayfly.core.wire.node import (
    MESSAGE_BYTES_MAX,
    Accepted,
    Exited,
    Kill,
    Start,
    ToNode,
    Weigh,
    decode_from_node,
    encode,
)

log = structlog.get_logger()

OUTBOX_MAX = 1024
RECONNECT_SECONDS = 0.05


def _ignore(_: object = None) -> None:
    """Before a gateway listens there is nothing to tell."""


class LocalProvider:
    """The node of this machine, as a `Provider`. `run()` keeps the connection; everything else is immediate."""

    def __init__(self, node_socket: str) -> None:
        self._path = node_socket
        self._socket: socket.socket | None = None
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._gone: asyncio.Event = asyncio.Event()
        self.on_accepted: Callable[[Accepted], None] = _ignore
        self.on_exited: Callable[[Exited], None] = _ignore
        self.on_lost: Callable[[], None] = _ignore
        self.on_connected: Callable[[], None] = _ignore

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def start(self, start: Start, descriptors: list[int]) -> bool:
        return self._send(start, descriptors)

    def kill(self, instance: str) -> None:
        self._send(Kill(instance), [])

    def weigh(self, weights: dict[str, int]) -> None:
        self._send(Weigh(weights), [])

    async def run(self) -> None:
        """Connect, listen, connect again; ends only by cancellation."""
        while True:
            try:
                await self._connect()
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._gone.clear()
            self.on_connected()
            try:
                await self._gone.wait()
            finally:
                self._disconnect()
            log.warning("node_lost")
            self.on_lost()

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._path)
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def _disconnect(self) -> None:
        if (sock := self._socket) is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            sock.close()
            self._socket = None
        for _, descriptors in self._outbox:  # while we hold them, nobody sees that these instances will never be
            for fd in descriptors:
                socket.close(fd)
        self._outbox.clear()

    def _send(self, message: ToNode, descriptors: list[int]) -> bool:
        if self._socket is None or len(self._outbox) >= OUTBOX_MAX:
            return False
        packet = encode(message)
        if self._outbox:
            # A queued packet outlives this call, and the caller closes its descriptors after it: keep copies.
            self._outbox.append((packet, [socket.dup(fd) for fd in descriptors]))
            return True
        try:
            self._transmit(packet, descriptors)
        except BlockingIOError:
            self._outbox.append((packet, [socket.dup(fd) for fd in descriptors]))
            asyncio.get_running_loop().add_writer(self._socket, self._writable)
        except OSError:
            self._gone.set()
            return False
        return True

    def _transmit(self, packet: bytes, descriptors: list[int]) -> None:
        assert self._socket is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.sendmsg([packet], rights)

    def _writable(self) -> None:
        assert self._socket is not None
        while self._outbox:
            packet, descriptors = self._outbox[0]
            try:
                self._transmit(packet, descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._gone.set()
                return
            self._outbox.popleft()
            for fd in descriptors:
                socket.close(fd)
        asyncio.get_running_loop().remove_writer(self._socket)

    def _readable(self) -> None:
        """Take every packet that is there."""
        for _ in range(64):
            try:
                packet = self._socket.recv(MESSAGE_BYTES_MAX) if self._socket is not None else b""
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                if self._socket is not None:
                    asyncio.get_running_loop().remove_reader(self._socket)
                self._gone.set()
                return
            self._take(packet)

    def _take(self, packet: bytes) -> None:
        try:
            message = decode_from_node(packet)
        except msgspec.DecodeError as error:
            log.error("node_message_unreadable", error=str(error))
            return
        if isinstance(message, Accepted):
            self.on_accepted(message)
        elif isinstance(message, Exited):
            self.on_exited(message)
