"""Which database a data directory has: the files in it, or the PostgreSQL server whose address `dayfly up` left in DATA/control.

The address lies in a file of mode 0600 beside the key of the secrets, because it may hold a password: settings travel to every role, a file
is read by control alone. Called by control and by the command line's backup and doctor.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dayfly.core.model.database import URL_BYTES_MAX
from dayfly.core.model.errors import Refusal
from dayfly.store.logs import LogStore

if TYPE_CHECKING:
    from dayfly.store.server import Server


def url_of(file: Path) -> str:
    """The address in `file`, "" when there is none. Raises Refusal data_unusable."""
    try:
        with file.open("rb") as opened:
            text = opened.read(URL_BYTES_MAX + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Refusal("data_unusable", f"{file} cannot be read: {error.strerror}.") from error
    if len(text) > URL_BYTES_MAX:
        raise Refusal("data_unusable", f"{file} holds more than {URL_BYTES_MAX} bytes, which is no address.")
    return text.decode("utf-8", "replace").strip()


def server_of(file: Path) -> "Server | None":
    """The server whose address is in `file`; None: the data directory's own files. Raises Refusal data_unusable."""
    url = url_of(file)
    if not url:
        return None
    from dayfly.store.server import Server

    return Server(url)


def open_logs(where: "Path | Server") -> LogStore:
    """The log store there. Raises Refusal data_unusable or storage_full."""
    if isinstance(where, Path):
        from dayfly.store.logs_sqlite import SqliteLogs

        return SqliteLogs(where)
    from dayfly.store.logs_postgresql import PostgresLogs

    return PostgresLogs(where)
