"""Log records as a table of PostgreSQL, so that whoever shares the database reads them all. The verbs are those of logs.py.

`log_state` is one row: the table's format, and how many bytes the records take, kept exact by every transaction that adds or deletes
some (asking the server would count what is deleted and not yet vacuumed). Changing that row is also the turn of whoever appends: ids are
given in the order of commits, so that a reader who goes on after the last id misses none. Commits here do not wait for the disk.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from dayfly.core.model.errors import Refusal
from dayfly.core.model.records import LogRecord
from dayfly.store.database import Database
from dayfly.store.logs import DELETE_STEP, READ_MAX, LogQuery, doomed
from dayfly.store.server import LOCK, Server

FORMAT = 1
ROW_BYTES = 300  # of a record beside its text: the row's head, its other columns, its place in three indexes
NUL_SHOWN = "\u2400"  # PostgreSQL's text cannot hold U+0000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_state (one boolean PRIMARY KEY CHECK (one), format integer NOT NULL, bytes bigint NOT NULL);
INSERT INTO log_state (one, format, bytes) VALUES (true, {format}, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at double precision NOT NULL, namespace text NOT NULL, function text NOT NULL,
    version integer NOT NULL, instance text NOT NULL, call_id text NOT NULL, stream text NOT NULL, level integer NOT NULL,
    text text NOT NULL
);
CREATE INDEX IF NOT EXISTS ix_logs_function ON logs (namespace, function, id);
CREATE INDEX IF NOT EXISTS ix_logs_call ON logs (call_id) WHERE call_id != '';
CREATE INDEX IF NOT EXISTS ix_logs_at ON logs (at);
"""
_COLUMNS = "at, namespace, function, version, instance, call_id, stream, level, text"
_TEXT = LogRecord.__struct_fields__.index("text")
_DELETE = f"""
WITH gone AS (DELETE FROM logs WHERE {{which}} RETURNING octet_length(text) + {ROW_BYTES} AS bytes),
     total AS (SELECT count(*) AS records, coalesce(sum(bytes), 0) AS bytes FROM gone)
UPDATE log_state SET bytes = log_state.bytes - total.bytes FROM total RETURNING total.records
"""  # noqa: S608 (values are bound)


class PostgresLogs:
    """The log table of a database."""

    shared = True

    def __init__(self, server: Server) -> None:
        self._database = Database(server, serial=False)
        try:
            with self._database.transaction() as tx:
                tx.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")  # two that begin at once must not both make the tables
                if not sa.inspect(tx).has_table("logs") or not sa.inspect(tx).has_table("log_state"):
                    _driver(tx).execute(_SCHEMA.format(format=FORMAT))
                found = tx.exec_driver_sql("SELECT format FROM log_state").scalar()
            if found != FORMAT:
                raise Refusal("data_unusable", f"The logs in {server} have format {found}; this release knows {FORMAT}.")
        except BaseException:
            self._database.close()
            raise

    def append(self, records: Sequence[LogRecord]) -> None:
        rows = [msgspec.structs.astuple(record) for record in records]
        rows = [(*row[:_TEXT], row[_TEXT].replace("\0", NUL_SHOWN)) if "\0" in row[_TEXT] else row for row in rows]
        with self._database.transaction() as tx:
            tx.exec_driver_sql("SET LOCAL synchronous_commit = off")
            size = sum(len(row[_TEXT].encode()) + ROW_BYTES for row in rows)
            tx.exec_driver_sql("UPDATE log_state SET bytes = bytes + %s", (size,))
            with _driver(tx).cursor() as cursor, cursor.copy(f"COPY logs ({_COLUMNS}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)

    def read(self, query: LogQuery) -> list[tuple[int, LogRecord]]:
        where, values = _conditions(query)
        limit = max(0, min(query.limit, READ_MAX))
        order = "ASC" if query.after else "DESC"
        statement = f"SELECT id, {_COLUMNS} FROM logs WHERE {where} ORDER BY id {order} LIMIT %s"  # noqa: S608 (values are bound)
        with self._database.transaction() as tx:
            rows = tx.exec_driver_sql(statement, (*values, limit)).fetchall()
        if not query.after:
            rows = rows[::-1]
        return [(row[0], LogRecord(*row[1:])) for row in rows]

    def last_id(self) -> int:
        with self._database.transaction() as tx:
            return int(tx.exec_driver_sql("SELECT coalesce(max(id), 0) FROM logs").scalar_one())

    def forget(self, before: float, keep: int) -> int:
        gone = 0
        for condition, value in (("at < %s", before), ("id <= (SELECT max(id) FROM logs) - %s", keep)):
            gone += self._delete(f"id IN (SELECT id FROM logs WHERE {condition} ORDER BY id LIMIT {DELETE_STEP})", value)  # noqa: S608
        return gone

    def shrink(self, bytes_max: int) -> int:
        """The server's files do not get smaller by it: its autovacuum makes the room free for records to come."""
        with self._database.transaction() as tx:
            used = int(tx.exec_driver_sql("SELECT bytes FROM log_state").scalar_one())
            oldest, newest = tx.exec_driver_sql("SELECT min(id), max(id) FROM logs").one()
        if used <= bytes_max or oldest is None:
            return 0
        return self._delete("id <= %s", doomed(oldest, newest, used, bytes_max))

    def tidy(self) -> bool:
        """Nothing: the server's autovacuum does that."""
        return False

    def close(self) -> None:
        self._database.close()

    def _delete(self, which: str, value: float) -> int:
        with self._database.transaction() as tx:
            tx.exec_driver_sql("SET LOCAL synchronous_commit = off")
            tx.exec_driver_sql("SELECT bytes FROM log_state FOR UPDATE")  # our turn first: who appends meanwhile waits, nobody in a circle
            return int(tx.exec_driver_sql(_DELETE.format(which=which), (value,)).scalar_one())


def _driver(tx: sa.Connection) -> Any:
    """psycopg's own connection: several statements at once, and COPY, are its verbs."""
    return tx.connection.driver_connection


def _conditions(query: LogQuery) -> tuple[str, list[object]]:
    parts, values = ["namespace = ANY(%s)"], list[object]([list(query.namespaces)])
    for condition, value in (
        ("function = %s", query.function),
        ("call_id = %s", query.call_id),
        ("at >= %s", query.since),
        ("id > %s", query.after),
    ):
        if value:
            parts.append(condition)
            values.append(value.replace("\0", NUL_SHOWN) if isinstance(value, str) else value)
    return " AND ".join(parts), values
