"""Plans as prepared calls."""

import os
from collections.abc import Iterator

import pytest

from dayfly.core.decide import isolate
from dayfly.sandbox import syscalls
from dayfly.sandbox.launch import Child
from dayfly.sandbox.program import Ground, Program

FIRST = ["requests", "answers", "progress", "output"]


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground(0, 6)
    made.filters = {(inet, sessions): syscalls.Filter(bytes(8)) for inet in ("inet", "unix") for sessions in ("sessions", "group")}
    yield made
    os.close(made.root)
    os.close(made.null)


def steps(demand: isolate.Demand, missing: str = "") -> list[tuple[str, list[int | str]]]:
    features = {name: name != missing for groups in isolate.WALLS.values() for group in groups[1] for name in group}
    plan = isolate.plan(demand, {**features, "egress_internet": True, "cgroup_v1": True})
    return [(step.name, list(step.parameters)) for step in plan.steps]


def test_with_all_walls_a_child_makes_prepared_calls_only(ground: Ground) -> None:
    program = Program(ground, steps(isolate.Demand(layer=True)), [*FIRST, "code", "layer", "tasks_memory", "netns"])
    left = [step for step, call, _, _ in program.entries if call is None]
    assert left == []


def test_what_is_left_to_the_child_is_what_it_can_do(ground: Ground) -> None:
    for missing in ("", "mount_namespaces", "landlock", "uids", "pid_namespaces"):
        demand = isolate.Demand(egress="internet", layer=True, secrets=True)
        program = Program(ground, steps(demand, missing), [*FIRST, "code", "layer", "netns", "secrets"])
        for step, call, _, _ in program.entries:
            assert call is not None or hasattr(Child, "do_" + step), step


def test_a_call_that_answers_other_than_foretold_ends_the_start(ground: Ground) -> None:
    child = Child.__new__(Child)
    child.program = Program.__new__(Program)
    child.program.entries = [("landlock", syscalls.prepared("open", b"/dev/null", os.O_PATH | os.O_CLOEXEC), [], (-7,))]
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    try:
        with pytest.raises(OSError, match="open"):
            child.enter()
    finally:
        os.close(free)  # what the call opened
    assert child.step == "landlock"
