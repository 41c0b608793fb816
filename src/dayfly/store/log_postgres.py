"""The log in PostgreSQL. A stream's row is locked from before its end is read until the commit: positions become visible in order."""

from collections.abc import Sequence

from psycopg.errors import SerializationFailure

from dayfly.store.durable_postgres import DurableServer, Tx
from dayfly.store.log import READ_MAX, TRIM_MAX, Append, Appended, Cursor, Ends, Event, appended, bounded, check, check_cursors
from dayfly.store.server import Server

_MAKE = "INSERT INTO log_streams (name) SELECT unnest(%s::text[]) ON CONFLICT (name) DO NOTHING"
_LOCK = "SELECT name, id, last FROM log_streams WHERE name = ANY(%s::text[]) ORDER BY name FOR UPDATE"
_STREAM = "SELECT id, first, last FROM log_streams WHERE name = %s"
_INSERT = "INSERT INTO log_events (stream, position, at, body) SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::float8[], %s::bytea[])"
_MOVE = "UPDATE log_streams s SET last = n.last FROM unnest(%s::bigint[], %s::bigint[]) n (id, last) WHERE s.id = n.id"
_SIZES = "SELECT length(body) FROM log_events WHERE stream = %s AND position > %s ORDER BY position LIMIT %s"
_EVENTS = "SELECT position, at, body FROM log_events WHERE stream = %s AND position > %s ORDER BY position LIMIT %s"
_CURSOR = "SELECT c.position FROM log_cursors c JOIN log_streams s ON s.id = c.stream WHERE c.subscriber = %s AND s.name = %s"
_COMMIT = """
INSERT INTO log_cursors AS c (stream, subscriber, position) SELECT s.id, n.subscriber, least(max(n.position), s.last)
FROM unnest(%s::text[], %s::text[], %s::bigint[]) n (subscriber, stream, position) JOIN log_streams s ON s.name = n.stream
WHERE n.position > 0 GROUP BY s.id, n.subscriber, s.last ORDER BY s.id, n.subscriber COLLATE "C"
ON CONFLICT (stream, subscriber) DO UPDATE SET position = greatest(c.position, excluded.position)
"""


class PostgresLog:
    """The `Log` in that database."""

    def __init__(self, server: Server) -> None:
        self._server = DurableServer(server)

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        check(appends)

        def verb(tx: Tx) -> list[Appended]:
            names = sorted({append.stream for append in appends})
            tx.execute(_MAKE, (names,))
            found = tx.execute(_LOCK, (names,)).fetchall()
            if len(found) < len(names):
                raise SerializationFailure("a stream was removed between the two statements: once more")
            ids = {name: id for name, id, _ in found}
            last = {name: position for name, _, position in found}
            answers, rows = appended(appends, last)
            if rows:
                tx.execute(_INSERT, [[ids[row[0]] for row in rows], *([row[n] for row in rows] for n in (1, 2, 3))])
                tx.execute(_MOVE, [[ids[name] for name in last], list(last.values())])
            return answers

        return self._server.run(verb) if appends else []

    def read(self, stream: str, after: int, limit: int) -> list[Event]:
        def verb(tx: Tx) -> list[Event]:
            known = tx.execute(_STREAM, (stream,)).fetchone()
            if known is None:
                return []
            sizes = [size for (size,) in tx.execute(_SIZES, (known[0], after, max(0, min(limit, READ_MAX))))]
            rows = tx.execute(_EVENTS, (known[0], after, bounded(sizes)))
            return [Event(position=position, at=at, body=body) for position, at, body in rows]

        return self._server.run(verb)

    def ends(self, stream: str) -> Ends:
        _, first, last = self._server.run(lambda tx: tx.execute(_STREAM, (stream,)).fetchone()) or (0, 1, 0)
        return Ends(first=first, last=last)

    def commit(self, cursors: Sequence[Cursor]) -> list[int]:
        check_cursors(cursors)

        def verb(tx: Tx) -> list[int]:
            columns = [[c.subscriber for c in cursors], [c.stream for c in cursors], [c.position for c in cursors]]
            tx.execute(_COMMIT, columns)
            statement = (
                "SELECT coalesce(c.position, 0) FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY n (subscriber, stream, ord)"
                " LEFT JOIN log_streams s ON s.name = n.stream LEFT JOIN log_cursors c ON c.stream = s.id AND c.subscriber = n.subscriber"
                " ORDER BY n.ord"
            )
            return [position for (position,) in tx.execute(statement, columns[:2])]

        return self._server.run(verb) if cursors else []

    def position(self, subscriber: str, stream: str) -> int:
        return int((self._server.run(lambda tx: tx.execute(_CURSOR, (subscriber, stream)).fetchone()) or (0,))[0])

    def cursors(self, stream: str) -> list[Cursor]:
        statement = (
            "SELECT subscriber, position FROM log_cursors WHERE stream = (SELECT id FROM log_streams WHERE name = %s) ORDER BY subscriber"
        )
        rows = self._server.run(lambda tx: tx.execute(statement, (stream,)).fetchall())
        return [Cursor(subscriber=subscriber, stream=stream, position=position) for subscriber, position in rows]

    def unsubscribe(self, subscriber: str, stream: str) -> bool:
        statement = "DELETE FROM log_cursors WHERE stream = (SELECT id FROM log_streams WHERE name = %s) AND subscriber = %s"
        return self._server.run(lambda tx: tx.execute(statement, (stream, subscriber)).rowcount) > 0

    def trim(self, stream: str, before: int) -> int:
        def verb(tx: Tx) -> int:
            id, known, last = tx.execute(_STREAM + " FOR UPDATE", (stream,)).fetchone() or (0, 1, 0)
            first = min(before, last + 1, known + TRIM_MAX)
            if first <= known:
                return 0
            tx.execute("UPDATE log_streams SET first = %s WHERE id = %s", (first, id))
            return tx.execute("DELETE FROM log_events WHERE stream = %s AND position < %s", (id, first)).rowcount

        return self._server.run(verb)

    def remove(self, stream: str) -> bool:
        def verb(tx: Tx) -> bool:
            known = tx.execute(_STREAM + " FOR UPDATE", (stream,)).fetchone()
            if known is None:
                return False
            tx.execute("DELETE FROM log_events WHERE stream = %s", known[:1])
            tx.execute("DELETE FROM log_cursors WHERE stream = %s", known[:1])
            tx.execute("DELETE FROM log_streams WHERE id = %s", known[:1])
            return True

        return self._server.run(verb)

    def close(self) -> None:
        self._server.close()
