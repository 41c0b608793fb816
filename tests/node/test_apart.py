"""Starts that keep off the processors of calls: who makes them does, and what they make knows nothing of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.core.decide.apart import halves
from tests.node.conftest import MODES
from tests.node.rig import Client, Instance, Rig
from tests.node.test_bad_days import wait_until

ALL = os.sched_getaffinity(0)
PROCESSORS = """
import os
AT_IMPORT = sorted(os.sched_getaffinity(0))
def handler(event, context):
    return [AT_IMPORT, sorted(os.sched_getaffinity(0))]
"""
FOR_EVER = "from dayfly.node import apart\napart.HOLD_SECONDS = 1e6"

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="one processor is everybody's")


def zygotes(rig: Rig) -> list[int]:
    own = f"/proc/{rig.process.pid}/task/{rig.process.pid}/children"
    return [int(word) for word in Path(own).read_text().split()]


def seen_by(instance: Instance) -> object:
    return instance.call()


@pytest.fixture
def apart() -> Iterator[Rig]:
    """A node that does not come back from its half once a start has asked for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make this situation")
    rig = Rig(**MODES["root"], prelude=FOR_EVER)  # type: ignore[arg-type]
    yield rig
    rig.close()


@pytest.mark.root
def test_node_and_zygotes_move_and_user_code_finds_all_processors(apart: Rig) -> None:
    """Forked, prepared, and from a template: at import already, when libraries choose how many threads they make."""
    client, code = apart.client(), apart.code(PROCESSORS)
    everything = [sorted(ALL), sorted(ALL)]
    assert seen_by(client.run(code)) == everything
    assert os.sched_getaffinity(apart.process.pid) == ALL
    assert seen_by(client.run(code, apart=True)) == everything
    for pid in (apart.process.pid, *zygotes(apart)[:1]):
        assert os.sched_getaffinity(pid) == halves(ALL)[1]
    origins = set()

    def prepared() -> bool:
        instance = client.run(code, apart=True)
        origins.add(instance.origin)
        assert seen_by(instance) == everything
        return "prepared" in origins

    wait_until(prepared, "none came from a sandbox that stood ready")
    template = client.start(code, role="template")
    template.boot()
    template.ready()
    for _ in range(3):
        child = client.run(code, parent=template.name, apart=True)
        assert child.origin in ("template", "ahead")
        assert seen_by(child) == everything


@pytest.mark.root
def test_a_program_of_the_functions_own_finds_all_processors(apart: Rig) -> None:
    """It is started by an exec, in which a start ends."""
    client = apart.client()
    counting = b"#!/bin/sh\nexec grep Cpus_allowed_list: /proc/self/status\n"
    instance = client.start(apart.code("", files={"bootstrap": counting}), runtime="exec", apart=True)
    instance.boot()
    client.wait_exited(instance.name)
    said = instance.read_output().split()[-1].decode()
    assert said == Path("/proc/self/status").read_text().split("Cpus_allowed_list:", 1)[1].split()[0]


def test_it_comes_back_when_no_such_start_comes_any_more(rig: Rig, client: Client) -> None:
    client.run(rig.code(PROCESSORS), apart=True)
    wait_until(lambda: all(os.sched_getaffinity(pid) == ALL for pid in (rig.process.pid, *zygotes(rig))), "they stayed where they were")
