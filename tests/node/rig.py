"""A real node in a process of its own, and a client that plays the gateway's part: starts instances, calls them, reads their output.

Shared by the tests of this folder; measuring scripts may use it too. Everything it starts ends with `close`.
"""

import array
import contextlib
import hashlib
import itertools
import json
import mmap
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dayfly.core.model.layout import Layout
from dayfly.core.wire import node as wire
from dayfly.runtime import frames
from dayfly.sandbox import cgroup, privileges

SECONDS_MAX = 20.0
_identities = itertools.count(1)
PROGRAM = """
import json, sys, os
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.node import server
data, run, isolation, filtered = sys.argv[1:5]
more = json.loads(sys.argv[5])
exec(sys.argv[6])
if filtered:  # as in a container that forbids namespaces and mounts
    from dayfly.sandbox import seccomp, syscalls
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1, 0, 0)
    syscalls.seccomp_filter(seccomp.program())
settings = Settings(data=data, run=run, isolation=isolation, log_level="warning", **more)
server.run(settings, Layout(data, run), lifeline=0, ready=lambda: os.write(1, b"ready"))
"""


def python_for(uid: int) -> tuple[str, dict[str, str]]:
    """An interpreter that this user can run, and the environment that shows it Dayfly and what it needs."""
    source = str(Path(__file__).parents[2] / "src")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PYTHONPATH": ":".join([source, *packages]), "PATH": "/usr/bin:/bin"}
    environment |= {name: os.environ[name] for name in ("SSL_CERT_FILE", "UV_FIND_LINKS", "UV_DEFAULT_INDEX") if name in os.environ}
    if uid == os.getuid() or not sys.base_prefix.startswith("/root"):
        return sys.executable, environment | {"PATH": os.environ["PATH"], "PYTHONPATH": source}
    return f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}", environment


class Instance:
    """The gateway's ends of one instance."""

    def __init__(self, rig: "Client", name: str) -> None:
        self.rig = rig
        self.name = name
        self.requests, self._their_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.answers, self._their_answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._progress = os.memfd_create("progress")
        os.ftruncate(self._progress, frames.PROGRESS_BYTES)
        self.progress = mmap.mmap(self._progress, frames.PROGRESS_BYTES)
        self.output, self._their_output = os.pipe()
        for sock in (self.requests, self.answers):
            sock.settimeout(SECONDS_MAX)
        self.sequence = 0
        self.logs: list[str] = []
        self.init_us = 0
        self.origin = ""

    def descriptors(self) -> list[int]:
        return [self._their_requests.fileno(), self._their_answers.fileno(), self._progress, self._their_output]

    def handed_over(self) -> None:
        self._their_requests.close()
        self._their_answers.close()
        os.close(self._progress)
        os.close(self._their_output)

    def boot(self, handler: str = "handler.handler", **more: object) -> None:
        body = {
            "namespace": "default", "function": "probe", "version": 1, "instance": self.name, "handler": handler, "memory_mb": 128,
            "timeout_seconds": 30, "concurrency": 1, "env": {}, "secrets": [], **more,
        }  # fmt: skip
        raw = json.dumps(body).encode()
        self.answers.sendall(frames.CONTROL.pack(frames.BOOT, len(raw), 0) + raw)

    def answer(self) -> tuple[int, int, bytes, bytes]:
        """The next frame that is no LOG: kind, flags, meta, body."""
        while True:
            head = self._exactly(frames.ANSWER.size)
            kind, flags, _status, meta_length, body_length, _us, _seq = frames.ANSWER.unpack(head)
            meta, body = self._exactly(meta_length), self._exactly(body_length)
            if kind != frames.LOG:
                return kind, flags, meta, body
            self.logs.append(body.decode())

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.answers.recv(count - len(data))
            if not more:
                raise EOFError(f"the instance left: {self.rig.exited.get(self.name)} {self.logs} {self.read_output()!r}")
            data += more
        return data

    def ready(self) -> None:
        kind, _, meta, _ = self.answer()
        assert kind == frames.READY, (kind, meta, self.logs)
        self.init_us = json.loads(meta)["init_us"]
        self.origin = json.loads(meta)["origin"]

    def send(self, event: object, seconds: float = 30) -> None:
        self.sequence += 1
        body, identity = json.dumps(event).encode(), b"call"
        deadline = time.monotonic_ns() + int(seconds * 1e9)
        head = frames.REQUEST.pack(frames.DIRECT, 0, len(identity), 0, self.sequence, deadline)
        self.requests.send(head + identity + body)

    def call(self, event: object = None) -> object:
        self.send(event)
        _kind, _flags, _meta, body = self.answer()
        return json.loads(body)

    def read_output(self) -> bytes:
        data = b""
        while select.select([self.output], [], [], 0)[0] and (more := os.read(self.output, 65536)):
            data += more
        return data

    def close(self) -> None:
        self.requests.close()
        self.answers.close()
        self.progress.close()
        os.close(self.output)


class Client:
    """One connection to the node."""

    def __init__(self, path: str, uid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS_MAX)
        before, group_before = os.geteuid(), os.getegid()
        os.setegid(uid if before == 0 else group_before)
        os.seteuid(uid)  # the node sees who connects
        try:
            self.socket.connect(path)
        finally:
            os.seteuid(before)
            os.setegid(group_before)
        self.accepted: dict[str, wire.Accepted] = {}
        self.exited: dict[str, wire.Exited] = {}
        self.instances: list[Instance] = []
        self._number = 0
        self._identity = next(_identities)  # an address would be used again, while instances of its last user still end

    def send(self, message: wire.ToNode, descriptors: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([wire.encode(message)], rights)

    def receive(self) -> wire.FromNode:
        packet = self.socket.recv(wire.MESSAGE_BYTES_MAX)
        if not packet:
            raise EOFError("the node closed the connection")
        message = wire.decode_from_node(packet)
        if isinstance(message, wire.Accepted):
            self.accepted[message.instance] = message
        elif isinstance(message, wire.Exited):
            assert message.instance not in self.exited, "Exited came twice"
            self.exited[message.instance] = message
        return message

    def start(
        self, code: str, *, secrets: dict[str, bytes] | None = None, raw_secrets: bytes | None = None, **settings: object
    ) -> Instance:
        """Ask for an instance; neither accepted nor booted yet."""
        self._number += 1
        instance = Instance(self, str(settings.pop("instance", f"i{self._identity}-{self._number}")))
        self.instances.append(instance)
        descriptors = instance.descriptors()
        memfd = -1
        if secrets is not None or raw_secrets is not None:
            memfd = os.memfd_create("secrets")
            os.write(memfd, wire.pack_secrets(secrets or {}) if raw_secrets is None else raw_secrets)
            descriptors.append(memfd)
        values: dict[str, object] = {
            "tenant": "default", "runtime": f"python{sys.version_info.major}.{sys.version_info.minor}", "layer": "", "memory_mb": 128,
            "tmp_mb": 16, "egress": "none", "has_secrets": memfd >= 0,
        }  # fmt: skip
        self.send(wire.Start(instance=instance.name, code=code, **(values | settings)), descriptors)  # type: ignore[arg-type]
        instance.handed_over()
        if memfd >= 0:
            os.close(memfd)
        return instance

    def run(self, code: str, **settings: object) -> Instance:
        """An instance that is ready for calls."""
        boot = settings.pop("boot", {})
        instance = self.start(code, **settings)  # type: ignore[arg-type]
        instance.boot(**boot)  # type: ignore[arg-type]
        self.wait_accepted(instance.name)
        instance.ready()
        return instance

    def wait_accepted(self, name: str) -> wire.Accepted:
        while name not in self.accepted:
            assert name not in self.exited, self.exited[name]
            self.receive()
        return self.accepted[name]

    def wait_exited(self, name: str) -> wire.Exited:
        while name not in self.exited:
            self.receive()
        return self.exited[name]

    def ask(self) -> wire.Facts:
        self.send(wire.Ask())
        while not isinstance(message := self.receive(), wire.Facts):
            pass
        return message

    def close(self) -> None:
        self.socket.close()
        for instance in self.instances:
            instance.close()
        self.instances.clear()


class Rig:
    """A node with a data directory of its own, run as `uid`."""

    def __init__(
        self, uid: int = -1, isolation: str = "auto", filtered: bool = False, settings: dict[str, object] | None = None, prelude: str = ""
    ) -> None:
        self.uid = os.getuid() if uid < 0 else uid
        self.folder = Path(tempfile.mkdtemp(prefix="dayfly-node-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.layout = Layout(str(self.folder / "data"), str(self.folder / "run"))
        layout = self.layout
        for path in (layout.data, layout.run, layout.code, layout.layers, layout.builds, layout.control_sockets, layout.egress_sockets):
            Path(path).mkdir(mode=0o711)
            os.chown(path, self.uid, self.uid)
        self.users = privileges.role_users(layout.data)
        self.isolation = isolation
        self.filtered = filtered
        self.settings = json.dumps(settings or {})
        self.prelude = prelude  # Python that the node runs first
        self.clients: list[Client] = []
        self.log = (self.folder / "log").open("w+b")
        self.start()

    def start(self) -> None:
        python, environment = python_for(self.uid)
        become = [] if self.uid == os.getuid() else ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        arguments = [self.layout.data, self.layout.run, self.isolation, "yes" if self.filtered else "", self.settings, self.prelude]
        command = [*become, python, "-c", PROGRAM, *arguments]
        lifeline, self.lifeline = os.pipe()
        self.process = subprocess.Popen(command, stdin=lifeline, stdout=subprocess.PIPE, stderr=self.log, env=environment)
        os.close(lifeline)
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], SECONDS_MAX)[0] or self.process.stdout.read(5) != b"ready":
            raise AssertionError(f"the node did not start: {self.text()}")

    def text(self) -> str:
        return (self.folder / "log").read_text()

    def code(self, source: str, *, area: str = "", files: dict[str, bytes] | None = None) -> str:
        """A code (or, with `area`, layer) folder with this handler; its digest."""
        digest = hashlib.sha256(repr((source, files)).encode()).hexdigest()
        folder = Path(area or self.layout.code) / digest
        if not folder.exists():
            folder.mkdir()
            for name, content in {"handler.py": source.encode(), **(files or {})}.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
                if name == "bootstrap":
                    (folder / name).chmod(0o755)
        return digest

    def client(self, uid: int = -1) -> Client:
        client = Client(self.layout.node_socket, self.uid if uid < 0 else uid)
        self.clients.append(client)
        return client

    def stop(self) -> int:
        """End in order; the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(SECONDS_MAX)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS_MAX)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            os.close(self.lifeline)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.log.close()
            with contextlib.suppress(OSError):
                for folder in self.cgroups():
                    cgroup.clean(folder)
            shutil.rmtree(self.folder, ignore_errors=True)

    def cgroups(self) -> list[Path]:
        """Folders of control groups that carry this data directory's tag."""
        name = cgroup.tag(self.layout.data)
        # Not rglob: other platforms' groups come and go meanwhile, and it minds.
        return [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.rpartition("/")[2] == name]
