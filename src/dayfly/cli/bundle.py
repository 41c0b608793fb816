"""A file, folder or zip becomes the bundle a deploy uploads: the same files always give the same bytes.

Sorted names, one fixed time, modes reduced to "executable or not", so that the platform sees an unchanged bundle by its digest.
It must never put anything into the bundle that lies outside the folder: a link that leads out is refused. The platform checks
everything again; what is checked here is for a quick, clear answer.
"""

import fnmatch
import keyword
import os
import stat
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dayfly.cli.failure import Failure

IGNORED = (
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".venv",
    "venv",
    "node_modules",
    "*.pyc",
    "*.pyo",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".DS_Store",
    ".dayflyignore",
)
IGNORE_FILE = ".dayflyignore"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
ENTRIES_MAX = 20_000  # the platform's default; it has the last word
BYTES_MAX = 256 * 1024 * 1024
SPOOL_BYTES = 8 * 1024 * 1024  # larger bundles are written to a temporary file
MANIFEST = "dayfly.toml"


class Bundle:
    """An open zip, its length and number of files, the name it suggests, and the namespace its dayfly.toml names ("" = none)."""

    def __init__(self, file: IO[bytes], length: int, entries: int, name: str, namespace: str = "") -> None:
        self.file = file
        self.length = length
        self.entries = entries
        self.name = name
        self.namespace = namespace

    def close(self) -> None:
        self.file.close()


def pack(path: Path) -> Bundle:
    """The bundle of a file, folder or zip. Raises Failure when the path holds nothing that can be deployed."""
    try:
        if path.is_dir():
            return _pack_folder(path)
        if path.is_file():
            return _open_zip(path) if zipfile.is_zipfile(path) else _pack_file(path)
    except OSError as error:
        raise Failure(f"{error.filename or path}: {error.strerror}.", "Make that file readable, or list it in .dayflyignore.") from error
    if path.exists() or path.is_symlink():
        raise Failure(f"{path} is neither file nor folder.", "Deploy a .py file, a folder or a zip.")
    raise Failure(f"{path} does not exist.", "Deploy a .py file, a folder or a zip.")


def valid_name(text: str) -> str:
    """A file or folder name as a function name: other characters become '-', the ends are trimmed, at most 63 characters."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text)
    name = kept.strip("-_")[:63].rstrip("-")
    if not name:
        raise Failure(f"{text!r} gives no function name.", "Name the function with --name.")
    return name


def _pack_file(path: Path) -> Bundle:
    """One Python file. The platform takes the only module for the handler's; a name that cannot be imported becomes handler.py."""
    if path.suffix != ".py":
        raise Failure(f"{path.name} is neither a Python file nor a zip.", "Deploy a .py file, a folder or a zip.")
    module = path.stem if path.stem.isidentifier() and path.stem.isascii() and not keyword.iskeyword(path.stem) else "handler"
    return _write([(f"{module}.py", path)], valid_name(path.stem))


def _pack_folder(folder: Path) -> Bundle:
    root = folder.resolve()
    patterns = _patterns(root)
    files = sorted(found for entry in os.listdir(root) for found in _visit(root / entry, entry, root, patterns, (root,)))  # noqa: PTH208
    if not files:
        raise Failure(f"{folder} holds nothing to deploy.", "Put a handler.py there, or look at .dayflyignore.")
    manifest = next((source for name, source in files if name == MANIFEST), None)
    name, namespace = _named(manifest.read_bytes(), str(manifest)) if manifest else ("", "")
    return _write(files, name or valid_name(root.name), namespace)


def _visit(path: Path, name: str, root: Path, patterns: list[str], above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """(name in the bundle, file) for `path` and below. Links inside are followed; links out and circles are refused."""
    if ignored(name, patterns):
        return
    real = path.resolve()
    if path.is_symlink() and not real.is_relative_to(root):
        raise Failure(
            f"{name} is a link that leads out of the folder ({real}).", "Copy the file into the folder, or list it in .dayflyignore."
        )
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise Failure(f"{name} is a link to nothing.", "Remove it, or list it in .dayflyignore.") from None
    if stat.S_ISDIR(mode):
        if real in above or len(above) > 100:
            raise Failure(f"{name} leads back into itself.", "Remove that link, or list it in .dayflyignore.")
        for entry in os.listdir(path):  # noqa: PTH208 (names only; the caller sorts)
            yield from _visit(path / entry, f"{name}/{entry}", root, patterns, (*above, real))
    elif stat.S_ISREG(mode):
        yield name, real
    else:
        raise Failure(f"{name} is no regular file.", "Remove it, or list it in .dayflyignore.")


def _patterns(root: Path) -> list[str]:
    """.dayflyignore: one shell pattern a line, '#' comments; a '/' at the end means folder, one in front anchors to the top."""
    path = root / IGNORE_FILE
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def ignored(name: str, patterns: list[str]) -> bool:
    """Whether `name` (relative, with slashes) stays out: by its last part, or as a whole where a pattern holds a slash."""
    last = name.rpartition("/")[2]
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in IGNORED):
        return True
    for pattern in patterns:
        plain = pattern.rstrip("/")
        if "/" in plain:
            if fnmatch.fnmatchcase(name, plain.lstrip("/")):
                return True
        elif fnmatch.fnmatchcase(last, plain):
            return True
    return False


def _write(files: list[tuple[str, Path]], name: str, namespace: str = "") -> Bundle:
    """The zip itself, deterministic."""
    if len(files) > ENTRIES_MAX:
        raise Failure(
            f"The folder holds {len(files)} files; {ENTRIES_MAX} is the most.", "List what the function does not need in .dayflyignore."
        )
    total = sum(source.stat().st_size for _, source in files)
    if total > BYTES_MAX:
        raise Failure(
            f"The folder holds {total // 1024**2} MB; {BYTES_MAX // 1024**2} MB is the most.",
            "List what the function does not need in .dayflyignore; dependencies belong in requirements.txt.",
        )
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 (the bundle closes it)
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for arcname, source in files:
            info = zipfile.ZipInfo(_checked(arcname), FIXED_TIME)
            info.create_system = 3  # Unix, whatever this runs on
            info.external_attr = (0o100755 if source.stat().st_mode & 0o111 else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, source.read_bytes())
    length = spool.tell()
    spool.seek(0)
    return Bundle(spool, length, len(files), name, namespace)


def _checked(name: str) -> str:
    """Names that no file system of the platform's could hold, or that would not survive the zip."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise Failure(f"{name!r} is no valid UTF-8 name.", "Rename that file.") from None
    if any(ord(c) < 32 or c == "\\" for c in name):
        raise Failure(f"{name!r} has a control character or backslash in its name.", "Rename that file.")
    return name


def _open_zip(path: Path) -> Bundle:
    """A zip goes up as it is; only its dayfly.toml is looked at."""
    if path.stat().st_size > BYTES_MAX:
        raise Failure(f"{path} is over {BYTES_MAX // 1024**2} MB.", "Remove what the function does not need.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = len(archive.infolist())
            try:
                with archive.open(MANIFEST) as manifest:
                    name, namespace = _named(manifest.read(1024 * 1024), f"{path}/{MANIFEST}")
            except KeyError:
                name = namespace = ""
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise Failure(f"{path} is a damaged zip: {error}.", "Pack it again.") from error
    return Bundle(path.open("rb"), path.stat().st_size, entries, name or valid_name(path.stem), namespace)


def _named(raw: bytes, where: str) -> tuple[str, str]:
    """`name` and `namespace` in a dayfly.toml, "" where it says none; the rest is the platform's business."""
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{where} is no valid TOML: {error}.", "Correct that place.") from error
    found = table.get("name", ""), table.get("namespace", "")
    if not all(isinstance(text, str) for text in found):
        raise Failure(f"`name` or `namespace` in {where} is no text.", 'Write it like name = "hello".')
    return found
