"""Started by root, control, gateway and egress broker are three users: whoever takes one of them over has not got the others."""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.harness import Platform

pytestmark = pytest.mark.root

WHO = "import os\ndef handler(event, context):\n    return [os.getuid(), os.getgid()]\n"
ROLES = ("control", "gateway", "egress")


class Identity(NamedTuple):
    """What the kernel says a process is."""

    uids: frozenset[int]
    gids: frozenset[int]
    groups: frozenset[int]


def identity(pid: int) -> Identity:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: frozenset(map(int, value.split())) for name, _, value in lines if name in ("Uid", "Gid", "Groups")}
    return Identity(found["Uid"], found["Gid"], found["Groups"])


def roles(platform: Platform) -> dict[str, int]:
    """The uid of each unprivileged role, which is its gid too, and its only one."""
    pids = platform.roles()
    found = {}
    for role in ROLES:
        uids, gids, groups = identity(pids[role])
        assert uids == gids and len(uids) == 1 and not groups, role
        found[role] = next(iter(uids))
    return found


def as_user(uid: int, action: Callable[[], object]) -> object:
    """What `action` returns in a process of this user."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def may_list(path: Path) -> bool:
    try:
        return bool(os.listdir(path))
    except PermissionError:
        return False


def may_read(path: Path) -> bool:
    try:
        return path.read_bytes() is not None
    except PermissionError:
        return False


def may_connect(path: Path) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as one:
            try:
                one.connect(str(path))
                return True
            except PermissionError:
                return False
            except OSError:
                continue  # the other kind of socket
    raise AssertionError(f"{path} is no socket that somebody listens at")


@pytest.fixture
def own(new_platform: Callable[..., Platform]) -> Platform:
    """A platform with a function and a secret."""
    platform = new_platform()
    platform.cli("secret", "set", "CANARY", stdin="sings")  # makes the key
    platform.put("who", WHO)
    return platform


def test_each_role_is_another_user(own: Platform) -> None:
    """Three roles, three users, and the instances' are others still."""
    users = roles(own)
    assert len(set(users.values())) == 3
    uid, gid = own.invoke("who").json()
    assert 0 not in users.values() and not {uid, gid} & set(users.values())


def test_control_s_files_are_control_s_alone(own: Platform) -> None:
    """Neither the gateway's user nor the broker's can list or read what lies below DATA/control, nor write where code comes from."""
    users = roles(own)
    files = [path for path in (own.data / "control").iterdir() if path.is_file()]
    assert {"dayfly.db", "secret.key"} <= {path.name for path in files}
    for role in ("gateway", "egress"):
        assert not as_user(users[role], lambda: may_list(own.data / "control")), role
        assert as_user(users[role], lambda: [path.name for path in files if may_read(path)]) == [], role
        for area in ("code", "layers", "builds"):
            assert not as_user(users[role], lambda area=area: os.access(own.data / area, os.W_OK | os.R_OK)), (role, area)
    assert as_user(users["control"], lambda: sorted(path.name for path in files if may_read(path))) == sorted(p.name for p in files)


def test_every_socket_is_for_its_own_callers(own: Platform) -> None:
    """Who may connect where; a stranger and an instance's user nowhere."""
    users = roles(own) | {"instance": own.invoke("who").json()[0], "stranger": 12_345}
    run = own.data / "run"
    expected = {
        "control/link.sock": {"control", "gateway"},
        "control/api.sock": {"control", "gateway"},
        "egress/egress.sock": {"egress"},
        "node.sock": {"control", "gateway"},
    }
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_socket()} == set(expected)
    for name, allowed in expected.items():
        assert {who for who, uid in users.items() if as_user(uid, lambda name=name: may_connect(run / name))} == allowed, name
        assert stat.S_IMODE((run / name).stat().st_mode) & 0o007 == 0


def test_a_role_can_neither_trace_nor_signal_another(own: Platform) -> None:
    """Another user's process is out of reach: its memory and descriptors, and the signals that would end it."""
    users, pids = roles(own), own.roles()

    def reach(pid: int) -> list[str]:
        got = [name for name in ("environ", "mem", "fd", "root") if _opens(Path(f"/proc/{pid}/{name}"))]
        try:
            os.kill(pid, 0)
        except PermissionError:
            return got
        return [*got, "kill"]

    for role in ROLES:
        for other in (*ROLES, "node"):
            if other != role:
                assert as_user(users[role], lambda other=other: reach(pids[other])) == [], (role, other)


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def test_what_works_for_functions_comes_after_what_carries_every_call(own: Platform) -> None:
    """Where the processors are busy: the gateway before control, and both before the broker and an instance."""
    own.put("nice", "import os\ndef handler(event, context):\n    return os.nice(0)\n")
    mine = os.nice(0)
    nice = {role: os.getpriority(os.PRIO_PROCESS, pid) - mine for role, pid in own.roles().items()}
    assert nice["gateway"] == nice["node"] == 0
    assert 0 < nice["control"] < nice["egress"]
    assert own.invoke("nice").json() - mine == nice["egress"]


def test_two_platforms_share_no_user(new_platform: Callable[..., Platform]) -> None:
    """Neither roles nor instances: who breaks one platform is nobody in the other."""
    one, other = new_platform(), new_platform()
    everybody: list[int] = []
    for platform in (one, other):
        platform.put("who", WHO)
        everybody += [*roles(platform).values(), platform.invoke("who").json()[0]]
        pids = platform.roles()
        assert identity(pids["node"]).uids == {0}, "the one that makes sandboxes"
    assert len(set(everybody)) == 8
    for uid in roles(one).values():
        assert not as_user(uid, lambda: may_list(other.data / "control"))


def test_the_user_that_is_named_is_control_s(new_platform: Callable[..., Platform]) -> None:
    """`user` says who control is; the others stay users of their own, and the directory goes from one to the other and back."""
    platform = new_platform()
    platform.put("who", WHO)
    before = roles(platform)
    platform.stop()
    platform.settings = {"user": "64123"}
    platform.start()
    assert roles(platform) == before | {"control": 64123}
    assert platform.invoke("who").status == 200
    assert platform.put("who", WHO + "\n")["version"] == 2, "control can still write"
    owners = {path.lstat().st_uid for area in ("control", "code") for path in (platform.data / area).rglob("*")}
    assert owners == {64123}
    platform.stop()
    platform.settings = {}
    platform.start()
    assert roles(platform) == before
    assert platform.invoke("who").status == 200


def test_a_directory_of_the_time_of_one_user_is_taken_over(new_platform: Callable[..., Platform]) -> None:
    """Everything of gateway and control belonged to uid 64020 once: such a directory works at the next start, secrets and all."""
    platform = new_platform()
    platform.put("who", WHO)
    platform.stop()
    for area in ("control", "code", "layers", "builds"):
        for path in (platform.data / area, *(platform.data / area).rglob("*")):
            os.chown(path, 64020, 64020)
    platform.start()
    assert platform.invoke("who").status == 200
    assert platform.put("who", WHO + "\n")["version"] == 2
    found = [path for area in ("control", "code", "layers", "builds") for path in (platform.data / area).rglob("*")]
    assert {path.lstat().st_uid for path in found} == {roles(platform)["control"]}
