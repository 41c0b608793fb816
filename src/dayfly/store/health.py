"""How the store stands, from outside and while it is used: sizes, free room, schema, damage, ages, and how long a durable write takes.

Reads and measures only (a file of its own is written and synced beside the database for that, and removed); changes nothing and repairs
nothing. Each figure has its unit in its name. Called by `dayfly doctor --store`; blocking.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dayfly.store import room

if TYPE_CHECKING:
    from dayfly.store.server import Server

SYNCS = 20  # writes measured
SYNC_BYTES = 4096
WHOLE_CHECK_BYTES_MAX = 256 * 1024 * 1024  # larger files get the check that reads each page once but compares no index
OLDEST = {"logs": "SELECT min(at) FROM logs", "usage_day": "SELECT min(day) FROM usage_day"}

Facts = dict[str, Any]


def of_file(path: Path) -> Facts:
    """A SQLite file, as of one moment. Raises sqlite3.Error when it cannot be read at all."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=2)) as db:
        pages, free, page = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size"))
        check = "integrity_check" if pages * page <= WHOLE_CHECK_BYTES_MAX else "quick_check"
        said = [str(row[0]) for row in db.execute(f"PRAGMA {check}(3)")]
        facts: Facts = {
            "bytes": path.stat().st_size,
            "free_bytes": free * page,
            "wal_bytes": room.wal_bytes(path),
            "gives_room_back": db.execute("PRAGMA auto_vacuum").fetchone()[0] == room.INCREMENTAL,
            "check": check,
            "damage": [] if said == ["ok"] else said,
        }
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return facts | _contents(tables, lambda statement: db.execute(statement).fetchone()[0])


def of_server(server: "Server") -> Facts:
    """A PostgreSQL database. Raises Refusal (Unreachable, data_unusable) when it does not answer."""
    from dayfly.store.database import Database

    database = Database(server, serial=False)
    try:
        with database.transaction() as tx:

            def ask(statement: str) -> Any:
                return tx.exec_driver_sql(statement).scalar()

            times = [_timed(lambda: ask("SELECT 1")) for _ in range(SYNCS)]
            tables = set(str(ask("SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = current_schema()") or "").split())
            facts: Facts = {
                "version": str(ask("SHOW server_version")).split()[0],
                "bytes": int(ask("SELECT pg_database_size(current_database())")),
                "round_trip_ms": _middle(times),
                "fsync": ask("SHOW fsync") == "on",
                "synchronous_commit": str(ask("SHOW synchronous_commit")),
                "connections_of_others": int(
                    ask(
                        "SELECT count(DISTINCT client_addr) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND application_name = 'dayfly' AND client_addr IS DISTINCT FROM inet_client_addr()"
                    )
                ),
                "dead_rows": int(ask("SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables")),
                "tables_bytes": {name: int(ask(f"SELECT pg_total_relation_size('\"{name}\"')")) for name in sorted(tables)},
            }
            return facts | _contents(tables, ask)
    finally:
        database.close()


def _contents(tables: set[str], ask: Callable[[str], Any]) -> Facts:
    """What both databases tell alike: the schema's revision, and how old the oldest records are."""
    facts: Facts = {"tables": len(tables)}
    if "alembic_version" in tables:
        facts["schema"] = str(ask("SELECT version_num FROM alembic_version"))
    for table, statement in OLDEST.items():
        if table in tables and (oldest := ask(statement)) is not None:
            facts[f"oldest_{table}"] = oldest
    return facts


def sync_ms(folder: Path) -> tuple[float, float]:
    """(middle, longest) milliseconds of a write of 4 KiB that is seen on disk, as each commit waits for it. Raises OSError."""
    path = folder / f".doctor-{os.getpid()}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        block = b"\0" * SYNC_BYTES

        def write() -> None:
            os.write(fd, block)
            os.fdatasync(fd)

        times = [_timed(write) for _ in range(SYNCS)]
        return _middle(times), max(times)
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            path.unlink()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round((time.perf_counter() - began) * 1000, 3)


def _middle(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
