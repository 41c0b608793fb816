"""Instances of this node: gathers what a start needs (walls, uid, group, network, trees), hands it to a zygote, and takes all back.

Every accepted or refused `Start` ends in exactly one `Exited` to the client that asked. Called by node/server.py, on one thread; it
owns no socket.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from dayfly.core.decide.isolate import PIDS_MAX, Demand, Plan, lacks_templates
from dayfly.core.model.errors import Refusal
from dayfly.core.model.layout import Layout
from dayfly.core.wire.node import EXEC, Accepted, Exited, Start
from dayfly.node.log import log
from dayfly.node.machine import Machine, Walls
from dayfly.node.nursery import Ticket, Zygote
from dayfly.node.offshoot import Offshoot, Template
from dayfly.node.outfit import Outfit
from dayfly.node.prepared import Prepared, Reserve, Watch
from dayfly.node.shadows import Shadows
from dayfly.node.templates import Templates
from dayfly.node.tree import Tree
from dayfly.sandbox import cgroup, mounts

FIRST = ("requests", "answers", "progress", "output")
SEAT_AT = 3  # where a template's seat stands among them: it stays open
PLACES = {"code": "/var/task", "layer": "/opt/python"}  # where a sandbox shows its trees (core/decide/isolate.py has them as steps)

Tell = Callable[[Accepted | Exited], None]


class Instance:
    """One instance from its start to its end, with everything that must be given back."""

    def __init__(self, start: Start, tell: Tell, plan: Plan, zygote: Zygote) -> None:
        self.id = start.instance
        self.name = start.instance  # what its zygote calls it: a prepared sandbox has had another name
        self.tell = tell
        self.plan = plan
        self.zygote = zygote
        self.outfit = Outfit()
        self.scratch = ""
        self.failure = ""  # which step of the way into the sandbox went wrong
        self.killed = False
        self.pid = 0
        self.offshoot: Offshoot | None = None  # when it comes from a template

    def kill(self) -> None:
        """SIGKILL to everything in its sandbox."""
        if self.offshoot is not None:
            self.offshoot.kill()
        else:
            self.zygote.kill(self.name)

    def __repr__(self) -> str:
        return f"<Instance {self.id} uid={self.outfit.uid} pid={self.pid} {self.outfit.group}>"


class Instances:
    """All instances, the zygotes they come from, and the sandboxes that stand ready for them."""

    def __init__(self, machine: Machine, layout: Layout, watch_zygote: Callable[[Zygote], None], watch: Watch) -> None:
        self.machine = machine
        self.tree = Tree(machine, watch_zygote)
        self.reserve = Reserve(machine, machine.settings.prepared_max, watch)
        self.templates = Templates(machine, watch, self)
        self._layout = layout
        self._live: dict[str, Instance] = {}  # by id
        self._named: dict[str, Instance] = {}  # by the name that its zygote knows
        self._code = os.open(layout.code, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._layers = os.open(layout.layers, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._scratch = f"{layout.run}/scratch"
        self._shadows = Shadows(layout)

    def __repr__(self) -> str:
        return f"<Instances {len(self._live)} of {self.tree!r} {self.reserve!r}>"

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
            template = self.templates.get(start.parent)
            if template is not None and (made := self._from_template(start, template, given, tell)) is not None:
                return made
            is_template = start.role != "instance"
            if is_template and start.runtime == EXEC:
                raise ValueError("a program cannot be copied after its init")
            if is_template and (reason := lacks_templates(self.machine.features)):
                raise ValueError(f"snapshots cannot be had on this machine: {reason}")
            demand = Demand(
                start.egress, start.memory_mb, start.tmp_mb, PIDS_MAX, bool(start.layer), start.has_secrets, start.cpu_millicores,
                is_template, bool(start.code), start.runtime == EXEC,
            )  # fmt: skip
            walls = self.machine.plan(demand)
            if start.role == "packages" and "memory" not in walls.plan.walls:
                raise ValueError("without memory groups a child would keep its template's limit")
            instance = Instance(start, tell, walls.plan, self.tree.zygote(start.tenant, self._runtime(start)))
            trees = self._trees(start)
            for descriptor in trees.values():
                undo.callback(os.close, descriptor)
            way_out = "none" if start.egress == "none" else "internet"
            kind = None if is_template else self.reserve.wanted(instance.zygote, walls.ahead, way_out)
            if not self._move_in(instance, self.reserve.take(kind), start, trees, given):
                self._fork(instance, start, walls, trees, given, undo)
        return instance

    def _move_in(self, instance: Instance, ready: Prepared | None, start: Start, trees: dict[str, int], given: list[int]) -> bool:
        """Into a sandbox that stands ready. False: there is none, or it is not to be had. Raises OSError when it was lost with what it had
        been given."""
        if ready is None:
            return False
        try:
            self.reserve.hand(ready, given)
        except OSError as error:
            log("warning", "prepared_lost", name=ready.name, detail=str(error))
            self.reserve.lost(ready)
            return False
        try:
            if ready.outfit.group is not None:
                self.machine.groups.limit(ready.outfit.group, start.memory_mb << 20, PIDS_MAX, start.cpu_millicores)
            self.machine.networks.admit(ready.outfit.network_key, start.egress, start.egress_rules)
            self.reserve.furnish(ready, [(tree, PLACES[name]) for name, tree in trees.items()], instance.id)
        except OSError:
            self.reserve.lost(ready)
            raise
        instance.name, instance.pid, instance.outfit = ready.name, ready.pid, ready.outfit
        self._live[instance.id] = self._named[instance.name] = instance
        instance.tell(Accepted(instance.id, instance.pid, instance.plan.walls, instance.plan.missing))
        return True

    def _fork(
        self, instance: Instance, start: Start, walls: Walls, trees: dict[str, int], given: list[int], undo: contextlib.ExitStack
    ) -> None:
        """A sandbox of its own, now."""
        machine, layout = self.machine, self._layout
        undo.callback(self._give_back, instance)
        instance.outfit = machine.dress(start.memory_mb, PIDS_MAX, start.egress, start.cpu_millicores, tenant=start.tenant)
        if not machine.private_root:
            self._make_scratch(instance)
        machine.networks.admit(instance.outfit.network_key, start.egress, start.egress_rules)
        names, descriptors = instance.outfit.hand_over()
        for descriptor in descriptors:
            undo.callback(os.close, descriptor)
        first, handed = [*FIRST, *(["secrets"] if start.has_secrets else [])], list(given)
        if start.role != "instance":
            seat = self.templates.add(start, instance.zygote, instance.outfit.uid)
            undo.callback(os.close, seat)
            first.insert(SEAT_AT, "seat")
            handed.insert(SEAT_AT, seat)
        ticket = Ticket(
            instance.name, instance.outfit.uid, [*first, *trees, *names], walls.steps,
            f"{layout.code}/{start.code}" if start.code else "", f"{layout.layers}/{start.layer}" if start.layer else "", instance.scratch,
        )  # fmt: skip
        self._live[instance.id] = self._named[instance.name] = instance
        undo.pop_all()
        instance.zygote.start(ticket, [*handed, *trees.values(), *descriptors])

    def _from_template(self, start: Start, template: Template, given: list[int], tell: Tell) -> Instance | None:
        """A child of a template: one that stands ready, or one that it forks now. None: it has none for this start."""
        if not template.fits(start) or (template.is_packages and self._shadows.between(start.code, start.layer)):
            return None
        walls = self.machine.plan(
            Demand(start.egress, start.memory_mb, start.tmp_mb, PIDS_MAX, bool(start.layer), start.has_secrets, start.cpu_millicores)
        )
        instance = Instance(start, tell, walls.plan, template.zygote)
        self.templates.wanted(template)
        ready = self.templates.take(template)
        if ready is None:
            own = [os.dup(descriptor) for descriptor in given]
            self._live[instance.id] = instance
            try:
                self.templates.order(template, lambda child: self._arrived(instance, start, own, child))
            except OSError as error:  # it has just ended
                log("warning", "template_lost", name=template.start.instance, detail=str(error))
                template.retired = True
                del self._live[instance.id]
                for descriptor in own:
                    os.close(descriptor)
                return None
            return instance
        try:
            self._move_into(instance, ready, start, "ahead", given)
        except OSError as error:
            log("warning", "offshoot_lost", name=instance.id, detail=str(error))
            self.templates.lost(ready)
            return None
        return instance

    def _move_into(self, instance: Instance, child: Offshoot, start: Start, origin: str, given: list[int]) -> None:
        """Raises OSError when the child is not to be had any more, or its code is not there."""
        trees: dict[str, int] = {}
        if child.template.is_packages:
            origin = "packages"
            if child.outfit.group is not None:
                self.machine.groups.limit(child.outfit.group, start.memory_mb << 20, PIDS_MAX, start.cpu_millicores)
            trees = self._trees(msgspec.structs.replace(start, layer=""))
        try:
            self.templates.give(child, [(tree, PLACES[name]) for name, tree in trees.items()], instance.id, origin, given[: len(FIRST)])
        finally:
            for descriptor in trees.values():
                os.close(descriptor)
        instance.offshoot, instance.name, instance.pid, instance.outfit = child, child.name, child.pid, child.outfit
        self._live[instance.id] = self._named[instance.name] = instance
        instance.tell(Accepted(instance.id, instance.pid, instance.plan.walls, instance.plan.missing))

    def _arrived(self, instance: Instance, start: Start, given: list[int], child: Offshoot | None) -> None:
        """The child that an instance waits for stands, or it never will: then it starts as if there were no template."""
        try:
            if child is not None and not instance.killed:
                self._move_into(instance, child, start, "template", given)
                return
        except OSError as error:
            log("warning", "offshoot_lost", name=instance.id, detail=str(error))
        finally:
            if instance.name in self._named or instance.killed:
                for descriptor in given:
                    os.close(descriptor)
        if child is not None:
            self.templates.lost(child)
        del self._live[instance.id]
        if instance.killed:
            instance.tell(Exited(instance.id, reason="signal", code=9))
        else:
            self.start(msgspec.structs.replace(start, parent=""), given, instance.tell)

    def _check(self, start: Start, given: list[int]) -> None:
        if start.instance in self._live:
            raise ValueError("an instance with this id is alive")
        if len(given) != len(FIRST) + start.has_secrets:
            raise ValueError(f"{len(given)} descriptors came with the start")
        if len(self._live) >= self.machine.settings.instances_max:
            raise ValueError(f"{len(self._live)} instances are alive, as many as instances_max allows")
        if start.runtime not in (*self.machine.interpreters, EXEC):
            raise ValueError(f"there is no {start.runtime} on this machine; found: {', '.join(self.machine.interpreters)}")

    def _runtime(self, start: Start) -> str:
        """Whose zygote forks it: a program of its own needs one as well, of any kind."""
        return next(iter(self.machine.interpreters)) if start.runtime == EXEC else start.runtime

    def _trees(self, start: Start) -> dict[str, int]:
        """Read-only detached mounts of code and layer; without mount namespaces only a check that they are there."""
        named = {"code": (self._code, start.code), "layer": (self._layers, start.layer)}
        wanted = {name: place for name, place in named.items() if place[1]}
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

    def _make_scratch(self, instance: Instance) -> None:
        """A folder of its own where there is no private /tmp."""
        instance.scratch = f"{self._scratch}/{instance.id}"
        Path(self._scratch).mkdir(mode=0o711, exist_ok=True)
        Path(instance.scratch).mkdir(mode=0o700)
        if instance.outfit.uid:
            os.chown(instance.scratch, instance.outfit.uid, instance.outfit.uid)

    def kill(self, instance_id: str) -> None:
        """SIGKILL to everything in its sandbox; unknown ids are ignored."""
        instance = self._live.get(instance_id)
        if instance is not None and not instance.killed:
            instance.killed = True
            instance.kill()

    def weigh(self, weights: dict[str, int]) -> None:
        """Thousandths of what follows from their memory; unknown ids are ignored."""
        for name, permille in weights.items():
            found = self._live.get(name)
            if found is not None and found.outfit.group is not None:
                with contextlib.suppress(OSError):  # it has just ended
                    found.outfit.group.weigh(permille)

    # What zygotes say (nursery.Listener)

    def forked(self, name: str, pid: int) -> None:
        if name in self.reserve:
            self.reserve.forked(name, pid)
            return
        found = self._named[name]
        found.pid = pid
        found.tell(Accepted(found.id, pid, found.plan.walls, found.plan.missing))
        if found.killed:  # the kill came before the fork
            found.kill()

    def pid_of(self, name: str) -> int:
        """Of an instance or template that was forked; 0 before."""
        return self._live[name].pid if name in self._live else 0

    def failed(self, name: str, detail: str) -> None:
        if name in self._named:
            self._named[name].failure = detail
        log("error", "sandbox_failed", instance=name, detail=detail)

    def exited(self, name: str, kind: str, code: int, cpu_us: int, peak_bytes: int) -> None:
        if name in self.reserve:
            self.reserve.gone(name)
            return
        found = self._named.pop(name)
        self.templates.gone(name)
        group = found.outfit.group
        usage = group.usage() if group is not None else cgroup.Usage(-1, -1, 0)
        self._give_back(found)
        del self._live[found.id]
        orphaned = kind == "orphaned"  # by its zygote: no fault of the user's code, however far it had come
        reason = "refused" if found.failure or kind == "refused" else "signal" if kind == "signal" or orphaned else "exit"
        if reason == "signal" and usage.oom_kills and code == 9:
            reason = "oom"  # also after a kill: who sees its socket close asks for one, and that may overtake this news
        found.tell(
            Exited(
                found.id,
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
        self.tree.gone(zygote)
        self.reserve.zygote_gone(zygote)
        level = "info" if zygote.ending else "error"
        log(level, "zygote_died", runtime=zygote.runtime, pid=zygote.pid, ready=zygote.ready, instances=len(lost))
        zygote.forget()
        for name, pid in lost.items():
            if pid == 0 and name in self._named:
                self._named[name].failure = "its zygote died before it was forked"
            self.exited(name, "orphaned", 9, 0, 0)

    # Ahead of need

    def warm(self, runtime: str) -> None:
        """Have a zygote of this runtime, for whoever comes first."""
        self.tree.warm(runtime)

    def look_after(self) -> bool:
        """One short piece of work that can wait. True: call again soon."""
        more = self.tree.look_after()
        self.templates.look_after()
        with contextlib.suppress(Refusal):  # strict, and a wall is missing: nobody will ask for a sandbox
            for spare in self.tree.spares:
                if spare.ready:
                    self.reserve.wanted(spare, self.machine.plan(Demand()).ahead, "none")
        return self.reserve.refill() or self.templates.refill() or more

    def _give_back(self, instance: Instance) -> None:
        self.machine.take_back(instance.outfit)
        if instance.scratch:
            shutil.rmtree(instance.scratch, ignore_errors=True)

    def close(self) -> None:
        """End every zygote and with it every instance."""
        self.tree.close()
        self.reserve.close()
        self.templates.close()
        for instance in list(self._named.values()):
            self._give_back(instance)
        self._live.clear()
        self._named.clear()
        os.close(self._code)
        os.close(self._layers)
