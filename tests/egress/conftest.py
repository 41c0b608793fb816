"""One world for all tests of a module, and a platform in it; both vanish also when a test fails."""

from collections.abc import Iterator

import pytest

from tests.egress.world import Platform, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    built = World()
    try:
        yield built
    finally:
        built.close()


@pytest.fixture(scope="module")
def platform(world: World) -> Iterator[Platform]:
    built = Platform(world)
    try:
        yield built
    finally:
        built.close()
