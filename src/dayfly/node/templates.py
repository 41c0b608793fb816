"""Templates of this node, seen from outside: asks them for children, furnishes the children's namespaces, gives them away.

A template runs in the full sandbox of an instance, on code that may be hostile, and so do its children until they are hardened:
nothing they say is believed but what the kernel confirms (who sent a message, who owns a namespace, who has ended). A child makes
its namespaces itself, without privileges; what it may not do there (mount a /tmp and a /proc, bring up its loopback, take a
user) is done for it here. From then on it is a sandbox that stands ready, like those of node/prepared.py. Called by
node/instances.py, on one thread.
"""

import array
import contextlib
import os
import socket
import struct
import time
from typing import Protocol

from dayfly.core.decide.evict import GreedyDual
from dayfly.core.decide.isolate import PIDS_MAX
from dayfly.core.decide.prepare import Stock
from dayfly.core.wire.node import Start
from dayfly.node.furnish import Furnisher
from dayfly.node.log import log
from dayfly.node.machine import Machine
from dayfly.node.nursery import Zygote
from dayfly.node.offshoot import COMING, LOST, OWNED, STANDS, TAKEN, Offshoot, Owner, Template
from dayfly.node.prepared import Watch
from dayfly.sandbox import syscalls as sys_
from dayfly.sandbox.door import Door

BIRTH_SECONDS_MAX = 2.0  # a template that has not forked by then is asked no more
FAILURES_MAX = 3  # births of one template that fail in a row; then it is asked no more
BIRTHS_MAX = 4  # of one template under way; more would only share the same processors
REPORT_SECONDS_MAX = 0.25  # the kernel says that a child has ended; how, its template must say within this time
FORGET_SECONDS = 60.0  # a template of which nobody asked for a child in this time has none standing ready
_CREDENTIALS = struct.Struct("3i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


class Listener(Protocol):
    """Who hears how a child that was given away ended (node/instances.py)."""

    def exited(self, name: str, kind: str, code: int, cpu_us: int, peak_bytes: int) -> None: ...

    def failed(self, name: str, detail: str) -> None: ...

    def pid_of(self, name: str) -> int: ...


class Templates:
    """All templates and their children."""

    def __init__(self, machine: Machine, watch: Watch, listener: Listener) -> None:
        self._machine = machine
        self._watch = watch
        self._listener = listener
        self._by_id: dict[str, Template] = {}
        self._waiting: list[Offshoot] = []  # not yet standing, or ended without a report
        self._door = Door() if machine.private_root else None
        self._furnisher = Furnisher(machine, self._door, watch, self._fail) if self._door is not None else None
        self._eviction = GreedyDual[str]()
        self._room_bytes = machine.settings.templates_memory_mb << 20
        each = machine.settings.prepared_max
        self._stock: Stock[str] = Stock(each, each * 8, FORGET_SECONDS)

    def __repr__(self) -> str:
        return f"<Templates {list(self._by_id.values())}>"

    # Templates

    def add(self, start: Start, zygote: Zygote, uid: int) -> int:
        """A template is about to be forked. Returns its end of the seat, the caller's to hand over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        template = self._by_id[start.instance] = Template(start, zygote, ours)
        template.uid = uid
        self._watch(ours.fileno(), lambda _: self._template_speaks(template))
        return theirs.detach()

    def get(self, name: str) -> Template | None:
        """The template, when it can be asked for children."""
        found = self._by_id.get(name)
        if found is not None and not found.stands:
            self._template_speaks(found)  # what it has told its gateway, it told us before
        return found if found is not None and found.stands and not found.retired else None

    def pids(self) -> list[int]:
        """Of those that fork when they are asked. (Who runs its init still runs user code.)"""
        return [self._listener.pid_of(name) for name, template in self._by_id.items() if template.stands and not template.retired]

    def gone(self, name: str) -> None:
        """A template has ended; its children, in namespaces below its own, end with it."""
        template = self._by_id.pop(name, None)
        if template is None:
            return
        self._watch(template.seat.fileno(), None)
        template.seat.close()
        template.retired = True
        self._stock.forget(name)
        for child in list(template.children.values()):
            child.report = child.report or ("orphaned", 9, 0, 0)
            if child.pidfd < 0:
                self._end(child)
        self._next(template)

    def _template_speaks(self, template: Template) -> None:
        try:
            said = template.seat.recv(256)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        words = said.decode("ascii", "replace").split()
        if words == ["stands"] and not template.stands:
            template.stand(self._listener.pid_of(template.start.instance))
            if template.size_bytes > self._room_bytes:
                why = (
                    f"it takes {template.size_bytes >> 20} MB, all of them together may take {self._room_bytes >> 20} (templates_memory_mb)"
                )
                self._listener.failed(template.start.instance, why)
                self.retire(template)
            self._make_room()
        elif len(words) == 6 and words[0] == "exited" and all(word.isdigit() for word in (words[1], *words[3:])):
            child = template.children.get(int(words[1]))
            if child is not None and words[2] in ("exit", "signal"):
                child.report = (words[2], int(words[3]) & 0xFF, int(words[4]), int(words[5]) * 1024)
                if child.ended_at:
                    self._end(child)
        else:  # it is leaving, or says what no template says
            self._watch(template.seat.fileno(), None)
            template.retired = True

    # Children

    def order(self, template: Template, owner: Owner) -> None:
        """Have it fork for `owner`, who is told when the child stands (or that there will be none); in turn, when many want one at once.
        Raises OSError."""
        if template.coming() >= BIRTHS_MAX:
            template.owners.append(owner)
        else:
            self.ask(template, owner)

    def _next(self, template: Template) -> None:
        """A birth is over: whose turn is it?"""
        while template.owners and template.coming() < BIRTHS_MAX:
            owner = template.owners.popleft()
            try:
                if template.retired:
                    raise BrokenPipeError
                self.ask(template, owner)
            except OSError:
                owner(None)

    def ask(self, template: Template, owner: Owner | None) -> Offshoot:
        """Have it fork now. Without `owner` the child waits for whoever comes. Raises OSError."""
        start = template.start
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setblocking(False)
            outfit = self._machine.dress(start.memory_mb, PIDS_MAX, "", start.cpu_millicores)
            undo.callback(self._machine.take_back, outfit)
            template.number += 1
            rights = array.array("i", [theirs.fileno()])
            template.seat.sendmsg([b"%d" % template.number], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            undo.pop_all()
        child = template.children[template.number] = Offshoot(template, template.number, outfit, ours, owner)
        self._waiting.append(child)
        self._watch(ours.fileno(), lambda _: self._child_speaks(child))
        return child

    def lost(self, child: Offshoot) -> None:
        """It could not be given away: it ends, and its outfit comes back with its end."""
        child.state = LOST
        child.kill()

    def wanted(self, template: Template) -> None:
        """Note that somebody asks for a child of it."""
        now = time.monotonic()
        if not template.is_packages or now - template.asked_at < FORGET_SECONDS:  # who starts once from packages has a template soon
            self._stock.asked(template.start.instance, now)
        template.asked += 1
        template.asked_at = now

    def refill(self) -> bool:
        """One short piece of work: have a busy template fork a child ahead, or let one go. True: call again soon."""
        now = time.monotonic()
        there = {name: template.ahead() for name, template in self._by_id.items()}
        coming = sum(child.state == COMING for child in self._waiting)
        name = self._stock.next({name: count for name, count in there.items() if self.get(name)}, coming, now)
        if name is not None and (template := self.get(name)) is not None:
            try:
                self.ask(template, None)
            except BrokenPipeError:  # it is ending
                template.retired = True
            return True
        if (name := self._stock.surplus(there, now)) is not None and (spare := self.take(self._by_id[name])) is not None:
            self.lost(spare)
        return False

    def take(self, template: Template) -> Offshoot | None:
        """A child that stands ready, the caller's from now on."""
        found = next((child for child in template.children.values() if child.state == STANDS), None)
        if found is not None:
            found.state = TAKEN
        return found

    def give(self, child: Offshoot, trees: list[tuple[int, str]], name: str, origin: str, descriptors: list[int]) -> None:
        """Make it the instance `name`, with what it lacks of its files. Raises OSError when it is not to be had any more."""
        assert self._door is not None and child.spaces is not None
        self._door.furnish(child.spaces, trees, name)
        child.seat.sendmsg([origin.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        child.state = OWNED
        self._close_channel(child)

    def _child_speaks(self, child: Offshoot) -> None:
        """ "born" from a process of which the kernel says who it is; "stands" when it has put down its powers."""
        pid = 0
        try:
            said, ancillary, _, _ = child.seat.recvmsg(16, _ANCILLARY_BYTES)
            pid = _CREDENTIALS.unpack_from(ancillary[0][2])[0] if ancillary else 0
        except BlockingIOError:
            return
        except OSError:
            said = b""
        try:
            if said == b"born" and child.pidfd < 0 and pid:
                self._begin(child, pid)
            elif said == b"stands" and pid == child.pid and child.state == COMING:
                child.state = STANDS
                child.template.failures = 0
                self._waiting.remove(child)
                if child.owner is not None:
                    child.state = TAKEN
                    child.owner(child)
                self._next(child.template)
            else:
                raise ConnectionResetError(f"it said {said!r}")
        except (OSError, ValueError) as error:
            self._fail(child, str(error))

    def _begin(self, child: Offshoot, pid: int) -> None:
        """It is born: the kernel says as whom."""
        child.pid = pid
        child.pidfd = sys_.pidfd_open(pid)
        self._watch(child.pidfd, lambda _: self._ended(child))
        assert self._furnisher is not None  # without a root of its own there is no template
        self._furnisher.begin(child)

    def _fail(self, child: Offshoot, why: str) -> None:
        """It will not be an instance. Whoever waits for it hears so."""
        if child.state in (OWNED, LOST):
            return
        log("warning", "offshoot_failed", name=child.name, detail=why)
        child.template.failures += 1
        if child.template.failures >= FAILURES_MAX:
            self.retire(child.template)  # the next would not fare better
        child.state = LOST
        if child in self._waiting:
            self._waiting.remove(child)
        child.kill()
        if child.pidfd < 0:
            self._end(child)
        if child.owner is not None:
            child.owner(None)
            child.owner = None
        self._next(child.template)

    def _ended(self, child: Offshoot) -> None:
        """The kernel says so. How, its template says; if it does not, that stays unknown."""
        self._watch(child.pidfd, None)
        child.ended_at = time.monotonic()
        if child.state == COMING:
            self._fail(child, "it ended on its way")
        if child.report is not None or child.state != OWNED:
            self._end(child)
        elif child not in self._waiting:
            self._waiting.append(child)

    def _end(self, child: Offshoot) -> None:
        """Over: whoever has it hears of it."""
        if child.template.children.pop(child.number, None) is None:
            return
        if child in self._waiting:
            self._waiting.remove(child)
        self._close_channel(child)
        if child.pidfd >= 0:
            self._watch(child.pidfd, None)
            os.close(child.pidfd)
            child.pidfd = -1
        if child.state == OWNED:
            self._listener.exited(child.name, *(child.report or ("exit", 0, 0, 0)))
        else:
            self._machine.take_back(child.outfit)
        if child.template.retired and not child.template.children:
            child.template.zygote.kill(child.template.start.instance)

    def _close_channel(self, child: Offshoot) -> None:
        if child.seat.fileno() >= 0:
            self._watch(child.seat.fileno(), None)
            child.seat.close()
        if child.proc is not None and child.proc.fileno() >= 0:
            self._watch(child.proc.fileno(), None)
            child.proc.close()
        if child.spaces is not None:
            child.spaces.close()

    # Room

    def _make_room(self) -> None:
        """Together they may take so much; the least worth it goes (core/decide/evict.py), and is made again when it is missed."""
        while sum(it.size_bytes for it in self._by_id.values() if not it.retired) > self._room_bytes:
            name = self._eviction.choose(it.item() for it in self._by_id.values() if it.stands and not it.retired)
            if name is None:
                return
            log("info", "template_evicted", instance=name, bytes=self._by_id[name].size_bytes)
            self.retire(self._by_id[name])
            self._eviction.left(name)

    # The clock

    def retire(self, template: Template) -> None:
        """No more children; it ends with its last one."""
        template.retired = True
        for child in list(template.children.values()):
            if child.state in (COMING, STANDS):
                child.kill()
        self._next(template)
        if not template.children:
            template.zygote.kill(template.start.instance)

    def look_after(self) -> None:
        """Children that are not born, and ends of which nobody tells."""
        now = time.monotonic()
        for child in list(self._waiting):
            if child.ended_at:
                if now - child.ended_at > REPORT_SECONDS_MAX:
                    self._end(child)
            elif now - child.asked_at > BIRTH_SECONDS_MAX:
                self.retire(child.template)
                self._fail(child, "it was not born in time")

    def close(self) -> None:
        """Let go of everything; the processes end with their zygote."""
        for template in self._by_id.values():
            template.seat.close()
            for child in template.children.values():
                self._close_channel(child)
                if child.state != OWNED:
                    self._machine.take_back(child.outfit)
                if child.pidfd >= 0:
                    os.close(child.pidfd)
        self._by_id.clear()
        if self._door is not None:
            self._door.close()
