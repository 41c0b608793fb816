"""Which walls stand around an instance: what is demanded × what this machine can do → an ordered plan as data, or a refusal.

Silent: it knows names and order, never how a step is carried out (sandbox/launch.py does that, in the child). Called by node/.
The order matters and is explained where it does; facts behind it: docs/security.md.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from dayfly.core.model.egress import Way
from dayfly.core.model.errors import Refusal

Features = Mapping[str, bool | str]  # a feature of the machine → True, or a sentence why it is missing

PIDS_MAX: Final = 64
TMP_INODES_PER_MB: Final = 256

# Every wall, what it keeps apart, and the features it needs: all of one of the groups.
WALLS: Final[dict[str, tuple[str, tuple[tuple[str, ...], ...]]]] = {
    "pidns": ("processes", (("pid_namespaces",),)),
    "mountns": ("files", (("mount_namespaces", "mount_api"),)),
    "ipcns": ("shared memory and queues", (("ipc_namespaces",),)),
    "utsns": ("the host's name", (("uts_namespaces",),)),
    "cgroupns": ("the host's cgroup names", (("cgroup_namespaces",),)),
    "netns": ("networks", (("net_namespaces",),)),
    "uid": ("users: one uid for every instance", (("uids",),)),
    "capabilities": ("privileges", (("capabilities",),)),
    "no_new_privs": ("setuid programs", (("no_new_privs",),)),
    "seccomp": ("the kernel's wider interface", (("seccomp",),)),
    "landlock": ("files, a second time", (("landlock",),)),
    "memory": ("memory use", (("memory_cgroup", "swap_cgroup"),)),
    "pids": ("the number of processes", (("pids_cgroup",), ("uids",), ("user_namespaces",))),
    "cpu": ("processor time", (("cpu_cgroup",),)),  # with a ceiling also "cpu_quota_cgroup"
    "egress": ("the way out", ()),  # decided in _egress
}

# Good to have: a name for people, and the feature it is.
EXTRAS: Final[dict[str, str]] = {"cpu_ceiling": "cpu_quota_cgroup", "io": "io_cgroup", "egress_steering": "egress_steering"}


_NEVER_AHEAD: Final = frozenset(("folders", "secrets", "secret_files", "program"))
_WHEN_GIVEN: Final = frozenset(("tree", "directory"))


class Demand(msgspec.Struct, frozen=True):
    """What one instance asks for. `memory_mb` and `tmp_mb` are MiB."""

    egress: Way = "none"
    memory_mb: int = 128
    tmp_mb: int = 64
    pids_max: int = PIDS_MAX
    layer: bool = False
    secrets: bool = False
    cpu_millicores: int = 0  # a ceiling; 0: none
    template: bool = False  # it will fork others like itself
    code: bool = True  # it has code already; without, its children get theirs
    program: bool = False  # it is a program of its own, not the interpreter that is there already


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step of the child into its sandbox: a name that sandbox/launch.py knows, and its parameters."""

    name: str
    parameters: tuple[int | str, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """Steps in order; the walls that hold once they are done; those that could not be had, each as "name: reason"."""

    steps: tuple[Step, ...]
    walls: tuple[str, ...]
    missing: tuple[str, ...]


def plan(demand: Demand, features: Features, *, strict: bool = False) -> Plan:
    """The walls for one instance. Raises Refusal isolation_refused when `strict` and a wall is missing."""
    missing = {name: reason for name in WALLS if (reason := _lacks(name, demand, features))}
    walls = tuple(name for name in WALLS if name not in missing)
    reasons = tuple(f"{name}: {reason}" for name, reason in missing.items())
    if strict and missing:
        raise Refusal("isolation_refused", f"Strict isolation lacks {', '.join(missing)} here.", extra={"missing": list(reasons)})
    return Plan(_steps(demand, frozenset(walls), features), walls, reasons)


def ahead(steps: tuple[Step, ...]) -> tuple[Step, ...] | None:
    """The steps that can be taken before it is known whose sandbox it will be; what is left out is done when it is given away. None:
    it cannot be prepared, because it has no root of its own, or because its secrets must be there while it still has privileges."""
    if any(step.name in _NEVER_AHEAD for step in steps):
        return None
    return tuple(step for step in steps if step.name not in _WHEN_GIVEN)


def lacks_templates(features: Features) -> str:
    """Why a version's template cannot be had here; empty when it can. Its children need namespaces of their own that it makes itself,
    without any privilege, and files of their own in them."""
    needed = ("templates", "pids_cgroup", "mount_namespaces", "mount_api", "pid_namespaces", "net_namespaces", "seccomp")
    return "; ".join(dict.fromkeys(filter(None, (_reason(feature, features) for feature in needed))))


def walls(features: Features) -> dict[str, bool | str]:
    """Every wall of this machine: True, or why it cannot be had. `egress` speaks of "none", `egress_internet` of "internet"."""
    found: dict[str, bool | str] = {name: _lacks(name, Demand(), features) or True for name in WALLS}
    return found | {"egress_internet": _lacks_egress(Demand(egress="internet"), features) or True}


def extras(features: Features) -> dict[str, bool | str]:
    """What is good to have and keeps nobody apart: True, or why it cannot be had. Strict isolation does not ask for these."""
    return {name: _reason(feature, features) or True for name, feature in EXTRAS.items()}


def _reason(feature: str, features: Features) -> str:
    """Empty when the machine has it."""
    value = features.get(feature, "not probed")
    if value is True:
        return ""
    return value or "not available" if isinstance(value, str) else "not available"


def _lacks(wall: str, demand: Demand, features: Features) -> str:
    if wall == "egress":
        return _lacks_egress(demand, features)
    groups = WALLS[wall][1]
    if wall == "cpu" and demand.cpu_millicores:
        groups = (("cpu_cgroup", "cpu_quota_cgroup"),)
    reasons = ["; ".join(dict.fromkeys(filter(None, (_reason(feature, features) for feature in group)))) for group in groups]
    return "" if "" in reasons else reasons[0]


def _lacks_egress(demand: Demand, features: Features) -> str:
    """Egress "none" also holds without a network namespace when the filter refuses internet sockets; every other needs a way out that
    somebody watches."""
    if demand.egress != "none":
        return _reason("egress_internet", features)
    return "" if _reason("net_namespaces", features) == "" else _reason("seccomp", features)


def _steps(demand: Demand, walls: frozenset[str], features: Features) -> tuple[Step, ...]:
    """In the order the child takes them: join limits first, so that everything after is charged; leave privileges last."""
    steps = []
    if {"memory", "pids", "cpu"} & walls and _reason("cgroup_v1", features) == "":
        steps.append(Step("cgroup"))  # on v2 the child is born in its cgroup
    spaces = tuple(name for name in ("mountns", "ipcns", "utsns", "cgroupns") if name in walls)
    if spaces:
        steps.append(Step("namespaces", spaces))
    if "netns" in walls:
        out = demand.egress != "none" and _reason("egress_internet", features) == ""
        steps.append(Step("network", ("internet" if out else "none",)))
    if "utsns" in walls:
        steps.append(Step("hostname"))
    steps += _file_steps(demand, walls)
    steps += _identity_steps(demand, walls, features)
    steps += _filter_steps(demand, walls)
    steps.append(Step("descriptors"))  # last: until here a failure can still be told
    return (*steps, Step("program")) if demand.program else tuple(steps)


def _file_steps(demand: Demand, walls: frozenset[str]) -> list[Step]:
    size = demand.tmp_mb * 1024 * 1024
    if "mountns" not in walls:
        return [Step("folders"), *([Step("secret_files")] if demand.secrets else [])]
    steps = [Step("proc")] if "pidns" in walls else []
    steps.append(Step("tmp", (size, demand.tmp_mb * TMP_INODES_PER_MB)))
    if demand.code:
        steps.append(Step("tree", ("code", "/var/task")))
    if demand.layer:
        steps.append(Step("tree", ("layer", "/opt/python")))
    if demand.secrets:
        steps.append(Step("secrets"))
    return [*steps, Step("directory", ("/var/task",))]


def _identity_steps(demand: Demand, walls: frozenset[str], features: Features) -> list[Step]:
    steps = []
    if "uid" in walls:
        steps.append(Step("user"))
    elif "mountns" in walls and "pidns" in walls and _reason("user_namespaces", features) == "":
        steps.append(Step("user_namespace"))
    # A change of user clears the parent-death signal, so it is asked for after it.
    steps += [Step("parent_death"), Step("session")]
    data = 0 if "memory" in walls else demand.memory_mb * 1024 * 1024
    # A template's children count as its user's, all of them as long as they live: their groups bound them, not this limit.
    processes = demand.pids_max if "pids" in walls and not demand.template else 0
    steps.append(Step("limits", (processes, demand.tmp_mb * 1024 * 1024, data)))
    if "capabilities" in walls:
        steps.append(Step("capabilities"))
    if "no_new_privs" in walls:
        steps.append(Step("no_new_privs"))
    return steps


def _filter_steps(demand: Demand, walls: frozenset[str]) -> list[Step]:
    steps = []
    if "landlock" in walls:
        steps.append(Step("landlock", ("template" if demand.template else "mounts" if "mountns" in walls else "paths",)))
    if "seccomp" in walls:
        inet = "netns" in walls or demand.egress != "none"
        apart = {"pidns", "ipcns"} <= walls
        kind = "template" if demand.template else "sessions" if apart else "group"
        steps.append(Step("seccomp", ("inet" if inet else "unix", kind)))
    return steps
