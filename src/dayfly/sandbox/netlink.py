"""The few rtnetlink messages that the network walls need, as bytes (RFC 3549; linux/rtnetlink.h).

Setting up an instance's loopback (sandbox/network.py) and asking the kernel whether an address is this machine's own
(node/egress.py). No general netlink library: pyroute2 costs 157 ms to import. Must never touch an interface other than `lo`.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 20, 24, 26
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_IFF_UP = 0x1
_SIOCSIFFLAGS = 0x8914
_INTERFACE_FLAGS = struct.Struct("=16sh14x")  # struct ifreq
_IFA_LOCAL = 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_TABLE_LOCAL, _PROTOCOL_STATIC = 255, 4
_SCOPE_UNIVERSE, _SCOPE_HOST = 0, 254
_RTN_LOCAL = 2
_OWN_TYPES = {2, 3, 4, 5}  # RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST: delivered here, or to everyone here
LOOPBACK_INDEX = 1  # `lo` is the first device of every network namespace


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def raise_loopback() -> None:
    """`ip link set lo up` in the calling thread's namespace; the kernel adds 127.0.0.1/8 and ::1 by itself. By ioctl and not by a
    message: a netlink socket would count as one that lives in the namespace for some milliseconds more (sandbox/again.py looks)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _INTERFACE_FLAGS.pack(b"lo", _IFF_UP))


def loopback_address(address: str) -> bytes:
    """`ip address add ADDRESS/32 dev lo` (IPv4)."""
    body = _ADDRESS.pack(socket.AF_INET, 32, 0, _SCOPE_HOST, LOOPBACK_INDEX)
    body += _attribute(_IFA_LOCAL, socket.inet_pton(socket.AF_INET, address))
    return _message(_RTM_NEWADDR, _REQUEST | _ACK | _CREATE | _EXCLUSIVE, body)


def everything_is_local(family: int, source: str = "") -> bytes:
    """`ip route add local default dev lo [src SOURCE] table local`: "AnyIP", every address is delivered to this namespace."""
    scope = _SCOPE_HOST if family == socket.AF_INET else _SCOPE_UNIVERSE
    body = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, scope, _RTN_LOCAL, 0)
    body += _attribute(_RTA_OIF, struct.pack("=I", LOOPBACK_INDEX))
    if source:
        body += _attribute(_RTA_PREFSRC, socket.inet_pton(family, source))
    return _message(_RTM_NEWROUTE, _REQUEST | _ACK | _CREATE | _EXCLUSIVE, body)


def open_socket() -> socket.socket:
    """A route netlink socket of the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def carry_out(messages: Iterable[bytes]) -> None:
    """Send requests in the calling thread's namespace, each acknowledged. Raises OSError with the kernel's errno."""
    with open_socket() as connection:
        connection.settimeout(5)
        for message in messages:
            connection.send(message)
            for kind, body in _replies(connection.recv(8192)):
                if kind == _NLMSG_ERROR:
                    _raise_error(body)


class Routes:
    """Questions to the routing table of the network namespace in which this was made. One socket, one question at a time."""

    def __init__(self) -> None:
        self._connection = open_socket()
        self._connection.setblocking(False)  # the kernel answers within send(); there is nothing to wait for

    def close(self) -> None:
        self._connection.close()

    def is_own(self, packed: bytes) -> bool:
        """Whether the kernel would deliver a packet for this address (4 or 16 bytes) to this machine itself, or broadcast it.

        Asking the routing table beats a list of interface addresses: it is never stale and knows local routes and broadcasts
        too. An address without any route is nobody's own. Raises OSError when the kernel does not answer.
        """
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, packed)
        try:
            self._connection.send(_message(_RTM_GETROUTE, _REQUEST, body))
            answer = self._connection.recv(8192)
        except OSError:
            self._connection.close()  # a late answer must not be taken for the next question's
            self._connection = open_socket()
            self._connection.setblocking(False)
            raise
        for kind, route in _replies(answer):
            if kind == _RTM_NEWROUTE:
                return _ROUTE.unpack_from(route)[7] in _OWN_TYPES
            if kind == _NLMSG_ERROR:
                return False  # no route (ENETUNREACH and the like): connecting fails for the same reason
        raise OSError("no answer to RTM_GETROUTE")


def _replies(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or kind == _NLMSG_DONE:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + -length % 4


def _raise_error(body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0]
    if number:
        raise OSError(number, f"rtnetlink: {os.strerror(number)}")
