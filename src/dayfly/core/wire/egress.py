"""Packets between the node's netns pool and the egress broker: SOCK_SEQPACKET at RUN/egress.sock, one struct a packet, and behind an
opening one what the instance may reach: a word (internet, all, list) and the list's rules, which the node does not read.

The node opens a namespace by sending `OPEN_STEERED` (descriptors: TCP listener, UDP socket for DNS) or `OPEN_PROXY`
(descriptor: TCP listener of the HTTP proxy), and closes it by `CLOSE`; the broker answers every `CLOSE` with one `TRAFFIC`.
When the connection breaks, the broker closes everything that came through it; the node connects again and opens all anew.
A namespace is known by its inode number, which the kernel gives to no other while any descriptor of it is open.
"""

import struct
from typing import NamedTuple

OPEN_STEERED, OPEN_PROXY, CLOSE = 1, 2, 3
DESCRIPTORS = {OPEN_STEERED: 2, OPEN_PROXY: 1, CLOSE: 0}
POLICY_BYTES_MAX = 18 * 1024  # more than RULES_MAX rules of full length
PACKET_BYTES_MAX = 64 + POLICY_BYTES_MAX

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


class Request(NamedTuple):
    """What the node asks. `egress` and `rules` only when it opens a namespace."""

    kind: int
    namespace: int
    egress: str = ""
    rules: tuple[str, ...] = ()


def request(kind: int, namespace: int, egress: str = "", rules: tuple[str, ...] = ()) -> bytes:
    return _REQUEST.pack(kind, namespace) + "\n".join((egress, *rules)).encode()


def parsed_request(packet: bytes) -> Request:
    """Raises ValueError for anything that is no request."""
    try:
        kind, namespace = _REQUEST.unpack_from(packet)
        egress, *rules = packet[_REQUEST.size :].decode("ascii").split("\n")
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if kind not in DESCRIPTORS:
        raise ValueError(f"unknown packet kind {kind}")
    if egress not in (("",) if kind == CLOSE else ("internet", "all", "list")) or (rules and egress != "list"):
        raise ValueError(f"packet kind {kind} with the policy {egress!r}")
    return Request(kind, namespace, egress, tuple(rules))


def traffic(report: Traffic) -> bytes:
    return _TRAFFIC.pack(*report)


def parsed_traffic(packet: bytes) -> Traffic:
    """Raises ValueError for anything but a report."""
    try:
        return Traffic(*_TRAFFIC.unpack(packet))
    except struct.error as error:
        raise ValueError(str(error)) from error
