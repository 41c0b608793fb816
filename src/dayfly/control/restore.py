"""Bring a backup back into an empty data directory, whole or not at all. The file is taken for hostile until every rule has held.

Everything is written below DATA/.restore, checked there, brought to disk, and moved up in the end; dayfly.json comes last, and without it
`dayfly up` refuses the directory. Nothing is ever written through a link: links come after all files. Databases of older releases are
left as they are, the next start migrates them. Called by `dayfly restore`; blocking.
"""

import errno
import hashlib
import os
import shutil
import sqlite3
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from dayfly.control.bundle import discard
from dayfly.control.vault import Vault, disk_refusal
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import DIGEST
from dayfly.core.wire import backup
from dayfly.core.wire.backup import BadBackup, Manifest
from dayfly.core.wire.bundle import ContentDigest
from dayfly.store.logs_sqlite import FORMAT as LOGS_FORMAT
from dayfly.store.migrate import REVISIONS

STAGE = ".restore"
COPY_BYTES = 1024 * 1024
ROOM = 1.05  # of what is unpacked, for blocks and folders
MODES = {"control": 0o700, "code": 0o711, "layers": 0o711, "builds": 0o711, "blobs": 0o700, "front": 0o700}
READ_ONLY = ("code", "layers")

Owner = tuple[int, int]


def restore(archive: Path, data: Path, owners: Mapping[str, Owner], mark: Callable[[Path], None]) -> Manifest:
    """Unpack `archive` into `data`, which is missing or empty. `owners`: "control" and "front" (uid, gid) of what is theirs; `mark`
    writes the data directory's marker into a folder. Raises BadBackup, or Refusal conflict, storage_full or data_unusable; nothing is
    left of it then."""
    try:
        with archive.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - backup.TAIL_BYTES))
            backup.directory_bytes(file.read(), size)
            with zipfile.ZipFile(file) as zipped:
                manifest, kinds = _checked(zipped)
                made = _claim(data, sum(info.file_size for info in zipped.infolist()))
                try:
                    _unpack(zipped, kinds, manifest, data / STAGE)
                    _check_contents(manifest, data / STAGE)
                    mark(data / STAGE)
                    _give(data / STAGE, owners)
                    os.sync()
                    _settle(data)
                except BaseException:
                    _undo(data, made)
                    raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, struct.error) as error:
        raise BadBackup(f"It is damaged: {error}.") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # an entry that says it begins before the file does
            raise BadBackup(f"It is damaged: {error}.") from error
        raise disk_refusal(error, Path(error.filename or data)) from error
    return manifest


def _checked(zipped: zipfile.ZipFile) -> tuple[Manifest, dict[str, str]]:
    """The manifest, and the kind of every entry by name. Raises BadBackup."""
    kinds: dict[str, str] = {}
    for info in zipped.infolist():
        name = info.orig_filename  # `filename` was cut at a NUL already
        kind = backup.kind_of(name, info.external_attr >> 16, info.flag_bits, info.compress_type)
        if name in kinds:
            raise BadBackup(f"{name[:80]!a} is in it twice.")
        kinds[name] = kind
    for name in kinds:
        parents = name.removesuffix("/").split("/")[:-1]
        if any(kinds.get("/".join(parents[: depth + 1])) for depth in range(len(parents))):
            raise BadBackup(f"Something above {name[:80]!a} is a file or a link.")
        if name.endswith("/") and name.removesuffix("/") in kinds:
            raise BadBackup(f"{name[:80]!a} is a folder and a file.")
    manifest = _manifest(zipped, kinds)
    counted: dict[str, int] = {}
    for name in kinds:
        if kinds[name] == "file" and (tree := backup.tree_of(name)):
            counted[tree] = counted.get(tree, 0) + 1
    if any(backup.tree_of(f"{tree}/x") != tree or not DIGEST.fullmatch(tree.partition("/")[2]) for tree in manifest.trees):
        raise BadBackup("Its manifest names a folder that no backup holds.")
    if counted != {tree: count for tree, count in manifest.trees.items() if count}:
        raise BadBackup("Its manifest lists other code or layers than it holds.")
    if {name for name in kinds if name.startswith("control/")} != set(manifest.files):
        raise BadBackup("Its manifest lists other files than it holds.")
    if manifest.database == "sqlite" and backup.DATABASE not in manifest.files:
        raise BadBackup("It holds no dayfly.db.")
    return manifest, kinds


def _manifest(zipped: zipfile.ZipFile, kinds: Mapping[str, str]) -> Manifest:
    if kinds.get(backup.MANIFEST) != "file":
        raise BadBackup("It is a zip file, but no backup of Dayfly's.")
    with zipped.open(backup.MANIFEST) as file:
        text = file.read(backup.MANIFEST_BYTES_MAX + 1)
    try:
        number = msgspec.json.decode(text, type=dict[str, msgspec.Raw])["format"]
        if (found := msgspec.json.decode(number, type=int)) != backup.FORMAT:
            raise BadBackup(f"It has format {found}; this release reads {backup.FORMAT}. A newer Dayfly wrote it.")
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, KeyError, UnicodeError) as error:
        raise BadBackup(f"Its manifest is damaged: {error}.") from error


def _claim(data: Path, size: int) -> bool:
    """Make DATA (True) or find it empty, and DATA/.restore in it. Raises Refusal conflict or storage_full."""
    made = not data.exists()
    if not made:
        held = sorted(it.name for it in data.iterdir() if it.name != "lost+found") if data.is_dir() else ["no directory"]
        if STAGE in held:
            raise Refusal("conflict", f"{data} holds a restore that goes on or was interrupted: remove the directory, then begin again.")
        if held:
            raise Refusal("conflict", f"{data} is not empty (it holds {held[0]!r}): name a new directory.")
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o711)
    (data / STAGE).mkdir(mode=0o700)
    if size * ROOM > shutil.disk_usage(data).free:
        _undo(data, made)
        raise Refusal("storage_full", f"{data} has no room for the {size} bytes of this backup.")
    return made


def _unpack(zipped: zipfile.ZipFile, kinds: Mapping[str, str], manifest: Manifest, stage: Path) -> None:
    """Write every entry below `stage`; contents are held against the manifest and against the digests that name code."""
    for name in MODES:
        (stage / name).mkdir(mode=0o700)
    total, code, links = backup.Sum(), dict[str, ContentDigest](), dict[str, str]()
    for info in sorted(zipped.infolist(), key=lambda it: it.orig_filename):
        name, kind = info.orig_filename, kinds[info.orig_filename]
        if name == backup.MANIFEST:
            continue
        executable, content = bool(info.external_attr >> 16 & stat.S_IXUSR), hashlib.sha256().digest()
        if kind == "folder":
            (stage / name).mkdir(parents=True, exist_ok=True)
        elif kind == "link":
            links[name] = _target(zipped, info)
            content = hashlib.sha256(links[name].encode()).digest()
        else:
            content = _write(zipped, info, stage / name)
            tree = backup.tree_of(name)
            if tree:
                (stage / name).chmod(0o555 if executable else 0o444)
                code.setdefault(tree, ContentDigest()).add(name.removeprefix(tree + "/"), executable, content)
        if name in manifest.files and content.hex() != manifest.files[name]:
            raise BadBackup(f"{name} is not what its manifest says.")
        total.add(name, kind, executable, content)
    for tree in manifest.trees:
        (stage / tree).mkdir(parents=True, exist_ok=True)
        if tree.startswith("code/") and code.get(tree, ContentDigest()).hex() != tree.removeprefix("code/"):
            raise BadBackup(f"{tree} is not the code of that digest.")
    if total.hex() != manifest.sum:
        raise BadBackup("It is damaged: its contents are not those that were backed up.")
    for name, destination in links.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).symlink_to(destination)


def _target(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    if info.file_size > backup.LINK_BYTES_MAX:
        raise BadBackup(f"The link {info.orig_filename[:80]!a} is too long.")
    return backup.checked_link(info.orig_filename, zipped.read(info).decode())


def _write(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> bytes:
    """One file of mode 0600; its SHA-256. The declared size is a claim until it was counted."""
    digest, left = hashlib.sha256(), info.file_size
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with zipped.open(info) as source, os.fdopen(fd, "wb") as out:
        while block := source.read(COPY_BYTES):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            out.write(block)
    if left:
        raise BadBackup(f"{info.orig_filename[:80]!a} is longer or shorter than it says.")
    return digest.digest()


def _check_contents(manifest: Manifest, stage: Path) -> None:
    """What only an opened database tells. Raises BadBackup."""
    for name in manifest.files:
        if name.endswith(".db"):
            _check_database(stage / name)
    if manifest.database == "sqlite":
        with closing(_opened(stage / backup.DATABASE)) as db:
            try:
                found = str(db.execute("SELECT version_num FROM alembic_version").fetchone()[0])
                sealed = db.execute("SELECT namespace, name, sealed FROM secrets LIMIT 1").fetchone()
            except (sqlite3.Error, TypeError):
                raise BadBackup("Its dayfly.db is a database, but not one of Dayfly's.") from None
        if found not in REVISIONS:
            raise BadBackup(f"Its database has schema {found!r}, which this release does not know: a newer Dayfly wrote it.")
        if sealed is not None and backup.KEY in manifest.files:
            try:
                Vault(stage / backup.KEY).unseal(*sealed)
            except Refusal:
                raise BadBackup("The key in it is not the one that its secrets were sealed with.") from None
    if backup.LOGS in manifest.files:
        with closing(_opened(stage / backup.LOGS)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] > LOGS_FORMAT:
                raise BadBackup("Its logs were written by a newer Dayfly.")


def _opened(path: Path) -> sqlite3.Connection:
    """For looking only: SQLite writes nothing, and no trigger or view of the file runs code of ours."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    db.execute("PRAGMA trusted_schema=OFF")
    return db


def _check_database(path: Path) -> None:
    with closing(_opened(path)) as db:
        try:
            db.execute("PRAGMA cell_size_check=ON")
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise BadBackup(f"Its {path.name} is damaged: {error}.") from error
    if said != "ok":
        raise BadBackup(f"Its {path.name} is damaged: {said[:200]}.")


def _give(stage: Path, owners: Mapping[str, Owner]) -> None:
    """Owners and modes of core/model/layout.py. Links are given, not followed."""
    for name, mode in MODES.items():
        if name in ("blobs", "front") and not any((stage / name).iterdir()):
            (stage / name).rmdir()
            continue
        owner = owners["front" if name == "front" else "control"]
        for root, folders, files in os.walk(stage / name, topdown=False):
            for entry in (*files, *(it for it in folders if Path(root, it).is_symlink())):
                _chown(Path(root, entry), owner)
            _chown(Path(root), owner)
            below = len(Path(root).relative_to(stage).parts)
            Path(root).chmod(mode if below == 1 else 0o555 if name in READ_ONLY else 0o700)


def _chown(path: Path, owner: Owner) -> None:
    if owner != (os.geteuid(), os.getegid()):
        os.chown(path, *owner, follow_symlinks=False)


def _settle(data: Path) -> None:
    """Move everything up, the marker last."""
    stage = data / STAGE
    for path in sorted(stage.iterdir(), key=lambda it: it.name == "dayfly.json"):
        path.rename(data / path.name)
    stage.rmdir()
    os.sync()


def _undo(data: Path, made: bool) -> None:
    """Nothing of ours stays: what was in DATA before (nothing, or lost+found) is all there is."""
    for path in data.iterdir():
        if path.name != "lost+found":
            discard(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if made:
        shutil.rmtree(data, ignore_errors=True)
