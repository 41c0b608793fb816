"""Arenas for the attacks: one a module and kind of user, gone with everything it made when the module ends."""

import os
from collections.abc import Iterator

import pytest

from tests.attacks.arena import Arena, arena_of
from tests.e2e import leaks
from tests.e2e.conftest import uid_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module that says BOTH = True run on root's platform and on an ordinary user's, the others on that of whoever runs them."""
    if "arena" in metafunc.fixturenames:
        mine = "root" if os.geteuid() == 0 else "ordinary"
        both = getattr(metafunc.module, "BOTH", False) and mine == "root"
        metafunc.parametrize("arena", [mine, *(["ordinary"] if both else [])], indirect=True, scope="module")


@pytest.fixture(scope="module")
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    leaks.adopt_orphans()
    before, named = leaks.below_us(), leaks.named_after_us()
    with arena_of(request.param, uid_of(request.param)) as made:
        yield made
    left = leaks.wait_gone(made.platform.folder)
    left += [leaks.command_of(pid) for pid in leaks.below_us() - before]
    left += sorted(leaks.named_after_us() - named)
    left += [str(made.platform.folder)] if made.platform.folder.exists() else []
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def what_the_neighbour_felt_is_known(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test whose attack failed as it should, but whose measurement means nothing on a machine this busy, is passed and skipped."""
    arena = request.getfixturevalue("arena") if "arena" in request.fixturenames else None
    yield
    if arena is not None and arena.untold:
        untold, arena.untold = arena.untold, []
        pytest.skip("; ".join(untold))
