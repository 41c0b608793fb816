"""What is left where a machine gives less: in an ordinary container (root, no namespaces) and bare (a user, no namespaces). And what
`isolation = "strict"` makes of each."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dayfly.core.wire.node import Kill
from dayfly.node.server import IDLE_SECONDS
from tests.node.conftest import MODES, ORDINARY_UID
from tests.node.handlers import ECHO, LOOK
from tests.node.rig import SECONDS_MAX, Client, Instance, Rig, python_for

LEFT = ["container", "bare"]
REFUSED = ("PermissionError", "FileNotFoundError", "NotADirectoryError")


@pytest.fixture
def two(rig: Rig, client: Client) -> tuple[Instance, Instance, int]:
    """An instance with a secret, another function's that looks around, and the first one's pid."""
    victim = client.run(rig.code(LOOK + "\nNAME = 'victim'\n"), secrets={"key": b"hidden"}, boot={"secrets": ["key"]})
    return victim, client.run(rig.code(LOOK)), client.wait_accepted(victim.name).pid


@pytest.mark.parametrize("rig", LEFT, indirect=True)
def test_files_are_kept_apart(rig: Rig, two: tuple[Instance, Instance, int]) -> None:
    """Not the host's, not the platform's, not another function's code, secrets or scratch folder; its own are there."""
    victim, look, _ = two
    scratch, code = str(victim.call("os.environ['TMPDIR']")), str(victim.call("os.getcwd()"))
    for path in ("/etc/shadow", "/etc/passwd", "/home", "/", rig.layout.data, rig.layout.code, code, f"{code}/handler.py", scratch,
                 f"{scratch}/secrets/key", rig.layout.node_socket, "/sys/kernel", "/proc/self/environ"):  # fmt: skip
        assert str(look.call(f"readable({path!r})")).startswith(REFUSED), path
    for path in ("/tmp", "/dev/shm", "/var/tmp", scratch, str(look.call("os.getcwd()")), rig.layout.run):
        assert str(look.call(f"writable({path!r})")).startswith(REFUSED), path
    assert look.call("writable(os.environ['TMPDIR'])") is True
    assert look.call("readable('handler.py')")


@pytest.mark.parametrize("rig", LEFT, indirect=True)
def test_another_instance_cannot_be_read_traced_or_ended(rig: Rig, two: tuple[Instance, Instance, int]) -> None:
    """Where there is no pid namespace it can be counted, and no more; in a container by its uid, bare by Landlock and the filter."""
    victim, look, pid = two
    for name in ("environ", "maps", "mem", "fd", "cwd", "root", "status", "cmdline"):
        assert str(look.call(f"readable('/proc/{pid}/{name}')")).startswith(REFUSED), name
    assert look.call(f"call('ptrace', 16, {pid}, 0, 0)") == 1
    assert look.call(f"raw(310, {pid}, 0, 0, 0, 0, 0)") == 1, "process_vm_readv"
    assert look.call(f"raw(302, {pid}, 7, b'\\0' * 16, 0)") == 1, "prlimit64 of another process"
    for number in (signal.SIGTERM, signal.SIGSTOP, 0):
        assert str(look.call(f"os.kill({pid}, {int(number)})")).startswith("PermissionError"), number
    assert victim.call("1 + 1") == 2


@pytest.mark.parametrize("rig", LEFT, indirect=True)
def test_no_egress_holds_by_the_filter(rig: Rig, two: tuple[Instance, Instance, int]) -> None:
    """Internet sockets cannot be made; what others listen on by an abstract name cannot be reached."""
    victim, look, _ = two
    assert {look.call(f"family({number})") for number in (2, 10)} == {"OSError 97"}
    victim.call("globals().update(s=socket.socket(socket.AF_UNIX)) or s.bind(b'\\0dayfly-test') or s.listen()")
    assert str(look.call("socket.socket(socket.AF_UNIX).connect(b'\\0dayfly-test')")).startswith("PermissionError")


@pytest.mark.parametrize("rig", LEFT, indirect=True)
def test_nothing_of_an_instance_stays(rig: Rig, client: Client, two: tuple[Instance, Instance, int]) -> None:
    """Its scratch folder is gone with it, secrets and all."""
    victim, _, _ = two
    scratch = Path(str(victim.call("os.environ['TMPDIR']")))
    assert scratch.is_dir()
    client.send(Kill(victim.name))
    client.wait_exited(victim.name)
    assert not scratch.exists()


def _wait_spare(rig: Rig, client: Client) -> None:
    """Until the node has had a zygote that is ready, and time to look after it: it serves a client only in between."""
    deadline = time.monotonic() + SECONDS_MAX
    while not [entry for entry in Path("/proc").glob("[0-9]*/comm") if _is_zygote_of(entry, rig.process.pid)]:
        assert time.monotonic() < deadline, "no zygote"
        client.ask()
    with contextlib.suppress(subprocess.TimeoutExpired):
        rig.process.wait(IDLE_SECONDS * 2)  # it looks after what can wait once a second: it must survive that
    assert rig.process.poll() is None, rig.text()


def _is_zygote_of(comm: Path, node: int) -> bool:
    with contextlib.suppress(OSError):
        fields = (comm.parent / "stat").read_text().rpartition(")")[2].split()
        return comm.read_text() == "dayfly-zygote\n" and int(fields[1]) == node
    return False


@pytest.mark.parametrize(
    ("mode", "lacking"),
    [("user", ("uid",)), ("container", ("pidns", "mountns", "netns")), ("bare", ("pidns", "mountns", "netns", "uid"))],
)
def test_strict_refuses_every_start_where_a_wall_is_missing(mode: str, lacking: tuple[str, ...]) -> None:
    """The refusal has its code and names each wall; prepared sandboxes are no way around it."""
    settings = dict(MODES[mode])
    if os.geteuid() != 0:
        pytest.skip("needs root to make this situation")
    if not Path(python_for(ORDINARY_UID)[0]).exists():
        pytest.skip("this machine has no interpreter that an ordinary user can reach")
    rig = Rig(isolation="strict", **settings)  # type: ignore[arg-type]
    try:
        client, code = rig.client(), rig.code(ECHO)
        for _ in range(2):
            exited = client.wait_exited(client.start(code).name)
            assert (exited.reason, exited.refusal) == ("refused", "isolation_refused")
            assert all(wall in exited.detail for wall in lacking), exited.detail
        _wait_spare(rig, client)
        assert client.wait_exited(client.start(code).name).refusal == "isolation_refused"
    finally:
        rig.close()


@pytest.mark.root
def test_strict_as_root_refuses_nothing_that_it_can_give(tmp_path: Path) -> None:
    """All walls stand here: an instance starts, with a ceiling of processor time and with every kind of egress."""
    rig = Rig(isolation="strict")
    try:
        client, code = rig.client(), rig.code(ECHO)
        for egress, rules in (("none", ()), ("internet", ()), ("list", ("a.test",))):
            instance = client.run(code, egress=egress, egress_rules=rules, cpu_millicores=500)
            assert client.wait_accepted(instance.name).missing == ()
    finally:
        rig.close()
