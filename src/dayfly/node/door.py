"""The node's listening socket: who may connect, and when it appears under the name that everybody knows.

It is bound under a name of its own and renamed when the node is ready, so that a predecessor serves until then and a node that does not
become ready takes nothing away. Called by node/server.py.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from dayfly.core.model.layout import Layout
from dayfly.core.wire import node as wire
from dayfly.node.client import Client
from dayfly.node.log import log
from dayfly.sandbox.privileges import User

CLIENTS_MAX = 64
_PEER = struct.Struct("3i")
_FROM_CONTROL, _FROM_GATEWAY = (wire.Ask, wire.Build), (wire.Start, wire.Kill, wire.Weigh)


class Door:
    """Listening from its making on. `users`: those of the roles by name; empty when all are the present user."""

    def __init__(self, layout: Layout, berth: int, users: Mapping[str, User]) -> None:
        self._unseen = f"{layout.run}/node-{berth}.sock"
        self._known = layout.node_socket
        self.allowed = self._allowed(users)
        path = Path(self._unseen)
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            self.listener.bind(str(path))
        finally:
            os.umask(mask)
        if users:
            os.chown(path, users["control"].uid, users["gateway"].gid)
            path.chmod(0o660)
        self.listener.listen(64)

    def __repr__(self) -> str:
        return f"<Door {self._known} {self.listener.fileno()}>"

    @staticmethod
    def _allowed(users: Mapping[str, User]) -> dict[int, tuple[type[wire.ToNode], ...]]:
        """Which messages come from whom, by uid."""
        everything = _FROM_CONTROL + _FROM_GATEWAY
        if not users:  # in a user namespace our own user is 0, and root of the machine has no number
            return {os.geteuid(): everything, 0: everything}
        return {users["control"].uid: _FROM_CONTROL, users["gateway"].uid: _FROM_GATEWAY, 0: everything}

    def appear(self) -> None:
        """From now on, whoever connects to the node connects to us."""
        Path(self._unseen).rename(self._known)

    def accept(self, clients: int) -> Client | None:
        """Whoever connects, unless nobody does, or one who may not, or one too many for the `clients` that are here."""
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return None
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in self.allowed or clients >= CLIENTS_MAX:
            log("warning", "client_refused", uid=uid, clients=clients)
            sock.close()
            return None
        sock.setblocking(False)
        return Client(sock, self.allowed[uid])

    def close(self, *, ours: bool) -> None:
        """`ours`: the known name is not a successor's by now."""
        with contextlib.suppress(OSError):
            Path(self._unseen).unlink(missing_ok=True)
            if ours:
                Path(self._known).unlink(missing_ok=True)
        self.listener.close()
