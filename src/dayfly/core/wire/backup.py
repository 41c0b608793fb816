"""What a backup file is: a zip with one manifest, and the rules for the names in it. Names and numbers only; nothing is opened here.

    dayfly-backup.json          the manifest below
    dayfly.toml                 settings, where DATA has some
    control/NAME.db             a SQLite file, copied while it was used
    control/secret.key          the key of the secrets, unless it was left out
    code/DIGEST/…, layers/DIGEST/…, blobs/…, front/…

A file that somebody names for a restore is hostile until it went through here: every name, kind and method is checked before anything is
written. Formats: PKWARE's APPNOTE 6.3.10, sections 4.3.14 to 4.3.16 for where the directory lies.
"""

import hashlib
import posixpath
import re
import stat
import struct
from typing import Literal

import msgspec

from dayfly.core.model.names import DIGEST

FORMAT = 1
MANIFEST = "dayfly-backup.json"
MANIFEST_BYTES_MAX = 64 * 1024 * 1024
SETTINGS, KEY = "dayfly.toml", "control/secret.key"
DATABASE, LOGS = "control/dayfly.db", "control/logs.db"
TREES = ("code", "layers")
FOLDERS = (*TREES, "blobs", "front")
DIRECTORY_BYTES_MAX = 512 * 1024 * 1024  # of the zip's directory, which is read into memory: some five million names
TAIL_BYTES = 65_535 + 22 + 20 + 56
LINK_BYTES_MAX = 1024
NAME_BYTES_MAX, PART_BYTES_MAX = 4096, 255

_CONTROL = re.compile(r"control/(?:[a-z][a-z0-9-]{0,40}\.db|secret\.key)")
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_ENCRYPTED, _STORED, _DEFLATED = 0x1, 0, 8


class BadBackup(Exception):
    """This file is no backup that can be restored; the text says why."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a backup. `trees`: number of files of each "code/DIGEST" and "layers/DIGEST"; `files`: SHA-256 of the files of control."""

    format: int
    dayfly: str
    created_at: float
    database: Literal["sqlite", "postgresql"]
    schema: str  # the revision of dayfly.db; "" when the database is elsewhere
    files: dict[str, str]
    trees: dict[str, int]
    sum: str  # of every entry but the manifest: `Sum`


class Sum:
    """The digest of all entries, in whatever order they are added: names, kinds, whether they are programs, contents. A zip's own checks
    leave its list of names open to damage."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, name: str, kind: str, executable: bool, content_sha256: bytes) -> None:
        self._lines.append(name.encode() + b"\0" + kind[:2].encode() + (b"x" if executable else b"-") + content_sha256)

    def hex(self) -> str:
        digest = hashlib.sha256()
        for line in sorted(self._lines):
            digest.update(len(line).to_bytes(4, "big") + line)
        return digest.hexdigest()


def kind_of(name: str, mode: int, flags: int, method: int) -> Literal["file", "folder", "link"]:
    """What an entry is, when it may be in a backup at all. `mode`: Unix mode with type bits. Raises BadBackup."""
    shown = ascii(name[:80])
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise BadBackup(f"{shown} is encrypted or packed in a way that no backup is.")
    _check_name(name.removesuffix("/"), shown)
    kind = stat.S_IFMT(mode)
    if name.endswith("/") and kind in (0, stat.S_IFDIR):
        return "folder"
    if kind == stat.S_IFLNK and name.startswith("layers/") and not name.endswith("/"):
        return "link"
    if kind in (0, stat.S_IFREG) and not name.endswith("/"):
        return "file"
    raise BadBackup(f"{shown} is a link or device where none may be.")


def _check_name(name: str, shown: str) -> None:
    parts = name.split("/")
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise BadBackup(f"{shown} is not valid UTF-8.") from None
    if "\0" in name or any(part in ("", ".", "..") or len(part.encode()) > PART_BYTES_MAX for part in parts) or len(raw) > NAME_BYTES_MAX:
        raise BadBackup(f"{shown} is no plain relative path.")
    if name in (MANIFEST, SETTINGS) or _CONTROL.fullmatch(name):
        return
    if parts[0] not in FOLDERS or (parts[0] in TREES and (len(parts) < 3 or not DIGEST.fullmatch(parts[1]))) or len(parts) < 2:
        raise BadBackup(f"{shown} is nothing that a backup holds.")


def tree_of(name: str) -> str:
    """ "code/DIGEST" or "layers/DIGEST" of a checked name below it, "" for others."""
    parts = name.split("/", 2)
    return "/".join(parts[:2]) if parts[0] in TREES else ""


def checked_link(name: str, target: str) -> str:
    """`target` of the link at `name` when it stays in its own layer. Raises BadBackup."""
    place = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if not target or "\0" in target or target.startswith("/") or not place.startswith(tree_of(name) + "/"):
        raise BadBackup(f"The link {name[:80]!a} leads out of its layer.")
    return target


def directory_bytes(tail: bytes, file_size: int) -> int:
    """Size of the zip's directory, from the file's last TAIL_BYTES. Raises BadBackup when there is none, or too large a one."""
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise BadBackup("It is no zip file, or it was cut off.")
    size = int(_END.unpack_from(tail, at)[5])
    if size == 0xFFFFFFFF:
        size = _long_directory_bytes(tail, at, file_size)
    if size > min(DIRECTORY_BYTES_MAX, file_size):
        raise BadBackup("The list of what is in it is longer than that of any backup.")
    return size


def _long_directory_bytes(tail: bytes, end: int, file_size: int) -> int:
    """The same of a large zip, whose end says it in another place right before."""
    locator = end - _LOCATOR.size
    if locator < 0 or not tail.startswith(b"PK\x06\x07", locator):
        raise BadBackup("Its end is damaged.")
    at = _LOCATOR.unpack_from(tail, locator)[2] - (file_size - len(tail))
    if at < 0 or at + _END64.size > len(tail) or not tail.startswith(b"PK\x06\x06", at):
        raise BadBackup("Its end is damaged.")
    return int(_END64.unpack_from(tail, at)[8])
