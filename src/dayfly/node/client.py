"""A connection of a gateway or of control to the node: who it is, what it asked for, what it is still to hear. Kept by node/server.py."""

import array
import collections
import socket

from dayfly.core.wire import node as wire


class Client:
    """A connection of a gateway or of control. `may`: the messages that its user may send."""

    def __init__(self, sock: socket.socket, may: tuple[type[wire.ToNode], ...]) -> None:
        self.socket = sock
        self.may = may
        self.instances: set[str] = set()
        self.outbox: collections.deque[bytes] = collections.deque()
        self.gone = False

    def __repr__(self) -> str:
        return f"<Client {self.socket.fileno()} instances={len(self.instances)} outbox={len(self.outbox)}>"


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came beside a message: the caller's to close."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
