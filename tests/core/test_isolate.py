"""core/decide/isolate.py: which walls a machine's features give, in which order, and when strict isolation refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import isolate
from dayfly.core.decide.isolate import Demand, plan
from dayfly.core.model.errors import Refusal

NEEDED = sorted({feature for _, groups in isolate.WALLS.values() for group in groups for feature in group})
ALL: dict[str, bool | str] = dict.fromkeys([*NEEDED, *isolate.EXTRAS.values(), "egress_internet", "cgroup_v1"], True)
NONE: dict[str, bool | str] = dict.fromkeys([*NEEDED, *isolate.EXTRAS.values(), "egress_internet", "cgroup_v1"], "not here")
some_features = st.fixed_dictionaries({name: st.sampled_from([True, "not here"]) for name in ALL})
some_demands = st.builds(
    Demand,
    egress=st.sampled_from(["none", "internet"]),
    memory_mb=st.integers(16, 4096),
    tmp_mb=st.integers(1, 512),
    layer=st.booleans(),
    secrets=st.booleans(),
    cpu_millicores=st.sampled_from([0, 500]),
)


def names(steps: tuple[isolate.Step, ...]) -> list[str]:
    return [step.name for step in steps]


def test_everything_there() -> None:
    """With every feature every wall stands, nothing is missing, and the steps come in the one order that works."""
    made = plan(Demand(layer=True, secrets=True), ALL, strict=True)
    assert set(made.walls) == set(isolate.WALLS)
    assert made.missing == ()
    assert names(made.steps) == [
        "cgroup", "namespaces", "network", "hostname", "proc", "tmp", "tree", "tree", "secrets", "directory", "user", "parent_death",
        "session", "limits", "capabilities", "no_new_privs", "landlock", "seccomp", "descriptors",
    ]  # fmt: skip


@given(some_demands, some_features)
def test_every_wall_is_accounted_for(demand: Demand, features: dict[str, bool | str]) -> None:
    """Whatever the machine has, each wall either holds or is missing with a reason, and strict refuses exactly when one is missing."""
    made = plan(demand, features)
    missing = [text.partition(": ")[0] for text in made.missing]
    assert sorted([*made.walls, *missing]) == sorted(isolate.WALLS)
    assert all(text.partition(": ")[2] for text in made.missing)
    if missing:
        with pytest.raises(Refusal) as refusal:
            plan(demand, features, strict=True)
        assert refusal.value.kind.code == "isolation_refused"
        assert all(name in refusal.value.detail for name in missing)
    else:
        assert plan(demand, features, strict=True) == made


@given(some_demands, some_features)
def test_order_holds_on_every_machine(demand: Demand, features: dict[str, bool | str]) -> None:
    """The traps: limits first; mounts before the change of user; the parent-death signal after it; no_new_privs before the filters;
    Landlock after the mounts; closing descriptors last."""
    order = names(plan(demand, features).steps)
    assert order[-1] == "descriptors"
    for first, later in (
        ("cgroup", "namespaces"), ("namespaces", "tmp"), ("tmp", "user"), ("proc", "user"), ("secrets", "user"), ("network", "user"),
        ("user", "parent_death"), ("user_namespace", "parent_death"), ("limits", "seccomp"), ("capabilities", "no_new_privs"),
        ("no_new_privs", "landlock"), ("no_new_privs", "seccomp"), ("tree", "landlock"), ("landlock", "seccomp"), ("secret_files", "user"),
    ):  # fmt: skip
        if first in order and later in order:
            assert order.index(first) < order.index(later), (first, later)


def test_nothing_there() -> None:
    """Without any feature a plan still exists: private folders, limits, session; the caller is told that no wall stands."""
    made = plan(Demand(secrets=True), NONE)
    assert made.walls == ()
    assert names(made.steps) == ["folders", "secret_files", "parent_death", "session", "limits", "descriptors"]


def test_egress_none_without_namespaces() -> None:
    """Where network namespaces are missing, egress "none" holds by refusing internet sockets; "internet" does not hold."""
    features = ALL | {"net_namespaces": "not here", "egress_internet": "not here"}
    closed, opened = plan(Demand(), features), plan(Demand(egress="internet"), features)
    assert "egress" in closed.walls
    assert isolate.Step("seccomp", ("unix", "sessions")) in closed.steps
    assert "egress: not here" in opened.missing
    assert plan(Demand(), features | {"seccomp": "not here"}).missing[-1] == "egress: not here"


def test_no_internet_is_never_the_hosts() -> None:
    """When egress cannot be had but namespaces can, an instance that asks for internet gets a namespace without a way out."""
    made = plan(Demand(egress="internet"), ALL | {"egress_internet": "no broker"})
    assert isolate.Step("network", ("none",)) in made.steps
    assert "egress: no broker" in made.missing


def test_without_pid_namespaces_processes_stay_findable() -> None:
    """The filter then keeps processes in their group, which a kill reaches."""
    made = plan(Demand(), ALL | {"pid_namespaces": "not here"})
    assert isolate.Step("seccomp", ("inet", "group")) in made.steps
    assert "proc" not in names(made.steps)


def test_memory_limit_of_last_resort() -> None:
    """Without a memory group each process is bounded by itself, and the wall counts as missing."""
    made = plan(Demand(memory_mb=64), ALL | {"memory_cgroup": "not here"})
    limits = next(step for step in made.steps if step.name == "limits")
    assert limits.parameters[2] == 64 << 20
    assert "memory: not here" in made.missing


def test_a_ceiling_that_cannot_be_had_is_a_missing_wall_for_who_asked() -> None:
    """A kernel without quotas: who asks for a ceiling is told, and strict refuses; who does not has all that it asked for."""
    features = ALL | {"cpu_quota_cgroup": "no quotas"}
    assert "cpu: no quotas" in plan(Demand(cpu_millicores=500), features).missing
    assert plan(Demand(), features, strict=True).missing == ()
    with pytest.raises(Refusal):
        plan(Demand(cpu_millicores=500), features, strict=True)


def test_memory_that_may_go_to_swap_is_no_wall() -> None:
    """Where swap is there and not limited, a function could take more than it asked for: the wall is missing, the limit stays."""
    made = plan(Demand(), ALL | {"swap_cgroup": "not limited"})
    assert "memory: not limited" in made.missing
    assert names(made.steps)[0] == "cgroup"


def test_extras_are_no_walls() -> None:
    """What is only good to have is told apart, and strict isolation does without."""
    features = ALL | dict.fromkeys(isolate.EXTRAS.values(), "not here")
    assert set(isolate.extras(features).values()) == {"not here"}
    assert set(isolate.extras(ALL).values()) == {True}
    assert plan(Demand(), features, strict=True).missing == ()


def test_user_namespace_instead_of_uid() -> None:
    """An ordinary user's instances get one more user namespace instead of a uid; the count of processes holds by it."""
    made = plan(Demand(), ALL | {"uids": "not root", "pids_cgroup": "not here"})
    assert "user_namespace" in names(made.steps)
    assert "pids" in made.walls
    assert "uid: not root" in made.missing


def test_version_two_joins_at_birth() -> None:
    """On cgroup v2 no step joins: the child is born in its group."""
    assert "cgroup" not in names(plan(Demand(), ALL | {"cgroup_v1": "v2 is used"}).steps)


def test_walls_for_people() -> None:
    """The table that `doctor` and the start message show: each wall with True or its reason."""
    assert set(isolate.walls(ALL).values()) == {True}
    shown = isolate.walls(ALL | {"seccomp": "not in this kernel"})
    assert shown["seccomp"] == "not in this kernel"
    assert shown["egress"] is True
    assert isolate.walls({})["pidns"] == "not probed"
