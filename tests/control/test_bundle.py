"""control/bundle.py with real zips: friendly ones become read-only trees by content, hostile ones leave nothing behind."""

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.control import bundle
from dayfly.core.model.errors import Refusal
from tests.control.world import zipped

MEGABYTE = 1024 * 1024


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """DATA/code; its read-only trees are removed afterwards."""
    (tmp_path / "code").mkdir()
    yield tmp_path / "code"
    bundle.discard(tmp_path / "code")


def unpack(data: bytes, place: Path, entries_max: int = 1000, bytes_max: int = MEGABYTE) -> bundle.Unpacked:
    archive = place.parent / "b.zip"
    archive.write_bytes(data)
    return bundle.unpack(archive, place, entries_max, bytes_max)


def refused(data: bytes, place: Path, entries_max: int = 1000, bytes_max: int = MEGABYTE) -> str:
    with pytest.raises(Refusal) as refusal:
        unpack(data, place, entries_max, bytes_max)
    assert list(place.iterdir()) == [], "nothing is left behind"
    assert sorted(path.name for path in place.parent.iterdir()) == ["b.zip", "code"], "nothing was written elsewhere"
    return refusal.value.kind.code


def one(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644, **changes: int) -> bytes:
    """A zip with one entry, exactly as told."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.external_attr = mode << 16
        for key, value in changes.items():
            setattr(info, key, value)
        archive.writestr(info, content)
    return buffer.getvalue()


def test_a_tree_is_read_only_with_contents_and_execute_bits(place: Path) -> None:
    buffer = io.BytesIO(zipped({"hello.py": "x = 1\n", "lib/data.txt": "d", "__pycache__/hello.pyc": "junk"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("bin/tool")
        info.external_attr = (stat.S_IFREG | 0o4777) << 16
        archive.writestr(info, "#!/bin/sh\n")
    found = unpack(buffer.getvalue(), place)
    assert found.files == ("bin/tool", "hello.py", "lib/data.txt")
    modes = {str(path.relative_to(found.folder)): stat.S_IMODE(path.stat().st_mode) for path in sorted(found.folder.rglob("*"))}
    assert modes == {"bin": 0o555, "bin/tool": 0o555, "hello.py": 0o444, "lib": 0o555, "lib/data.txt": 0o444}
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o555
    assert (found.folder / "hello.py").read_text() == "x = 1\n"


def test_the_digest_is_of_the_contents_not_of_the_zip(place: Path) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = b"packed elsewhere"
        archive.writestr("b/", "")
        archive.writestr("b/c.py", "2")
        archive.writestr("a.py", "1")
    same = unpack(zipped({"a.py": "1", "b/c.py": "2"}), place).digest
    assert unpack(stored.getvalue(), place).digest == same
    for other in ({"a.py": "1", "b/c.py": "3"}, {"a.py": "1", "b/d.py": "2"}, {"a.py": "12", "b/c.py": ""}, {"a.py": "1"}):
        assert unpack(zipped(other), place).digest != same


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/../../escape", "..\\escape", "C:\\escape", "a\0b", "a/./b", "x\ny"])
def test_names_that_lead_out_are_refused(place: Path, name: str) -> None:
    assert refused(one(name), place) == "bad_bundle"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(place: Path, kind: int) -> None:
    assert refused(one("link", b"/etc/passwd", kind | 0o777), place) == "bad_bundle"


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip" * 100, zipped({"a": "1"})[:-30], zipped({"a": "1" * 999})[10:]])
def test_what_is_no_zip_is_refused(place: Path, data: bytes) -> None:
    assert refused(data, place) == "bad_bundle"


@pytest.mark.parametrize("at", range(0, 160, 7))
def test_a_damaged_zip_is_unpacked_right_or_refused_and_never_a_defect(place: Path, at: int) -> None:
    data = bytearray(zipped({"a.py": "print(1)\n" * 50}))
    data[at % len(data)] ^= 0xFF
    try:
        unpack(bytes(data), place)
    except Refusal as refusal:
        assert refusal.kind.code in ("bad_bundle", "bundle_too_large")
        assert list(place.iterdir()) == []


def test_a_bomb_that_tells_its_size_is_refused_before_it_is_unpacked(place: Path) -> None:
    assert refused(zipped({"bomb": "0" * (2 * MEGABYTE)}), place) == "bundle_too_large"


def test_a_bomb_that_lies_about_its_size_is_stopped_while_it_unpacks(place: Path) -> None:
    data = bytearray(zipped({"bomb": "0" * (4 * MEGABYTE)}))
    real = struct.pack("<I", 4 * MEGABYTE)
    while (at := data.find(real)) >= 0:
        data[at : at + 4] = struct.pack("<I", 100)
    assert refused(bytes(data), place) in ("bad_bundle", "bundle_too_large")


def test_overlapping_entries_do_not_unpack_more_than_the_bound(place: Path) -> None:
    """The 'better zip bomb': many directory entries that share one compressed piece."""
    packed = zlib.compress(b"0" * MEGABYTE, 9)[2:-4]
    crc = zlib.crc32(b"0" * MEGABYTE)
    common = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, crc, len(packed), MEGABYTE)
    local = b"PK\x03\x04" + common + struct.pack("<HH", 1, 0) + b"a" + packed
    directory = b"".join(
        b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
        for name in (b"a%d" % n for n in range(200))
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 200, 200, len(directory), len(local), 0)
    assert refused(local + directory + end, place, bytes_max=16 * MEGABYTE) in ("bad_bundle", "bundle_too_large")


def test_a_hundred_thousand_entries_are_refused_without_reading_them_all(place: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(100_000):
            archive.writestr(f"f{n}", b"")
    code = refused(buffer.getvalue(), place, entries_max=20_000)
    assert code in ("bad_bundle", "bundle_too_large")


def test_an_encrypted_entry_is_refused(place: Path) -> None:
    data = bytearray(one("secret"))
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    assert refused(bytes(data), place) == "bad_bundle"


def test_discarding_removes_read_only_trees_and_touches_nothing_that_links_lead_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "link").symlink_to(outside)
    os.chmod(tree / "deep", 0o555)
    os.chmod(tree, 0o555)
    bundle.discard(tree)
    bundle.discard(tree)
    assert not tree.exists() and stat.S_IMODE(outside.stat().st_mode) == 0o500
