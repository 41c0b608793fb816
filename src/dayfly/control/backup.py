"""Write a backup of a data directory into one file, while the platform runs or not. Reads DATA and changes nothing in it.

Each SQLite file is copied by SQLite's own backup in one read transaction, so that it is whole and of one moment, whoever writes to it. What
refers comes first, what is referred to after it: waiting calls, then functions, then the code that those name, which stays for 16 minutes
after nobody does. The file has mode 0600: it holds the key of the secrets unless told not to. Called by `dayfly backup`, as root or as the
platform's user; blocking.
"""

import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from dayfly.control.vault import disk_refusal, sync_folder
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout
from dayfly.core.model.names import DIGEST
from dayfly.core.wire import backup
from dayfly.core.wire.backup import Manifest
from dayfly.store.database import refusal_for

COPY_BYTES = 1024 * 1024
COMPRESSION = 1  # most of it is code that packs well at once, or wheels' binaries that no level packs
LARGE_BYTES = 1 << 31
LATER = ("dayfly.db", "logs.db")  # other databases (durable.db) refer to functions, so they are copied before


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup became."""

    manifest: Manifest
    bytes: int
    entries: int
    missing: tuple[str, ...]  # trees that functions name and that are not there
    left_out: tuple[str, ...]  # links of layers that lead elsewhere, blobs that were done with meanwhile


class Contents:
    """A zip being written: entries, and what the manifest says of them."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._zip = file
        self.files: dict[str, str] = {}
        self.trees: dict[str, int] = {}
        self.left_out: list[str] = []
        self.sum = backup.Sum()

    def add(self, name: str, path: Path) -> None:
        """One regular file; its digest is noted where the manifest wants it."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as source:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self.left_out.append(name)
                return
            digest = hashlib.sha256()
            with self._zip.open(_info(name, status.st_mode), "w", force_zip64=status.st_size > LARGE_BYTES) as target:
                while block := source.read(COPY_BYTES):
                    digest.update(block)
                    target.write(block)
        self.sum.add(name, "file", bool(status.st_mode & stat.S_IXUSR), digest.digest())
        if name.startswith("control/"):
            self.files[name] = digest.hexdigest()
        tree = backup.tree_of(name)
        if tree:
            self.trees[tree] = self.trees.get(tree, 0) + 1

    def add_folder(self, name: str, folder: Path) -> None:
        """A tree with everything in it."""
        for root, folders, files in os.walk(folder):
            folders.sort()
            relative = Path(root).relative_to(folder).as_posix()
            inside = name if relative == "." else f"{name}/{relative}"
            for entry in sorted((*files, *(it for it in folders if Path(root, it).is_symlink()))):
                self._add_entry(f"{inside}/{entry}", Path(root, entry))
            if not files and not folders and inside != name:
                self._add_text(f"{inside}/", "folder", stat.S_IFDIR | 0o755, b"")

    def _add_entry(self, name: str, path: Path) -> None:
        if not path.is_symlink():
            self.add(name, path)
            return
        target = os.readlink(path)  # noqa: PTH115 (as it is)
        try:
            backup.kind_of(name, stat.S_IFLNK, 0, 0)
            backup.checked_link(name, target)
        except backup.BadBackup:
            self.left_out.append(name)
        else:
            self._add_text(name, "link", stat.S_IFLNK | 0o777, target.encode())

    def _add_text(self, name: str, kind: str, mode: int, text: bytes) -> None:
        self._zip.writestr(_info(name, mode), text)
        self.sum.add(name, kind, bool(mode & stat.S_IXUSR), hashlib.sha256(text).digest())


def write(layout: Layout, target: Path, now: float, *, key: bool = True, logs: bool = True) -> Written:
    """Make the backup `target`, which must not exist. Raises Refusal conflict, data_unusable or storage_full and leaves nothing then."""
    from dayfly import __version__

    if target.exists():
        raise Refusal("conflict", f"{target} exists; a backup replaces nothing.")
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise disk_refusal(error, target) from error
    try:
        partial = work / "backup"
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "r+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as zipped:
                contents = Contents(zipped)
                schema, missing = _fill(contents, layout, work, key=key, logs=logs)
                manifest = Manifest(
                    format=backup.FORMAT,
                    dayfly=__version__,
                    created_at=now,
                    database="postgresql" if Path(layout.database_url).exists() else "sqlite",
                    schema=schema,
                    files=contents.files,
                    trees=contents.trees,
                    sum=contents.sum.hex(),
                )
                zipped.writestr(_info(backup.MANIFEST, stat.S_IFREG | 0o600), msgspec.json.format(msgspec.json.encode(manifest)))
                entries = len(zipped.namelist())
            file.flush()
            os.fsync(fd)
        size = partial.stat().st_size
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise _about(error, target) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Written(manifest=manifest, bytes=size, entries=entries, missing=tuple(missing), left_out=tuple(contents.left_out))


def _fill(contents: Contents, layout: Layout, work: Path, *, key: bool, logs: bool) -> tuple[str, list[str]]:
    """Everything but the manifest; (the schema's revision, trees that are missing)."""
    schema, wanted = "", None
    for path in _databases(layout):
        if path.name == "logs.db" and not logs:
            continue
        copy = copied(path, work / path.name)
        if path.name == "dayfly.db":
            schema, wanted = _read(copy)
        contents.add(f"control/{path.name}", copy)
        copy.unlink()
    if key and Path(layout.secret_key).exists():
        contents.add(backup.KEY, Path(layout.secret_key))
    if Path(layout.data, backup.SETTINGS).is_file():
        contents.add(backup.SETTINGS, Path(layout.data, backup.SETTINGS))
    missing = _add_trees(contents, layout, wanted)
    for name in ("blobs", "front"):
        if Path(layout.data, name).is_dir():
            contents.add_folder(name, Path(layout.data, name))
    return schema, missing


def _databases(layout: Layout) -> list[Path]:
    """SQLite files in the order in which they are copied; none where the state is in PostgreSQL: those are of a time before."""
    try:
        names = {path.name for path in Path(layout.control).iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        names = set()
    if Path(layout.database_url).name in names:
        return []
    if "dayfly.db" not in names:
        raise Refusal("data_unusable", f"{layout.data} holds no dayfly.db: it is no data directory that was ever started.")
    ordered = sorted(name for name in names if name.endswith(".db") and name not in LATER) + [name for name in LATER if name in names]
    return [Path(layout.control, name) for name in ordered]


def _add_trees(contents: Contents, layout: Layout, wanted: set[str] | None) -> list[str]:
    """Code and layers: those that versions name, or all where nobody here can say which. Returns those that are not there."""
    present = {f"{kind}/{it.name}" for kind in backup.TREES for it in _folder(Path(layout.data, kind)) if DIGEST.fullmatch(it.name)}
    for tree in sorted(present if wanted is None else present & wanted):
        folder = Path(layout.data, tree)
        contents.trees.setdefault(tree, 0)
        contents.add_folder(tree, folder)
        if not folder.is_dir():
            raise Refusal("conflict", f"{folder} was removed while it was copied, because no version names it any more: begin again.")
    return sorted((wanted or set()) - present)


def _folder(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter(())


def copied(source: Path, target: Path) -> Path:
    """A whole copy of a SQLite file, as of one moment, also while others write to it. Raises Refusal data_unusable or storage_full."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=5)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            target.chmod(0o600)
            reading.backup(writing, pages=-1)  # in one step, which is one read transaction: no writer is kept waiting
            writing.execute("PRAGMA journal_mode=DELETE")  # one file
    except sqlite3.Error as error:
        raise refusal_for(error, source) or error from error
    return target


def _read(copy: Path) -> tuple[str, set[str]]:
    """(revision of the schema, "code/DIGEST" and "layers/DIGEST" that versions name) of a dayfly.db."""
    try:
        with closing(sqlite3.connect(copy)) as db:
            revision = str(db.execute("SELECT version_num FROM alembic_version").fetchone()[0])
            pairs = db.execute("SELECT code_digest, layer_digest FROM versions").fetchall()
    except (sqlite3.Error, TypeError) as error:
        raise Refusal("data_unusable", f"{copy.name} is damaged or no Dayfly database: {error}.") from error
    return revision, {f"code/{code}" for code, _ in pairs} | {f"layers/{layer}" for _, layer in pairs if layer}


def _info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix: the mode means something
    return info


def _about(error: OSError, target: Path) -> Refusal:
    if isinstance(error, PermissionError) and error.filename and str(target.parent) not in str(error.filename):
        return Refusal("data_unusable", f"{error.filename} may not be read: make backups as root or as the platform's user.")
    return disk_refusal(error, target)
