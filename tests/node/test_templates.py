"""Templates: what their children are, what forbids one, and what a hostile one can do, which is nothing to anybody else."""

import os
import signal
from collections.abc import Iterator

import pytest

from dayfly.core.wire.node import Kill
from dayfly.runtime import frames
from tests.node.handlers import ECHO, LOOK
from tests.node.rig import Client, Instance, Rig
from tests.node.test_bad_days import gone, wait_until

pytestmark = pytest.mark.root

PLAIN = """
import json, os, random, tempfile, uuid
COUNT = []
def handler(event, context):
    COUNT.append(1)
    return [len(COUNT), random.random(), str(uuid.uuid4()), next(tempfile._get_candidate_names()), os.environ["DAYFLY_INSTANCE"]]
"""
HOOKS = """
from snapshot_restore_py import register_before_snapshot, register_after_restore
SEEN = []
@register_before_snapshot
def first():
    SEEN.append("before 1")
register_before_snapshot(SEEN.append, "before 2")
register_after_restore(SEEN.append, "after 1")
register_after_restore(lambda word: SEEN.append(word), word="after 2")
def handler(event, context):
    return SEEN
"""
LEFT_BEHIND = {
    "running thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='worker', daemon=True).start()",
    "open socket": "import socket\nS = socket.socket(); S.bind(('127.0.0.1', 0))",
    "open file": "F = open('/var/task/handler.py')",
    "in /tmp": "open('/tmp/left', 'w').close()",
    "child processes": "import os, time\nif os.fork() == 0:\n    time.sleep(600)",
    "shared mapping": "import mmap\nM = mmap.mmap(-1, 4096)",
    "timer": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 600)",
}


def template(rig: Rig, client: Client, source: str, **settings: object) -> Instance:
    """A template that stands."""
    made = client.start(rig.code(source), role="template", **settings)  # type: ignore[arg-type]
    made.boot()
    made.ready()
    client.wait_accepted(made.name)
    return made


def child(rig: Rig, client: Client, source: str, of: Instance, **settings: object) -> Instance:
    """An instance that came from it."""
    instance = client.run(rig.code(source), parent=of.name, **settings)
    assert instance.origin in ("template", "ahead"), rig.text()
    return instance


def test_children_go_on_where_init_ended_and_share_nothing(rig: Rig, client: Client) -> None:
    """Init has run once; random numbers, temporary names and the instance's name are each child's own."""
    parent = template(rig, client, PLAIN)
    answers = [child(rig, client, PLAIN, parent).call() for _ in range(5)]
    for column in zip(*answers, strict=True):  # type: ignore[call-overload]
        assert len(set(column)) == (1 if column[0] == 1 else 5), column


def test_a_child_has_the_walls_of_any_instance(rig: Rig, client: Client) -> None:
    """A user, processes, files, names and a network of its own; no privilege, both filters, and no way to namespaces any more."""
    parent = template(rig, client, LOOK)
    one, two = child(rig, client, LOOK, parent), child(rig, client, LOOK, parent)
    assert one.call("os.getuid()") != two.call("os.getuid()")
    assert one.call("writable('/tmp')") is True
    assert two.call("os.listdir('/tmp')") == []
    for instance in (one, two):
        assert instance.call("os.getpid()") == 1
        assert instance.call("[n for n in os.listdir('/proc') if n.isdigit()]") == ["1"]
        assert instance.call("os.uname().nodename") == instance.name
        status = instance.call("status()")
        assert isinstance(status, dict)
        assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
        assert (int(status["NoNewPrivs"]), int(status["Seccomp"])) == (1, 2)
        assert len(set(status["Uid"].split())) == len(set(status["Gid"].split())) == 1
        for flags in (0x10000000, 0x20000, 0x7E020000 & ~0x02000000):
            assert instance.call(f"call('unshare', {flags:#x})") == 1
        assert instance.call(f"raw(56, {0x7C020000 | 0x01200000 | 17:#x}, 0, 0, 0, 0)") == 1, "it could make children as its template does"
        assert str(instance.call("writable('/var/task')")).split()[0] == "OSError"
        assert instance.call("socket.create_server(('127.0.0.1', 8181)).close()") is None, "its loopback is up and nobody else's"
    namespaces = [{name: os.readlink(f"/proc/{client.wait_accepted(it.name).pid}/ns/{name}") for name in ("pid", "mnt", "net", "ipc", "uts", "user")} for it in (one, two, parent)]  # fmt: skip  # noqa: E501
    for name in namespaces[0]:
        assert len({found[name] for found in namespaces}) == 3, name


def test_hooks_run_in_lambdas_order(rig: Rig, client: Client) -> None:
    """Before the snapshot the last registered first, after it the first registered first."""
    parent = template(rig, client, HOOKS)
    assert child(rig, client, HOOKS, parent).call() == ["before 2", "before 1", "after 1", "after 2"]


def test_a_hook_that_fails_in_a_child_fails_its_init(rig: Rig, client: Client) -> None:
    source = "from snapshot_restore_py import register_after_restore\nregister_after_restore(lambda: 1 / 0)\n" + ECHO
    parent = template(rig, client, source)
    instance = client.start(rig.code(source), parent=parent.name)
    instance.boot()
    kind, _, meta, _ = instance.answer()
    assert kind == frames.FAILED
    assert b"ZeroDivisionError" in meta


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_cannot_be_copied_is_named(rig: Rig, client: Client, what: str) -> None:
    """The template says what init left behind, and ends."""
    made = client.start(rig.code(f"{LEFT_BEHIND[what]}\n{ECHO}"), role="template")
    made.boot()
    kind, _, meta, _ = made.answer()
    assert kind == frames.READY
    assert what in meta.decode(), meta
    assert client.wait_exited(made.name).reason in ("exit", "signal")


def test_children_are_killed_and_reported_like_any_instance(rig: Rig, client: Client) -> None:
    """By order, by their own exit, and by memory."""
    source = "import os\nBLOCKS = []\ndef handler(event, context):\n    if event == 'exit':\n        os._exit(7)\n    while True:\n        BLOCKS.append(bytearray(b'x') * (1 << 20))\n"  # noqa: E501
    parent = template(rig, client, source, memory_mb=64)
    killed, left, greedy = (child(rig, client, source, parent, memory_mb=64) for _ in range(3))
    client.send(Kill(killed.name))
    assert (client.wait_exited(killed.name).reason, client.exited[killed.name].code) == ("signal", 9)
    left.send("exit")
    assert (client.wait_exited(left.name).reason, client.exited[left.name].code) == ("exit", 7)
    greedy.send("memory")
    exited = client.wait_exited(greedy.name)
    assert exited.reason == "oom"
    assert exited.memory_peak_bytes > 30 << 20
    assert child(rig, client, source, parent, memory_mb=64).origin


def test_a_killed_template_ends_its_children_and_starts_go_on_without_it(rig: Rig, client: Client) -> None:
    parent = template(rig, client, ECHO)
    instance = child(rig, client, ECHO, parent)
    pids = [client.wait_accepted(it.name).pid for it in (parent, instance)]
    os.kill(pids[0], signal.SIGKILL)
    assert client.wait_exited(instance.name).reason == "signal"
    client.wait_exited(parent.name)
    wait_until(lambda: gone(pids), "a child outlived its template")
    again = client.run(rig.code(ECHO), parent=parent.name)
    assert again.origin in ("fork", "prepared")
    assert again.call(1) == 1


def test_a_template_that_does_not_fork_is_given_up(rig: Rig, client: Client) -> None:
    """Stopped by a signal: the starts that hoped for it are served without it, within their time."""
    parent = template(rig, client, PLAIN)
    os.kill(client.wait_accepted(parent.name).pid, signal.SIGSTOP)
    instances = [client.start(rig.code(PLAIN), parent=parent.name) for _ in range(2)]
    for instance in instances:
        instance.boot()
    for instance in instances:
        instance.ready()
        assert instance.origin in ("fork", "prepared")
        assert instance.call()
    assert client.wait_exited(parent.name).reason == "signal"


HOSTILE = """
import os, sys, _socket
def seat():
    # The very descriptor that the platform's own code waits on.
    return _socket.socket(fileno=os.dup(7))
def take_over(what):
    frame = sys._getframe()
    while "serve_template" not in frame.f_globals:
        frame = frame.f_back
    frame.f_globals["template"].stand = what
def handler(event, context):
    return event
"""
FORGED_BIRTH = (
    HOSTILE
    + """
def evil(offspring):
    import array
    s = seat()
    while True:
        data, rights, _, _ = s.recvmsg(32, 64)
        if not data: os._exit(0)
        child = _socket.socket(fileno=int.from_bytes(rights[0][2][:4], sys.byteorder))
        child.send(b"born")          # from the template itself: no namespaces of its own
        child.send(b"stands")
take_over(evil)
"""
)
FORGED_EXITS = (
    HOSTILE
    + """
def evil(offspring):
    s = seat()
    while True:
        data, rights, _, _ = s.recvmsg(32, 64)
        if not data: os._exit(0)
        fd = int.from_bytes(rights[0][2][:4], sys.byteorder)
        for number in range(1000):
            s.send(b"exited %d signal 9 1 1" % number)
        s.send(b"exited x y z")
take_over(evil)
"""
)


@pytest.mark.parametrize("source", [FORGED_BIRTH, FORGED_EXITS], ids=["a birth that is none", "exits of nobody"])
def test_a_hostile_template_harms_only_itself(rig: Rig, client: Client, source: str) -> None:
    """Init that replaced the platform's own code in its process: its orders end in a start without it; a neighbour notices nothing."""
    neighbour = client.run(rig.code(LOOK))
    mine = template(rig, client, ECHO)
    kept = child(rig, client, ECHO, mine)
    hostile = client.start(rig.code(source), role="template")
    hostile.boot()
    hostile.ready()
    instance = client.run(rig.code(source.replace("take_over(evil)", "")), parent=hostile.name)
    assert instance.origin in ("fork", "prepared")
    assert instance.call(1) == 1
    assert kept.call(2) == 2
    assert neighbour.call("sorted(os.listdir('/tmp'))") == []
    assert client.wait_exited(hostile.name).reason in ("signal", "exit")
    assert os.path.ismount("/tmp") == TMP_IS_MOUNT, "something was mounted on the machine's own /tmp"


TMP_IS_MOUNT = os.path.ismount("/tmp")


def test_a_template_serves_no_call(rig: Rig, client: Client) -> None:
    """A call on its socket stays there for whoever comes."""
    parent = template(rig, client, ECHO)
    parent.send({"a": 1})
    instance = child(rig, client, ECHO, parent)
    assert instance.call(3) == 3
    assert parent.requests.getsockopt(1, 4) == 0


def test_a_burst_is_served_by_one_template_and_nobody_dies(rig: Rig, client: Client) -> None:
    """More children than one user may have processes, all alive at once, all from the template or its like, none lost."""
    parent = template(rig, client, PLAIN)
    instances = [client.start(rig.code(PLAIN), parent=parent.name) for _ in range(100)]
    for instance in instances:
        instance.boot()
    for instance in instances:
        instance.ready()
    assert {instance.origin for instance in instances} <= {"template", "ahead"}
    answers = [instance.call() for instance in instances]
    assert len({tuple(answer[1:]) for answer in answers}) == 100  # type: ignore[index]
    assert not client.exited


@pytest.fixture
def small_rig() -> Iterator[Rig]:
    """A node whose templates have room for about one."""
    rig = Rig(settings={"templates_memory_mb": 30})
    yield rig
    rig.close()


def test_templates_make_room_for_each_other(small_rig: Rig) -> None:
    """The one with a child in use stays, whatever else it is worth; the other goes."""
    client = small_rig.client()
    source = PLAIN + "BALLAST = bytearray(b'x') * (12 << 20)\n"
    used = template(small_rig, client, f"{source}# used\n")
    child(small_rig, client, f"{source}# used\n", used)
    idle = client.start(small_rig.code(f"{source}# idle\n"), role="template")
    idle.boot()
    assert client.wait_exited(idle.name).reason == "signal"
    assert used.name not in client.exited
    again = client.run(small_rig.code(f"{source}# idle\n"), parent=idle.name)
    assert again.origin in ("fork", "prepared")


def test_a_template_larger_than_all_room_is_refused(small_rig: Rig) -> None:
    """And says why, so that nobody makes it again and again."""
    client = small_rig.client()
    made = client.start(small_rig.code(f"BALLAST = bytearray(b'x') * (40 << 20)\n{ECHO}"), role="template")
    made.boot()
    exited = client.wait_exited(made.name)
    assert exited.reason == "refused"
    assert "templates_memory_mb" in exited.detail


POWERLESS = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
FLAGS = 0x7C020000 | 0x01200000
def tried(number, *arguments):
    return "allowed" if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()
def opened(*arguments):
    try:
        socket.socket(*arguments).close()
        return "allowed"
    except OSError as error:
        return error.errno
def option(level, name):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as it:
        try:
            it.setsockopt(level, name, bytes(64))
            return "allowed"
        except OSError as error:
            return error.errno
def interface():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        request = b"lo".ljust(16, bytes(1)) + bytes([1, 0]) + bytes(22)
        return "allowed" if libc.ioctl(it.fileno(), 0x8914, request) >= 0 else ctypes.get_errno()
def attempts():
    return {
        "mount": tried(165, b"x", b"/tmp", b"tmpfs", 0, None), "umount": tried(166, b"/tmp", 2), "fsopen": tried(430, b"tmpfs", 0),
        "open_tree": tried(428, -100, b"/", 1), "pivot_root": tried(155, b".", b"."), "chroot": tried(161, b"/tmp"),
        "setns": tried(308, 0, 0), "unshare": tried(272, 0x20000), "sethostname": tried(170, b"x", 1), "bpf": tried(321, 0, b"", 0),
        "keyctl": tried(250, 0, 0), "ptrace": tried(101, 16, 1, 0, 0), "mknod device": tried(133, b"/tmp/device", 0o20666, 0x103),
        "netlink": opened(socket.AF_NETLINK, socket.SOCK_RAW), "packet": opened(socket.AF_PACKET, socket.SOCK_RAW),
        "raw": opened(socket.AF_INET, socket.SOCK_RAW, 1), "iptables": option(0, 64), "ip6tables": option(41, 64),
        "interface": interface(), "other namespaces": tried(56, 0x10000000 | 17, 0, 0, 0, 0), "clone3": tried(435, bytes(88), 88),
        "uid 0": tried(117, 0, 0, 0),
    }
reader, writer = os.pipe()
pid = libc.syscall(56, FLAGS | 17, 0, 0, 0, 0)
if pid == 0:
    try:
        os.write(writer, json.dumps(attempts()).encode())
    finally:
        os._exit(0)
os.close(writer)
SEEN = json.loads(os.read(reader, 65536)) if pid > 0 else {"clone": ctypes.get_errno()}
os.close(reader)
os.waitpid(pid, 0)
def handler(event, context):
    return SEEN
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls by x86_64's numbers")
def test_what_a_template_may_make_is_of_no_use_to_it(rig: Rig, client: Client) -> None:
    """Init makes the one kind of child that the filter lets it make, all-powerful in its namespaces: the filter goes along."""
    parent = template(rig, client, POWERLESS)
    seen = child(rig, client, POWERLESS, parent).call()
    assert isinstance(seen, dict)
    assert len(seen) == 22, seen
    assert {name for name, outcome in seen.items() if outcome == "allowed"} == set(), seen


def test_on_older_kernels_a_helper_in_the_namespace_makes_its_proc() -> None:
    """Before Linux 6.18 nobody outside can: the children are the same."""
    rig = Rig(prelude="from dayfly.node import furnish; furnish.FOREIGN_PROC = False")
    try:
        client = rig.client()
        parent = template(rig, client, LOOK)
        for instance in [child(rig, client, LOOK, parent) for _ in range(3)]:
            assert instance.call("[n for n in os.listdir('/proc') if n.isdigit()]") == ["1"]
            assert str(instance.call("readable('/proc/kallsyms')")).startswith("FileNotFoundError")
        client.close()
        rig.clients.remove(client)
    finally:
        rig.close()
