"""Bundles: the same bytes for the same files, and nothing from outside the folder."""

import os
import socket
import zipfile

import pytest

from dayfly.cli.bundle import MANIFEST, ignored, pack, valid_name
from dayfly.cli.failure import Failure


def names(bundle) -> list[str]:
    with zipfile.ZipFile(bundle.file) as archive:
        return archive.namelist()


def fill(folder, *files: str):
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {file}")
    return folder


def test_the_same_files_make_the_same_bytes_whatever_their_times_and_order(tmp_path):
    one = fill(tmp_path / "one/fn", "b.py", "a.py", "pkg/z.py")
    two = fill(tmp_path / "two/fn", "pkg/z.py", "a.py", "b.py")
    for path in two.rglob("*"):
        os.utime(path, (1, 1))
    (two / "a.py").chmod(0o600)
    assert pack(one).file.read() == pack(two).file.read()


def test_what_is_no_source_stays_out(tmp_path):
    folder = fill(tmp_path / "fn", "a.py", ".git/config", "__pycache__/a.pyc", ".venv/x.py", "node_modules/m.js", "deep/__pycache__/x.pyc")
    fill(folder, "data/big.bin", "notes.txt", "keep/notes.md", "top/x.tmp", "deep/top/x.tmp")
    (folder / ".dayflyignore").write_text("# comment\n*.txt\ndata/\ntop/*.tmp\n")
    assert names(pack(folder)) == ["a.py", "deep/top/x.tmp", "keep/notes.md"]


def test_links_inside_are_followed_and_links_out_are_refused(tmp_path):
    folder = fill(tmp_path / "fn", "a.py", "real/b.py")
    (folder / "alias.py").symlink_to("a.py")
    (folder / "again").symlink_to("real")
    assert names(pack(folder)) == ["a.py", "again/b.py", "alias.py", "real/b.py"]
    (folder / "out").symlink_to("/etc/passwd")
    with pytest.raises(Failure, match="out is a link that leads out"):
        pack(folder)


def test_a_parent_link_an_ending_link_and_a_circle_are_refused(tmp_path):
    for target, words in (("..", "leads out"), ("nowhere", "link to nothing"), (".", "back into itself")):
        folder = fill(tmp_path / f"fn{len(target)}", "a.py")
        (folder / "link").symlink_to(target)
        with pytest.raises(Failure, match=words):
            pack(folder)


def test_special_files_are_refused(tmp_path):
    folder = fill(tmp_path / "fn", "a.py")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        with pytest.raises(Failure, match="no regular file"):
            pack(folder)


def test_hostile_names_are_refused(tmp_path):
    for name in (b"a\nb.py", b"a\\b.py", b"\xff.py"):
        folder = tmp_path / name.hex()
        folder.mkdir()
        (folder / os.fsdecode(name)).write_text("")
        with pytest.raises(Failure):
            pack(folder)


def test_too_many_and_too_large_are_refused_before_anything_is_packed(tmp_path, monkeypatch):
    folder = fill(tmp_path / "fn", "a.py", "b.py", "c.py")
    with (folder / "a.py").open("wb") as file:
        file.truncate(300 * 1024 * 1024)  # sparse: nobody writes 300 MB here
    with pytest.raises(Failure, match="300 MB"):
        pack(folder)
    monkeypatch.setattr("dayfly.cli.bundle.ENTRIES_MAX", 2)
    with pytest.raises(Failure, match="3 files"):
        pack(folder)


@pytest.mark.parametrize(
    ("text", "name"),
    [("hello", "hello"), ("my func", "my-func"), ("-x-", "x"), ("Über.fn", "ber-fn"), ("a" * 80, "a" * 63), ("9to5", "9to5")],
)
def test_names_are_made_valid(text, name):
    assert valid_name(text) == name


def test_a_name_without_a_usable_character_is_refused():
    with pytest.raises(Failure, match="gives no function name"):
        valid_name("日本")


def test_a_single_file_is_a_bundle_and_an_unimportable_name_becomes_handler(tmp_path):
    fill(tmp_path, "hello.py", "my-func.py", "x.txt")
    hello, dashed = pack(tmp_path / "hello.py"), pack(tmp_path / "my-func.py")
    assert (hello.name, names(hello)) == ("hello", ["hello.py"])
    assert (dashed.name, names(dashed)) == ("my-func", ["handler.py"])
    with pytest.raises(Failure, match="neither a Python file"):
        pack(tmp_path / "x.txt")
    with pytest.raises(Failure, match="does not exist"):
        pack(tmp_path / "none.py")


def test_the_manifest_names_function_and_namespace_in_folder_and_zip(tmp_path):
    folder = fill(tmp_path / "fn", "a.py")
    (folder / MANIFEST).write_text('name = "greet"\nnamespace = "team"\n')
    packed = pack(folder)
    assert (packed.name, packed.namespace) == ("greet", "team")
    (tmp_path / "f.zip").write_bytes(packed.file.read())
    zipped = pack(tmp_path / "f.zip")
    assert (zipped.name, zipped.namespace) == ("greet", "team")


@pytest.mark.parametrize("text", ["name = 3", "name = [", "\xff"])
def test_a_broken_manifest_is_refused_with_its_place(tmp_path, text):
    folder = fill(tmp_path / "fn", "a.py")
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(Failure, match=MANIFEST):
        pack(folder)


def test_an_empty_folder_and_a_damaged_zip_are_refused(tmp_path):
    (tmp_path / "fn").mkdir()
    with pytest.raises(Failure, match="nothing to deploy"):
        pack(tmp_path / "fn")
    folder = fill(tmp_path / "g", "a.py")
    data = bytearray(pack(folder).file.read())
    data[0:60] = b"\0" * 60
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(Failure):
        bundle = pack(tmp_path / "bad.zip")
        assert names(bundle)  # a zip whose directory survived: the platform looks closer
        raise Failure("not damaged enough for us", "")


def test_patterns_match_the_last_part_or_the_whole_path():
    assert ignored("a/b.log", ["*.log"])
    assert ignored("build/x", ["build/x"])
    assert not ignored("a/build/x", ["/build/x"])
