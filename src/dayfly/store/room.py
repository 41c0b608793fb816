"""Giving a SQLite file's free pages back to the disk, in steps so small that nobody waits long for the file. Used by its one writer.

Files are made with incremental vacuum, which can only be chosen while a file is empty or by writing it anew; small ones of older
releases are written anew when they are opened. Some room stays free, because it will be wanted again.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path

INCREMENTAL = 2  # PRAGMA auto_vacuum
STEP_PAGES = 1024
SLACK_PAGES, SLACK_PART = 256, 10  # this many, or a tenth of the file, stay free
WAL_BYTES_MAX = 4 * 1024 * 1024  # above it the write-ahead log is written back and cut; SQLite alone would reuse it at that size
WAL_WAIT_MS = 50
REWRITE_BYTES_MAX = 64 * 1024 * 1024


def choose(connection: sqlite3.Connection) -> None:
    """Before anything else on a new connection: a file without content will give room back in steps. Changes no other."""
    if _pragma(connection, "page_count") == 0:  # elsewhere it would write to a file that may not be ours
        connection.execute(f"PRAGMA auto_vacuum={INCREMENTAL}")


def rewrite(connection: sqlite3.Connection) -> bool:
    """Write a small file of an older release anew, once; whether it was done. Blocks for a fraction of a second."""
    mode, pages, size = (_pragma(connection, name) for name in ("auto_vacuum", "page_count", "page_size"))
    if mode == INCREMENTAL or pages * size > REWRITE_BYTES_MAX:
        return False
    with suppress(sqlite3.OperationalError):  # a full disk or a reader: it stays as it is
        connection.execute(f"PRAGMA auto_vacuum={INCREMENTAL}")
        connection.execute("VACUUM")
        return True
    return False


def give_back(connection: sqlite3.Connection, path: Path) -> bool:
    """One step; whether there is more to do. Outside of a transaction."""
    excess = 0
    if _pragma(connection, "auto_vacuum") == INCREMENTAL:
        free, pages = _pragma(connection, "freelist_count"), _pragma(connection, "page_count")
        excess = free - max(SLACK_PAGES, pages // SLACK_PART)
        if excess > 0:
            # Not `execute`: the statement is a row without columns for each page, and that steps once over what has no columns.
            connection.executescript(f"PRAGMA incremental_vacuum({min(excess, STEP_PAGES)})")
    if excess > 0 or wal_bytes(path) > WAL_BYTES_MAX:
        _write_back(connection)
    return excess > STEP_PAGES


def wal_bytes(path: Path) -> int:
    """Size of a file's write-ahead log, 0 without one."""
    with suppress(OSError):
        return path.with_name(path.name + "-wal").stat().st_size
    return 0


def _write_back(connection: sqlite3.Connection) -> None:
    """All into the file itself, which gets as small as it is; a reader (a backup) that needs the log is not waited for."""
    wait = _pragma(connection, "busy_timeout")
    connection.execute(f"PRAGMA busy_timeout={WAL_WAIT_MS}")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.execute(f"PRAGMA busy_timeout={wait}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
