"""The log in SQLite: the same file as the queue, short statements by hand."""

from collections.abc import Sequence
from pathlib import Path

from dayfly.store.durable_sqlite import DurableFile
from dayfly.store.log import READ_MAX, TRIM_MAX, Append, Appended, Cursor, Ends, Event, appended, bounded, check, check_cursors

_SIZES = "SELECT length(body) FROM log_events WHERE stream = ? AND position > ? ORDER BY position LIMIT ?"
_EVENTS = "SELECT position, at, body FROM log_events WHERE stream = ? AND position > ? ORDER BY position LIMIT ?"
_STREAM = "SELECT id, first, last FROM log_streams WHERE name = ?"
_CURSOR = "SELECT c.position FROM log_cursors c JOIN log_streams s ON s.id = c.stream WHERE c.subscriber = ? AND s.name = ?"
_CURSORS = "SELECT c.subscriber, c.position FROM log_cursors c JOIN log_streams s ON s.id = c.stream WHERE s.name = ? ORDER BY c.subscriber"


class SqliteLog:
    """The `Log` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._file = DurableFile(path)

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        check(appends)
        with self._file.transaction() as db:
            names = {append.stream for append in appends}
            found = {name: row for name in names if (row := db.execute(_STREAM, (name,)).fetchone())}
            last = {name: row[2] for name, row in found.items()}
            answers, rows = appended(appends, last)
            ids = {name: row[0] for name, row in found.items()}
            for name in last.keys() - ids.keys():
                ids[name] = db.execute("INSERT INTO log_streams (name, first, last) VALUES (?, 1, 0)", (name,)).lastrowid
            db.executemany(
                "INSERT INTO log_events (stream, position, at, body) VALUES (?,?,?,?)", ((ids[name], *row) for name, *row in rows)
            )
            db.executemany("UPDATE log_streams SET last = ? WHERE id = ?", ((position, ids[name]) for name, position in last.items()))
            return answers

    def read(self, stream: str, after: int, limit: int) -> list[Event]:
        with self._file.reading() as db:
            known = db.execute(_STREAM, (stream,)).fetchone()
            if known is None:
                return []
            sizes = [size for (size,) in db.execute(_SIZES, (known[0], after, max(0, min(limit, READ_MAX))))]
            rows = db.execute(_EVENTS, (known[0], after, bounded(sizes))).fetchall()
        return [Event(position=position, at=at, body=body) for position, at, body in rows]

    def ends(self, stream: str) -> Ends:
        with self._file.reading() as db:
            known = db.execute(_STREAM, (stream,)).fetchone() or (0, 1, 0)
        return Ends(first=known[1], last=known[2])

    def commit(self, cursors: Sequence[Cursor]) -> list[int]:
        check_cursors(cursors)
        answers = []
        with self._file.transaction() as db:
            for cursor in cursors:
                known = db.execute(_STREAM, (cursor.stream,)).fetchone()
                if known is not None and cursor.position > 0:
                    db.execute(
                        "INSERT INTO log_cursors (stream, subscriber, position) VALUES (?,?,?)"
                        " ON CONFLICT (stream, subscriber) DO UPDATE SET position = max(position, excluded.position)",
                        (known[0], cursor.subscriber, min(cursor.position, known[2])),
                    )
                answers.append((db.execute(_CURSOR, (cursor.subscriber, cursor.stream)).fetchone() or (0,))[0])
        return answers

    def position(self, subscriber: str, stream: str) -> int:
        with self._file.reading() as db:
            return int((db.execute(_CURSOR, (subscriber, stream)).fetchone() or (0,))[0])

    def cursors(self, stream: str) -> list[Cursor]:
        with self._file.reading() as db:
            rows = db.execute(_CURSORS, (stream,)).fetchall()
        return [Cursor(subscriber=subscriber, stream=stream, position=position) for subscriber, position in rows]

    def unsubscribe(self, subscriber: str, stream: str) -> bool:
        statement = "DELETE FROM log_cursors WHERE stream = (SELECT id FROM log_streams WHERE name = ?) AND subscriber = ?"
        with self._file.transaction() as db:
            return db.execute(statement, (stream, subscriber)).rowcount > 0

    def trim(self, stream: str, before: int) -> int:
        with self._file.transaction() as db:
            known = db.execute(_STREAM, (stream,)).fetchone() or (0, 1, 0)
            first = min(before, known[2] + 1, known[1] + TRIM_MAX)
            if first <= known[1]:
                return 0
            db.execute("UPDATE log_streams SET first = ? WHERE id = ?", (first, known[0]))
            return db.execute("DELETE FROM log_events WHERE stream = ? AND position < ?", (known[0], first)).rowcount

    def remove(self, stream: str) -> bool:
        with self._file.transaction() as db:
            known = db.execute(_STREAM, (stream,)).fetchone()
            if known is None:
                return False
            db.execute("DELETE FROM log_events WHERE stream = ?", known[:1])
            db.execute("DELETE FROM log_cursors WHERE stream = ?", known[:1])
            db.execute("DELETE FROM log_streams WHERE id = ?", known[:1])
            return True

    def close(self) -> None:
        self._file.close()
