"""What may be in a bundle: the rules for entries of a zip, on names and numbers only, and the digest of its contents.

A bundle is hostile until it went through here: control reads the zip's directory as bytes, asks `count_entries` before any
library parses it, then `checked_entries`, and only then writes a file. Formats: PKWARE's APPNOTE 6.3.10, sections 4.3.12 and
4.3.16. The digest is of the *contents* in canonical order, not of the zip, so that packing the same files again, anywhere, is
the same bundle.
"""

import hashlib
import stat
import struct
import unicodedata
from collections.abc import Iterable, Sequence

import msgspec

from dayfly.core.model.errors import Refusal

NAME_BYTES_MAX = 1024
PART_BYTES_MAX = 255
DEPTH_MAX = 32

END = struct.Struct("<4s4H2IH")  # end of central directory
END_BYTES_MAX = END.size + 65_535  # with the longest comment
_END_MARK, _END64_MARK, _ENTRY_MARK = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_ENTRY_BYTES, _LOCATOR_BYTES = 46, 20
_ENTRY_LENGTHS = struct.Struct("<3H")  # of name, extra field and comment, at offset 28 of a directory entry
_ENTRY_BYTES_MEAN_MAX = 400  # directory bytes per permitted entry; long names fit, a directory made to exhaust memory does not

_STORED, _DEFLATED = 0, 8  # other methods may ask for gigabytes of dictionary
_ENCRYPTED, _UTF8 = 0x1, 0x800
_LEFT_OUT_PARTS = frozenset({"__pycache__", "__MACOSX", ".git"})
_LEFT_OUT_NAMES = frozenset({".DS_Store"})


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a zip's directory, as it claims to be. `mode` is the Unix mode with type bits (0 when it has none)."""

    name: str
    size: int
    mode: int
    flags: int
    method: int
    index: int  # position in the directory


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that may be written: `name` is relative, safe and unique."""

    name: str
    executable: bool
    index: int


def refused(detail: str) -> Refusal:
    return Refusal("bad_bundle", detail)


def directory_span(tail: bytes, file_size: int, entries_max: int) -> tuple[int, int]:
    """(offset, size) of the zip's directory, from the last END_BYTES_MAX bytes of the file. Raises Refusal bad_bundle."""
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < END.size:
        raise refused("The bundle is not a zip file, or it was cut off.")
    if at >= _LOCATOR_BYTES and tail[at - _LOCATOR_BYTES :].startswith(_END64_MARK):
        raise refused("The bundle is a ZIP64 archive: pack fewer and smaller files.")
    _, disk, first_disk, _, entries, size, offset, _ = END.unpack_from(tail, at)
    if disk or first_disk:
        raise refused("The bundle is one part of a split zip.")
    if entries > entries_max or size > entries_max * _ENTRY_BYTES_MEAN_MAX:
        raise Refusal("bundle_too_large", f"The bundle has more than {entries_max} entries (bundle_entries_max).")
    if offset + size > file_size:
        raise refused("The bundle's directory lies outside the file.")
    return offset, size


def count_entries(directory: bytes, entries_max: int) -> int:
    """Entries really in the directory (the end record may lie). Raises Refusal when there are too many or they are garbled."""
    at = count = 0
    while at + _ENTRY_BYTES <= len(directory) and directory.startswith(_ENTRY_MARK, at):
        count += 1
        if count > entries_max:
            raise Refusal("bundle_too_large", f"The bundle has more than {entries_max} entries (bundle_entries_max).")
        at += _ENTRY_BYTES + sum(_ENTRY_LENGTHS.unpack_from(directory, at + 28))
    if at != len(directory):
        raise refused("The bundle's directory is damaged.")
    return count


def checked_entries(entries: Sequence[Entry], bytes_max: int) -> list[BundleFile]:
    """The files to write, sorted by name; folders and leftovers (__pycache__, .git, .DS_Store) are not among them.

    Raises Refusal bad_bundle for anything that is no plain file or folder with a plain relative name, and bundle_too_large
    when the claimed sizes are over `bytes_max` (the unpacker counts again, because claims lie).
    """
    if sum(entry.size for entry in entries) > bytes_max:
        raise _too_large(bytes_max)
    files: list[BundleFile] = []
    for entry in entries:
        name = _checked_name(entry)
        _check_kind(entry)
        if entry.name.endswith("/"):
            continue
        parts = name.split("/")
        if not (_LEFT_OUT_PARTS.intersection(parts) or parts[-1] in _LEFT_OUT_NAMES):
            files.append(BundleFile(name=name, executable=bool(entry.mode & stat.S_IXUSR), index=entry.index))
    files.sort(key=lambda file: file.name)
    _check_collisions(file.name for file in files)
    if not files:
        raise refused("The bundle holds no file.")
    return files


def _too_large(bytes_max: int) -> Refusal:
    return Refusal("bundle_too_large", f"The bundle unpacks to more than {bytes_max} bytes (bundle_unpacked_bytes_max).")


def _checked_name(entry: Entry) -> str:
    """The entry's path without the slash that ends a folder's."""
    name = entry.name
    if not entry.flags & _UTF8 and not name.isascii():
        name = _guessed_utf8(name)
    shown = ascii(name[:80])
    if not name or "\0" in name or "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise refused(f"{shown}: names are not empty and hold no backslash or control character.")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise refused(f"{shown} is an absolute path.")
    path = name.removesuffix("/")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise refused(f"{shown} has an empty, '.' or '..' part.")
    _check_lengths(path, parts, shown)
    return path


def _check_lengths(path: str, parts: list[str], shown: str) -> None:
    try:
        too_long = len(path.encode()) > NAME_BYTES_MAX or any(len(part.encode()) > PART_BYTES_MAX for part in parts)
    except UnicodeEncodeError:
        raise refused(f"{shown} is not valid UTF-8.") from None
    if too_long:
        raise refused(f"{shown}… is too long: {PART_BYTES_MAX} bytes a part, {NAME_BYTES_MAX} in all.")
    if len(parts) > DEPTH_MAX:
        raise refused(f"{shown}… is nested deeper than {DEPTH_MAX} folders.")


def _guessed_utf8(name: str) -> str:
    """Some packers write UTF-8 without saying so; the zip library has then read it as code page 437."""
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        raise refused(f"{name[:80]!a} is not valid UTF-8.") from None


def _check_kind(entry: Entry) -> None:
    shown = ascii(entry.name[:80])
    kind = stat.S_IFMT(entry.mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or ((kind == stat.S_IFDIR) != entry.name.endswith("/") and kind != 0):
        raise refused(f"{shown} is a link or device: only plain files and folders may be in a bundle.")
    if entry.flags & _ENCRYPTED:
        raise refused(f"{shown} is encrypted.")
    if entry.method not in (_STORED, _DEFLATED):
        raise refused(f"{shown} uses compression method {entry.method}: use deflate.")
    if entry.name.endswith("/") and entry.size:
        raise refused(f"{shown} is a folder with contents of its own.")


def _check_collisions(names: Iterable[str]) -> None:
    """Two names for one place, on any file system: equal, equal but for case or Unicode form, or a file that is a folder too."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        key = _folded(name)
        if key in files:
            raise refused(f"{name[:80]!a} and {files[key][:80]!a} are the same name (case and Unicode form aside).")
        files[key] = name
        parts = name.split("/")[:-1]
        for depth in range(len(parts), 0, -1):
            folder = "/".join(parts[:depth])
            if folders.setdefault(_folded(folder), folder) != folder:
                raise refused(f"The folder {folder[:80]!a} appears twice with different case or Unicode form.")
    both = files.keys() & folders.keys()
    if both:
        raise refused(f"{min(both)[:80]!a} is a file and a folder.")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class ContentDigest:
    """The canonical digest of a bundle: `add` every file sorted by name, then `hex()`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"dayfly-bundle-1\n")

    def add(self, name: str, executable: bool, content_sha256: bytes) -> None:
        raw = name.encode()
        self._hash.update(len(raw).to_bytes(4, "big") + raw + (b"x" if executable else b"-") + content_sha256)

    def hex(self) -> str:
        return self._hash.hexdigest()
