"""What the node finds out about its machine once, and the uids, groups and namespaces it hands out.

Called by node/server.py at its start and for every instance. Nothing here talks to a client or a zygote.
"""

import contextlib
import functools
import os
import secrets
from pathlib import Path
from typing import NamedTuple

import msgspec

from dayfly.core.decide import isolate
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.node.berth import Berth
from dayfly.node.outfit import Outfit
from dayfly.sandbox import cgroup, features, network, privileges
from dayfly.sandbox.syscalls import CLONE_NEWNS, CLONE_NEWUTS


class Walls(NamedTuple):
    """A plan, its steps as JSON, and those of them that can be taken ahead (empty: none can)."""

    plan: isolate.Plan
    steps: bytes
    ahead: bytes


class Uids:
    """One uid for each instance, from this data directory's block, used again as late as possible."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count
        self._next = secrets.randbelow(count)  # a restarted node does not begin where the last one did
        self._used: set[int] = set()

    def __repr__(self) -> str:
        return f"<Uids {self._first}+{self._count} used={len(self._used)}>"

    def take(self) -> int:
        """Raises OSError when all are in use."""
        for _ in range(self._count):
            uid = self._first + self._next
            self._next = (self._next + 1) % self._count
            if uid not in self._used:
                self._used.add(uid)
                return uid
        raise OSError("every uid of this platform's block is in use")

    def give_back(self, uid: int) -> None:
        self._used.discard(uid)


class Machine:
    """Features, plans and pools of this machine. As an ordinary user it first becomes root of a user namespace, if it can."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self.settings = settings
        self.root = os.geteuid() == 0
        self.processors = frozenset(os.sched_getaffinity(0))
        self.berth = Berth.take(layout)
        first, count = self.berth.share(*privileges.instance_uids(layout.data))
        found = features.probe(first, userns=True)
        own_cgroup = Path("/proc/self/cgroup").read_text()
        self.in_user_namespace = not self.root and found["user_namespaces"] is True
        if self.in_user_namespace:
            features.enter_user_namespace(CLONE_NEWNS | CLONE_NEWUTS)  # a host name of our own, to come back to (sandbox/door.py)
        self.uids = Uids(first, count)
        place = cgroup.find_place(Path("/proc/self/mountinfo").read_text(), own_cgroup, privileged=self.root)
        self.groups = cgroup.Groups(place, self.berth.tag)
        with contextlib.suppress(FileNotFoundError):  # no RUN: somebody only asks what this machine can do
            self.berth.note.write_text("".join(f"{folder}\n" for folder in self.groups.roots()))
        self.networks = network.Pool(layout.egress_socket, ready=8)
        reached = self.networks.available()
        self.features: features.Features = found | self.groups.available() | reached | {"net_namespaces": reached["netns"]}
        if not self.root:  # a way back from network namespaces that others made, and users to map
            self.features |= {"templates": "only root can furnish the namespaces of a template's children"}
        self.interpreters = features.interpreters(lambda path: self._can_reach(path, first))
        self._plans = functools.lru_cache(maxsize=256)(self._plan)

    def __repr__(self) -> str:
        return f"<Machine {self.groups!r} {self.networks!r} {self.uids!r}>"

    def has(self, feature: str) -> bool:
        return self.features.get(feature) is True

    @property
    def private_root(self) -> bool:
        """Whether instances get a mount namespace with a root of their own."""
        return self.has("mount_namespaces") and self.has("mount_api")

    def _can_reach(self, path: str, uid: int) -> bool:
        """Without a root of its own, an instance's uid walks to its interpreter on the host's paths."""
        return self.private_root or not self.root or not privileges.blocked_folders([path], uid, uid)

    def plan(self, demand: isolate.Demand) -> Walls:
        """The walls for a demand. Raises Refusal isolation_refused."""
        return self._plans(demand)

    def _plan(self, demand: isolate.Demand) -> Walls:
        plan = isolate.plan(demand, self.features, strict=self.settings.isolation == "strict")
        ahead = isolate.ahead(plan.steps) if self.private_root else None
        return Walls(plan, msgspec.json.encode(plan.steps), msgspec.json.encode(ahead) if ahead else b"")

    def dress(self, memory_mb: int, pids: int, egress: str, cpu_millicores: int = 0, *, tenant: str | None = None) -> Outfit:
        """A uid, a group with these limits and (unless `egress` is empty) a network of its own, as far as this machine has them.
        `tenant`: whose it is, "" when it is nobody's yet; None: it gets nothing that was used before. Raises OSError."""
        outfit = Outfit(tenant=tenant)
        try:
            outfit.uid = self.uids.take() if self.root else 0
            outfit.group = self.groups.take(memory_mb << 20, pids, cpu_millicores)
            if egress and self.has("net_namespaces"):
                kind = "internet" if egress != "none" and self.has("egress_internet") else "none"
                outfit.network = self.networks.take(kind, tenant)
                outfit.network_key = network.Pool.key(outfit.network)
        except BaseException:
            self.take_back(outfit)
            raise
        return outfit

    def take_back(self, outfit: Outfit) -> None:
        """Its sandbox is gone, or never was. That all of its processes are dead is certain where it had a pid namespace."""
        outfit.close()
        if outfit.uid:
            self.uids.give_back(outfit.uid)
        if outfit.group is not None:
            self.groups.give_back(outfit.group)
        if outfit.network_key:
            self.networks.release(outfit.network_key, outfit.tenant if self.has("pid_namespaces") else None)

    def zygote_config(self, source: str, prefix: str) -> dict[str, object]:
        """The first message to a zygote: what it does once, for all of its instances."""
        readable = [prefix, "/usr", "/lib", "/lib64", "/bin", "/etc/ssl/certs", "/etc/localtime", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/dev/zero", "/dev/urandom", "/dev/random"]  # fmt: skip  # noqa: E501
        return {
            "source": source,
            "pidns": self.has("pid_namespaces"),
            "mountns": self.private_root,
            "ipcns": self.has("ipc_namespaces"),
            "userns": self.in_user_namespace,
            "utsns": self.has("uts_namespaces"),
            "capabilities": self.root or self.in_user_namespace,
            "templates": not isolate.lacks_templates(self.features),
            "into_cgroup": self.has("cgroup_v2"),
            "shared_groups": self.groups.shared(),
            "resolv_conf": network.RESOLV_CONF,
            "readable": readable,
            "proxy": self.networks.proxy_environment(),
            "processors": sorted(self.processors),
        }

    def refill(self) -> bool:
        """One short piece of work ahead of need. True: call again soon."""
        more = self.groups.sweep()
        more = self.groups.refill() or more
        return self.networks.refill() or more

    def close(self) -> None:
        self.networks.close()
        self.groups.close()
        self.berth.note.unlink(missing_ok=True)
        self.berth.leave()
