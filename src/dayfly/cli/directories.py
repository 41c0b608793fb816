"""Makes the data and run directories with the owners and modes of core/model/layout.py, or says why it will not.

It must leave nothing half-made behind a refusal, never follow a link that somebody else put there, and never take over a directory
that is not Dayfly's. `dayfly up` calls `prepare` and, once the locks are its own, `hand_over`; the other commands call `locate`, which
touches nothing.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings

Owner = tuple[int, int]  # uid, gid
MARKER = "dayfly.json"
FORMAT = 1  # of the data directory; a newer Dayfly writes a higher one
SOCKET_PATH_BYTES_MAX = 107  # sun_path without its final zero
HARMLESS = frozenset(("dayfly.toml", "lost+found", MARKER))
LOG_FOLDER, LOG_FILE = "log", "platform.log"


def locate(settings: Settings) -> Layout:
    """Where everything is for these settings. Reads nothing but environment variables."""
    return Layout(data=settings.data, run=settings.run or _default_run(settings.data))


def log_file(layout: Layout) -> str:
    """The log of a detached platform."""
    return f"{layout.data}/{LOG_FOLDER}/{LOG_FILE}"


def prepare(settings: Settings) -> Layout:
    """Make or check both directories and what is root's (or the one user's) in them. Raises Failure with everything as it was."""
    layout = locate(settings)
    _check_socket_lengths(layout)
    try:
        _prepare_data(Path(layout.data))
        _folder(Path(layout.run), 0o711, _present_user(), parents=True)
        _folder(Path(layout.data, LOG_FOLDER), 0o700, _present_user())
        with Path(layout.run, ".writable").open("w"):
            pass
        Path(layout.run, ".writable").unlink()
    except OSError as error:
        raise _cannot(error) from error
    return layout


def hand_over(layout: Layout, users: Mapping[str, Owner], *, front: bool = False, gateways: int = 1) -> None:
    """Make or check the roles' own folders, and give them what other users of the platform's left there: an older Dayfly had one for
    all roles, and who they are depends on `user` and on where DATA lies. Nobody else may be at work in DATA. Raises Failure.
    `front`: there is a TLS front; `gateways`: how many there are."""
    control, gateway, egress = users["control"], users["gateway"], users["egress"]
    sockets_mode = 0o2710 if gateway != control else 0o700  # setgid: the sockets in it get the gateway's group
    for path, mode, owner in (
        (layout.control, 0o700, control),
        (layout.code, 0o711, control),
        (layout.layers, 0o711, control),
        (layout.builds, 0o711, control),
        (layout.blobs, 0o700, control),
        (layout.control_sockets, sockets_mode, (control[0], gateway[1])),
        (layout.egress_sockets, 0o700, egress),
        *([(layout.gateway_sockets, 0o700, gateway)] if gateways > 1 else ()),
        *([(layout.front, 0o700, users["front"])] if front else ()),
    ):
        try:
            _folder(Path(path), mode, owner)
        except OSError as error:
            raise _cannot(error) from error


def _present_user() -> Owner:
    return os.geteuid(), os.getegid()


def _default_run(data: str) -> str:
    """DATA/run, or a short path when Unix sockets below it would have too long an address."""
    inside = Layout(data=data, run=f"{data}/run")
    if max(len(os.fsencode(p)) for p in _socket_paths(inside)) <= SOCKET_PATH_BYTES_MAX:
        return inside.run
    name = "dayfly-" + hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        base = "/run"
    if not base or not os.access(base, os.W_OK) or len(base) > 60:
        base = "/tmp"  # noqa: S108 (owner and mode of what we make there are checked in _folder)
    return f"{base}/{name}"


def _socket_paths(layout: Layout) -> tuple[str, ...]:
    return (layout.link_socket, layout.api_socket, layout.node_socket, layout.egress_socket, layout.gateway_moves_socket(63) + ".new")


def _check_socket_lengths(layout: Layout) -> None:
    longest = max(len(os.fsencode(p)) for p in _socket_paths(layout))
    if longest > SOCKET_PATH_BYTES_MAX:
        raise Failure(
            f"The run directory's path is too long for Unix sockets ({longest} bytes of {SOCKET_PATH_BYTES_MAX}): {layout.run}.",
            "Name a shorter one with --run, or leave it out.",
        )


def _prepare_data(data: Path) -> None:
    """DATA itself and its marker."""
    try:
        found = data.lstat()
    except FileNotFoundError:
        data.parent.mkdir(parents=True, exist_ok=True)
        data.mkdir(mode=0o711)
        data.chmod(0o711)  # mkdir's mode passes through the umask
        write_marker(data)
        return
    if stat.S_ISLNK(found.st_mode):
        found = data.stat()  # a link to a directory is the administrator's choice
    if not stat.S_ISDIR(found.st_mode):
        raise Failure(f"{data} is not a directory.", "Name another data directory with --data.", exit_code=EXIT_PLATFORM)
    if found.st_uid != os.geteuid():
        raise Failure(
            f"{data} belongs to uid {found.st_uid}, and you are uid {os.geteuid()}.",
            "Start as its owner, or name another data directory with --data.",
            exit_code=EXIT_PLATFORM,
        )
    if (data / MARKER).exists():
        _check_marker(data)
    else:
        strangers = sorted(entry for entry in os.listdir(data) if entry not in HARMLESS)  # noqa: PTH208 (names only)
        if strangers:
            raise Failure(
                f"{data} is not a Dayfly data directory and not empty (it holds {strangers[0]!r}).",
                "Name an empty or new directory with --data.",
                exit_code=EXIT_PLATFORM,
            )
        write_marker(data)
    data.chmod(0o711)


def _check_marker(data: Path) -> None:
    try:
        number = json.loads((data / MARKER).read_text())["format"]
        if not isinstance(number, int):
            raise TypeError("format is no number")
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{data / MARKER} is damaged ({error}).",
            f'If this is Dayfly\'s data directory, write {{"format": {FORMAT}}} into that file.',
            fault="platform",
            exit_code=EXIT_PLATFORM,
        ) from error
    if number > FORMAT:
        raise Failure(
            f"{data} was written by a newer Dayfly (format {number}; this one knows up to {FORMAT}).",
            "Upgrade Dayfly, or name another data directory with --data.",
            exit_code=EXIT_PLATFORM,
        )


def write_marker(data: Path) -> None:
    """Say that this folder is a data directory, and of which format."""
    from dayfly import __version__

    temporary = data / (MARKER + ".new")
    temporary.write_text(json.dumps({"format": FORMAT, "created_by": __version__}) + "\n")
    temporary.replace(data / MARKER)


def _folder(path: Path, mode: int, owner: Owner, *, parents: bool = False) -> None:
    """A directory with this mode and owner. One that is there already must be a real directory of that owner, or of another
    unprivileged user, from whom root takes it over."""
    uid, gid = owner
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=mode)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise Failure(f"{path} is in the way: it is not a directory.", "Remove it.", exit_code=EXIT_PLATFORM) from None
        if found.st_uid != uid and not (found.st_uid == os.geteuid() and not any(path.iterdir())):
            if os.geteuid() != 0 or found.st_uid == 0 or uid == 0:
                raise Failure(
                    f"{path} belongs to uid {found.st_uid}, but uid {uid} must own it.",
                    f"`chown -R {uid}:{gid} {path}` gives it that owner.",
                    exit_code=EXIT_PLATFORM,
                ) from None
            _take_over(path, found.st_uid, owner)
    if uid != os.geteuid():
        os.chown(path, uid, gid)
    path.chmod(mode)


def _take_over(folder: Path, before: int, owner: Owner) -> None:
    """Give `owner` all that belongs to uid `before` below `folder`, and nothing else: links are not followed, and a file that somebody
    linked in from elsewhere keeps its owner. The folder itself comes last, by the caller: what was interrupted is begun again."""
    for _, folders, files, handle in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            try:
                if os.fstat(fd).st_uid == before:
                    os.chown(f"/proc/self/fd/{fd}", *owner)  # this very file, whatever its name means by now
            finally:
                os.close(fd)


def _cannot(error: OSError) -> Failure:
    """An error of the operating system in words."""
    import errno

    where = error.filename or "the data directory"
    hints = {
        errno.EROFS: "That file system is read-only: name another data directory with --data.",
        errno.EACCES: "You may not write there: name another data directory with --data.",
        errno.EPERM: "You may not change that: start as its owner, or name another data directory with --data.",
        errno.ENOSPC: "That disk is full: free some space.",
        errno.EDQUOT: "Your disk quota is used up: free some space.",
    }
    return Failure(
        f"{where}: {error.strerror}.",
        hints.get(error.errno or 0, "Name another data directory with --data."),
        fault="platform",
        exit_code=EXIT_PLATFORM,
        code="storage_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "",
    )


def remove_sockets(layout: Layout) -> None:
    """Delete what a killed platform left in RUN: sockets, pid file, state. Only called while the lock is ours."""
    from dayfly.supervisor import STATE_FILE

    folders = (layout.run, layout.control_sockets, layout.egress_sockets, layout.gateway_sockets)
    sockets = [path for folder in folders for path in Path(folder).glob("*.sock")]
    for path in (*sockets, Path(layout.pid_file), Path(layout.run, STATE_FILE)):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
