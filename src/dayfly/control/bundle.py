"""Unpack a stranger's zip into a read-only tree named by the digest of its contents. The rules are core/wire/bundle.py's.

Blocking; runs in a thread. Writes only below the temporary folder it makes; claims of the zip (sizes, names, counts) are
checked before and counted again while writing. Parses nothing but the zip itself.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

import msgspec

from dayfly.control.vault import disk_refusal, sync_folder
from dayfly.core.model.errors import Refusal
from dayfly.core.wire import bundle
from dayfly.core.wire.bundle import BundleFile, Entry

TEMPORARY_PREFIX = ".tmp-"
COPY_BYTES = 256 * 1024
FSYNC_FILES_MAX = 200  # above, one sync of everything is cheaper than a sync per file
FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o444, 0o555, 0o555


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    """A checked tree that waits in a temporary folder for its place."""

    folder: Path
    digest: str
    files: tuple[str, ...]


def unpack(archive: Path, into: Path, entries_max: int, bytes_max: int) -> Unpacked:
    """Unpack `archive` into a new temporary folder below `into`, modes normalised, contents on disk.

    Raises Refusal bad_bundle, bundle_too_large, storage_full or data_unusable, and leaves nothing behind then.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=into))
    except OSError as error:
        raise disk_refusal(error, into) from error
    try:
        with zipfile.ZipFile(_opened(archive, entries_max)) as zipped:
            files = bundle.checked_entries([_entry(i, info) for i, info in enumerate(zipped.infolist())], bytes_max)
            digest = _write_all(zipped, files, folder, bytes_max)
        _seal(folder, len(files))
    except BaseException as error:
        discard(folder)
        raise _translated(error, folder) from error
    return Unpacked(folder=folder, digest=digest, files=tuple(file.name for file in files))


def discard(folder: Path) -> bool:
    """Remove a tree, read-only folders and all; whether it is gone. A tree that is not there is fine; links are not followed."""
    if folder.is_dir() and not folder.is_symlink():
        for root, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                os.chmod(root, 0o700)  # noqa: PTH101 (0555 does not let its entries go)
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _opened(archive: Path, entries_max: int) -> Path:
    """`archive` itself, after its directory was found to be of a size that zipfile may read into memory."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - bundle.END_BYTES_MAX))
        offset, length = bundle.directory_span(file.read(), size, entries_max)
        file.seek(offset)
        bundle.count_entries(file.read(length), entries_max)
    return archive


def _entry(index: int, info: zipfile.ZipInfo) -> Entry:
    mode = info.external_attr >> 16
    # orig_filename: zipfile cuts `filename` at a NUL and turns the platform's separators, which would hide a trick.
    return Entry(name=info.orig_filename, size=info.file_size, mode=mode, flags=info.flag_bits, method=info.compress_type, index=index)


def _write_all(zipped: zipfile.ZipFile, files: list[BundleFile], folder: Path, bytes_max: int) -> str:
    digest, left = bundle.ContentDigest(), bytes_max
    infos = zipped.infolist()
    for file in files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(infos[file.index]) as source:
            written, content = _write_one(source, target, file.executable, left, sync=len(files) <= FSYNC_FILES_MAX)
        left -= written
        digest.add(file.name, file.executable, content)
    return digest.hex()


def _write_one(source: IO[bytes], target: Path, executable: bool, left: int, *, sync: bool) -> tuple[int, bytes]:
    content, written = hashlib.sha256(), 0
    mode = PROGRAM_MODE if executable else FILE_MODE
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
        while chunk := source.read(COPY_BYTES):
            written += len(chunk)
            if written > left:
                raise Refusal("bundle_too_large", "The bundle unpacks to more than bundle_unpacked_bytes_max bytes.")
            content.update(chunk)
            out.write(chunk)
        out.flush()
        os.fchmod(out.fileno(), mode)
        if sync:
            os.fsync(out.fileno())
    return written, content.digest()


def _seal(folder: Path, files: int) -> None:
    """Every folder read-only and on disk, the outermost last: it is renamed next."""
    for root, _, _ in os.walk(folder, topdown=False):
        Path(root).chmod(FOLDER_MODE)
        if files <= FSYNC_FILES_MAX:
            sync_folder(Path(root))
    if files > FSYNC_FILES_MAX:
        os.sync()


def _translated(error: BaseException, folder: Path) -> BaseException:
    if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | NotImplementedError | RuntimeError | UnicodeError | ValueError):
        return bundle.refused(f"The bundle is damaged or of an unknown kind: {error}.")
    if isinstance(error, OSError):
        return disk_refusal(error, folder)
    return error
