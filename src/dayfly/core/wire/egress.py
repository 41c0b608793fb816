"""Packets between the node's netns pool and the egress broker: SOCK_SEQPACKET at RUN/egress.sock, one fixed struct a packet.

The node opens a namespace by sending `OPEN_STEERED` (descriptors: TCP listener, UDP socket for DNS) or `OPEN_PROXY`
(descriptor: TCP listener of the HTTP proxy), and closes it by `CLOSE`; the broker answers every `CLOSE` with one `TRAFFIC`.
When the connection breaks, the broker closes everything that came through it; the node connects again and opens all anew.
A namespace is known by its inode number, which the kernel gives to no other while any descriptor of it is open.
"""

import struct
from typing import NamedTuple

OPEN_STEERED, OPEN_PROXY, CLOSE = 1, 2, 3
DESCRIPTORS = {OPEN_STEERED: 2, OPEN_PROXY: 1, CLOSE: 0}
PACKET_BYTES_MAX = 64

_REQUEST = struct.Struct("=BxxxxxxxQ")  # kind, namespace
_TRAFFIC = struct.Struct("=QQQQQ")  # namespace, bytes sent, bytes received, connections, refused

NAME_SERVER = "10.255.255.53"  # what the sandbox's resolv.conf names; nobody has this address, the steering catches it
OWN_ADDRESS = "10.255.255.1"  # the instance's address on its loopback: source of its connections
PROXY_PORT = 3128


class Traffic(NamedTuple):
    """What one instance moved since the broker has known it. Sent and received as seen by the instance."""

    namespace: int
    bytes_sent: int
    bytes_received: int
    connections: int
    refused: int


def request(kind: int, namespace: int) -> bytes:
    return _REQUEST.pack(kind, namespace)


def parsed_request(packet: bytes) -> tuple[int, int]:
    """(kind, namespace). Raises ValueError for anything else."""
    try:
        kind, namespace = _REQUEST.unpack(packet)
    except struct.error as error:
        raise ValueError(str(error)) from error
    if kind not in DESCRIPTORS:
        raise ValueError(f"unknown packet kind {kind}")
    return kind, namespace


def traffic(report: Traffic) -> bytes:
    return _TRAFFIC.pack(*report)


def parsed_traffic(packet: bytes) -> Traffic:
    """Raises ValueError for anything but a report."""
    try:
        return Traffic(*_TRAFFIC.unpack(packet))
    except struct.error as error:
        raise ValueError(str(error)) from error
