"""Data and run directories: what is made, what is refused, and that a refusal leaves everything as it was."""

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from dayfly.cli import directories, running
from dayfly.cli.directories import FORMAT, MARKER, SOCKET_PATH_BYTES_MAX, hand_over, locate, prepare
from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.sandbox.privileges import role_users


@pytest.fixture
def base():
    """A short path: Unix sockets below pytest's own would be too long."""
    with tempfile.TemporaryDirectory(prefix="dfy-", dir="/tmp") as folder:
        yield Path(folder)


def settings(base: Path, **more: str) -> Settings:
    return Settings(data=str(base / "data"), **more)


def tree(base: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(base)): (stat.S_IMODE(p.stat().st_mode), p.stat().st_uid) for p in base.rglob("*")}


def made(base: Path) -> Layout:
    """Both steps of `dayfly up`."""
    layout = prepare(settings(base))
    hand_over(layout, role_users(layout.data))
    return layout


def test_owners_and_modes_are_those_of_the_layout(base):
    me = os.geteuid()
    layout = made(base)
    control, gateway, egress, front = (user.uid for user in role_users(layout.data).values())
    found = tree(base)
    assert found["data"] == (0o711, me)
    assert found["data/run"] == (0o711, me)
    assert {name: found[f"data/{name}"] for name in ("control", "code", "layers", "builds", "run/control", "run/egress")} == {
        "control": (0o700, control),
        "code": (0o711, control),
        "layers": (0o711, control),
        "builds": (0o711, control),
        "run/control": (0o2710 if me == 0 else 0o700, control),
        "run/egress": (0o700, egress),
    }
    assert Path(layout.control_sockets).stat().st_gid == (gateway if me == 0 else os.getegid())
    before = tree(base)
    made(base)
    assert tree(base) == before
    hand_over(layout, role_users(layout.data), front=True)
    assert "data/front" not in before and tree(base) == before | {"data/front": (0o700, front)}


@pytest.mark.root
def test_what_the_user_of_an_older_start_left_is_taken_over_and_nothing_else(base):
    """Folders and files of the former user change their owner; links are not followed, files of others keep theirs."""
    layout = made(base)
    control = role_users(layout.data)["control"].uid
    (base / "elsewhere").mkdir()
    for name in ("tree", "tree/package", "tree/package/module.py"):
        path = Path(layout.code, name)
        path.touch() if path.suffix else path.mkdir()
    Path(layout.code, "tree/link").symlink_to(base / "elsewhere")
    Path(layout.control, "dayfly.db").touch(mode=0o600)
    Path(layout.control, "foreign").touch()
    for path in (layout.control, layout.code, *Path(layout.code).rglob("*"), Path(layout.control, "dayfly.db"), base / "elsewhere"):
        os.chown(path, 64020, 64020, follow_symlinks=False)
    os.chown(Path(layout.control, "foreign"), 12345, 12345)
    made(base)
    owners = {str(path.relative_to(base)): path.lstat().st_uid for path in base.rglob("*")}
    assert {name for name, uid in owners.items() if uid == 64020} == {"elsewhere"}
    assert owners["data/control/foreign"] == 12345
    for name in ("control", "control/dayfly.db", "code", "code/tree/package/module.py", "code/tree/link"):
        assert owners[f"data/{name}"] == control, name


@pytest.mark.root
def test_what_belongs_to_root_is_not_given_away(base):
    """A backup that root copied back without its owners is said to need them."""
    layout = made(base)
    Path(layout.control, "dayfly.db").touch()
    os.chown(layout.control, 0, 0)
    with pytest.raises(Failure, match="belongs to uid 0") as caught:
        made(base)
    assert "chown -R" in caught.value.hint


def test_a_directory_that_is_not_ours_to_use_is_refused_and_left_alone(base):
    (base / "data").mkdir()
    (base / "data/thesis.doc").touch()
    before = tree(base)
    with pytest.raises(Failure, match=r"not empty.*thesis"):
        prepare(settings(base))
    assert tree(base) == before


def test_a_directory_with_only_its_configuration_is_taken(base):
    (base / "data").mkdir()
    (base / "data/dayfly.toml").touch()
    prepare(settings(base))


@pytest.mark.parametrize(
    ("marker", "words"), [(json.dumps({"format": FORMAT + 1}), "newer Dayfly"), ("{", "damaged"), ('{"format": "x"}', "damaged")]
)
def test_a_newer_or_damaged_directory_is_refused(base, marker, words):
    prepare(settings(base))
    (base / "data" / MARKER).write_text(marker)
    with pytest.raises(Failure, match=words) as caught:
        prepare(settings(base))
    assert caught.value.exit_code == EXIT_PLATFORM


def test_a_file_in_the_way_is_named(base):
    (base / "data").touch()
    with pytest.raises(Failure, match="not a directory"):
        prepare(settings(base))


def test_a_link_in_place_of_a_folder_is_not_followed(base):
    made(base)
    (base / "data/code").rmdir()
    (base / "data/code").symlink_to("/etc")
    with pytest.raises(Failure, match="in the way"):
        made(base)
    assert stat.S_IMODE(Path("/etc").stat().st_mode) == 0o755


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(base):
    (base / "data").mkdir()
    os.chown(base / "data", 12345, 12345)
    with pytest.raises(Failure, match="belongs to uid 12345"):
        prepare(settings(base))


def test_a_read_only_file_system_is_said(base, monkeypatch):
    """The kernel's own answer, from a place nobody may write."""
    with pytest.raises(Failure) as caught:
        prepare(Settings(data="/proc/dayfly/data"))
    assert caught.value.exit_code == EXIT_PLATFORM
    assert caught.value.hint


def test_a_long_data_path_gets_a_short_run_directory_that_is_always_the_same(base):
    deep = Settings(data=str(base / ("d" * 90)))
    layout = locate(deep)
    assert not layout.run.startswith(layout.data)
    assert len(layout.link_socket) <= SOCKET_PATH_BYTES_MAX
    assert locate(deep) == layout


def test_a_run_directory_that_was_named_and_is_too_long_is_refused(base):
    with pytest.raises(Failure, match="too long"):
        prepare(settings(base, run=str(base / ("r" * 120))))
    assert not (base / "data").exists()


def test_the_lock_is_held_once_and_says_by_whom(base):
    layout = prepare(settings(base))
    fd = running.lock(layout)
    try:
        running.write_pid(fd, layout, os.getpid())
        assert running.holder(layout) == os.getpid()
        with pytest.raises(Failure, match=f"pid {os.getpid()}"):
            running.lock(layout)
    finally:
        os.close(fd)
    assert running.holder(layout) == 0


def test_one_data_directory_cannot_be_used_by_two_run_directories(base):
    one = prepare(settings(base))
    two = prepare(settings(base, run=str(base / "other")))
    fd = running.lock_data(one)
    try:
        with pytest.raises(Failure, match="different run directory"):
            running.lock_data(two)
    finally:
        os.close(fd)


def test_a_reused_pid_is_never_taken_for_ours(base):
    """The state file names this test's own process with another start time: it must survive."""
    layout = prepare(settings(base))
    Path(layout.run, "state.json").write_text(json.dumps({"roles": {"node": {"pid": os.getpid(), "start_ticks": 1}}}))
    assert running.clear(layout) == []


def test_what_a_killed_platform_left_is_removed(base):
    layout = made(base)
    for path in (layout.node_socket, layout.link_socket, layout.pid_file):
        Path(path).touch()
    running.clear(layout)
    assert not [p for p in (layout.node_socket, layout.link_socket, layout.pid_file) if Path(p).exists()]
    assert directories.log_file(layout).startswith(layout.data)
