"""sandbox/privileges.py: who the roles are, what they are after `drop`, and that they still work below a folder closed to them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.sandbox import privileges
from tests.node.rig import python_for

PROGRAM = """
import json, os, sys
from dayfly.sandbox import privileges
privileges.drop(privileges.User(int(sys.argv[1]), int(sys.argv[1])), sys.argv[2:4])
status = {name: value for name, _, value in (line.partition(":") for line in open("/proc/self/status"))}
import decimal, sqlite3, ssl, msgspec  # from the interpreter and its packages, wherever they lie
def attempt(action):
    try:
        return action()
    except OSError as error:
        return error.errno
open(sys.argv[2] + "/written", "w").write("x")
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "status": {name: status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")},
    "root": attempt(lambda: os.listdir("/root")), "setuid": attempt(lambda: os.setuid(0)),
    "prefix_writable": os.access(sys.base_prefix, os.W_OK), "child": os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", "pass"]),
}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that dropped to uid 64111, with its data below a folder that this uid cannot enter."""
    closed = tmp_path / "closed"
    data, run = closed / "data", closed / "run"
    for folder in (closed, data, run):
        folder.mkdir()
    for folder in (data, run):
        os.chown(folder, 64111, 64111)
    (closed / "private").write_text("not yours")
    closed.chmod(0o700)
    command = [sys.executable, "-c", PROGRAM, "64111", str(data), str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.root
def test_drop(dropped: subprocess.Popen[str], tmp_path: Path) -> None:
    """No uid, gid, group or capability is left, no new privileges can come; interpreter, packages and data work all the same."""
    assert dropped.stdout is not None
    seen = json.loads(dropped.stdout.readline())
    assert seen["ids"] == [[64111] * 3, [64111] * 3, []]
    assert {name: int(value, 16) for name, value in seen["status"].items()} == {
        "CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0, "NoNewPrivs": 1,
    }  # fmt: skip
    assert seen["setuid"] == 1
    assert seen["child"] == 0
    assert seen["prefix_writable"] is False
    root = seen["root"]
    assert root == 13 or set(root) <= {".pyenv", ".local", "venv"}, "more of /root is visible than the interpreter"
    assert (tmp_path / "closed" / "data" / "written").read_text() == "x"
    assert "closed" not in Path("/proc/self/mountinfo").read_text()
    assert not Path(f"/proc/{dropped.pid}/root{tmp_path}/closed/private").exists()


@pytest.mark.root
def test_dropped_process_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent-death signal is set after the change of user, which would clear it: kill -9 of the parent ends the child."""
    for name in ("data", "run"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 64111, 64111)
    tmp_path.chmod(0o755)
    middle = "import signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); signal.pause()"
    command = [sys.executable, "-c", middle, PROGRAM, "64111", str(tmp_path / "data"), str(tmp_path / "run")]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdin is not None
    try:
        assert json.loads(parent.stdout.readline())["child"] == 0
        parent.kill()
        assert parent.stdout.read() == "", "end of file: nobody holds the other end any more"
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()  # ends the child, too, should the signal not have come
        parent.stdout.close()


@pytest.mark.root
def test_users() -> None:
    """Every role has a user of its own, from the data directory's block; a name or number names control's alone."""
    own = privileges.role_users("/var/lib/dayfly")
    assert set(own) == {"control", "gateway", "egress", "front"}
    first, count = privileges.uid_block("/var/lib/dayfly")
    assert len({user.uid for user in own.values()}) == len({user.gid for user in own.values()}) == 4
    assert all(first <= number < first + count for user in own.values() for number in user)
    for user, uid in (("4711", 4711), ("nobody", 65534)):
        named = privileges.role_users("/var/lib/dayfly", user)
        assert named["control"].uid == uid
        assert {role: named[role] for role in own if role != "control"} == {role: own[role] for role in own if role != "control"}


@pytest.mark.root
@pytest.mark.parametrize("user", ["root", "0", "no-such-user-here", "gateway"])
def test_users_that_would_take_a_wall_away_are_refused(user: str) -> None:
    """Root, strangers, and the uids that this platform's other processes have."""
    if user == "gateway":
        user = str(privileges.role_users("/var/lib/dayfly")["gateway"].uid)
    with pytest.raises(ValueError):
        privileges.role_users("/var/lib/dayfly", user)


@pytest.mark.root
@pytest.mark.parametrize("uid_map", ["", "0 100000 65536\n"])
def test_two_platforms_share_no_user(uid_map: str) -> None:
    """Neither roles with roles, nor roles with instances, in one data directory or two; also where only small uids are mapped."""
    places = ("/var/lib/dayfly", "/srv/other")
    roles = [user.uid for place in places for user in privileges.role_users(place, uid_map=uid_map).values()]
    assert len(set(roles)) == 8
    for place in places:
        first, count = privileges.instance_uids(place, uid_map)
        assert not [uid for uid in roles if first <= uid < first + count]
    spans = sorted(privileges.uid_block(place, uid_map) for place in places)
    assert sum(spans[0]) <= spans[1][0]


def test_an_ordinary_user_is_every_role() -> None:
    """Without root there is nobody else to become."""
    program = "from dayfly.sandbox import privileges; print(len(set(privileges.role_users('/tmp/x', 'anybody').values())))"
    identity = {"user": 64_321, "group": 64_321, "extra_groups": []} if os.geteuid() == 0 else {}
    python, environment = python_for(identity.get("user", os.getuid()))
    if not Path(python).exists():
        pytest.skip("this machine has no interpreter that an ordinary user can reach")
    assert subprocess.run([python, "-c", program], env=environment, check=True, capture_output=True, **identity).stdout == b"1\n"


def test_uid_blocks() -> None:
    """Each data directory has its own block; where only small uids are mapped the block is small."""
    everything = "0 0 4294967295\n"
    first, count = privileges.uid_block("/var/lib/dayfly", everything)
    assert count == privileges.BLOCK
    assert 0x10000000 <= first < 0x70000000
    assert privileges.uid_block("/var/lib/dayfly", everything) == (first, count)
    assert privileges.uid_block("/srv/other", everything)[0] != first
    small, size = privileges.uid_block("/var/lib/dayfly", "0 100000 65536\n")
    assert 0 < small < small + size <= 65536


def test_blocked_folders() -> None:
    """The topmost folder that a user cannot enter is found, with owner, group and others each by their own bits."""
    own = os.getuid() or 4711
    with tempfile.TemporaryDirectory(prefix="dayfly-privileges-", dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "a" / "b" / "c").mkdir(parents=True)
        (top / "a").chmod(0o750)
        (top / "a" / "b").chmod(0o700)
        if os.geteuid() == 0:
            os.chown(top / "a", own, own)
        path = str(top / "a" / "b" / "c")
        assert privileges.blocked_folders([path], own + 1, own + 1) == [str(top / "a")]
        assert str(top / "a") not in privileges.blocked_folders([path], own, own + 1)
