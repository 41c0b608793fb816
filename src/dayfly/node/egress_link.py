"""The broker's side of its connection to the node: namespaces come as descriptors and go. Used by node/egress.py.

Must never trust more than the sender's uid: what arrives is checked, and anything unexpected ends the connection.
"""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from typing import Protocol

import structlog

from dayfly.core.decide.egress import Pins
from dayfly.core.model.egress import Policy, Reach, policy
from dayfly.core.model.settings import Settings
from dayfly.core.wire import egress as wire
from dayfly.node.egress_flow import Meter

_SPARE_DESCRIPTORS = 256
_BATCH = 32  # packets taken in one go before others get their turn
_CREDENTIALS = struct.Struct("3i")
_log = structlog.get_logger()


class Namespace:
    """One instance's network, as the broker sees it: its sockets, and what they have moved."""

    def __init__(self, key: int, listener: socket.socket, resolver: socket.socket | None, policy: Policy, meter: Meter) -> None:
        self.key = key
        self.policy = policy
        self.pins = Pins()  # with a list: what its names resolved to
        self.is_proxy = resolver is None
        self.listener = listener
        self.resolver = resolver
        self.meter = meter
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.queries = 0
        self.is_parked = False  # its connections wait in the kernel until another one ends

    def report(self) -> wire.Traffic:
        meter = self.meter
        return wire.Traffic(self.key, meter.sent, meter.received, meter.connections, meter.refused)


class Keeper(Protocol):
    """Who serves the namespaces: the broker."""

    reach: Reach
    bytes_per_second: int

    def open(self, namespace: Namespace) -> None:
        """Begin to serve its sockets."""

    def shut(self, namespace: Namespace) -> None:
        """End its connections and close its sockets."""

    def forget(self, link: "NodeLink") -> None:
        """This connection is over."""


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a Unix socket, as the kernel vouches for it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


class NodeLink:
    """One node's connection, and the namespaces that came through it. They end with it: instances end with their node."""

    def __init__(self, keeper: Keeper, connection: socket.socket) -> None:
        self._keeper = keeper
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.namespaces: dict[int, Namespace] = {}
        self._loop.add_reader(connection, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._connection)
        self._connection.close()
        for namespace in self.namespaces.values():
            self._keeper.shut(namespace)
        self.namespaces.clear()
        self._keeper.forget(self)

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                packet, descriptors, flags, _ = socket.recv_fds(self._connection, wire.PACKET_BYTES_MAX, 2)
                for fd in descriptors:  # recv_fds loses its flags (CPython 3.11 to 3.13), MSG_CMSG_CLOEXEC too
                    os.set_inheritable(fd, False)
            except BlockingIOError:
                return None
            except OSError:
                packet = b""  # the node is gone, and left reports unread
            if not packet:
                return self.close()
            try:
                self._obey(packet, descriptors, flags)
            except (ValueError, OSError) as error:
                _log.error("egress_link_broken", reason=str(error))
                return self.close()
        return None

    def _obey(self, packet: bytes, descriptors: list[int], flags: int) -> None:
        """Raises ValueError or OSError for anything unexpected; the node then connects again and opens all anew."""
        sockets = []
        try:
            sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            asked = wire.parsed_request(packet)
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(sockets) != wire.DESCRIPTORS[asked.kind]:
                raise ValueError(f"{len(sockets)} descriptors came with packet kind {asked.kind}")
            if asked.kind == wire.CLOSE:
                self._shut(asked.namespace)
            else:
                self._open(_namespace(asked, sockets, self._keeper))
                sockets = []
        finally:
            for one in sockets:
                one.close()

    def _open(self, namespace: Namespace) -> None:
        self._shut_silently(namespace.key)
        self.namespaces[namespace.key] = namespace
        self._keeper.open(namespace)

    def _shut(self, key: int) -> None:
        namespace = self._shut_silently(key)
        report = namespace.report() if namespace else wire.Traffic(key, 0, 0, 0, 0)
        with contextlib.suppress(BlockingIOError):  # a node that reads no reports loses them, and nothing else
            self._connection.send(wire.traffic(report))

    def _shut_silently(self, key: int) -> Namespace | None:
        namespace = self.namespaces.pop(key, None)
        if namespace:
            self._keeper.shut(namespace)
        return namespace


def _namespace(asked: wire.Request, sockets: list[socket.socket], keeper: Keeper) -> Namespace:
    """Check what came: a listening TCP socket, and with steering a UDP socket. Raises ValueError. Rules that cannot be read let
    nothing out."""
    listener, resolver = sockets[0], sockets[1] if len(sockets) > 1 else None
    internet = (socket.AF_INET, socket.AF_INET6)
    if listener.family not in internet or listener.type != socket.SOCK_STREAM:
        raise ValueError("the listener is no TCP socket")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("the listener does not listen")
    if resolver and (resolver.family not in internet or resolver.type != socket.SOCK_DGRAM):
        raise ValueError("the name socket is no UDP socket")
    for one in sockets:
        one.setblocking(False)
    try:
        allowed = policy(asked.egress, asked.rules, keeper.reach)
    except ValueError as error:  # control checked them: one gateway's forgery must not cost all others their way out
        _log.error("egress_rules_unreadable", reason=str(error))
        allowed = policy("list", (), keeper.reach)
    return Namespace(asked.namespace, listener, resolver, allowed, Meter(keeper.bytes_per_second))


def private_door(path: str) -> socket.socket:
    """Listening for nodes at this path, for root and our own user alone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    door.bind(path)
    os.chmod(path, 0o600)
    door.listen(8)
    return door


def affordable_connections(settings: Settings) -> int:
    """As many as the limit of open files leaves; two descriptors a connection, two a namespace."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = limit - _SPARE_DESCRIPTORS - 2 * settings.instances_max - settings.egress_queries_max
    return max(1, min(settings.egress_connections_max, left // 2))
