"""What happens when an instance, a zygote, the node or a client ends badly: limits hold, others go on, nothing is left behind."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dayfly.core.wire import node as wire
from tests.node.handlers import ECHO
from tests.node.rig import SECONDS_MAX, Client, Rig

WALLED = ["root", "user"]
ALL = ["root", "user", "container", "bare"]

FORK_BOMB = """
import os, time
def handler(event, context):
    children = 0
    try:
        while children < 500:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            children += 1
    except OSError:
        pass
    return children
"""
MEMORY_BOMB = """
def handler(event, context):
    blocks = []
    for _ in range(600):
        blocks.append(bytearray(b"x") * (1 << 20))
    return len(blocks)
"""
FILL_TMP = """
import os
def handler(event, context):
    written = 0
    try:
        with open("/tmp/large", "wb", buffering=0) as file:
            while written < 1 << 28:
                written += file.write(b"x" * 65536)
    except OSError as error:
        code = error.errno
    os.unlink("/tmp/large")
    names = 0
    try:
        while names < 100_000:
            open(f"/tmp/{names}", "w").close()
            names += 1
    except OSError:
        pass
    return [written, code, names]
"""
GRANDCHILDREN = """
import os, time
def handler(event, context):
    for number in range(3):
        if os.fork() == 0:
            try:
                os.setsid()
            except OSError:
                pass
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    return True
"""
LEAVE = "import os\ndef handler(event, context):\n    os._exit(event)\n"
BUSY = "def handler(event, context):\n    while True:\n        pass\n"


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Ask again until it holds or the deadline is over."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def commands(text: str) -> list[int]:
    """Processes whose command line or name holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode() + (entry / "comm").read_text()
            except OSError:
                continue
            if text in line:
                found.append(int(entry.name))
    return found


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            children += family_of(int(child))
    return [pid, *children]


def gone(pids: list[int]) -> bool:
    """Whether none of these processes is there (the tests' own zombies count as gone)."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            return False
    return True


@pytest.mark.root
def test_memory_bomb_is_killed(rig: Rig, client: Client) -> None:
    """An instance over its memory is killed, told apart as `oom`, with its peak; the others do not notice."""
    bystander = client.run(rig.code(ECHO))
    bomb = client.run(rig.code(MEMORY_BOMB), memory_mb=64)
    bomb.send(None)
    exited = client.wait_exited(bomb.name)
    assert exited.reason == "oom"
    assert 40 << 20 < exited.memory_peak_bytes <= 64 << 20
    assert bystander.call(1) == 1


@pytest.mark.parametrize("rig", ["root", "user", "container"], indirect=True)
def test_fork_bomb_is_bounded(rig: Rig, client: Client) -> None:
    """An instance gets no more than its 64 processes, and a kill ends them all."""
    bomb = client.run(rig.code(FORK_BOMB))
    children = bomb.call()
    assert isinstance(children, int)
    assert 40 < children < 64
    family = family_of(client.wait_accepted(bomb.name).pid)
    assert len(family) == children + 1
    client.send(wire.Kill(bomb.name))
    client.wait_exited(bomb.name)
    wait_until(lambda: gone(family), "children of a killed instance are alive")


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_tmp_is_bounded(rig: Rig, client: Client) -> None:
    """/tmp holds as many bytes and files as it was given, then says it is full, and the instance goes on."""
    filler = client.run(rig.code(FILL_TMP), tmp_mb=8, memory_mb=256)
    written, code, names = filler.call()  # type: ignore[misc]
    assert written == 8 << 20
    assert code == 28  # ENOSPC
    assert 1000 < names < 8 * 256
    assert filler.call() is not None


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_grandchildren_end_with_their_instance(rig: Rig, client: Client) -> None:
    """Processes that fork away from the instance are gone when `Exited` comes, in every situation."""
    zygotes = [pid for pid in commands("dayfly-zygote") if rig.process.pid in (pid, _parent(pid))]
    parent = client.run(rig.code(GRANDCHILDREN))
    pid = client.wait_accepted(parent.name).pid
    assert parent.call() is True
    scope = [pid, *zygotes]
    wait_until(lambda: len(_adopted(scope, pid)) >= 3, "the grandchildren did not appear")
    family = _adopted(scope, pid)
    client.send(wire.Kill(parent.name))
    client.wait_exited(parent.name)
    wait_until(lambda: gone([pid, *family]), "grandchildren outlived their instance")


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _adopted(scope: list[int], leader: int) -> list[int]:
    """Children of these processes that belong to the leader: below it, or in its process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in scope:
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == leader or int(fields[2]) == leader:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_exit_status_is_told(rig: Rig, client: Client) -> None:
    """An instance that leaves on its own is reported with its exit status."""
    leaver = client.run(rig.code(LEAVE))
    leaver.send(3)
    exited = client.wait_exited(leaver.name)
    assert (exited.reason, exited.code) == ("exit", 3)


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_a_client_that_leaves_takes_its_instances_along(rig: Rig, client: Client) -> None:
    """Closing a connection ends the instances it asked for, busy ones too, and nobody else's."""
    other = rig.client()
    mine, theirs = client.run(rig.code(ECHO)), other.run(rig.code(BUSY))
    theirs.send(None)
    pid = other.wait_accepted(theirs.name).pid
    other.close()
    rig.clients.remove(other)
    wait_until(lambda: gone([pid]), "an instance outlived its client")
    assert mine.call("still here") == "still here"


def test_a_killed_zygote_is_replaced(own_rig: Rig) -> None:
    """kill -9 of a zygote: its instances, even busy ones, are gone and reported, and the next start works."""
    client = own_rig.client()
    busy, idle = client.run(own_rig.code(BUSY)), client.run(own_rig.code(ECHO))
    busy.send(None)
    pids = [client.wait_accepted(instance.name).pid for instance in (busy, idle)]
    zygote = _parent(pids[0])
    os.kill(zygote, signal.SIGKILL)
    for instance in (busy, idle):
        assert client.wait_exited(instance.name).reason == "signal"
    wait_until(lambda: gone([zygote, *pids]), "instances outlived their zygote")
    assert client.run(own_rig.code(ECHO)).call(1) == 1


@pytest.mark.parametrize("mode", ALL)
def test_a_killed_node_leaves_nothing_alive(mode: str) -> None:
    """kill -9 of the node: no zygote, instance or grandchild survives; a new node cleans up what is left and works."""
    from tests.node.conftest import made

    rig = made(mode)
    try:
        client = rig.client()
        busy, parent = client.run(rig.code(BUSY)), client.run(rig.code(GRANDCHILDREN))
        busy.send(None)
        parent.call()
        family = family_of(rig.process.pid)
        family += _adopted(family, client.wait_accepted(parent.name).pid)
        assert len(family) >= 4
        rig.kill()
        wait_until(lambda: gone(family), "a process outlived the node")
        assert rig.process.stdout is not None
        rig.process.stdout.close()
        os.close(rig.lifeline)
        rig.start()
        assert rig.client().run(rig.code(ECHO)).call(1) == 1
    finally:
        rig.close()


@pytest.mark.parametrize("mode", ALL)
def test_an_ended_node_leaves_nothing(mode: str) -> None:
    """SIGTERM: the node ends with status 0, and neither a process nor a control group nor a mount nor a socket is left."""
    from tests.node.conftest import made

    rig = made(mode)
    try:
        client = rig.client()
        client.run(rig.code(ECHO), secrets={"a": b"b"})
        client.run(rig.code(BUSY)).send(None)
        family = family_of(rig.process.pid)
        assert rig.stop() == 0, rig.text()
        assert gone(family)
        assert rig.cgroups() == []
        assert str(rig.folder) not in Path("/proc/self/mountinfo").read_text()
        assert not Path(rig.layout.node_socket).exists()
        scratch = Path(rig.layout.run, "scratch")
        assert not scratch.exists() or not list(scratch.iterdir())
    finally:
        rig.close()


def test_the_lifeline_ends_the_node(own_rig: Rig) -> None:
    """When the supervisor's end of the pipe closes, the node ends in order."""
    client = own_rig.client()
    pid = client.wait_accepted(client.run(own_rig.code(ECHO)).name).pid
    os.close(own_rig.lifeline)
    try:
        assert own_rig.process.wait(SECONDS_MAX) == 0
        wait_until(lambda: gone([pid]), "an instance outlived the node")
    finally:
        own_rig.lifeline = os.open("/dev/null", os.O_RDONLY)


@pytest.mark.root
def test_strangers_are_refused(rig: Rig) -> None:
    """Only root, control and the gateway get a connection: others fail at the socket's mode, and at the check behind it."""
    for uid in (12345, rig.users["egress"].uid):
        with pytest.raises(PermissionError):
            rig.client(uid=uid)
    Path(rig.layout.node_socket).chmod(0o666)
    try:
        for uid in (12345, rig.users["egress"].uid):
            stranger = rig.client(uid=uid)
            with pytest.raises((EOFError, ConnectionError)):
                stranger.ask()
    finally:
        Path(rig.layout.node_socket).chmod(0o660)
    assert rig.client(uid=rig.users["control"].uid).ask().instances >= 0


@pytest.mark.root
def test_each_role_may_ask_only_for_what_it_needs(rig: Rig) -> None:
    """The gateway starts instances and control does not; control asks and builds and the gateway does not: else the connection ends."""
    gateway = rig.client(uid=rig.users["gateway"].uid)
    assert gateway.run(rig.code(ECHO)).call(1) == 1
    with pytest.raises((EOFError, ConnectionError)):
        gateway.ask()
    builder = rig.client(uid=rig.users["gateway"].uid)
    with pytest.raises((EOFError, ConnectionError)):
        builder.send(wire.Build(layer="c" * 64, runtime="python3.11", timeout_seconds=5))
        builder.receive()
    control = rig.client(uid=rig.users["control"].uid)
    with pytest.raises((EOFError, ConnectionError)):
        control.run(rig.code(ECHO))


BROKEN = [b"{}", b"\xff\xfe", b'{"type":"start"}', b'{"type":"kill","instance":"../x"}', b'{"type":"ask","more":1}', b"x" * 20_000]


@pytest.mark.parametrize("packet", BROKEN)
def test_a_broken_message_ends_only_its_connection(rig: Rig, client: Client, packet: bytes) -> None:
    """What is not exactly a message drops the client that sent it, with its instances; others go on."""
    other = client.run(rig.code(ECHO))
    broken = rig.client()
    instance = broken.run(rig.code(ECHO))
    pid = broken.wait_accepted(instance.name).pid
    broken.socket.send(packet)
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            broken.receive()
    wait_until(lambda: gone([pid]), "its instance outlived it")
    assert other.call(2) == 2


def open_descriptors(rig: Rig) -> int:
    return len(list(Path(f"/proc/{rig.process.pid}/fd").iterdir()))


def test_descriptors_must_be_complete(rig: Rig, client: Client) -> None:
    """A start with too few descriptors is refused; one with too many ends the connection; none of them stays open in the node."""
    client.ask()
    before = open_descriptors(rig)
    read, write = os.pipe()
    runtime = next(iter(client.ask().runtimes))
    for number in range(60):
        name = f"few-{number}"
        client.send(wire.Start(name, "default", runtime, rig.code(ECHO), "", 64, 8, "none"), [read, write])
        assert client.wait_exited(name).reason == "refused"
    many = rig.client()
    many.send(wire.Start("many", "default", runtime, rig.code(ECHO), "", 64, 8, "none"), [read] * 20)
    with pytest.raises((EOFError, ConnectionError)):
        many.receive()
    os.close(read)
    os.close(write)
    client.ask()
    assert open_descriptors(rig) < before + 60, "descriptors leak (the node's pools alone hold some tens)"


def test_an_id_is_used_once_at_a_time(rig: Rig, client: Client) -> None:
    """A second start with a living instance's id is refused and does not disturb the first."""
    first = client.run(rig.code(ECHO), instance="same")
    second = client.start(rig.code(ECHO), instance="same")
    assert client.wait_exited("same").reason == "refused"
    del client.exited["same"]
    assert first.call(5) == 5
    client.send(wire.Kill("same"))
    assert client.wait_exited("same").reason == "signal"
    second.read_output()


def test_an_unknown_interpreter_is_refused(rig: Rig, client: Client) -> None:
    """A runtime that is not on this machine is refused with the list of those that are."""
    exited = client.wait_exited(client.start(rig.code(ECHO), runtime="python3.99").name)
    assert exited.reason == "refused"
    assert all(name in exited.detail for name in client.ask().runtimes)


def test_a_kill_before_the_fork_is_not_lost(rig: Rig, client: Client) -> None:
    """Start and Kill sent back to back end in exactly one Exited; unknown and ended ids are ignored."""
    instance = client.start(rig.code(ECHO))
    client.send(wire.Kill(instance.name))
    client.send(wire.Kill("never-heard-of"))
    assert client.wait_exited(instance.name).reason == "signal"
    client.send(wire.Kill(instance.name))
    assert client.ask().instances >= 0


def test_many_starts_at_once(rig: Rig, client: Client) -> None:
    """Forty starts sent in one go all become instances, and all end. Namespaces and groups are kept to be used again, within bounds: a
    second round adds no descriptor to the node's."""
    code = rig.code(ECHO)
    counts = []
    for _ in range(3):
        instances = [client.start(code) for _ in range(40)]
        for instance in instances:
            instance.boot()
        for number, instance in enumerate(instances):
            instance.ready()
            assert instance.call(number) == number
        for instance in instances:
            client.send(wire.Kill(instance.name))
        for instance in instances:
            assert client.wait_exited(instance.name).reason == "signal"
        assert client.ask().instances == 0
        counts.append(open_descriptors(rig))
    wait_until(lambda: open_descriptors(rig) <= counts[0] + 20, f"descriptors leak: {counts}")


def test_a_client_that_does_not_read_is_bounded(rig: Rig, client: Client) -> None:
    """A connection that asks and never reads is dropped at a named maximum instead of filling the node's memory."""
    deaf = rig.client()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(20_000):
            deaf.send(wire.Ask())
    assert client.ask().instances >= 0
