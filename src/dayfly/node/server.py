"""The node: the one process that keeps root. Listens at RUN/node.sock, forks instances into sandboxes, runs builds.

Single-threaded, one poll loop, no asyncio. It accepts the few fixed messages of core/wire/node.py, from each role only its own,
and parses nothing that a user wrote. A client that breaks the protocol, or leaves, loses its connection and its instances. Work that
can wait (making namespaces and groups ahead, removing old ones) happens when nothing else does. Started by app.py.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from select import EPOLLHUP, EPOLLIN, EPOLLOUT, epoll

import msgspec

from dayfly.core.decide import isolate
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.wire import node as wire
from dayfly.node import leftovers
from dayfly.node.apart import Apart
from dayfly.node.berth import Berth
from dayfly.node.build import Build, Builder
from dayfly.node.client import Client, descriptors_in
from dayfly.node.door import Door
from dayfly.node.instances import Instances
from dayfly.node.log import configure, log
from dayfly.node.machine import Machine
from dayfly.node.nursery import Zygote
from dayfly.sandbox import cgroup, mounts, privileges
from dayfly.sandbox.syscalls import CLONE_NEWUTS

OUTBOX_MAX = 4096  # messages waiting for a client that does not read; then it is disconnected
DESCRIPTORS_MAX = 8
LATE_SECONDS = 0.002  # that an instance was accepted may be told so much later
IDLE_SECONDS = 1.0  # how often an idle node looks after its pools
NO_ROOM = "The node has as many open files as it may (ulimit -n, LimitNOFILE)."
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * DESCRIPTORS_MAX)


class Node:
    """The loop and what hangs on it. `run` below is its life."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self.settings = settings
        self.layout = layout
        self.started_as_root = os.geteuid() == 0
        self.users = privileges.role_users(layout.data, settings.user)
        self.machine = Machine(settings, layout)
        self.poll = epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.instances = Instances(self.machine, layout, self._watch_zygote, self._watch)
        self.apart = Apart(self.machine.processors, lambda: [*self.instances.tree.pids(), *self.instances.templates.pids()])
        self.builder = Builder(self.machine, layout, self.users["control"].uid if self.started_as_root else 0)
        self.clients: set[Client] = set()
        self.ending = self.relieved = False
        self.last_start = 0.0
        self.late: set[Client] = set()  # those with news that nobody waits for, to be sent at late_at or with other news
        self.late_at = 0.0
        self.full: set[int] = set()  # descriptors watched for room to write
        self.work_left = True
        self.door = Door(layout, self.machine.berth.number, self.users if self.started_as_root else {})

    def __repr__(self) -> str:
        return f"<Node {self.instances!r} clients={len(self.clients)} builds={len(self.builder)}>"

    # The loop

    def serve(self, lifeline: int) -> None:
        """Until SIGTERM, or end-of-file on `lifeline`."""
        wake = self._catch_signals()
        self._register(wake, lambda _: self._woken(wake))
        self._register(lifeline, lambda _: self._stop())
        self._register(self.door.listener.fileno(), lambda _: self._accept())
        while not self.ending and not (self.relieved and not self.clients):
            for descriptor, events in self.poll.poll(self._patience()):
                handler = self.handlers.get(descriptor)
                if handler is not None:
                    handler(events)
                    self.work_left = True  # a fork that is done, a sandbox that stands: what could not be done before may be now
            self._look_after()

    def _patience(self) -> float:
        """Seconds to wait for an event before there is something else to do."""
        now = time.monotonic()
        wait = max(0.0, self._quiet_at() - now) if self.work_left else IDLE_SECONDS
        if self.late:
            wait = min(wait, max(0.0, self.late_at - now))
        return min(wait, self.builder.patience(now), self.apart.patience_seconds(now))

    def _look_after(self) -> None:
        """Deadlines, and one piece of work that can wait."""
        now = time.monotonic()
        if self.late and now >= self.late_at:
            for client in list(self.late):
                self._flush(client)
        self.builder.check_deadlines(now)
        self.apart.check(now)
        if now < self._quiet_at():
            return
        try:
            self.work_left = self.machine.refill() or self.instances.look_after()
        except OSError as error:
            self.work_left = False
            log("warning", "refill_failed", detail=str(error))

    def _quiet_at(self) -> float:
        """When work that can wait may begin, if no further start comes: the more urgent it is, the sooner."""
        return self.last_start + self.instances.reserve.patience_seconds()

    def _register(self, descriptor: int, handler: Callable[[int], None], events: int = EPOLLIN) -> None:
        self.handlers[descriptor] = handler
        self.poll.register(descriptor, events)

    def _unregister(self, descriptor: int) -> None:
        self.full.discard(descriptor)
        if self.handlers.pop(descriptor, None) is not None:
            self.poll.unregister(descriptor)

    def _catch_signals(self) -> int:
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGUSR1, lambda *_: self._relieve())
        return wake

    def _relieve(self) -> None:
        """A successor has our socket's name: stay for the clients that are here, and no longer."""
        self.relieved = True
        if self.door.listener.fileno() >= 0:
            self._unregister(self.door.listener.fileno())
            self.door.close(ours=False)

    def _stop(self) -> None:
        self.ending = True

    def _woken(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 512)
        self._reap()

    def _reap(self) -> None:
        """Children that ended: zygotes and builds, by their own pids (others wait for theirs themselves)."""
        for zygote in self.instances.tree:
            if _has_ended(zygote.pid) is not None:
                zygote.receive(self.instances)  # what it said last
                self._unregister(zygote.socket.fileno())
                zygote.alive = False
                self.instances.zygote_gone(zygote)
        for build in self.builder.running():
            status = _has_ended(build.pid)
            if status is not None:
                self.builder.ended(build, status)

    # Zygotes

    def _watch(self, descriptor: int, handler: Callable[[int], None] | None) -> None:
        """Of prepared sandboxes."""
        if handler is None:
            self._unregister(descriptor)
        else:
            self._register(descriptor, handler)

    def _watch_zygote(self, zygote: Zygote) -> None:
        self._register(zygote.socket.fileno(), lambda events: self._zygote_event(zygote, events))

    def _zygote_event(self, zygote: Zygote, events: int) -> None:
        try:
            if events & EPOLLIN:
                zygote.receive(self.instances)
        except (ValueError, KeyError) as error:  # it says what no zygote says: trust it no more
            log("error", "zygote_unreadable", pid=zygote.pid, detail=str(error))
            os.kill(zygote.pid, signal.SIGKILL)
        if events & EPOLLHUP:
            self._unregister(zygote.socket.fileno())
            return
        zygote.flush()
        self._want_write(zygote)

    def _want_write(self, zygote: Zygote) -> None:
        self._watch_room(zygote.socket.fileno(), zygote.blocked)

    def _watch_room(self, descriptor: int, wanted: bool) -> None:
        """Whether to be told that there is room to write; asks the kernel only when that changes."""
        if descriptor in self.handlers and wanted != (descriptor in self.full):
            self.poll.modify(descriptor, EPOLLIN | (EPOLLOUT if wanted else 0))
            (self.full.add if wanted else self.full.discard)(descriptor)

    # Clients

    def _accept(self) -> None:
        client = self.door.accept(len(self.clients))
        if client is None:
            return
        self.clients.add(client)
        self._register(client.socket.fileno(), lambda events: self._client_event(client, events))

    def _client_event(self, client: Client, events: int) -> None:
        if events & EPOLLOUT:
            self._flush(client)
        if events & (EPOLLIN | EPOLLHUP):
            for _ in range(16):
                if client.gone or not self._receive(client):
                    return

    def _receive(self, client: Client) -> bool:
        """One message. False: there is none, or the client is gone."""
        descriptors: list[int] = []
        try:
            data, ancillary, flags, _ = client.socket.recvmsg(wire.MESSAGE_BYTES_MAX, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            descriptors = descriptors_in(ancillary)
            if not data:
                return self._drop(client, "")
            if flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and len(descriptors) >= DESCRIPTORS_MAX):
                return self._drop(client, "a message is too long, or carries too many descriptors")
            message = wire.decode_to_node(data)
            if not isinstance(message, client.may):
                return self._drop(client, f"its user may not ask for {type(message).__name__}")
            if flags & socket.MSG_CTRUNC and isinstance(message, wire.Start):  # there was no room for those it carried
                self._tell(client, wire.Exited(message.instance, "refused", detail=NO_ROOM, refusal="overloaded"))
                return True
            taken, descriptors = descriptors, []
            self._obey(client, message, taken)
        except BlockingIOError:
            return False
        except OSError as error:
            return self._drop(client, str(error))
        except msgspec.DecodeError as error:
            return self._drop(client, f"not a message: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _obey(self, client: Client, message: wire.ToNode, descriptors: list[int]) -> None:
        """Carry out a message; the descriptors are ours now."""
        if isinstance(message, wire.Start):
            self._start(client, message, descriptors)
            return
        if isinstance(message, wire.Build) and len(descriptors) == 1:
            self.builder.start(message, descriptors[0], lambda built: self._tell(client, built))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(message, wire.Kill):
            if message.instance in client.instances:
                self.instances.kill(message.instance)
        elif isinstance(message, wire.Weigh):
            self.instances.weigh({name: weight for name, weight in message.weights.items() if name in client.instances})
        elif isinstance(message, wire.Ask):
            walls = isolate.walls(self.machine.features)
            self._tell(client, wire.Facts(self.machine.interpreters, walls, len(self.instances)))
        elif isinstance(message, wire.Build):
            self._tell(client, wire.Built(message.layer, ok=False, detail=f"{len(descriptors)} descriptors came with the build"))

    def _start(self, client: Client, start: wire.Start, descriptors: list[int]) -> None:
        self.last_start = now = time.monotonic()
        self.work_left = True
        if start.apart:
            self.apart.keep_off(now)
        known = start.instance in client.instances

        def tell(message: wire.Accepted | wire.Exited) -> None:
            if isinstance(message, wire.Exited) and not (known and message.reason == "refused"):
                client.instances.discard(start.instance)
            self._tell(client, message)

        instance = self.instances.start(start, descriptors, tell)
        if instance is not None:
            client.instances.add(start.instance)
            self._want_write(instance.zygote)

    def _tell(self, client: Client, message: wire.FromNode) -> None:
        if client.gone:
            return
        client.outbox.append(wire.encode(message))
        if len(client.outbox) > OUTBOX_MAX:
            self._drop(client, "it does not read")
        elif not isinstance(message, wire.Accepted):
            self._flush(client)
        elif client not in self.late:  # each wake-up of a client takes a processor from the instance that is starting
            self.late_at = self.late_at if self.late else time.monotonic() + LATE_SECONDS
            self.late.add(client)

    def _flush(self, client: Client) -> None:
        self.late.discard(client)
        while client.outbox:
            try:
                client.socket.send(client.outbox[0])
            except BlockingIOError:
                break
            except OSError:
                client.outbox.clear()  # reading from it will say that it is gone
                break
            client.outbox.popleft()
        self._watch_room(client.socket.fileno(), bool(client.outbox))

    def _drop(self, client: Client, why: str) -> bool:
        """End a connection and everything it asked for. Always False."""
        if client.gone:
            return False
        client.gone = True
        if why:
            log("warning", "client_dropped", why=why)
        self._unregister(client.socket.fileno())
        client.socket.close()
        client.outbox.clear()
        self.late.discard(client)
        self.clients.discard(client)
        for instance in list(client.instances):
            self.instances.kill(instance)
        return False

    def close(self) -> None:
        """Kill everything, wait for it, remove what the machine keeps of it."""
        self.door.close(ours=not self.relieved)
        for client in self.clients:
            client.gone = True
            client.socket.close()
        self.builder.close()
        self.instances.close()
        self.machine.close()
        self.poll.close()


def _has_ended(pid: int) -> int | None:
    """The wait status of a child that has ended; None while it lives."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None]) -> None:
    """The role (app.py). Raises OSError when the socket or the pools cannot be made."""
    configure(settings.log_level)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # where namespaces are forbidden there is no other to enter either
            mounts.step_aside(CLONE_NEWUTS)
    node = Node(settings, layout)
    try:
        default = f"python{sys.version_info.major}.{sys.version_info.minor}"
        missing = {name: why for name, why in isolate.walls(node.machine.features).items() if why is not True}
        alone = node.machine.berth.is_alone
        if alone and node.started_as_root and (left := leftovers.remove_all(layout.builds, node.users["control"].uid)):
            log("info", "builds_removed", layers=left)
        log("warning" if missing else "info", "walls", missing=missing, interpreters=node.machine.interpreters)
        if default in node.machine.interpreters:
            node.instances.warm(default)
        node.door.appear()
        ready()
        node.serve(lifeline)
    finally:
        node.close()


def cleanup(layout: Layout) -> None:
    """Remove what killed nodes of this data directory left on the machine. Harmless when there is nothing."""
    mountinfo, own = (Path("/proc/self", name).read_text() for name in ("mountinfo", "cgroup"))
    place = cgroup.find_place(mountinfo, own, privileged=os.geteuid() == 0)
    for berth in Berth.all(layout):
        berth.clean()
        for folder in place.tagged(berth.tag):
            with contextlib.suppress(OSError):
                cgroup.clean(folder)


__all__ = ["Build", "Node", "cleanup", "run"]
