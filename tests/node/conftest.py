"""Nodes for the tests of this folder: as root, as an ordinary user with user namespaces, and where namespaces are forbidden."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.rig import Client, Rig, python_for

ORDINARY_UID = 61234
MODES = {
    "root": {"uid": -1},
    "user": {"uid": ORDINARY_UID},
    "container": {"uid": -1, "filtered": True},
    "bare": {"uid": ORDINARY_UID, "filtered": True},
}


def made(mode: str) -> Rig:
    """A node in one of MODES; tests that need root to make it are skipped without."""
    if os.geteuid() != 0 and mode != "user":
        pytest.skip("needs root to make this situation")
    settings = dict(MODES[mode])
    if os.geteuid() != 0:
        settings["uid"] = -1
    if mode != "root" and not Path(python_for(ORDINARY_UID if os.geteuid() == 0 else os.getuid())[0]).exists():
        pytest.skip("this machine has no interpreter that an ordinary user can reach")
    return Rig(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, Rig]]:
    """Nodes of this module's tests, one per mode, made when first asked for."""
    rigs: dict[str, Rig] = {}
    yield rigs
    for rig in rigs.values():
        rig.close()


@pytest.fixture
def rig(shared: dict[str, Rig], request: pytest.FixtureRequest) -> Rig:
    """A node in the mode that the test names by `pytest.mark.parametrize("rig", …, indirect=True)`; root's otherwise."""
    mode = getattr(request, "param", "root")
    if mode not in shared:
        shared[mode] = made(mode)
    return shared[mode]


@pytest.fixture
def client(rig: Rig) -> Iterator[Client]:
    """A connection of its own; its instances end with it."""
    client = rig.client()
    yield client
    client.close()
    rig.clients.remove(client)


@pytest.fixture
def own_rig() -> Iterator[Rig]:
    """A node that a test may kill."""
    rig = made("root" if os.geteuid() == 0 else "user")
    yield rig
    rig.close()
