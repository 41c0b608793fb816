"""Large bodies as files: whole or not there, private, checked when read, removed only when nobody names them."""

import os
import stat
from pathlib import Path

import pytest

from dayfly.core.model.errors import Refusal
from dayfly.store.blobs import Blobs, owner_of


def test_a_blob_is_what_was_put_and_nobody_elses_to_read(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    name = blobs.put("call-1", b"x" * 100_000)
    assert blobs.get(name) == b"x" * 100_000 and owner_of(name) == "call-1"
    assert stat.S_IMODE((tmp_path / "blobs" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700
    assert blobs.put("call-1", b"x" * 100_000) == name, "the same again is the same"


def test_a_damaged_missing_or_foreign_blob_is_no_data(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = blobs.put("call-1", b"content")
    (tmp_path / name).write_bytes(b"other")
    for wanted in (name, "call-2." + "0" * 64, "../secret", ""):
        with pytest.raises(Refusal) as caught:
            blobs.get(wanted)
        assert caught.value.kind.code == "data_unusable"


@pytest.mark.parametrize("owner", ["", "a/b", ".hidden", "x" * 200, "a\n"])
def test_an_owners_name_cannot_leave_the_folder(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="owns no blob"):
        Blobs(tmp_path).put(owner, b"x")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    blobs = Blobs(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refusal) as caught:
        blobs.put("call-1", b"x")
    assert caught.value.kind.code == "storage_full" and not list(tmp_path.iterdir())


def test_only_old_blobs_are_found_and_what_was_written_again_stays(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    kept, gone = blobs.put("kept", b"1"), blobs.put("gone", b"2")
    (tmp_path / ".new-left-by-a-crash").write_bytes(b"half")
    (tmp_path / "somebody elses file").write_bytes(b"")
    assert blobs.old(0.0, 10) == []
    for path in tmp_path.iterdir():
        os.utime(path, (1000, 1000))
    assert sorted(blobs.old(2000.0, 10)) == sorted([kept, gone]) and len(blobs.old(2000.0, 1)) == 1
    assert blobs.put("kept", b"1") == kept  # meanwhile
    assert blobs.remove([kept, gone, gone], 2000.0) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept, "somebody elses file"])
