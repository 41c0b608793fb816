"""Large bodies and results as files: `OWNER.DIGEST`, written once, durable when `put` returns, checked when read.

A blob belongs to the one whose row names it (a call's id, or `id~epoch` for a result); that the name has the owner is what makes removing
safe: whoever sweeps asks for the owner's row, and not for everybody's. Contents are strangers': files are the present user's alone, and a
blob whose content is not its digest is damage, not data. Every verb blocks; called by control in a thread of its own.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dayfly.core.model.errors import Refusal

OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~-]{0,127}")
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.:~-]{0,127})\.([0-9a-f]{64})")
TEMPORARY = ".new-"


class Blobs:
    """The files below `folder`, which is made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<Blobs {self._folder}>"

    def put(self, owner: str, content: bytes) -> str:
        """Write `content` down; returns the blob's name. Raises Refusal storage_full or data_unusable, and leaves nothing then."""
        if not OWNER.fullmatch(owner):
            raise ValueError(f"{owner!r} owns no blob")
        name = f"{owner}.{hashlib.sha256(content).hexdigest()}"
        path, fresh = self._folder / name, self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            fresh.rename(path)
            self._sync_folder()
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            code = "storage_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "data_unusable"
            raise Refusal(code, f"{path} cannot be written: {error.strerror}.") from error
        return name

    def get(self, name: str) -> bytes:
        """Its content. Raises Refusal data_unusable when it is gone or damaged."""
        found = _NAME.fullmatch(name)
        try:
            content = (self._folder / name).read_bytes() if found else b""
        except OSError as error:
            raise Refusal("data_unusable", f"The body {name} cannot be read: {error.strerror}.") from error
        if found is None or hashlib.sha256(content).hexdigest() != found[2]:
            raise Refusal("data_unusable", f"The body {name} is damaged: its content is not its digest.")
        return content

    def old(self, before: float, limit: int) -> list[str]:
        """Names of blobs last written before `before` (epoch seconds), at most `limit`; leftovers of a crash of that age are removed."""
        found: list[str] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime >= before:
                        continue
                    if entry.name.startswith(TEMPORARY):
                        (self._folder / entry.name).unlink()
                    elif _NAME.fullmatch(entry.name):
                        found.append(entry.name)
                if len(found) >= limit:
                    break
        return found

    def remove(self, names: Iterable[str], before: float) -> int:
        """Remove those of these blobs that were not written again meanwhile. How many went."""
        gone = 0
        for name in names:
            path = self._folder / name
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def owner_of(name: str) -> str:
    """Who owns the blob of this name; "" when it is none."""
    found = _NAME.fullmatch(name)
    return found[1] if found else ""
