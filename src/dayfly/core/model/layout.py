"""Where everything lies below the data and run directories: names only, nobody opens anything here.

Owners when started by root (U = the platform's unprivileged user; see docs/security.md):

    DATA/             root 0711
    DATA/control/     U    0700   databases, key of the secrets, admin token of the first start
    DATA/code/        U    0711   DIGEST/ folders, read-only trees, one per bundle
    DATA/layers/      U    0711   DIGEST/ folders, read-only trees of installed dependencies
    DATA/builds/      U    0711   DIGEST/{requirements.txt,out/} while an installer runs
    RUN/              root 0711   node.sock (owner U, 0600), supervisor.pid, supervisor.lock
    RUN/platform/     U    0700   link.sock, api.sock, egress.sock

Without root, everything belongs to the one user, with the same modes.
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
    def builds(self) -> str:
        return f"{self.data}/builds"

    @property
    def database(self) -> str:
        return f"{self.control}/dayfly.db"

    @property
    def log_database(self) -> str:
        return f"{self.control}/logs.db"

    @property
    def secret_key(self) -> str:
        return f"{self.control}/secret.key"

    @property
    def platform_sockets(self) -> str:
        return f"{self.run}/platform"

    @property
    def link_socket(self) -> str:
        return f"{self.platform_sockets}/link.sock"

    @property
    def api_socket(self) -> str:
        return f"{self.platform_sockets}/api.sock"

    @property
    def egress_socket(self) -> str:
        return f"{self.platform_sockets}/egress.sock"

    @property
    def node_socket(self) -> str:
        return f"{self.run}/node.sock"

    @property
    def pid_file(self) -> str:
        return f"{self.run}/supervisor.pid"

    @property
    def lock_file(self) -> str:
        return f"{self.run}/supervisor.lock"
