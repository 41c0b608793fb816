"""Where everything lies below the data and run directories: names only, nobody opens anything here.

Owners when started by root (C, G, E, F = users and groups of control, gateway, egress broker and front, all different; docs/security.md):

    DATA/             root 0711
    DATA/control/     C    0700   databases or PostgreSQL's address, key of the secrets, admin token of the first start
    DATA/code/        C    0711   DIGEST/ folders, read-only trees, one per bundle
    DATA/layers/      C    0711   DIGEST/ folders, read-only trees of installed dependencies
    DATA/blobs/       C    0700   large bodies and results of asynchronous calls
    DATA/builds/      C    0711   DIGEST/{requirements.txt,out/} while an installer runs
    DATA/front/       F    0700   certificates, their keys, the TLS front's configuration; only with `domain`
    RUN/              root 0711   node.sock (C:G 0660), node-N.lock (berths), supervisor.pid, supervisor.lock, state.json
    RUN/control/      C:G  2710   link.sock, api.sock (C:G 0660: control listens, the gateway connects)
    RUN/gateway/      G    0700   N.sock and N.move.sock of each gateway, where there are several
    RUN/egress/       E    0700   egress.sock (0600: the broker listens, the node, as root, connects)

Without root, everything belongs to the one user; node.sock is 0600 then, RUN/control 0700, and its sockets 0600.
"""

import msgspec


class Layout(msgspec.Struct, frozen=True):
    """Absolute paths as strings. `data` and `run` are absolute and exist before any role starts."""

    data: str
    run: str

    @property
    def control(self) -> str:
        return f"{self.data}/control"

    @property
    def code(self) -> str:
        return f"{self.data}/code"

    @property
    def layers(self) -> str:
        return f"{self.data}/layers"

    @property
    def blobs(self) -> str:
        return f"{self.data}/blobs"

    @property
    def durable_database(self) -> str:
        return f"{self.control}/durable.db"

    @property
    def builds(self) -> str:
        return f"{self.data}/builds"

    @property
    def front(self) -> str:
        return f"{self.data}/front"

    @property
    def database(self) -> str:
        return f"{self.control}/dayfly.db"

    @property
    def database_url(self) -> str:
        """A file with the address of a PostgreSQL database, written by `dayfly up` and read by control alone; missing with SQLite."""
        return f"{self.control}/database.url"

    @property
    def log_database(self) -> str:
        return f"{self.control}/logs.db"

    @property
    def secret_key(self) -> str:
        return f"{self.control}/secret.key"

    @property
    def control_sockets(self) -> str:
        return f"{self.run}/control"

    @property
    def egress_sockets(self) -> str:
        return f"{self.run}/egress"

    @property
    def link_socket(self) -> str:
        return f"{self.control_sockets}/link.sock"

    @property
    def api_socket(self) -> str:
        return f"{self.control_sockets}/api.sock"

    @property
    def egress_socket(self) -> str:
        return f"{self.egress_sockets}/egress.sock"

    @property
    def node_socket(self) -> str:
        return f"{self.run}/node.sock"

    @property
    def gateway_sockets(self) -> str:
        return f"{self.run}/gateway"

    def gateway_socket(self, slot: int) -> str:
        """Where the other gateways reach this one, when there are several."""
        return f"{self.gateway_sockets}/{slot}.sock"

    def gateway_moves_socket(self, slot: int) -> str:
        """And where they hand clients over to it."""
        return f"{self.gateway_sockets}/{slot}.move.sock"

    @property
    def pid_file(self) -> str:
        return f"{self.run}/supervisor.pid"

    @property
    def lock_file(self) -> str:
        return f"{self.run}/supervisor.lock"
