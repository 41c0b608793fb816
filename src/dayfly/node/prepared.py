"""Prepared sandboxes: forked, walled, hardened and prefaulted before anybody asks, they belong to nobody until they are given away.

Each waits on its *seat*, a socket. Giving it away means: its owner's files are attached from outside (sandbox/door.py), its group gets
the owner's memory limit, and the instance's four descriptors go over the seat. Which kinds stand ready is decided in
core/decide/prepare.py; they are made when the node has nothing else to do. Called by node/instances.py, on one thread.
"""

import array
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from dayfly.core.decide.isolate import PIDS_MAX
from dayfly.core.decide.prepare import Stock
from dayfly.node.log import log
from dayfly.node.machine import Machine
from dayfly.node.nursery import Ticket, Zygote
from dayfly.node.outfit import Outfit
from dayfly.sandbox.door import Door, Spaces

FORGET_SECONDS = 600.0  # a kind that nobody asked for in this time stands ready no longer
MEMORY_MB = 128  # of a sandbox that waits; its owner's limit comes with its owner
KINDS_AT_ONCE = 8  # as many sandboxes in all as so many kinds would have

Watch = Callable[[int, Callable[[int], None] | None], None]  # a descriptor and who is told of its events; None: no more


class Kind(NamedTuple):
    """What must be the same for a sandbox to serve a start."""

    zygote: int  # its pid
    steps: bytes
    egress: str


class Prepared:
    """One sandbox. `stands` once it waits for its owner."""

    def __init__(self, name: str, kind: Kind, zygote: Zygote, outfit: Outfit, seat: socket.socket) -> None:
        self.name = name
        self.kind = kind
        self.zygote = zygote
        self.outfit = outfit
        self.seat = seat
        self.pid = 0
        self.said = False
        self.stands = False
        self.spaces: Spaces | None = None

    def __repr__(self) -> str:
        return f"<Prepared {self.name} pid={self.pid} {'stands' if self.stands else 'is coming'}>"

    def close(self) -> None:
        """Let go of seat and namespaces: a sandbox that still waits ends by that."""
        self.seat.close()
        if self.spaces is not None:
            self.spaces.close()


class Reserve:
    """All sandboxes that belong to nobody yet."""

    def __init__(self, machine: Machine, each: int, watch: Watch) -> None:
        self._machine = machine
        self._watch = watch
        self._stock: Stock[Kind] = Stock(each, each * KINDS_AT_ONCE, FORGET_SECONDS)
        self._zygotes: dict[int, Zygote] = {}
        self._by_name: dict[str, Prepared] = {}
        self._number = 0
        self._door = Door() if machine.private_root and each else None

    def __repr__(self) -> str:
        return f"<Reserve {list(self._by_name.values())}>"

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    # Giving away

    def wanted(self, zygote: Zygote, steps: bytes, egress: str) -> Kind | None:
        """Note that a sandbox of this kind is asked for. None: such sandboxes cannot stand ready here."""
        if self._door is None or not steps:
            return None
        kind = Kind(zygote.pid, steps, egress)
        self._zygotes[zygote.pid] = zygote
        self._stock.asked(kind, time.monotonic())
        return kind

    def take(self, kind: Kind | None) -> Prepared | None:
        """One that stands ready, the caller's from now on."""
        found = next((one for one in self._by_name.values() if one.stands and one.kind == kind), None)
        if found is not None:
            self._forget(found)
        return found

    def lost(self, one: Prepared) -> None:
        """It could not be given away: it stays here until its zygote says that it is gone."""
        one.stands = False
        one.close()
        self._by_name[one.name] = one

    def hand(self, one: Prepared, descriptors: list[int]) -> None:
        """Its owner's descriptors: it wakes and reads who it is, while the node goes on. Raises OSError when it is not to be had any more:
        say `lost` then, as after `furnish`."""
        one.outfit.tenant = one.zygote.tenant  # its zygote may have found its tenant since
        one.seat.sendmsg([b"prepared"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])

    def furnish(self, one: Prepared, trees: list[tuple[int, str]], name: str) -> None:
        """Its owner's files and name; only then does it run the owner's code. Raises OSError."""
        assert self._door is not None and one.spaces is not None
        self._door.furnish(one.spaces, trees, name)
        one.seat.send(b"f")
        one.close()

    # What zygotes say

    def forked(self, name: str, pid: int) -> None:
        one = self._by_name[name]
        one.pid = pid
        self._complete(one)

    def gone(self, name: str) -> None:
        """It ended before it had an owner."""
        one = self._by_name[name]
        self._forget(one)
        one.close()
        self._machine.take_back(one.outfit)

    def zygote_gone(self, zygote: Zygote) -> None:
        self._zygotes.pop(zygote.pid, None)
        for kind in {one.kind for one in self._by_name.values()} | set(self._stock.kinds()):
            if kind.zygote == zygote.pid:
                self._stock.forget(kind)

    def close(self) -> None:
        """Let go of all of them."""
        for one in self._by_name.values():
            one.close()
            self._machine.take_back(one.outfit)
        self._by_name.clear()
        if self._door is not None:
            self._door.close()

    # Making them ahead

    def refill(self) -> bool:
        """One short piece of work: begin a sandbox, or let one go that nobody will ask for. True: call again soon."""
        now = time.monotonic()
        there = Counter(one.kind for one in self._by_name.values())
        coming = sum(not one.stands for one in self._by_name.values())
        busy = {kind for kind in self._stock.kinds() if kind.zygote in self._zygotes and self._zygotes[kind.zygote].unborn}
        if (kind := self._stock.next(there, coming, now, busy)) is not None:
            self._begin(kind)
            return True
        if (kind := self._stock.surplus(there, now)) is not None:
            one = next(one for one in self._by_name.values() if one.kind == kind)
            self._watch(one.seat.fileno(), None)
            self.lost(one)
        return False

    def patience_seconds(self) -> float:
        """How long no start should have come before `refill`."""
        return self._stock.patience_seconds(Counter(one.kind for one in self._by_name.values()), time.monotonic())

    def _begin(self, kind: Kind) -> None:
        zygote = self._zygotes[kind.zygote]
        self._number += 1
        name = f"prepared-{self._number}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            outfit = self._machine.dress(MEMORY_MB, PIDS_MAX, kind.egress, tenant=zygote.tenant)
            undo.callback(self._machine.take_back, outfit)
            ours.setblocking(False)
            one = self._by_name[name] = Prepared(name, kind, zygote, outfit, ours)
            undo.pop_all()
            names, descriptors = outfit.hand_over()
            ticket = Ticket(name, outfit.uid, ["seat", *names], kind.steps)
            zygote.start(ticket, [os.dup(theirs.fileno()), *descriptors])
        self._watch(ours.fileno(), lambda _: self._readable(one))

    def _readable(self, one: Prepared) -> None:
        """It says that it stands, or it is gone."""
        try:
            said = one.seat.recv(16)
        except OSError:
            said = b""
        if not said or one.said:
            self._watch(one.seat.fileno(), None)
            one.stands = False
            return  # its end comes from its zygote
        one.said = True
        self._complete(one)

    def _complete(self, one: Prepared) -> None:
        """Both have spoken: it, that it is done, and its zygote, under which pid."""
        if not one.said or not one.pid:
            return
        try:
            one.spaces = Spaces(one.pid)
            one.stands = True
        except OSError as error:
            log("warning", "prepared_lost", name=one.name, detail=str(error))

    def _forget(self, one: Prepared) -> None:
        del self._by_name[one.name]
        self._watch(one.seat.fileno(), None)
