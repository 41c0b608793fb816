"""From the setting `database` to the file in DATA/control that tells control, and nobody else, which PostgreSQL database to use.

The address may hold a password, so it stays out of argv, of what the roles are told and of what they inherit: `dayfly up` writes it down
here and takes it out of settings and environment before it becomes the supervisor.
"""

import os
from contextlib import suppress
from pathlib import Path

from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.core.model import database
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings

VARIABLE = "DAYFLY_DATABASE"
HINT = "Write postgresql://USER@HOST/DATABASE, or file:/PATH of a file that holds it (docs/operations.md)."


def checked(settings: Settings, source: str) -> None:
    """Raises Failure when `database` cannot be an address, or is one with a password on a command line, which all users of this machine
    see. Repeats nothing of it. `source`: where the value comes from."""
    try:
        database.checked(settings.database)
    except ValueError as error:
        raise Failure(f"`database` ({source}): {error}.", HINT) from None
    if source.startswith("flag") and database.has_password(settings.database):
        raise Failure(
            "`--database` has a password in it, which every user of this machine can read in the list of processes.",
            f"Put the address into {VARIABLE}, or into a file of mode 0600 and say --database=file:/PATH.",
        )


def address(settings: Settings) -> str:
    """The address itself, "" for SQLite: a file that is referred to is read. Raises Failure, also when the driver is missing."""
    url = (
        _from_file(Path(settings.database.removeprefix(database.FILE)))
        if settings.database.startswith(database.FILE)
        else settings.database
    )
    if url:
        try:
            from dayfly.store.server import Server

            Server(url)
        except Refusal as refusal:
            raise Failure(refusal.detail, HINT, exit_code=EXIT_PLATFORM, code=refusal.kind.code) from refusal
    return url


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(database.URL_BYTES_MAX + 1).decode("utf-8", "replace").strip()
        return database.checked_url(text)
    except OSError as error:
        raise Failure(f"{path}, which `database` names, cannot be read: {error.strerror}.", "Correct the path, or its owner.") from error
    except ValueError as error:
        raise Failure(f"{path}, which `database` names: {error}.", "Write the address into it, and nothing else.") from None


def leave(layout: Layout, url: str, owner: tuple[int, int]) -> None:
    """Write the address where control, whose user is `owner`, reads it. Raises Failure when this directory's functions are in PostgreSQL
    and no address is given: an empty database in its place would be a surprise."""
    target = Path(layout.database_url)
    if not url:
        if target.exists():
            raise Failure(
                f"The functions of {layout.data} are in PostgreSQL, and no `database` is given.",
                f"Set {VARIABLE} as before; to begin anew with SQLite in this directory, remove {target}.",
                exit_code=EXIT_PLATFORM,
            )
        return
    # The folder is control's, so that nothing in it is believed: no link is followed, and the file is ours until it is whole.
    folder = os.open(layout.control, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    partial = f".{target.name}.partial"
    try:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with os.fdopen(fd, "w") as file:
            file.write(url + "\n")
            file.flush()
            os.fsync(fd)
            if owner[0] != os.geteuid():
                os.fchown(fd, *owner)
        os.rename(partial, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except OSError as error:
        raise Failure(
            f"{target} cannot be written: {error.strerror}.", "Free space, or correct the owner.", exit_code=EXIT_PLATFORM
        ) from error
    finally:
        os.close(folder)
