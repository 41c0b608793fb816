"""Instances of this node: gathers what a start needs (walls, uid, group, network, trees), hands it to a zygote, and takes all back.

Every accepted or refused `Start` ends in exactly one `Exited` to the client that asked. Called by node/server.py, on one thread; it
owns no socket.
"""

import collections
import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from dayfly.core.decide.isolate import PIDS_MAX, Demand, Plan
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout
from dayfly.core.wire.node import Accepted, Exited, Start
from dayfly.node.log import log
from dayfly.node.machine import Machine
from dayfly.node.nursery import SOURCE, Ticket, Zygote
from dayfly.sandbox import cgroup, mounts, network

RESTART_SECONDS_MIN = 1.0  # between two attempts to start a zygote that dies before it is ready
FIRST = ("requests", "answers", "progress", "output")

Tell = Callable[[Accepted | Exited], None]


class Instance:
    """One instance from its start to its end, with everything that must be given back."""

    def __init__(self, start: Start, tell: Tell, plan: Plan) -> None:
        self.id = start.instance
        self.tell = tell
        self.plan = plan
        self.uid = 0
        self.group: cgroup.Group | None = None
        self.network_key = 0
        self.scratch = ""
        self.failure = ""  # which step of the way into the sandbox went wrong
        self.killed = False
        self.runtime = start.runtime
        self.pid = 0

    def __repr__(self) -> str:
        return f"<Instance {self.id} uid={self.uid} pid={self.pid} {self.group}>"


class Instances:
    """All instances, and the zygotes they come from."""

    def __init__(self, machine: Machine, layout: Layout, watch: Callable[[Zygote], None]) -> None:
        self.machine = machine
        self.zygotes: dict[str, Zygote] = {}
        self._layout = layout
        self._watch = watch  # called with every new zygote
        self._live: dict[str, Instance] = {}
        self._not_before: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._code = os.open(layout.code, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._layers = os.open(layout.layers, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._scratch = f"{layout.run}/scratch"

    def __repr__(self) -> str:
        return f"<Instances {len(self._live)} of {list(self.zygotes.values())}>"

    def __len__(self) -> int:
        return len(self._live)

    # What clients ask

    def start(self, start: Start, given: list[int], tell: Tell) -> Instance | None:
        """Begin a start. Takes over the descriptors `given`. None when it was refused, which `tell` has heard."""
        code = ""
        try:
            return self._start(start, given, tell)
        except Refusal as refusal:
            code = refusal.kind.code
            detail = f"{refusal.detail} {refusal.extra.get('missing', '')}".strip()
        except (OSError, ValueError) as error:
            detail = str(error)
        log("warning", "start_refused", instance=start.instance, detail=detail)
        tell(Exited(start.instance, reason="refused", detail=detail, refusal=code))
        return None

    def _start(self, start: Start, given: list[int], tell: Tell) -> Instance:
        with contextlib.ExitStack() as undo:
            for descriptor in given:
                undo.callback(os.close, descriptor)
            self._check(start, given)
            layer = bool(start.layer)
            demand = Demand(start.egress, start.memory_mb, start.tmp_mb, PIDS_MAX, layer, start.has_secrets)
            plan, steps = self.machine.plan(demand)
            zygote = self._zygote(start.runtime)
            instance = Instance(start, tell, plan)
            undo.callback(self._give_back, instance)
            names = [*FIRST, *(["secrets"] if start.has_secrets else [])]
            descriptors = list(given)
            for name, descriptor in self._trees(start).items():
                undo.callback(os.close, descriptor)
                names.append(name)
                descriptors.append(descriptor)
            self._furnish(instance, start, names, descriptors, undo)
            ticket = Ticket(
                instance.id, instance.uid, names, steps,
                f"{self._layout.code}/{start.code}", f"{self._layout.layers}/{start.layer}" if layer else "", instance.scratch,
            )  # fmt: skip
            self._live[instance.id] = instance
            undo.pop_all()
            zygote.start(ticket, descriptors)
        return instance

    def _check(self, start: Start, given: list[int]) -> None:
        if start.instance in self._live:
            raise ValueError("an instance with this id is alive")
        if len(given) != len(FIRST) + start.has_secrets:
            raise ValueError(f"{len(given)} descriptors came with the start")
        if len(self._live) >= self.machine.settings.instances_max:
            raise ValueError(f"{len(self._live)} instances are alive, as many as instances_max allows")
        if start.runtime not in self.machine.interpreters:
            raise ValueError(f"there is no {start.runtime} on this machine; found: {', '.join(self.machine.interpreters)}")

    def _trees(self, start: Start) -> dict[str, int]:
        """Read-only detached mounts of code and layer; without mount namespaces only a check that they are there."""
        wanted = {"code": (self._code, start.code)} | ({"layer": (self._layers, start.layer)} if start.layer else {})
        trees: dict[str, int] = {}
        try:
            for name, (parent, digest) in wanted.items():
                folder = mounts.open_beneath(parent, digest)
                try:
                    if self.machine.private_root:
                        trees[name] = mounts.detach_read_only("", folder)
                finally:
                    os.close(folder)
        except OSError:
            for descriptor in trees.values():
                os.close(descriptor)
            raise
        return trees

    def _furnish(self, instance: Instance, start: Start, names: list[str], descriptors: list[int], undo: contextlib.ExitStack) -> None:
        """Uid, limits, network, and a folder of its own where there is no private /tmp. Appends to `names` and `descriptors`."""
        machine = self.machine
        instance.uid = machine.uids.take() if machine.root else 0
        instance.group = machine.groups.take(start.memory_mb << 20, PIDS_MAX)
        if instance.group is not None:
            for name, descriptor in instance.group.descriptors.items():
                names.append(name)
                descriptors.append(descriptor)
            handed = dict(instance.group.descriptors)
            instance.group.descriptors.clear()
            for descriptor in handed.values():
                undo.callback(os.close, descriptor)
        if machine.has("net_namespaces"):
            egress = start.egress if machine.has("egress_internet") else "none"
            descriptor = machine.networks.take(egress)
            undo.callback(os.close, descriptor)
            if egress == "internet":
                instance.network_key = network.Pool.key(descriptor)
            names.append("netns")
            descriptors.append(descriptor)
        if not machine.private_root:
            instance.scratch = f"{self._scratch}/{instance.id}"
            Path(self._scratch).mkdir(mode=0o711, exist_ok=True)
            Path(instance.scratch).mkdir(mode=0o700)
            if machine.has("uids"):
                os.chown(instance.scratch, instance.uid, instance.uid)

    def kill(self, instance_id: str) -> None:
        """SIGKILL to everything in its sandbox; unknown ids are ignored."""
        instance = self._live.get(instance_id)
        if instance is not None and not instance.killed:
            instance.killed = True
            self.zygotes[instance.runtime].kill(instance_id)

    # What zygotes say (nursery.Listener)

    def forked(self, instance: str, pid: int) -> None:
        found = self._live[instance]
        found.pid = pid
        found.tell(Accepted(instance, pid, found.plan.walls, found.plan.missing))
        if found.killed:  # the kill came before the fork
            self.zygotes[found.runtime].kill(instance)

    def failed(self, instance: str, detail: str) -> None:
        self._live[instance].failure = detail
        log("error", "sandbox_failed", instance=instance, detail=detail)

    def exited(self, instance: str, kind: str, code: int, cpu_us: int, peak_bytes: int) -> None:
        found = self._live.pop(instance)
        usage = found.group.usage() if found.group is not None else cgroup.Usage(-1, -1, 0)
        self._give_back(found)
        orphaned = kind == "orphaned"  # by its zygote: no fault of the user's code, however far it had come
        reason = "refused" if found.failure or kind == "refused" else "signal" if kind == "signal" or orphaned else "exit"
        if reason == "signal" and usage.oom_kills and code == 9:
            reason = "oom"  # also after a kill: who sees its socket close asks for one, and that may overtake this news
        found.tell(
            Exited(
                instance,
                reason=reason,  # type: ignore[arg-type]
                code=code,
                detail=found.failure or ("Its zygote was lost." if orphaned else ""),
                refusal="start_failed" if orphaned else "",
                cpu_us=usage.cpu_us if usage.cpu_us >= 0 else cpu_us,
                memory_peak_bytes=usage.memory_peak_bytes if usage.memory_peak_bytes >= 0 else peak_bytes,
            )
        )

    def zygote_gone(self, zygote: Zygote) -> None:
        """It was reaped. Its instances died with it, or never came to be."""
        lost = dict(zygote.instances)
        was_ready = zygote.ready
        zygote.forget()
        if self.zygotes.get(zygote.runtime) is zygote:
            del self.zygotes[zygote.runtime]
        if not was_ready:
            self._not_before[zygote.runtime] = time.monotonic() + RESTART_SECONDS_MIN
        log("error", "zygote_died", runtime=zygote.runtime, pid=zygote.pid, ready=was_ready, instances=len(lost))
        for instance, pid in lost.items():
            if pid == 0:
                self._live[instance].failure = "its zygote died before it was forked"
            self.exited(instance, "orphaned", 9, 0, 0)

    # Zygotes

    def warm(self, runtime: str) -> None:
        """Start the zygote of a runtime unless it is there."""
        self._zygote(runtime)

    def _zygote(self, runtime: str) -> Zygote:
        found = self.zygotes.get(runtime)
        if found is not None:
            return found
        if time.monotonic() < self._not_before[runtime]:
            raise OSError(f"the {runtime} zygote keeps dying at its start: see the node's log")
        interpreter = self.machine.interpreters[runtime]
        prefix = str(Path(interpreter).parents[1])
        zygote = Zygote(runtime, interpreter, self.machine.zygote_config(SOURCE, prefix))
        self.zygotes[runtime] = zygote
        self._watch(zygote)
        log("info", "zygote_started", runtime=runtime, pid=zygote.pid, interpreter=interpreter)
        return zygote

    def _give_back(self, instance: Instance) -> None:
        if instance.uid:
            self.machine.uids.give_back(instance.uid)
        if instance.group is not None:
            self.machine.groups.give_back(instance.group)
        if instance.network_key:
            self.machine.networks.release(instance.network_key)
        if instance.scratch:
            shutil.rmtree(instance.scratch, ignore_errors=True)

    def close(self) -> None:
        """End every zygote and with it every instance."""
        for zygote in list(self.zygotes.values()):
            zygote.end()
        for instance in list(self._live.values()):
            self._give_back(instance)
        self._live.clear()
        self.zygotes.clear()
        os.close(self._code)
        os.close(self._layers)
