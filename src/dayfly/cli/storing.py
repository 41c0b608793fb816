"""Commands on the durable state of this machine's platform: backup and restore."""

import os
from pathlib import Path
from typing import Any

import click

from dayfly.cli import output
from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.cli.options import Session, command
from dayfly.core.model.errors import Refusal


def register(app: click.Group) -> None:
    """Add the commands."""
    command(app)(backup)
    command(app)(restore)


@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-key", "without_key", is_flag=True, help="Leave out the key of the secrets: keep it elsewhere, or set them again.")
@click.option("--without-logs", "without_logs", is_flag=True, help="Leave out the functions' logs.")
@click.option("--data", "data", default="", metavar="DIR", help="Data directory, as given to `dayfly up` (DAYFLY_DATA).")
@click.option("--run", "run", default="", metavar="DIR", help="Run directory, as given to `dayfly up` (DAYFLY_RUN).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def backup(session: Session, file: Path, without_key: bool, without_logs: bool, data: str, run: str, config: str) -> None:
    """Write all that the platform keeps into FILE (mode 0600), while it runs or not."""
    import time

    from dayfly.cli.platform import here
    from dayfly.control.backup import write

    _, layout = here(session, data, run, config)
    try:
        written = write(layout, file, time.time(), key=not without_key, logs=not without_logs)
    except Refusal as refusal:
        raise _failure(refusal) from refusal
    manifest = written.manifest
    facts: dict[str, Any] = {
        "file": str(file),
        "bytes": written.bytes,
        "entries": written.entries,
        "data": layout.data,
        "database": manifest.database,
        "schema": manifest.schema or None,
        "key": "control/secret.key" in manifest.files,
        "logs": "control/logs.db" in manifest.files,
        "missing": list(written.missing),
        "left_out": list(written.left_out),
    }
    if session.json:
        output.document(facts)
    else:
        output.result(f"{file}: {output.size(written.bytes)}, {written.entries} entries, of {layout.data}")
        if facts["key"]:
            output.message("It holds the key of the secrets: whoever has this file can read them.")
    if manifest.database == "postgresql":
        output.warn("functions, tokens, usage and logs are in PostgreSQL and not in this file: pg_dump makes a backup of those.")
    for tree in written.missing:
        output.warn(f"{tree} is not there: functions that are made of it do not start, here as after a restore.")
    if written.left_out:
        output.warn(f"{len(written.left_out)} links and special files were left out, the first is {written.left_out[0]}.")


@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", "data", default="", metavar="DIR", help="A new or empty directory (DAYFLY_DATA).")
@click.option("--user", "user", default="", metavar="NAME", help="User of control, as given to `dayfly up` (DAYFLY_USER).")
@click.option("--config", "config", default="", metavar="FILE", help="Read [platform] from this file (DAYFLY_CONFIG).")
def restore(session: Session, file: Path, data: str, user: str, config: str) -> None:
    """Make a data directory from a backup: a new or empty one, whole or not at all. `dayfly up` then starts on it."""
    from dayfly.cli import directories
    from dayfly.cli.settings import resolve
    from dayfly.control.restore import restore as bring_back
    from dayfly.core.wire.backup import KEY, BadBackup
    from dayfly.sandbox import privileges

    given = {key: value for key, value in (("data", data), ("user", user)) if value}
    resolved = resolve(given, os.environ, config=config)
    if "data" not in resolved.sources:
        raise Failure("Where to?", "Name a new or empty directory with --data.")
    settings = resolved.settings
    try:
        users = privileges.role_users(settings.data, settings.user)
        owners = {role: (int(users[role][0]), int(users[role][1])) for role in ("control", "front")}
        manifest = bring_back(file, Path(settings.data), owners, directories.write_marker)
    except ValueError as error:
        raise Failure(f"`user` = {settings.user!r}: {error}.", "Name an ordinary user with --user, or leave it out.") from error
    except BadBackup as error:
        raise Failure(f"{file} cannot be restored. {error}", "Name a file that `dayfly backup` wrote, whole.", code="bad_backup") from error
    except Refusal as refusal:
        raise _failure(refusal) from refusal
    key = KEY in manifest.files
    if session.json:
        made = {"data": settings.data, "created_at": manifest.created_at, "dayfly": manifest.dayfly, "database": manifest.database}
        output.document(made | {"key": key})
    else:
        output.result(f"{settings.data}: as of {output.moment(manifest.created_at)}, written by Dayfly {manifest.dayfly}")
    if manifest.database == "postgresql":
        output.warn("its functions, tokens and usage were in PostgreSQL: restore those with pg_restore, and start with `database`.")
    if not key:
        output.warn(f"the key of the secrets was left out: put it at {settings.data}/control/secret.key, or set the secrets again.")


def _failure(refusal: Refusal) -> Failure:
    kind = refusal.kind
    return Failure(refusal.detail, kind.hint, fault=kind.fault.value, exit_code=EXIT_PLATFORM, code=kind.code)
