"""What `dayfly doctor --store` says: the figures of store/health.py as lines, what a lack costs, how to mend it. Changes nothing."""

from pathlib import Path
from typing import Any

from dayfly.cli import output
from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.cli.machine import BAD, OK, WARN, Check
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout

SLOW_SYNC_MS = 20.0
SLOW_SERVER_MS = 5.0
WAL_BYTES_WANTED = 64 * 1024 * 1024
REWRITE = "dayfly down; sqlite3 FILE 'PRAGMA auto_vacuum=2; VACUUM'; dayfly up"


def checks(layout: Layout) -> tuple[list[Check], dict[str, Any]]:
    """Lines for a person, and all figures. Raises Failure when the data directory may not be looked into."""
    from dayfly.store.places import server_of

    try:
        names = sorted(path.name for path in Path(layout.control).iterdir() if path.name.endswith(".db"))
        server = server_of(Path(layout.database_url))
    except FileNotFoundError:
        return [Check("store", "data directory", WARN, f"{layout.data} was never started")], {}
    except PermissionError as error:
        hint = "Ask as root or as the platform's user."
        raise Failure(f"{layout.control}: {error.strerror}.", hint, exit_code=EXIT_PLATFORM) from error
    except Refusal as refusal:
        return [Check("store", "postgresql", BAD, refusal.detail, "control does not start", refusal.kind.hint)], {}
    found, facts = _sync_checks(Path(layout.control))
    if server is not None:
        more, facts["postgresql"] = _server_checks(server)
        return [*found, *more], facts
    facts["files"] = {}
    for name in names:
        more, facts["files"][name] = _file_checks(Path(layout.control, name))
        found += more
    return found, facts


def _sync_checks(folder: Path) -> tuple[list[Check], dict[str, Any]]:
    from dayfly.store.health import sync_ms

    try:
        middle, longest = sync_ms(folder)
    except OSError as error:
        costs = "nothing can be deployed, logged or counted"
        return [Check("store", "write and sync", BAD, str(error.strerror), costs, "free space, or correct owner and mode")], {}
    said = f"{middle:.2f} ms, longest {longest:.2f} ms"
    facts = {"sync_ms": middle, "sync_ms_max": longest}
    if middle <= SLOW_SYNC_MS:
        return [Check("store", "write and sync", OK, said)], facts
    return [Check("store", "write and sync", WARN, said, "every deploy and asynchronous call waits for this", "a faster disk")], facts


def _file_checks(path: Path) -> tuple[list[Check], dict[str, Any]]:
    import sqlite3

    from dayfly.store.health import of_file

    try:
        facts = of_file(path)
    except sqlite3.Error as error:
        facts = {"damage": [str(error)]}
    if facts["damage"]:
        costs, remedy = "what is stored there cannot be relied on", "dayfly restore, from a backup that is whole"
        return [Check("store", path.name, BAD, f"damaged: {facts['damage'][0]}", costs, remedy)], facts
    said = (
        f"{output.size(facts['bytes'])}, {output.size(facts['free_bytes'])} of it free, write-ahead log {output.size(facts['wal_bytes'])}"
    )
    said += f", {facts['check']} ok" + _ages(facts)
    if facts["wal_bytes"] > WAL_BYTES_WANTED:
        costs = "reading gets slower, and the disk is used"
        return [Check("store", path.name, WARN, said, costs, "end whoever reads that file for long (a backup?)")], facts
    if not facts["gives_room_back"] and facts["free_bytes"] > facts["bytes"] // 4:
        return [Check("store", path.name, WARN, said, "free room is written to again, but not given back", REWRITE)], facts
    return [Check("store", path.name, OK, said), *_schema_checks(path.name, facts)], facts


def _server_checks(server: Any) -> tuple[list[Check], dict[str, Any]]:
    from dayfly.store.health import of_server

    try:
        facts = of_server(server)
    except Refusal as refusal:
        costs = "deploys fail, logs and usage wait; calls go on"
        return [Check("store", "postgresql", BAD, refusal.detail, costs, "start the server, or correct `database`")], {
            "error": refusal.detail
        }
    said = f"{server}, version {facts['version']}, {output.size(facts['bytes'])}, {facts['round_trip_ms']:.2f} ms a question{_ages(facts)}"
    found = [Check("store", "postgresql", OK, said), *_schema_checks("postgresql", facts)]
    if facts["round_trip_ms"] > SLOW_SERVER_MS:
        found[0] = Check("store", "postgresql", WARN, said, "each transaction asks three to ten questions", "a server nearer by")
    if not facts["fsync"] or facts["synchronous_commit"] == "off":
        setting = "fsync = off" if not facts["fsync"] else "synchronous_commit = off"
        costs = "what was deployed or accepted may be gone after a power cut"
        found.append(Check("store", "durability", BAD, setting, costs, "set it to on"))
    if facts["connections_of_others"]:
        said = f"{facts['connections_of_others']} other machines use this database as Dayfly"
        found.append(Check("store", "alone", WARN, said, "they do not hear of each other's deploys", "one platform, one database"))
    return found, facts


def _schema_checks(name: str, facts: dict[str, Any]) -> list[Check]:
    from dayfly.store.migrate import HEAD, REVISIONS

    found = facts.get("schema")
    if found is None:
        return []
    if found == HEAD:
        return [Check("store", f"schema of {name}", OK, found)]
    if found in REVISIONS:
        return [Check("store", f"schema of {name}", OK, f"{found}; the next start of this release brings it to {HEAD}")]
    costs = "this release does not start on it"
    return [Check("store", f"schema of {name}", BAD, f"{found}, of a newer release", costs, "the release that wrote it, or a backup")]


def _ages(facts: dict[str, Any]) -> str:
    import time

    said = ""
    if isinstance(facts.get("oldest_logs"), int | float):
        said += f", logs of {output.duration(max(0.0, time.time() - facts['oldest_logs']))}"
    if facts.get("oldest_usage_day"):
        said += f", usage since {facts['oldest_usage_day']}"
    return said
