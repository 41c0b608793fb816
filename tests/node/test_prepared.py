"""Prepared sandboxes: who is served by one, that it is no weaker than a fork, and what happens to those that nobody takes."""

import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from dayfly.core.wire import egress as wire
from dayfly.core.wire.node import Kill
from dayfly.sandbox.door import Door, Spaces
from tests.node.handlers import ECHO, LOOK
from tests.node.rig import SECONDS_MAX, Client, Instance, Rig
from tests.node.test_bad_days import commands, gone, wait_until

WALLED = ["root", "user"]


def waiting_pids(rig: Rig) -> list[int]:
    """Processes that stand ready: children of zygotes whose name is still the zygote's."""
    zygotes = {pid for pid in commands("dayfly-zygote") if parent(pid) == rig.process.pid}
    return [pid for pid in commands("dayfly-zygote") if parent(pid) in zygotes]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def run_prepared(client: Client, code: str, **settings: object) -> Instance:
    """An instance that came from a sandbox that stood ready."""
    found: list[Instance] = []

    def comes_prepared() -> bool:
        instance = client.run(code, **settings)
        found.append(instance)
        if instance.origin != "prepared":
            client.send(Kill(instance.name))
            client.wait_exited(instance.name)
        return instance.origin == "prepared"

    wait_until(comes_prepared, "no start was served by a prepared sandbox")
    return found[-1]


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_an_instance_from_a_prepared_sandbox_is_what_a_forked_one_is(rig: Rig, client: Client) -> None:
    """Its own files and nobody else's, its name, its user, its limits, an empty /tmp, nothing open that is not its own."""
    look = run_prepared(client, rig.code(LOOK), memory_mb=64)
    assert sorted(look.call("os.listdir('/var/task')")) == ["handler.py"]  # type: ignore[call-overload]
    assert look.call("os.getcwd()") == "/var/task"
    assert look.call("os.listdir('/tmp')") == []
    assert str(look.call("writable('/var/task')")).split()[0] == "OSError"
    assert look.call("os.getpid()") == 1
    assert look.call("os.uname().nodename") == look.name
    pid = client.wait_accepted(look.name).pid
    found = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert set(found) <= {0, 1, 2, 3, 4, 5, 6}, found
    assert found[1] == found[2]
    assert found[1].startswith("pipe:")
    status = look.call("status()")
    assert isinstance(status, dict)
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert (int(status["NoNewPrivs"]), int(status["Seccomp"])) == (1, 2)
    if rig.uid == 0:
        assert int(status["Uid"].split()[0]) >= 0x10000000
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        group = next(line.split(":")[2] for line in groups if ":memory:" in line or line[:2] == "0:")
        folders = [Path(f"/sys/fs/cgroup{place}{group}") for place in ("", "/memory", "/unified")]  # not a walk: others come and go
        limits = [path for folder in folders for path in (folder / "memory.limit_in_bytes", folder / "memory.max") if path.exists()]
        assert {int(path.read_text()) for path in limits} == {64 << 20}


@pytest.mark.root
def test_a_ceiling_of_processor_time_comes_with_the_owner(rig: Rig, client: Client) -> None:
    """A sandbox that stands ready has none; its owner's holds from then on."""
    instance = run_prepared(client, rig.code(ECHO), cpu_millicores=250)
    groups = Path(f"/proc/{client.wait_accepted(instance.name).pid}/cgroup").read_text().splitlines()
    paths = {name: line.split(":", 2)[2] for line in groups for name in line.split(":", 2)[1].split(",")}
    if "cpu" not in paths:
        pytest.skip("not a machine with cgroup v1")
    quotas = [path / Path(paths["cpu"]).name / "cpu.cfs_quota_us" for path in rig.cgroups()]
    assert [path.read_text().strip() for path in quotas if path.exists()] == ["25000"]


@pytest.mark.root
def test_the_broker_hears_what_an_instance_may_reach_once_it_has_an_owner(own_rig: Rig) -> None:
    """Forked and prepared alike: one opening packet each, with the owner's list; for a sandbox without an owner there is none."""
    rules, client = ("a.test:443", "93.184.216.0/24"), own_rig.client()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(own_rig.layout.egress_socket)
        door.listen()
        door.settimeout(SECONDS_MAX)
        forked = client.run(own_rig.code(ECHO), egress="list", egress_rules=rules)
        node, _ = door.accept()
        with node:
            node.settimeout(SECONDS_MAX)
            prepared = run_prepared(client, own_rig.code(ECHO), egress="list", egress_rules=rules)
            node.setblocking(False)
            asked = []
            while packet := _next_packet(node):
                asked.append(packet)
    opened = [request for request in asked if request.kind == wire.OPEN_STEERED]
    assert forked.origin != "prepared"
    assert prepared.origin == "prepared"
    assert len(opened) == len(client.instances), "somebody without an owner was let out"
    assert {(request.egress, request.rules) for request in opened} == {("list", rules)}


def _next_packet(node: socket.socket) -> wire.Request | None:
    try:
        packet, descriptors, _, _ = socket.recv_fds(node, wire.PACKET_BYTES_MAX, 2)
    except BlockingIOError:
        return None
    for descriptor in descriptors:
        os.close(descriptor)
    return wire.parsed_request(packet) if packet else None


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_what_its_plan_cannot_serve_is_forked(rig: Rig, client: Client) -> None:
    """Secrets are written while the child still may; another size of /tmp is another kind, which stands ready once it was asked for."""
    run_prepared(client, rig.code(ECHO))
    assert client.run(rig.code(ECHO), secrets={"key": b"value"}, boot={"secrets": ["key"]}).origin == "fork"
    assert client.run(rig.code(ECHO), tmp_mb=17).origin == "fork"
    look = run_prepared(client, rig.code(LOOK), tmp_mb=17)
    assert look.call("os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize") == 17 << 20


def test_each_namespace_has_zygotes_of_its_own(rig: Rig, client: Client) -> None:
    """Two instances of one namespace have one parent, and so the same address layout; another namespace's has another."""
    code = rig.code(LOOK)
    pids = [client.wait_accepted(client.run(code, tenant=tenant).name).pid for tenant in ("one", "one", "two")]
    first, second, third = map(parent, pids)
    assert first == second != third


def test_killed_sandboxes_that_wait_are_nobodys_loss(own_rig: Rig) -> None:
    """kill -9 of everything that stands ready: the next starts work, and others stand ready again."""
    client = own_rig.client()
    code = own_rig.code(ECHO)
    run_prepared(client, code)
    victims = [pid for pid in waiting_pids(own_rig) if pid not in {accepted.pid for accepted in client.accepted.values()}]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(victims), "killed sandboxes are still there")
    assert client.run(code).call(1) == 1
    assert run_prepared(client, code).call(2) == 2


def test_nothing_stands_ready_after_the_node(own_rig: Rig) -> None:
    """An ordered end and a kill -9 both take the waiting sandboxes along, with their groups."""
    client = own_rig.client()
    run_prepared(client, own_rig.code(ECHO))
    before = waiting_pids(own_rig)
    assert before
    own_rig.kill()
    wait_until(lambda: gone(before), "prepared sandboxes outlived the node")
    own_rig.start()
    client = own_rig.client()
    run_prepared(client, own_rig.code(ECHO))
    before = waiting_pids(own_rig)
    assert own_rig.stop() == 0
    wait_until(lambda: gone(before), "prepared sandboxes outlived the node")
    assert not own_rig.cgroups()


def test_each_interpreter_has_a_tree_of_its_own(rig: Rig, client: Client) -> None:
    """Every one that the machine has: its version, its own zygote, and sandboxes that stand ready."""
    parents = {}
    for runtime in client.ask().runtimes:
        look = run_prepared(client, rig.code(LOOK), runtime=runtime)
        assert look.call("'python%d.%d' % sys.version_info[:2]") == runtime
        parents[runtime] = parent(client.wait_accepted(look.name).pid)
    assert len(set(parents.values())) == len(parents)


def test_nobody_goes_through_a_door_that_is_closed() -> None:
    """What would be done inside is not done at all: not here, on the machine's own files, either."""
    door, spaces, own, made = Door(), Spaces("self"), Spaces("self"), []
    spaces.close()
    with pytest.raises(ProcessLookupError):
        door.visit(spaces, [partial(lambda: made.append(1) or 0)])
    with pytest.raises(ProcessLookupError):
        door.furnish(spaces, [], "name")
    door.close()
    with pytest.raises(ProcessLookupError):
        door.visit(own, [partial(lambda: made.append(1) or 0)])
    own.close()
    assert made == []


@pytest.mark.root
def test_the_node_mounts_where_the_machine_does_not_see_it(rig: Rig) -> None:
    """Its mount namespace is its own, whatever it does there by mistake."""
    assert os.readlink(f"/proc/{rig.process.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert os.readlink(f"/proc/{rig.process.pid}/ns/uts") != os.readlink("/proc/self/ns/uts")
