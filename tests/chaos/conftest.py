"""Platforms for bad days, each with a judge; nothing of a platform is left on the machine when its tests are over."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.judge import Judge
from tests.e2e import leaks
from tests.e2e.harness import Platform

DEATHS = int(os.environ.get("CHAOS_DEATHS", "24"))  # how many processes die in test_deaths.py; the full day has 200
SEED = int(os.environ.get("CHAOS_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
STOPPED_SECONDS = float(os.environ.get("CHAOS_STOPPED_SECONDS", "3"))  # how long the machine is suspended; the full day has 30

New = Callable[..., Judge]


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Processes, control groups, mounts, namespaces, interfaces and files of every platform of a module are gone at its end."""
    leaks.adopt_orphans()
    before, named, made = leaks.below_us(), leaks.named_after_us(), list[Path]()
    Platform.made = made
    yield
    Platform.made = None
    left = [f"process {leaks.command_of(pid)}" for pid in leaks.below_us() - before]
    for folder in made:
        left += leaks.wait_gone(folder)
        left += [f"file {folder}"] if folder.exists() else []
    left += [f"network {name}" for name in leaks.named_after_us() - named]
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def new_judge() -> Iterator[New]:
    """Makes platforms with a judge: `new_judge(instances_max=20 …)`, ended after the module's last test."""
    with ExitStack() as stack:

        def make(**settings: object) -> Judge:
            judge = Judge(stack.enter_context(Platform(settings=settings)))
            stack.callback(judge.close)
            return judge

        yield make
