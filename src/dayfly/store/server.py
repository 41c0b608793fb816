"""A PostgreSQL database as seen from here: its address, the engine on it, and its errors in our own words. Decides nothing.

The address is libpq's own (`postgresql://…` with any of its parameters), read by libpq alone; nobody but the driver sees the password,
and `str()` has none. Imported only where a platform uses PostgreSQL: psycopg is the optional extra `dayfly[postgres]`.

Transactions are serial without ever being repeated: each begins by taking one advisory lock of the database and holds it to its end, as
SQLite's BEGIN IMMEDIATE does. Under READ COMMITTED every statement then sees all that was committed, and nothing is committed in between.
SERIALIZABLE would refuse transactions at their commit, and each verb would have to be repeatable; control has one writer anyway.
"""

from typing import Any

import sqlalchemy as sa

from dayfly.core.model.errors import Refusal
from dayfly.store.trouble import Unreachable

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise Refusal(
        "data_unusable", "`database` names PostgreSQL, and its driver is not installed: pip install 'dayfly[postgres]'."
    ) from error

CONNECT_SECONDS_MAX = 5
STATEMENT_MS_MAX = 30_000
LOCK_MS_MAX = 10_000
SILENT_SECONDS_MAX = 30  # a machine that vanished in the middle of a transaction holds its lock for so long
LOCK = 0x6461_7966_6C79  # "dayfly", the advisory lock of every transaction that may write

# What a server is told at each connection. The address' own parameters win over the first table; `options` are added to.
PARAMETERS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS_MAX,
    "application_name": "dayfly",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "client_encoding": "utf8",
}
OPTIONS = (
    f"-c statement_timeout={STATEMENT_MS_MAX} -c lock_timeout={LOCK_MS_MAX} -c timezone=UTC "
    f"-c idle_in_transaction_session_timeout={SILENT_SECONDS_MAX * 1000} -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 "
    "-c tcp_keepalives_count=3"
)

UNREADABLE = (
    "`database` is no address that libpq understands: postgresql://USER@HOST/DATABASE, with % codes for signs like @ and : in a password."
)
GONE = ("08", "57P", "53300", "53400")  # SQLSTATEs (or classes) of a server that cannot serve just now
FULL = ("53100",)
DAMAGED = ("58030", "XX001", "XX002")
FORBIDDEN = ("42501", "25006")
SLOW = ("55P03", "57014", "25P03")


class Server:
    """The address of one database."""

    def __init__(self, url: str) -> None:
        """Raises Refusal data_unusable when libpq cannot read `url`; what is wrong in it is not repeated, as it may hold a password."""
        try:
            self._parameters = conninfo_to_dict(url)
        except psycopg.Error:
            self._parameters = {"port": "unreadable"}
        shown = {name: str(self._parameters.get(name) or "") for name in ("user", "host", "port", "dbname")}
        # libpq takes what follows a bare @ or : in a password for host and port, and would say it aloud.
        if "@" in shown["host"] or not (shown["port"].replace(",", "") or "0").isdigit():
            raise Refusal("data_unusable", UNREADABLE)
        user = f"{shown['user']}@" if shown["user"] else ""
        port = f":{shown['port']}" if shown["port"] else ""
        self._shown = f"postgresql://{user}{shown['host']}{port}/{shown['dbname']}"

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"<Server {self._shown}>"

    def connect(self) -> "psycopg.Connection[Any]":
        """A connection with our bounds. Raises psycopg.Error."""
        options = f"{OPTIONS} {self._parameters.get('options') or ''}".rstrip()
        given = {name: value for name, value in self._parameters.items() if name != "options"}
        return psycopg.connect(**(PARAMETERS | given), options=options)

    def engine(self, *, serial: bool = True) -> sa.Engine:
        """SQLAlchemy's engine: one connection, looked at before each use and made again when the server had gone. `serial`: its
        transactions take the lock."""
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,  # errors are logged; what was being stored must not be
        )
        if serial:

            @sa.event.listens_for(engine, "begin")
            def _begun(connection: sa.Connection) -> None:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")

        return engine

    def refusal(self, error: BaseException | None) -> Refusal | None:
        """What to tell a person about one of the driver's errors; None when it is a defect of ours."""
        return _refusal(error, self._shown)


def _refusal(error: BaseException | None, where: str) -> Refusal | None:
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if state.startswith(FULL):
        return Refusal("storage_full", f"{where} has no space left.")
    if state.startswith(DAMAGED):
        return Refusal("data_unusable", f"{where} cannot read or write its files, or they are damaged: {_said(error)}.")
    if state.startswith(FORBIDDEN):
        return Refusal("data_unusable", f"{where} does not let us write: {_said(error)}.")
    if state.startswith(SLOW):
        return Unreachable(f"{where} did not get to it in time: {_said(error)}. Does another process hold a lock there?")
    if state.startswith(GONE) or (not state and isinstance(error, psycopg.OperationalError)):
        return Unreachable(f"{where} cannot be reached: {_said(error)}.")
    return None


def _said(error: psycopg.Error) -> str:
    """The last line of what the server or libpq said: for a connection that failed, the last address that was tried."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".")[:500] if lines else type(error).__name__
