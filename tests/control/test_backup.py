"""control/backup.py and restore.py on real files: what goes in comes out, while others write; and what must not come in."""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dayfly.cli.directories import write_marker
from dayfly.control import backup as writing
from dayfly.control.bundle import unpack
from dayfly.control.restore import restore
from dayfly.control.vault import Vault
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import FunctionConfig, Version
from dayfly.core.model.layout import Layout
from dayfly.core.model.records import LogRecord
from dayfly.core.wire import backup as rules
from dayfly.core.wire.backup import BadBackup
from dayfly.store import access, functions, migrate
from dayfly.store.logs import LogQuery
from dayfly.store.logs_sqlite import SqliteLogs

ME = {"control": (os.geteuid(), os.getegid()), "front": (os.geteuid(), os.getegid())}
LAYER = "1" * 64


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A data directory with a function, its layer, a secret, logs, durable calls, blobs, certificates and settings."""
    layout = Layout(data=str(tmp_path / "data"), run=str(tmp_path / "run"))
    for name in ("control", "code", "layers", "blobs", "front/pki", "builds"):
        Path(layout.data, name).mkdir(parents=True)
    write_marker(Path(layout.data))
    digest = bundle(layout, tmp_path, b"def handler(event, context): return 1\n")
    layer = Path(layout.layers, LAYER)
    (layer / "package/empty").mkdir(parents=True)
    (layer / "package/__init__.py").write_text("x = 1")
    (layer / "package/tool").write_text("#!/bin/sh")
    (layer / "package/tool").chmod(0o755)
    (layer / "package/alias").symlink_to("__init__.py")
    (layer / "package/out").symlink_to("/etc/passwd")
    database = migrate.open_database(Path(layout.database), 1.0)
    with database.transaction() as tx:
        functions.add_version(tx, version(digest))
        access.put_secret(tx, "default", "S", Vault(Path(layout.secret_key)).seal("default", "S", b"plain"), 1.0)
    database.close()
    logs = SqliteLogs(Path(layout.log_database))
    logs.append([LogRecord(1.0, "default", "f", 1, "i", "", "stdout", 20, "said")])
    logs.close()
    with closing(sqlite3.connect(f"{layout.control}/durable.db")) as db:
        db.executescript("CREATE TABLE calls (id); INSERT INTO calls VALUES (7)")
    Path(layout.data, "blobs/abc").write_bytes(b"blob")
    Path(layout.front, "pki/root.key").write_bytes(b"certificate's key")
    Path(layout.data, "dayfly.toml").write_text("[platform]\nport = 1\n")
    return layout


def version(code: str) -> Version:
    config = FunctionConfig(handler="a.b", secrets=("S",))
    return Version(namespace="default", function="f", number=1, config=config, code_digest=code, layer_digest=LAYER, created_at=1.0)


def bundle(layout: Layout, tmp_path: Path, text: bytes) -> str:
    packed = tmp_path / "bundle.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("handler.py", text)
        file.writestr("package/data.bin", b"\0" * 1000)
    unpacked = unpack(packed, Path(layout.code), 100, 1_000_000)
    unpacked.folder.rename(Path(layout.code, unpacked.digest))
    return unpacked.digest


@pytest.fixture
def made(layout: Layout, tmp_path: Path) -> Path:
    writing.write(layout, tmp_path / "backup", 5.0)
    return tmp_path / "backup"


def back(archive: Path, data: Path) -> Any:
    return restore(archive, data, ME, write_marker)


def tree(folder: Path) -> dict[str, Any]:
    """Every file with its mode and contents (databases aside: theirs may be laid out otherwise), folders with theirs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = str(path.relative_to(folder)), stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = oct(mode)
        elif path.suffix not in (".db", ".json"):
            found[name] = (oct(mode), path.read_bytes())
    return found


def test_what_was_backed_up_comes_back(layout: Layout, made: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    manifest = back(made, tmp_path / "back")
    assert (manifest.created_at, manifest.database, manifest.schema) == (5.0, "sqlite", migrate.HEAD)
    there = tree(tmp_path / "back")
    assert there["control"] == "0o700" and there["code"] == there["layers"] == "0o711" and there["front"] == "0o700"
    for name, value in tree(Path(layout.data)).items():
        if name.startswith("code/"):
            assert there[name] == value
    package = f"layers/{LAYER}/package"
    assert there[f"{package}/tool"] == ("0o555", b"#!/bin/sh") and there[f"{package}/__init__.py"] == ("0o444", b"x = 1")
    assert there[f"{package}/alias"] == "__init__.py" and f"{package}/empty" in there and f"{package}/out" not in there
    assert there["blobs/abc"] == ("0o600", b"blob") and there["front/pki/root.key"] == ("0o600", b"certificate's key")
    assert there["dayfly.toml"][1] == b"[platform]\nport = 1\n" and "log" not in there and not (tmp_path / "back/.restore").exists()
    restored = Layout(data=str(tmp_path / "back"), run="")
    database = migrate.open_database(Path(restored.database), 9.0)
    with database.transaction() as tx:
        sealed = access.sealed_secrets(tx, "default", {"S"})["S"]
        assert functions.versions_of(tx, "default", "f")[0].layer_digest == LAYER
    database.close()
    assert Vault(Path(restored.secret_key)).unseal("default", "S", sealed) == b"plain"
    logs = SqliteLogs(Path(restored.log_database))
    assert [it.text for _, it in logs.read(LogQuery(namespaces=("default",)))] == ["said"]
    logs.close()
    with closing(sqlite3.connect(tmp_path / "back/control/durable.db")) as db:
        assert db.execute("SELECT id FROM calls").fetchall() == [(7,)]


def test_a_file_of_sqlite_is_copied_whole_and_of_one_moment_while_it_is_written_to(layout: Layout, tmp_path: Path) -> None:
    """Each transaction adds one name and its twin; in no copy is one without the other, and the writer is never kept waiting."""
    over, written, failed = threading.Event(), threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            database = migrate.open_database(Path(layout.database), 1.0)
            number = 0
            while not over.is_set():
                with database.transaction() as tx:
                    access.add_namespace(tx, f"a{number}", 1.0)
                    access.add_namespace(tx, f"b{number}", 1.0)
                number += 1
                written.set()
            database.close()
        except BaseException as error:
            failed.append(error)
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        for number in range(10):
            copy = writing.copied(Path(layout.database), tmp_path / f"copy{number}")
            with closing(sqlite3.connect(copy)) as db:
                names = {name for (name,) in db.execute("SELECT name FROM namespaces")} - {"default"}
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert names and {"b" + name[1:] for name in names if name.startswith("a")} == {name for name in names if name.startswith("b")}
    finally:
        over.set()
        writer.join()
    assert not failed


def test_the_key_and_the_logs_can_be_left_out(layout: Layout, tmp_path: Path) -> None:
    writing.write(layout, tmp_path / "backup", 5.0, key=False, logs=False)
    with zipfile.ZipFile(tmp_path / "backup") as file:
        assert rules.KEY not in file.namelist() and rules.LOGS not in file.namelist()
    back(tmp_path / "backup", tmp_path / "back")
    assert not (tmp_path / "back/control/secret.key").exists() and not (tmp_path / "back/control/logs.db").exists()


def test_of_a_platform_on_postgresql_only_what_is_here_is_taken(layout: Layout, tmp_path: Path) -> None:
    Path(layout.database_url).write_text("postgresql://u:hush@h/d\n")
    written = writing.write(layout, tmp_path / "backup", 5.0)
    assert written.manifest.database == "postgresql" and set(written.manifest.files) == {rules.KEY}
    assert b"hush" not in (tmp_path / "backup").read_bytes()
    assert back(tmp_path / "backup", tmp_path / "back").database == "postgresql"
    assert sorted(path.name for path in (tmp_path / "back/control").iterdir()) == ["secret.key"]


def test_code_that_nobody_names_is_left_out_and_code_that_is_missing_is_said(layout: Layout, tmp_path: Path) -> None:
    stale = bundle(layout, tmp_path, b"an older version")
    Path(layout.layers, LAYER).rename(tmp_path / "gone")
    written = writing.write(layout, tmp_path / "backup", 5.0)
    assert f"code/{stale}" not in written.manifest.trees and written.missing == (f"layers/{LAYER}",)


def test_a_backup_replaces_nothing_and_leaves_nothing_when_it_fails(layout: Layout, made: Path, tmp_path: Path) -> None:
    before = made.read_bytes()
    with pytest.raises(Refusal) as refusal:
        writing.write(layout, made, 5.0)
    assert refusal.value.kind.code == "conflict" and made.read_bytes() == before
    with pytest.raises(Refusal, match="was ever started"):
        writing.write(Layout(data=str(tmp_path / "nothing"), run=""), tmp_path / "other", 5.0)
    Path(layout.database).write_bytes(b"no database at all" * 1000)
    with pytest.raises(Refusal, match="damaged"):
        writing.write(layout, tmp_path / "other", 5.0)
    with pytest.raises(Refusal):
        writing.write(layout, tmp_path / "no such folder" / "other", 5.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "bundle.zip", "data"]


@pytest.mark.parametrize("revision", migrate.REVISIONS)
def test_a_backup_of_an_older_release_is_restored_and_migrated_at_the_next_start(layout: Layout, tmp_path: Path, revision: str) -> None:
    from tests.store.test_released import ROWS, at_revision

    Path(layout.database).unlink()
    at_revision(Path(layout.database), revision)
    writing.write(layout, tmp_path / "backup", 5.0, key=False)
    assert back(tmp_path / "backup", tmp_path / "back").schema == revision
    database = migrate.open_database(tmp_path / "back/control/dayfly.db", 9.0)
    with database.transaction() as tx:
        assert access.namespace_names(tx) == ["default", ROWS["namespaces"]["name"]]
    database.close()


# ---- files that must not be restored


Entries = list[tuple[zipfile.ZipInfo, bytes]]


def entries_of(archive: Path) -> Entries:
    with zipfile.ZipFile(archive) as file:
        return [(info, file.read(info)) for info in file.infolist()]


def packed(entries: Entries, path: Path, *, summed: bool = True) -> Path:
    """A zip of these entries, whose manifest agrees to them as far as a sum goes: what is refused then is refused by another rule."""
    if summed:
        total = rules.Sum()
        for info, content in entries:
            mode = info.external_attr >> 16
            kind = "folder" if info.filename.endswith("/") else "link" if stat.S_ISLNK(mode) else "file"
            if info.filename != rules.MANIFEST:
                total.add(info.filename, kind, bool(mode & stat.S_IXUSR), hashlib.sha256(content).digest())
        with contextlib.suppress(StopIteration, ValueError):
            entries = with_manifest(entries, lambda manifest: manifest.update(sum=total.hex()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for info, content in entries:
            copy = zipfile.ZipInfo(info.filename)
            copy.external_attr, copy.compress_type, copy.create_system = info.external_attr, zipfile.ZIP_DEFLATED, 3
            with file.open(copy, "w") as target:
                target.write(content)
    return path


def entry(name: str, content: bytes = b"evil", mode: int = stat.S_IFREG | 0o644) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


def with_manifest(entries: Entries, change: Callable[[dict[str, Any]], None]) -> Entries:
    manifest = next(json.loads(content) for info, content in entries if info.filename == rules.MANIFEST)
    change(manifest)
    rest = [(info, content) for info, content in entries if info.filename != rules.MANIFEST]
    return [*rest, entry(rules.MANIFEST, json.dumps(manifest).encode())]


def replaced(entries: Entries, name: str, content: bytes) -> Entries:
    """With another content under a name, and a manifest that agrees to it."""
    changed = [(info, content if info.filename == name else was) for info, was in entries]
    return with_manifest(changed, lambda manifest: manifest["files"].update({name: hashlib.sha256(content).hexdigest()}))


def database_bytes(entries: Entries, tmp_path: Path, *statements: str, name: str = rules.DATABASE) -> Entries:
    """With a database in it that these statements have changed."""
    path = tmp_path / "changed.db"
    path.write_bytes(next(content for info, content in entries if info.filename == name))
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return replaced(entries, name, path.read_bytes())


DIGEST = "2" * 64
NAMES = [
    "../evil", "/etc/evil", "control/../../evil", f"code/{DIGEST}/../../../evil", "control/x/y.db", "control/evil", "control/admin-token",
    "control/database.url", "evil", "run/x", "code/short/x", f"code/{DIGEST}", f"code/{DIGEST}//x", "log/x", "dayfly.json", "blobs/../x",
    ".restore/x", "blobs/" + "x" * 300, "blobs/" + "x/" * 3000 + "x", "blobs/./x", "C:/x",
]  # fmt: skip
KINDS = [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFBLK]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_with_a_name_that_no_backup_has_is_refused_before_anything_is_written(made: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadBackup):
        back(packed([*entries_of(made), entry(name)], tmp_path / "bad"), tmp_path / "back")
    assert not (tmp_path / "back").exists() and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(made: Path, tmp_path: Path, kind: int) -> None:
    with pytest.raises(BadBackup, match="link or device"):
        back(packed([*entries_of(made), entry("blobs/x", b"/etc/passwd", kind | 0o644)], tmp_path / "bad"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../control/secret.key", f"../../{'3' * 64}/x", "", "..", "a\0b"])
def test_a_link_of_a_layer_that_leads_out_of_it_is_refused(made: Path, tmp_path: Path, target: str) -> None:
    link = entry(f"layers/{LAYER}/link", target.encode(), stat.S_IFLNK | 0o777)
    with pytest.raises(BadBackup, match="leads out"):
        back(packed([*entries_of(made), link], tmp_path / "bad"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_nothing_is_written_through_a_link(made: Path, tmp_path: Path) -> None:
    inside = f"layers/{LAYER}/link"
    more = [entry(inside, b"package", stat.S_IFLNK | 0o777), entry(f"{inside}/x")]
    with pytest.raises(BadBackup, match="is a file or a link"):
        back(packed([*entries_of(made), *more], tmp_path / "bad"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def cut(made: Path) -> Iterator[bytes]:
    whole = made.read_bytes()
    for part in (0.0, 0.1, 0.5, 0.9, 0.999):
        yield whole[: int(len(whole) * part)]


def test_a_truncated_file_is_refused(made: Path, tmp_path: Path) -> None:
    for content in cut(made):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(BadBackup, match=r"cut off|damaged"):
            back(tmp_path / "bad", tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_file_with_a_flipped_bit_is_refused_or_restored_as_it_was(made: Path, tmp_path: Path) -> None:
    """Wherever the bit is: nothing is restored that was not backed up (times and such in a zip mean nothing to us)."""
    whole, right = made.read_bytes(), None
    refused = 0
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (tmp_path / "bad").write_bytes(damaged)
        try:
            back(tmp_path / "bad", tmp_path / f"back{at}")
        except BadBackup:
            refused += 1
            assert not (tmp_path / f"back{at}").exists()
        else:
            if right is None:
                back(made, tmp_path / "right")
                right = tree(tmp_path / "right")
            assert tree(tmp_path / f"back{at}") == right
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"PK", b"this is some text\n" * 100, b"\x1f\x8b" + b"\0" * 1000, b"SQLite format 3\0" * 100])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(BadBackup):
        back(tmp_path / "bad", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBackup, match="no backup of Dayfly's"):
        back(packed([entry("dayfly.toml")], tmp_path / "bad"), tmp_path / "back")
    with pytest.raises(BadBackup, match="nothing that a backup holds"):
        back(packed([entry("handler.py")], tmp_path / "bad"), tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it.update(format=2), "newer Dayfly"),
        (lambda it: it.update(format="x"), "manifest is damaged"),
        (lambda it: it.pop("format"), "manifest is damaged"),
        (lambda it: it.pop("trees"), "manifest is damaged"),
        (lambda it: it.pop("sum"), "manifest is damaged"),
        (lambda it: it["trees"].update({"code/../../evil": 0}), "names a folder"),
        (lambda it: it["trees"].update({f"code/{DIGEST}": 3}), "lists other code"),
        (lambda it: it["trees"].clear(), "lists other code"),
        (lambda it: it["files"].update({rules.KEY: "0" * 64}), "not what its manifest says"),
        (lambda it: it["files"].pop(rules.KEY), "lists other files"),
        (lambda it: it["files"].update({"control/x.db": "0" * 64}), "lists other files"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(made: Path, tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(BadBackup, match=words):
        back(packed(with_manifest(entries_of(made), change), tmp_path / "bad", summed=False), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_contents_that_are_not_those_that_were_backed_up_are_refused(made: Path, tmp_path: Path) -> None:
    program = [(info, was) for info, was in entries_of(made) if not info.filename.endswith("/tool")]
    program.append(entry(f"layers/{LAYER}/package/tool", b"#!/bin/sh", stat.S_IFREG | 0o644))
    for entries in ([*entries_of(made), entry("blobs/more")], program):
        with pytest.raises(BadBackup, match="not those that were backed up"):
            back(packed(entries, tmp_path / "bad", summed=False), tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_code_that_is_not_of_its_digest_is_refused(made: Path, tmp_path: Path) -> None:
    entries = [
        (info, b"def handler(event, context): steal()" if info.filename.endswith("/handler.py") else was) for info, was in entries_of(made)
    ]
    with pytest.raises(BadBackup, match="not the code of that digest"):
        back(packed(entries, tmp_path / "bad"), tmp_path / "back")


def test_a_backup_of_a_newer_release_is_refused(made: Path, tmp_path: Path) -> None:
    newer = database_bytes(entries_of(made), tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BadBackup, match="9999"):
        back(packed(newer, tmp_path / "bad"), tmp_path / "back")
    newer = database_bytes(entries_of(made), tmp_path, "PRAGMA user_version=99", name=rules.LOGS)
    with pytest.raises(BadBackup, match="logs were written by a newer"):
        back(packed(newer, tmp_path / "bad"), tmp_path / "back")


def test_a_damaged_or_foreign_database_in_it_is_refused(made: Path, tmp_path: Path) -> None:
    entries = entries_of(made)
    content = next(was for info, was in entries if info.filename == rules.DATABASE)
    holed = content[:4096] + b"\xff" * 8192 + content[12288:]
    for bad, words in ((holed, "damaged"), (b"\0" * 8192, "damaged|not one of"), (b"SQLite format 3\0" + b"\xff" * 8000, "damaged")):
        with pytest.raises(BadBackup, match=words):
            back(packed(replaced(entries, rules.DATABASE, bad), tmp_path / "bad"), tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_key_that_opens_none_of_its_secrets_is_refused(made: Path, tmp_path: Path) -> None:
    for key in (b"k" * 32, b"short"):
        with pytest.raises(BadBackup, match="key"):
            back(packed(replaced(entries_of(made), rules.KEY, key), tmp_path / "bad"), tmp_path / "back")


def test_an_entry_that_is_there_twice_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = packed([*entries_of(made), entry("dayfly.toml")], tmp_path / "bad")
    with pytest.raises(BadBackup, match="twice"):
        back(twice, tmp_path / "back")


def test_more_than_the_disk_holds_is_refused_before_it_is_unpacked(made: Path, tmp_path: Path) -> None:
    """A bomb: the sizes are what its directory claims; what is longer than it claims is refused while it is written."""
    bad = packed([*entries_of(made), entry("blobs/x", b"\0" * 4_000_000)], tmp_path / "bad")
    raw = bad.read_bytes()
    at = raw.rindex(b"blobs/x") - 46
    claims = bytearray(raw)
    claims[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "claims").write_bytes(claims)
    if (free := os.statvfs(tmp_path)).f_bavail * free.f_frsize < 0xFFFFFFF0:
        with pytest.raises(Refusal, match="no room"):
            back(tmp_path / "claims", tmp_path / "back")
    else:
        with pytest.raises(BadBackup):
            back(tmp_path / "claims", tmp_path / "back")
    claims[at + 24 : at + 28] = (10).to_bytes(4, "little")
    (tmp_path / "claims").write_bytes(claims)
    with pytest.raises(BadBackup):
        back(tmp_path / "claims", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_list_of_names_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    packed_ = io.BytesIO()
    with zipfile.ZipFile(packed_, "w") as file:
        file.writestr("x", b"")
    raw = bytearray(packed_.getvalue())
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 12 : end + 16] = (0x7FFFFFFF).to_bytes(4, "little")
    with pytest.raises(BadBackup, match="longer than that of any"):
        rules.directory_bytes(bytes(raw), 1 << 40)
    raw[end + 12 : end + 16] = (0xFFFFFFFF).to_bytes(4, "little")
    with pytest.raises(BadBackup, match="end is damaged"):
        rules.directory_bytes(bytes(raw), len(raw))


def test_a_large_zip_tells_the_length_of_its_list_elsewhere() -> None:
    packed_ = io.BytesIO()
    with zipfile.ZipFile(packed_, "w") as file:
        for number in range(70_000):  # more than 65,535 entries
            file.writestr(zipfile.ZipInfo(str(number)), b"")
    raw = packed_.getvalue()
    assert 3_000_000 < rules.directory_bytes(raw[-rules.TAIL_BYTES :], len(raw)) < len(raw)


# ---- where it may go


def test_a_directory_that_is_not_empty_is_refused_and_left_as_it_is(made: Path, layout: Layout, tmp_path: Path) -> None:
    before = tree(Path(layout.data))
    with pytest.raises(Refusal, match="not empty") as refusal:
        back(made, Path(layout.data))
    assert refusal.value.kind.code == "conflict" and tree(Path(layout.data)) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refusal):
        back(made, tmp_path / "file")
    (tmp_path / "half/.restore").mkdir(parents=True)
    with pytest.raises(Refusal, match="interrupted"):
        back(made, tmp_path / "half")


def test_an_empty_directory_is_used_and_left_empty_when_it_fails(made: Path, tmp_path: Path) -> None:
    (tmp_path / "back/lost+found").mkdir(parents=True)
    (tmp_path / "bad").write_bytes(made.read_bytes()[:-30])
    with pytest.raises(BadBackup):
        back(tmp_path / "bad", tmp_path / "back")
    with pytest.raises(BadBackup):
        back(packed(replaced(entries_of(made), rules.KEY, b"k" * 32), tmp_path / "bad"), tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["lost+found"]
    back(made, tmp_path / "back")
    assert (tmp_path / "back/dayfly.json").exists()


@pytest.mark.root
def test_a_disk_that_gets_full_says_storage_full_and_nothing_is_left(layout: Layout, tmp_path: Path) -> None:
    import subprocess

    Path(layout.data, "blobs/large").write_bytes(os.urandom(3_000_000))
    writing.write(layout, tmp_path / "backup", 5.0)
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "dayfly-test", str(tmp_path / "small")], check=True)
    try:
        for attempt in (
            lambda: writing.write(layout, tmp_path / "small/backup", 5.0),
            lambda: back(tmp_path / "backup", tmp_path / "small"),
            lambda: back(tmp_path / "backup", tmp_path / "small/data"),
        ):
            with pytest.raises(Refusal) as refusal:
                attempt()
            assert refusal.value.kind.code == "storage_full" and not list((tmp_path / "small").iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


@pytest.mark.root
def test_as_root_everything_gets_the_roles_users(made: Path, tmp_path: Path) -> None:
    restore(made, tmp_path / "back", {"control": (4711, 4712), "front": (4713, 4714)}, write_marker)
    for path in (tmp_path / "back").rglob("*"):
        top = path.relative_to(tmp_path / "back").parts[0]
        owner = (path.lstat().st_uid, path.lstat().st_gid)
        assert owner == {"front": (4713, 4714), "dayfly.toml": (0, 0), "dayfly.json": (0, 0)}.get(top, (4711, 4712)), path
