"""The same rows in PostgreSQL: one connection, schema steps, transactions, and its errors in our words.

Imported only where a DSN is given, because psycopg is an extra. A connection that broke is made again by the next verb; the one that broke
it raises Refusal data_unusable, and whether it was committed nobody knows (verbs may be repeated: ids, epochs and versions see to that).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from dayfly.core.model.errors import Refusal

CONNECT_SECONDS_MAX = 5
STATEMENT_MS_MAX = 30_000
LOCK_MS_MAX = 10_000
TRIES_MAX = 5  # of a transaction that met another one in a deadlock
LOCKS = 1024  # advisory locks by hash, so that a large batch does not fill the server's table of locks
_LOCK_CLASS = 0x44464C59  # the first of the two numbers of our advisory locks
SCHEMA_LOCK = LOCKS

_OPTIONS = f"-c statement_timeout={STATEMENT_MS_MAX} -c lock_timeout={LOCK_MS_MAX} -c jit=off -c enable_seqscan=off"
_FULL = ("53100", "53200")
_DAMAGED = ("58030", "XX001", "XX002")
_FORBIDDEN = ("25006", "42501")

Tx = psycopg.Cursor[Any]
_T = TypeVar("_T")

# What makes schema n one of n + 1, as in durable_sqlite.py. Text compares by code point, as Python does.
_FIRST = """
CREATE TABLE queue_items (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id TEXT COLLATE "C" NOT NULL, lane TEXT COLLATE "C" NOT NULL,
    state SMALLINT NOT NULL DEFAULT 0, place SMALLINT NOT NULL DEFAULT 0, rank SMALLINT NOT NULL, due DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION NOT NULL, accepted_at DOUBLE PRECISION NOT NULL, epoch BIGINT NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, records INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
    lease_until DOUBLE PRECISION NOT NULL DEFAULT 0, grp TEXT COLLATE "C" NOT NULL, tag TEXT COLLATE "C" NOT NULL, dedup TEXT NOT NULL,
    dedup_until DOUBLE PRECISION NOT NULL, reason TEXT NOT NULL DEFAULT '', settled_at DOUBLE PRECISION NOT NULL DEFAULT 0,
    keep_until DOUBLE PRECISION NOT NULL DEFAULT 0, cancelling BOOLEAN NOT NULL DEFAULT FALSE
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX ix_queue_items_id ON queue_items (id);
CREATE INDEX ix_queue_items_ready ON queue_items (lane, rank, due, seq) WHERE state = 0 AND place = 0;
CREATE INDEX ix_queue_items_listed ON queue_items (lane, state, accepted_at, id);
CREATE INDEX ix_queue_items_tag ON queue_items (tag, state, accepted_at, id) WHERE tag <> '';
CREATE INDEX ix_queue_items_group ON queue_items (lane, grp, state, place, seq) WHERE grp <> '' AND state < 2;
CREATE INDEX ix_queue_items_expires ON queue_items (expires) WHERE state = 0;
CREATE INDEX ix_queue_items_leased ON queue_items (lease_until) WHERE state = 1;
CREATE INDEX ix_queue_items_kept ON queue_items (keep_until) WHERE state > 1;
CREATE TABLE queue_bodies (seq BIGINT PRIMARY KEY, body BYTEA NOT NULL);
CREATE TABLE queue_results (seq BIGINT PRIMARY KEY, result BYTEA NOT NULL);
CREATE TABLE queue_attempts (seq BIGINT NOT NULL, n INTEGER NOT NULL, record BYTEA NOT NULL, PRIMARY KEY (seq, n));
CREATE TABLE queue_dedups (
    lane TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL, id TEXT NOT NULL, until DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (lane, key)
);
CREATE INDEX ix_queue_dedups_until ON queue_dedups (until);
CREATE TABLE queue_counts (
    lane TEXT COLLATE "C" NOT NULL, shard SMALLINT NOT NULL, waiting BIGINT NOT NULL, leased BIGINT NOT NULL, done BIGINT NOT NULL,
    dead BIGINT NOT NULL, PRIMARY KEY (lane, shard)
) WITH (fillfactor = 50);
CREATE TABLE log_streams (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT COLLATE "C" NOT NULL UNIQUE, first BIGINT NOT NULL DEFAULT 1,
    last BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE log_events (
    stream BIGINT NOT NULL, position BIGINT NOT NULL, at DOUBLE PRECISION NOT NULL, body BYTEA NOT NULL, PRIMARY KEY (stream, position)
);
CREATE TABLE log_cursors (
    stream BIGINT NOT NULL, subscriber TEXT COLLATE "C" NOT NULL, position BIGINT NOT NULL, PRIMARY KEY (stream, subscriber)
);
CREATE TABLE kv_entries (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY, value BYTEA NOT NULL, version BIGINT NOT NULL, expires DOUBLE PRECISION
);
CREATE INDEX ix_kv_entries_expires ON kv_entries (expires) WHERE expires IS NOT NULL;
CREATE SEQUENCE kv_version;
"""
STEPS: tuple[str, ...] = (_FIRST,)


class DurableServer:
    """One connection to the database at `dsn` (anything libpq understands), whose tables are made if they are not there."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.where = _shown(dsn)
        self._connection: psycopg.Connection[Any] | None = None
        self.run(_prepare)

    def run(self, verb: Callable[[Tx], _T]) -> _T:
        """Do `verb` in one transaction, durable at its end. It may be done again, after a deadlock: it must change nothing else."""
        with self._translated():
            for tries in range(TRIES_MAX):
                connection = self._open()
                try:
                    with connection.transaction(), connection.cursor() as tx:
                        return verb(tx)
                except (errors.DeadlockDetected, errors.SerializationFailure):
                    if tries == TRIES_MAX - 1:
                        raise
        raise AssertionError("the last try returned or raised")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn)
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if self._connection is not None and self._connection.broken:
                self._connection.close()
            raise refusal_for(error, self.where) or error from error


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A connection with our bounds, whose commits are durable whatever the server's default. Raises psycopg.Error."""
    given = conninfo_to_dict(dsn, connect_timeout=CONNECT_SECONDS_MAX, application_name="dayfly")
    options = f"{_OPTIONS} {given.pop('options', None) or ''}".strip()
    connection = psycopg.connect(**given, options=options, autocommit=True, prepare_threshold=2)  # type: ignore[arg-type]
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    with suppress(errors.InsufficientPrivilege):
        connection.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
    return connection


def refusal_for(error: psycopg.Error, where: str) -> Refusal | None:
    """What to tell a person about `error`; None when it is a defect of ours rather than a state of the server."""
    state = error.sqlstate or ""
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")[:500]
    if state in _FULL:
        return Refusal("storage_full", f"{where} has no space left: {said}.")
    if state in _DAMAGED:
        return Refusal("data_unusable", f"{where} cannot read or write its files, or they are damaged: {said}.")
    if state in _FORBIDDEN:
        return Refusal("data_unusable", f"{where} does not let us write: {said}.")
    if isinstance(error, psycopg.OperationalError):
        return Refusal("data_unusable", f"{where} cannot be reached, or did not get to it in time: {said}.")
    return None


def lock(tx: Tx, *keys: tuple[str, ...]) -> None:
    """Hold what belongs to these keys until the transaction ends, in one order for everybody. Two keys may share a lock."""
    if keys:
        tx.execute(
            "SELECT pg_advisory_xact_lock(%s, n) FROM (SELECT DISTINCT abs(hashtext(k) %% %s) AS n FROM unnest(%s::text[]) k ORDER BY n) l",
            (_LOCK_CLASS, LOCKS, ["\n".join(key) for key in keys]),
        )


def upgrade(tx: Tx, found: int, to: int) -> None:
    """Take the steps from schema `found` to `to`."""
    for step in STEPS[found:to]:
        tx.execute(step)
    tx.execute("UPDATE durable_format SET format = %s", (to,))


def _prepare(tx: Tx) -> None:
    tx.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK_CLASS, SCHEMA_LOCK))  # another process may do the same
    if tx.execute("SELECT to_regclass('durable_format')").fetchone() == (None,):
        tx.execute("CREATE TABLE durable_format (format INTEGER NOT NULL)")
        tx.execute("INSERT INTO durable_format VALUES (0)")
    (found,) = tx.execute("SELECT format FROM durable_format").fetchone() or (0,)
    if found > len(STEPS):
        raise Refusal(
            "data_unusable", f"The durable tables have schema {found}; this release knows {len(STEPS)}: a newer Dayfly wrote them."
        )
    if found < len(STEPS):
        upgrade(tx, found, len(STEPS))


def _shown(dsn: str) -> str:
    """The address without its password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise Refusal("data_unusable", "The database's address is none that libpq understands: postgresql://USER@HOST/DATABASE.") from None
    return f"PostgreSQL's database {parts.get('dbname') or ''!r} at {parts.get('host') or 'this machine'}"
