"""A connection of a gateway or of control to the node: who it is, what it asked for, what it is still to hear. Kept by node/server.py."""

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
