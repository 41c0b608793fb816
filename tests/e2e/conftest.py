"""Fixtures of the end-to-end tests: one platform per kind of user, shared by a session; a fresh one for tests that break it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.harness import Platform, ordinary_uid

AS_ROOT = pytest.param("root", marks=pytest.mark.root)
AS_ORDINARY = pytest.param("ordinary")


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


@pytest.fixture(scope="session", params=[AS_ROOT, AS_ORDINARY])
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """A running platform, once started by root and once by an ordinary user. Tests share it: each uses names of its own."""
    with Platform(as_uid=uid_of(request.param)) as started:
        yield started


@pytest.fixture
def new_platform() -> Iterator[Callable[..., Platform]]:
    """Makes platforms of a test's own: `new_platform(settings={…}, as_uid=…)`, started, and ended after the test."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Platform(**arguments))
