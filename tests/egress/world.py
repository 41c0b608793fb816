"""A machine and an internet, both network namespaces on a wire, and ways to run code in them. No packet leaves the test."""

import contextlib
import encodings.idna  # noqa: F401  # getaddrinfo needs it, and the instance's user may not read the interpreter's folder
import errno
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dayfly.core.model.layout import Layout
from dayfly.sandbox import network, syscalls

HERE = Path(__file__).parent
PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::34"
OTHER = "93.184.216.35"  # public, too; no name leads there
MACHINE, MACHINE6 = "93.184.215.2", "2600:9000::2"
FORBIDDEN = [
    "169.254.169.254", "10.1.2.3", "10.99.0.53", "192.168.7.7", "172.16.5.5", "100.64.9.9", "198.51.100.7", "203.0.113.7",
    "192.0.2.7", "198.18.0.7", "240.0.0.7", "192.88.99.1",
]  # fmt: skip
FORBIDDEN6 = ["fc00:1::7", "2001:db8::7", "64:ff9b::a01:203", "2002:a01:203::1", "2001::7", "3fff::7"]
PLATFORM_UID = 65534
DEADLINE_SECONDS = 20
_numbers = itertools.count()


def run_ip(*words: str) -> None:
    """One `ip` command."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def wait_line(process: subprocess.Popen[bytes], wanted: bytes) -> None:
    """Read the process's first line, or fail with a deadline."""
    assert process.stdout
    assert select.select([process.stdout], [], [], DEADLINE_SECONDS)[0], "no line in time"
    line = process.stdout.readline()
    assert line.strip() == wanted, line


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll something that has no event to wait on (another process's state in /proc), with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    poller = select.poll()
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        poller.poll(5)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a helper process and reap it."""
    process.kill()
    process.wait(DEADLINE_SECONDS)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


class World:
    """Two namespaces and the toy internet's servers."""

    def __init__(self) -> None:
        tag = f"{os.getpid()}x{next(_numbers)}"
        self.machine, self.internet = f"dfm{tag}", f"dfi{tag}"
        self._undo = contextlib.ExitStack()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        for name in (self.machine, self.internet):
            run_ip("netns", "add", name)
            self._undo.callback(run_ip, "netns", "del", name)
            run_ip("-n", name, "link", "set", "lo", "up")
        run_ip("-n", self.machine, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", self.internet)
        self._address(self.machine, "wire", f"{MACHINE}/24", f"{MACHINE6}/64")
        self._address(self.internet, "wire", "93.184.215.1/24", "2600:9000::1/64")
        self._address(self.internet, "lo", f"{PUBLIC}/32", f"{OTHER}/32", f"{PUBLIC6}/128")
        for address in FORBIDDEN:
            if not address.startswith("240."):
                self._address(self.internet, "lo", f"{address}/32")
        self._address(self.internet, "lo", *(f"{address}/128" for address in FORBIDDEN6))
        for name in (self.machine, self.internet):
            run_ip("-n", name, "link", "set", "wire", "up")
        for family, gateway in (("-4", "93.184.215.1"), ("-6", "2600:9000::1")):
            run_ip(family, "-n", self.machine, "route", "add", "default", "via", gateway)
        self._undo.callback(stop, self.start(self.internet, "internet.py"))

    def _address(self, namespace: str, device: str, *addresses: str) -> None:
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            run_ip("-n", namespace, "address", "add", address, "dev", device, *nodad)

    def start(self, namespace: str, script: str, *words: str) -> subprocess.Popen[bytes]:
        """A helper script inside a namespace, once it has said that it is ready."""
        argv = ["ip", "netns", "exec", namespace, sys.executable, str(HERE / script), *words]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            wait_line(process, b"ready")
        except BaseException:
            stop(process)
            raise
        return process

    @contextlib.contextmanager
    def on_machine(self) -> Iterator[None]:
        """The calling thread inside the machine's network namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.machine}", os.O_RDONLY)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
            yield
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
            os.close(there)
            os.close(home)

    def close(self) -> None:
        self._undo.close()


class Platform:
    """A broker on the world's machine, unprivileged as in production, and the node's pool beside it."""

    def __init__(self, world: World, **settings: object) -> None:
        self._world = world
        self.folder = tempfile.mkdtemp(prefix="dayfly-egress-", dir="/tmp")  # Unix socket paths must be short
        os.chmod(self.folder, 0o711)
        layout = Layout(data=self.folder, run=self.folder)
        Path(layout.egress_sockets).mkdir(mode=0o700)
        os.chown(layout.egress_sockets, PLATFORM_UID, PLATFORM_UID)
        self.resolv_conf = Path(self.folder, "resolv.conf")
        self.resolv_conf.write_text("nameserver 10.99.0.53\n")
        self._settings = json.dumps(settings)
        self.broker: subprocess.Popen[bytes] | None = None
        self.socket_path = layout.egress_socket
        self.start_broker()
        with world.on_machine():
            self.pool = network.Pool(self.socket_path, ready=2)
        self.deliver()

    def start_broker(self) -> None:
        words = (self.folder, str(self.resolv_conf), self._settings, str(PLATFORM_UID))
        self.broker = self._world.start(self._world.machine, "broker.py", *words)

    def kill_broker(self) -> None:
        if self.broker:
            stop(self.broker)
        self.broker = None

    def deliver(self) -> None:
        """What the node's idle loop does."""
        with self._world.on_machine():
            while self.pool.refill():
                pass

    def take(self, egress: str = "internet", rules: tuple[str, ...] = ()) -> int:
        with self._world.on_machine():
            descriptor = self.pool.take("none" if egress == "none" else "internet")
        self.pool.admit(self.pool.key(descriptor), egress, rules)
        return descriptor

    @contextlib.contextmanager
    def instance(self, egress: str = "internet", *rules: str) -> Iterator["Instance"]:
        """A namespace of its own, given back afterwards."""
        descriptor = self.take(egress, rules)
        try:
            yield Instance(descriptor)
        finally:
            self.pool.release(self.pool.key(descriptor))
            os.close(descriptor)

    def broker_descriptors(self) -> int:
        assert self.broker
        return len(os.listdir(f"/proc/{self.broker_pid()}/fd"))

    def broker_pid(self) -> int:
        assert self.broker
        return self.broker.pid  # `ip netns exec` replaces itself

    def close(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
        self.kill_broker()
        shutil.rmtree(self.folder)


class Instance:
    """Runs functions as hostile code would run: in the namespace, unprivileged."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def run(self, work: Callable[..., Any], *arguments: Any, resolv_conf: str = "") -> Any:
        """What `work(*arguments)` returns (as JSON) in a process of its own inside the namespace."""
        return self.start(work, *arguments, resolv_conf=resolv_conf)()

    def start(self, work: Callable[..., Any], *arguments: Any, resolv_conf: str = "") -> Callable[[], Any]:
        """Begin `run`; calling the answer waits for the result, or kills the process at a deadline."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._child(writer, work, arguments, resolv_conf)
        os.close(writer)
        return lambda: self._finish(pid, reader)

    def _child(self, writer: int, work: Callable[..., Any], arguments: tuple[Any, ...], resolv_conf: str) -> None:
        try:
            syscalls.setns(self.descriptor, syscalls.CLONE_NEWNET)
            if resolv_conf:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
                syscalls.mount(resolv_conf, "/etc/resolv.conf", "", syscalls.MS_BIND)
            self.become_nobody()
            result = {"ok": work(*arguments)}
        except BaseException:
            result = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as out:
            json.dump(result, out)
        os._exit(0)

    def become_nobody(self) -> None:
        """In the child: no user of the machine, no capabilities."""
        os.setgroups([])
        os.setresgid(61234, 61234, 61234)
        os.setresuid(61234, 61234, 61234)

    def _finish(self, pid: int, reader: int) -> Any:
        deadline = time.monotonic() + DEADLINE_SECONDS
        data = b""
        try:
            while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
                part = os.read(reader, 65536)
                data += part
                if not part:
                    break
            else:
                raise AssertionError("the instance's code did not end in time")
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        result = json.loads(data)
        assert "ok" in result, result["error"]
        return result["ok"]


def attempt(host: str, port: int = 80, command: bytes = b"WHO\n") -> str:
    """Connect, say one command, and tell what came: the answer's text, or the name of the error."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(command)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer.decode()
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # the reset came between sending and shutting down
            return ConnectionResetError.__name__
        return type(error).__name__
