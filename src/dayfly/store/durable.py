"""The durable primitives of one installation, on whichever database it has. Called by app.py, for control's writer thread.

Each primitive has a connection of its own; one more, for a thread that only reads, is opened the same way.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dayfly.store.kv import KV
from dayfly.store.log import Log
from dayfly.store.queue import Queue

if TYPE_CHECKING:
    from dayfly.store.server import Server


class Durable(msgspec.Struct, frozen=True):
    """Queue, log and keys. Used from one thread at a time; `close()` when done."""

    queue: Queue
    log: Log
    kv: KV

    def close(self) -> None:
        """Close all three."""
        for part in (self.queue, self.log, self.kv):
            part.close()


def open_durable(where: "Path | Server") -> Durable:
    """In the file `where` (durable.db), or in that PostgreSQL database. Raises Refusal data_unusable or storage_full."""
    return Durable(queue=open_queue(where), log=open_log(where), kv=open_kv(where))


def open_queue(where: "Path | Server") -> Queue:
    """The queue alone."""
    if isinstance(where, Path):
        from dayfly.store.queue_sqlite import SqliteQueue

        return SqliteQueue(where)
    from dayfly.store.queue_postgres import PostgresQueue  # its driver is an extra

    return PostgresQueue(where)


def open_log(where: "Path | Server") -> Log:
    """The log alone."""
    if isinstance(where, Path):
        from dayfly.store.log_sqlite import SqliteLog

        return SqliteLog(where)
    from dayfly.store.log_postgres import PostgresLog

    return PostgresLog(where)


def open_kv(where: "Path | Server") -> KV:
    """Keys and values alone."""
    if isinstance(where, Path):
        from dayfly.store.kv_sqlite import SqliteKV

        return SqliteKV(where)
    from dayfly.store.kv_postgres import PostgresKV

    return PostgresKV(where)
