"""The zygotes of this node: which one serves a start, when a new one is made, when an old one ends.

core/decide/ancestor.py has the rules; this carries them out. Called by node/instances.py and node/server.py, on one thread.
"""

import collections
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dayfly.core.decide.ancestor import idle_ones, is_due
from dayfly.node.log import log
from dayfly.node.machine import Machine
from dayfly.node.nursery import SOURCE, Zygote

RESTART_SECONDS_MIN = 1.0  # between two attempts to start a zygote that dies before it is ready


class Tree:
    """All zygotes: of namespaces, spare, and those that only wait for their last instance."""

    def __init__(self, machine: Machine, watch: Callable[[Zygote], None]) -> None:
        self._machine = machine
        self._watch = watch  # called with every new zygote
        self._all: dict[int, Zygote] = {}  # by pid
        self._of: dict[tuple[str, str], Zygote] = {}  # by namespace and runtime
        self._spare: dict[str, Zygote] = {}  # by runtime
        self._not_before: collections.defaultdict[str, float] = collections.defaultdict(float)

    def __repr__(self) -> str:
        return f"<Tree {list(self._all.values())}>"

    def __iter__(self) -> Iterator[Zygote]:
        return iter(list(self._all.values()))

    def pids(self) -> list[int]:
        """Of all of them."""
        return [zygote.pid for zygote in self]

    @property
    def spares(self) -> list[Zygote]:
        """Those that belong to no namespace yet."""
        return list(self._spare.values())

    def zygote(self, tenant: str, runtime: str) -> Zygote:
        """The one for a start now. Raises OSError when this runtime's zygotes keep dying."""
        now = time.monotonic()
        found = self._of.get((tenant, runtime))
        if found is None or is_due(found.age, now):
            spare = self._spare.pop(runtime) if runtime in self._spare else None
            found = self._of[tenant, runtime] = spare or self._start(runtime, now)
            found.tenant = tenant
        found.asked_at = now
        return found

    def warm(self, runtime: str) -> None:
        """Have a spare one of this runtime."""
        if runtime not in self._spare:
            self._spare[runtime] = self._start(runtime, time.monotonic())

    def look_after(self) -> bool:
        """One piece of work: a new spare for a runtime that lost its own to a namespace, or an end. True: call again soon."""
        now = time.monotonic()
        for _, runtime in self._of:
            if runtime not in self._spare and self._not_before[runtime] <= now:
                self.warm(runtime)
                return True
        ages = {f"{zygote.pid}": zygote.age for zygote in self._of.values()}
        idle = idle_ones(ages, now)
        current = {id(zygote) for zygote in (*self._of.values(), *self._spare.values())}
        for zygote in self:
            if (id(zygote) not in current and not zygote.instances) or f"{zygote.pid}" in idle:
                self._let_go(zygote)
                return True
        return False

    def gone(self, zygote: Zygote) -> None:
        """It was reaped."""
        self._all.pop(zygote.pid, None)
        self._let_go_of_names(zygote)
        if not zygote.ready:
            self._not_before[zygote.runtime] = time.monotonic() + RESTART_SECONDS_MIN

    def close(self) -> None:
        """End all, and with them every instance."""
        for zygote in self:
            zygote.end()
        self._all.clear()
        self._of.clear()
        self._spare.clear()

    def _let_go(self, zygote: Zygote) -> None:
        """End one that nobody needs; the rest happens when it is reaped."""
        if not zygote.ending:
            zygote.ending = True
            zygote.kill_it()
        self._let_go_of_names(zygote)

    def _let_go_of_names(self, zygote: Zygote) -> None:
        self._of = {key: one for key, one in self._of.items() if one is not zygote}
        self._spare = {runtime: one for runtime, one in self._spare.items() if one is not zygote}

    def _start(self, runtime: str, now: float) -> Zygote:
        if now < self._not_before[runtime]:
            raise OSError(f"the {runtime} zygote keeps dying at its start: see the node's log")
        interpreter = self._machine.interpreters[runtime]
        prefix = str(Path(interpreter).parents[1])
        zygote = Zygote(runtime, interpreter, self._machine.zygote_config(SOURCE, prefix), now)
        self._all[zygote.pid] = zygote
        self._watch(zygote)
        log("info", "zygote_started", runtime=runtime, pid=zygote.pid, interpreter=interpreter)
        return zygote
