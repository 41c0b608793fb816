"""What an instance can see and do, found out from inside a real one, in every situation a machine can offer."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import dayfly
from dayfly.core.decide import isolate
from dayfly.core.wire import node as wire
from dayfly.core.wire.node import Kill
from dayfly.sandbox import mounts
from tests.node.handlers import ECHO, LIBRARIES, LOOK
from tests.node.rig import Client, Rig, python_for

WALLED = ["root", "user"]
ALL = ["root", "user", "container", "bare"]
EPERM, ENOTTY, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT = 1, 25, 38, 93, 97
LIBC_CALLS = (
    "('unshare', 0x10000000)", "('unshare', 0x20000)", "('mount', b'x', b'/tmp', b'tmpfs', 0, None)", "('umount2', b'/tmp', 2)",
    "('setns', 3, 0)", "('ptrace', 16, 1, 0, 0)", "('chroot', b'/tmp')", "('sethostname', b'x', 1)", "('personality', 0x0040000)",
)  # fmt: skip
# bpf keyctl io_uring_setup userfaultfd perf_event_open open_by_handle_at process_vm_readv pidfd_getfd open_tree syslog
X86_CALLS = (314, 321, 250, 425, 323, 298, 304, 310, 438, 428, 103)


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_an_instance_answers(rig: Rig, client: Client) -> None:
    """In every situation an instance starts, answers, tells its walls, and is gone after a kill."""
    instance = client.run(rig.code(ECHO))
    assert instance.call({"a": 1}) == {"a": 1}
    accepted = client.wait_accepted(instance.name)
    assert set(accepted.walls) | {text.partition(":")[0] for text in accepted.missing} == set(isolate.WALLS)
    assert Path(f"/proc/{accepted.pid}").exists(), "the pid is not as this namespace sees it"
    client.send(Kill(instance.name))
    exited = client.wait_exited(instance.name)
    assert (exited.reason, exited.code) == ("signal", 9)
    assert exited.cpu_us > 0
    assert exited.memory_peak_bytes > 100_000
    assert not Path(f"/proc/{accepted.pid}").exists()


@pytest.mark.root
def test_nothing_is_missing_as_root(rig: Rig, client: Client) -> None:
    """As root on this machine every wall stands: the rest of this module would prove less otherwise."""
    assert client.wait_accepted(client.run(rig.code(ECHO)).name).missing == ()


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_files(rig: Rig, client: Client) -> None:
    """Its own root: read-only, nothing of the host but what an interpreter needs, its own code and nobody else's."""
    rig.code("SECRET = 'of another function'\n")
    code = rig.code(LOOK)
    look = client.run(code)
    assert sorted(look.call("os.listdir('/var/task')")) == ["handler.py"]  # type: ignore[call-overload]
    assert look.call("sorted(os.listdir('/'))") is not None
    assert not {"home", "boot", "mnt", "srv", "sys", "work"} & set(look.call("os.listdir('/')"))  # type: ignore[call-overload]
    assert str(look.call("readable('/etc/shadow')")).startswith("FileNotFoundError")
    assert str(look.call(f"readable({rig.layout.data!r})")).startswith("FileNotFoundError")
    assert look.call("os.listdir('/tmp')") == []
    for path in ("/", "/var/task", "/usr", "/etc", "/dev", "/run", "/opt", "/proc", "/var"):
        assert str(look.call(f"writable({path!r})")).split()[0] in ("OSError", "PermissionError", "FileNotFoundError"), path
    assert look.call("writable('/tmp')") is True
    devices = ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert look.call("sorted(os.listdir('/dev'))") == devices
    assert look.call("open('/dev/null','w').write('x')") == 1
    assert look.call("len(open('/dev/urandom','rb').read(8))") == 8


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_mount_flags(rig: Rig, client: Client) -> None:
    """Every mount is nosuid; every one but /dev's nodes is nodev; every one but /tmp and /proc is read-only."""
    look = client.run(rig.code(LOOK), secrets={"key": b"value"}, boot={"secrets": ["key"]})
    for line in str(look.call("open('/proc/self/mountinfo').read()")).splitlines():
        fields = line.split()
        point, flags = fields[4], set(fields[5].split(","))
        assert "nosuid" in flags, line
        assert "nodev" in flags or point.startswith("/dev"), line
        assert "ro" in flags or point in ("/tmp", "/proc") or point.startswith("/dev/"), line


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_processes(rig: Rig, client: Client) -> None:
    """It is the first process of its own namespace and sees no other; its /proc shows nothing of the kernel's."""
    client.run(rig.code(ECHO))
    look = client.run(rig.code(LOOK))
    assert look.call("os.getpid()") == 1
    assert look.call("os.getppid()") == 0
    assert look.call("[n for n in os.listdir('/proc') if n.isdigit()]") == ["1"]
    if rig.uid == 0:
        assert str(look.call("readable('/proc/kallsyms')")).startswith("FileNotFoundError")
    assert look.call("os.getsid(0)") == look.call("os.getpgid(0)") == 1


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_privileges(rig: Rig, client: Client) -> None:
    """No capability in any set, no_new_privs, a filter, no supplementary group; as root a uid of its own outside everybody's range."""
    look = client.run(rig.code(LOOK))
    status = look.call("status()")
    if rig.filtered:  # without its own /proc it cannot read this about itself
        assert str(status).startswith("PermissionError")
        status = dict(line.split(":", 1) for line in Path(f"/proc/{client.wait_accepted(look.name).pid}/status").read_text().splitlines())
    assert isinstance(status, dict)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if rig.uid == 0 or not rig.filtered else [])):
        assert int(status[name], 16) == 0, name
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == 2
    assert status["Groups"].split() in ([], ["65534"])
    uid = look.call("os.getuid()")
    assert isinstance(uid, int)
    if rig.uid == 0:
        assert uid >= 0x10000000
    assert len(set(status["Uid"].split())) == 1
    assert uid != 0


@pytest.mark.root
def test_uids_are_not_shared(rig: Rig, client: Client) -> None:
    """Two instances, alive together or one after the other, have different uids."""
    code = rig.code(LOOK)
    assert len({client.run(code).call("os.getuid()") for _ in range(6)}) == 6


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_descriptors(rig: Rig, client: Client) -> None:
    """Nothing is open but standard streams and its own three channels, all of which are its gateway's."""
    look = client.run(rig.code(LOOK))
    pid = client.wait_accepted(look.name).pid
    found = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    progress = found.pop(6, "")  # the agent's mapping of the progress page keeps a copy of its descriptor
    assert progress in ("", found.get(5, "/memfd:progress (deleted)"))
    assert set(found) <= {0, 1, 2, 3, 4, 5}, sorted(found.items())
    assert found[0] == "/dev/null"
    assert found[1] == found[2]
    assert found[1].startswith("pipe:")


@pytest.mark.root
def test_groups(rig: Rig, client: Client) -> None:
    """An instance is in a group of its own for memory, processes and processor time, with the ceiling it asked for, and shares one
    for the disk with all others."""
    instance = client.run(rig.code(ECHO), cpu_millicores=250)
    own = Path(f"/proc/{client.wait_accepted(instance.name).pid}/cgroup").read_text()
    paths = {name: line.split(":", 2)[2] for line in own.splitlines() for name in line.split(":", 2)[1].split(",")}
    if "cpu" not in paths:
        pytest.skip("not a machine with cgroup v1")
    (folder,) = (path for path in rig.cgroups() if "/cpu" in str(path) and (path / "cpu.shares").exists())
    assert (folder / Path(paths["cpu"]).name / "cpu.cfs_quota_us").read_text().strip() == "25000"
    assert len({Path(paths[name]).name for name in ("memory", "pids", "cpu")}) == 1
    if folders := [path for path in rig.cgroups() if "blkio" in str(path)]:
        assert Path(paths["blkio"]).name == folders[0].name
    shares = folder / Path(paths["cpu"]).name / "cpu.shares"
    usual = int(shares.read_text())
    client.send(wire.Weigh({instance.name: 250, "somebody-else": 1}))
    assert instance.call(1) == 1  # and one message later the node has heard the first
    client.send(wire.Weigh({instance.name: 500}))
    client.run(rig.code(ECHO))
    assert int(shares.read_text()) == usual // 2


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_resource_limits(rig: Rig, client: Client) -> None:
    """No core dump, not even to a program that the host names, and no way to change that; no priority to gain; bounded queues."""
    look = client.run(rig.code(LOOK))
    limits = {"CORE": 1, "RTPRIO": 0, "NICE": 0, "SIGPENDING": 1024, "MSGQUEUE": 0, "NOFILE": 1024, "MEMLOCK": 65536}
    if rig.filtered:
        del limits["CORE"]  # our own filter, which plays the container there, keeps the node from setting it, too
    for name, value in limits.items():
        soft, hard = look.call(f"__import__('resource').getrlimit(__import__('resource').RLIMIT_{name})")  # type: ignore[misc]
        assert soft == hard <= value, name
    assert rig.filtered or look.call("(r := __import__('resource')).getrlimit(r.RLIMIT_CORE)") == [1, 1]
    assert "ValueError" in str(look.call("(r := __import__('resource')).setrlimit(r.RLIMIT_CORE, (0, 0))"))
    assert look.call("(r := __import__('resource')).setrlimit(r.RLIMIT_NOFILE, (64, 1024))") is None
    for action in ("os.nice(-1)", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"):
        assert "PermissionError" in str(look.call(action)), action


@pytest.mark.root
def test_no_keyring_is_inherited(rig: Rig, client: Client) -> None:
    """The session keyring is a new, empty one: neither the platform's nor another interpreter's."""
    look = client.run(rig.code(LOOK))
    pid = client.wait_accepted(look.name).pid
    assert look.call(f"call('syscall', {219 if os.uname().machine == 'aarch64' else 250}, 0, -3, 0)") == EPERM, "keyctl(GET_KEYRING_ID)"
    assert not Path(f"/proc/{pid}/root/proc/keys").exists()
    names = "sys_._call('keyctl', sys_._KEYCTL[__import__('os').uname().machine == 'aarch64'], 0, -3, 0)"  # KEYCTL_GET_KEYRING_ID, session
    program = f"from dayfly.sandbox import syscalls as sys_\nprint({names})\nsys_.join_new_session_keyring()\nprint({names})"
    before, after = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    assert before != after


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_host_is_hidden(rig: Rig, client: Client) -> None:
    """Host name, cgroup path, network devices and the platform's environment say nothing about the machine."""
    look = client.run(rig.code(LOOK))
    assert look.call("socket.gethostname()") == look.name
    assert look.call("[n for _, n in socket.if_nameindex()]") == ["lo"] or "OSError" in str(look.call("socket.if_nameindex()"))
    groups = str(look.call("open('/proc/self/cgroup').read()"))
    assert "dayfly" not in groups or rig.uid != 0, groups
    environment = look.call("dict(os.environ)")
    assert isinstance(environment, dict)
    assert not {"SSL_CERT_FILE", "PYTHONPATH_OF_NODE", "USER", "SHELL", "VIRTUAL_ENV", "PYENV_ROOT"} & set(environment)
    assert look.call("[p for p in sys.path if 'site-packages' in p or 'dayfly' in p]") == []
    assert look.call("[m for m in sys.modules if m.startswith('dayfly') or m == 'msgspec']") == []


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_what_no_program_runs_with_is_hidden(rig: Rig, client: Client) -> None:
    """Packages of the machine's Pythons, the platform's own source, headers and documentation are empty folders; programs, libraries and
    what belongs to them is there."""
    look = client.run(rig.code(LOOK))
    prefix = str(look.call("sys.base_prefix"))
    hidden = [*mounts.HIDDEN, *mounts.installed_packages(("/usr", "/usr/local", prefix)), str(Path(dayfly.__file__).parents[1])]
    for path in hidden:
        assert look.call(f"readable({path!r})") in ([], "FileNotFoundError 2", "PermissionError 13"), path
    assert any(os.path.isdir(path) and os.listdir(path) for path in hidden), "this machine has nothing to hide"
    assert len(look.call("os.listdir('/usr/share/zoneinfo')")) > 10  # type: ignore[arg-type]
    shell = "__import__('subprocess').run(['sh', '-c', 'printf %s hi | sha256sum | cut -c1-8'], capture_output=True, text=True).stdout"
    assert look.call(shell) == "8f434346\n"
    assert look.call("__import__('ctypes.util').util.find_library('c')") is not None


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_how_the_platform_was_started_is_hidden(rig: Rig, client: Client) -> None:
    """Neither the kernel nor Python tells an instance where the platform is installed by the words that started its parent."""
    look = client.run(rig.code(LOOK))
    pid = client.wait_accepted(look.name).pid
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"dayfly-sandbox"
    assert look.call("[sys.orig_argv, sys.argv]") == [["dayfly-sandbox"], [""]]
    assert Path(f"/proc/{pid}/environ").read_bytes().count(str(Path(dayfly.__file__).parents[1]).encode()) == 0


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_network(rig: Rig, client: Client) -> None:
    """Egress none: loopback of its own works, the host's loopback and the outside are unreachable."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        look = client.run(rig.code(LOOK))
        assert str(look.call(f"socket.create_connection(('127.0.0.1', {port}), 2)")).startswith("ConnectionRefusedError")
        assert str(look.call("socket.create_connection(('192.0.2.1', 80), 2)")).startswith("OSError 101")
    own = "(s := socket.create_server(('127.0.0.1', 0)), socket.create_connection(s.getsockname(), 2).getpeername()[0])[1]"
    assert look.call(own) == "127.0.0.1"


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_system_calls(rig: Rig, client: Client) -> None:
    """The filter answers EPERM to what is not listed, ENOSYS to clone3, and no socket families but local and internet ones."""
    look = client.run(rig.code(LOOK))
    for call in LIBC_CALLS:
        assert look.call(f"call{call}") == EPERM, call
    if os.uname().machine == "x86_64":
        for number in X86_CALLS:
            assert look.call(f"raw({number}, 0, 0, 0, 0, 0)") == EPERM, number
        assert look.call("raw(56, 0x10000011, 0, 0, 0, 0)") == EPERM, "clone(CLONE_NEWUSER)"
        assert look.call("raw(435, 0, 0)") == ENOSYS, "clone3"
        assert look.call("raw(600)") == ENOSYS
    assert look.call("raw(__import__('platform').machine() == 'x86_64' and 16 or 29, 0, 0x5412, b'x')") == ENOTTY, "TIOCSTI"
    for number, kind in ((16, 3), (17, 3), (38, 5), (40, 1)):  # netlink, packet, alg, vsock
        assert look.call(f"family({number}, {kind})") == f"OSError {EAFNOSUPPORT}"
    assert str(look.call("socket.socket(2, 3, 1)")).startswith(("PermissionError", f"OSError {EAFNOSUPPORT}")), "raw sockets"
    assert str(look.call("socket.socket(1, 1).setsockopt(0, 64, b'x' * 64)")).startswith("PermissionError"), "iptables"
    assert str(look.call("socket.socket(1, 1, 132)")) == f"OSError {EPROTONOSUPPORT}", "SCTP"
    assert look.call("call('prctl', 35, 1, 0, 0, 0)") == look.call("call('madvise', 0, 4096, 12)") == EPERM, "PR_SET_MM, MADV_MERGEABLE"
    assert look.call("call('inotify_init1', 0)") == EPERM, "it would tell which of the machine's programs are started"
    assert str(look.call("os.preadv(os.open('/dev/zero', 0), [bytearray(4)], 0)")) == "4"
    shared = look.call("call('shmget', 0, 4096, 0o1600)")
    assert shared == (EPERM if rig.filtered else "allowed"), "without an ipc namespace it would be everybody's"
    assert look.call("os.setuid(0)") in ("PermissionError 1", "OSError 22")  # 22: there is no such uid in its user namespace
    assert str(look.call("os.mknod('/tmp/sda', 0o60600, os.makedev(8, 0))")).startswith(("PermissionError", "OSError"))


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_secrets(rig: Rig, client: Client) -> None:
    """Secrets are files that their instance can read and nobody can change; no other instance has them; nor the environment."""
    code = rig.code(LOOK)
    look = client.run(code, secrets={"key": b"val\x00ue", "other.key": b""}, boot={"secrets": ["key"]})
    folder = "/run/secrets" if not rig.filtered else look.call("os.environ['DAYFLY_SECRETS']")
    assert look.call(f"open('{folder}/key', 'rb').read().hex()") == b"val\x00ue".hex()
    assert look.call(f"oct(os.stat('{folder}/key').st_mode)") == "0o100400"
    if not rig.filtered:
        assert look.call(f"sorted(os.listdir('{folder}'))") == ["key", "other.key"]
        assert str(look.call(f"writable('{folder}')")).startswith(("OSError", "PermissionError"))
        assert client.run(code).call("os.listdir('/run/secrets')") == []
    assert "ue" not in json.dumps(look.call("dict(os.environ)")).replace("True", "").split("val")[1:]


MALFORMED = [
    b"\x03\x00\x00\x00\x05keyva",
    b"\x03",
    b"\x04\x00\x00\x00\x01../xv",
    b"\x00\x00\x00\x00\x01v",
    b"\x01\x00\x00\x00\x01av" * 2,
    b"\x01\xff\xff\xff\xffa",
]


@pytest.mark.parametrize("raw", MALFORMED)
def test_malformed_secrets_are_refused(rig: Rig, client: Client, raw: bytes) -> None:
    """Cut short, a path for a name, no name, the same name twice: the instance never starts, and the reason names the step."""
    instance = client.start(rig.code(ECHO), raw_secrets=raw)
    exited = client.wait_exited(instance.name)
    assert exited.reason == "refused"
    assert "secret" in exited.detail


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_ordinary_libraries_work(rig: Rig, client: Client) -> None:
    """Threads, subprocesses, asyncio, and TLS contexts work inside the walls; with a private root also process pools and queues."""
    if rig.filtered:
        look = client.run(rig.code(LOOK))
        assert look.call("__import__('subprocess').check_output(['/bin/echo', 'hi']).decode()") == "hi\n"
        return
    answer = client.run(rig.code(LIBRARIES), memory_mb=256).call()
    wanted = {"subprocess": "42", "pool": [1, 4, 9], "threads": [16, 25], "asyncio": 7, "ssl": True, "queue": "hello"}
    assert answer == wanted


def test_layer(rig: Rig, client: Client) -> None:
    """A layer is importable at /opt/python, read-only."""
    layer = rig.code("", area=rig.layout.layers, files={"dependency.py": b"VALUE = 11\n"})
    look = client.run(rig.code(LOOK), layer=layer)
    assert look.call("__import__('dependency').VALUE") == 11
    assert str(look.call("writable('/opt/python')")).startswith(("OSError", "PermissionError"))


@pytest.mark.parametrize("version", ["python3.12", "python3.13"])
def test_other_interpreters(rig: Rig, client: Client, version: str) -> None:
    """A function runs on the interpreter it asks for, also one below a folder that its uid could not enter on the host."""
    if version not in client.ask().runtimes:
        pytest.skip(f"no {version} on this machine")
    look = client.run(rig.code(LOOK), runtime=version)
    assert look.call("'python%d.%d' % sys.version_info[:2]") == version
    assert look.call("len(__import__('ssl').OPENSSL_VERSION) > 3") is True
    assert look.call("__import__('subprocess').check_output([sys.executable, '-c', 'print(1)']).decode()") == "1\n"


def test_code_is_found_by_digest_only(rig: Rig, client: Client) -> None:
    """A digest that is not there, or is a link to elsewhere, is refused: the folder's owner is not trusted."""
    missing = client.start("f" * 64)
    assert client.wait_exited(missing.name).reason == "refused"
    link = "e" * 64
    Path(rig.layout.code, link).symlink_to("/etc")
    linked = client.start(link)
    assert client.wait_exited(linked.name).reason == "refused"


def test_strict_isolation_refuses() -> None:
    """Where a wall is missing, strict isolation starts nothing and says which wall it is."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make this situation")
    if not Path(python_for(61234)[0]).exists():
        pytest.skip("without namespaces an interpreter that only root can reach is not offered at all")
    rig = Rig(isolation="strict", filtered=True)
    try:
        client = rig.client()
        exited = client.wait_exited(client.start(rig.code(ECHO)).name)
        assert exited.reason == "refused"
        assert "pidns" in exited.detail
    finally:
        rig.close()
