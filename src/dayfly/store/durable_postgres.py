"""The same rows in PostgreSQL: one connection, schema steps, transactions that may be done again.

Imported only where a platform uses PostgreSQL. Not store/database.py's transactions, which take one lock for the whole database: several
owners lease at once here, and each verb takes the locks of what it touches. A connection that broke is made again by the next verb.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from dayfly.core.model.errors import Refusal
from dayfly.store.server import Server
from dayfly.store.trouble import Doubtful

TRIES_MAX = 5  # of a transaction that met another one in a deadlock
LOCKS = 1024  # advisory locks by hash, so that a large batch does not fill the server's table of locks
SCHEMA_LOCK = LOCKS
_LOCK_CLASS = 0x44464C59  # "DFLY", the first of the two numbers of our advisory locks
_SESSION = (
    "SET jit = off",
    "SET enable_seqscan = off",  # every statement has its index; statistics of a table that was empty a moment ago say otherwise
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)

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
    """One connection to a database, whose tables are made if they are not there. Raises Refusal storage_full or data_unusable."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: psycopg.Connection[Any] | None = None
        self.run(_prepare)

    def run(self, verb: Callable[[Tx], _T]) -> _T:
        """Do `verb` in one transaction, durable at its end. It may be done again, after a deadlock: it must change nothing else.
        Raises Doubtful when the connection broke during the commit; verbs may be repeated, as ids, epochs and versions tell."""
        with self._translated():
            for _ in range(TRIES_MAX - 1):
                try:
                    return self._once(verb)
                except (errors.DeadlockDetected, errors.SerializationFailure):
                    continue
            return self._once(verb)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _once(self, verb: Callable[[Tx], _T]) -> _T:
        connection = self._begun()
        try:
            with connection.cursor() as tx:
                answer = verb(tx)
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise
        try:
            connection.commit()
        except psycopg.OperationalError as error:
            if connection.closed:
                raise Doubtful(self._server) from error
            raise
        return answer

    def _begun(self) -> psycopg.Connection[Any]:
        """The connection with a transaction begun: a new one where the server had gone while nobody looked."""
        if self._connection is not None and not self._connection.closed:
            try:
                self._connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                return self._connection
            except psycopg.OperationalError:
                if not self._connection.closed:
                    raise
        self._connection = connect(self._server)
        self._connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._server.refusal(error) or error from error


def connect(server: Server) -> psycopg.Connection[Any]:
    """A connection whose commits are durable whatever the server's default. Raises psycopg.Error."""
    connection = server.connect()
    connection.autocommit = True  # BEGIN is ours
    connection.prepare_threshold = 2
    for statement in _SESSION:
        connection.execute(statement)
    return connection


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
