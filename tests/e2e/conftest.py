"""Fixtures of the end-to-end tests: one platform per kind of user, shared by a session; a fresh one for tests that break it.

After the last test nothing of any platform may be left on the machine: `nothing_is_left_behind` looks.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import leaks
from tests.e2e.harness import Platform, ordinary_uid

AS_ROOT = pytest.param("root", marks=pytest.mark.root)
AS_ORDINARY = pytest.param("ordinary")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `one_user` want the shared platform of whoever runs them, the others that of root and of an ordinary user."""
    if "platform" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("one_user") is None
        here = [AS_ROOT] if os.geteuid() == 0 else [AS_ORDINARY]
        metafunc.parametrize("platform", [AS_ROOT, AS_ORDINARY] if both else here, indirect=True, scope="session")


def uid_of(user: str) -> int:
    """0 is whoever runs the tests: root for 'root', and ourselves when we are no root."""
    if user == "root" or os.geteuid() != 0:
        return 0
    uid = ordinary_uid()
    try:
        subprocess.run([sys.executable, "-c", ""], user=uid, group=uid, extra_groups=[], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"an ordinary user cannot run {sys.executable}; scripts/test makes an environment that everybody can")
    return uid


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Processes, control groups, mounts, namespaces, interfaces and files of every platform of this session are gone at its end."""
    leaks.adopt_orphans()
    made: list[Path] = []
    before = leaks.named_after_us()
    Platform.made = made
    yield
    left = [f"process {text}" for text in leaks.strays()]
    for folder in made:
        left += leaks.wait_gone(folder)
        left += [f"file {folder}"] if folder.exists() else []
    left += [f"network {name}" for name in leaks.named_after_us() - before]
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """A running platform, once started by root and once by an ordinary user. Tests share it: each uses names of its own."""
    with Platform(as_uid=uid_of(request.param)) as started:
        yield started


@pytest.fixture
def new_platform() -> Iterator[Callable[..., Platform]]:
    """Makes platforms of a test's own: `new_platform(settings={…}, as_uid=…)`, started, and ended after the test."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Platform(**arguments))
