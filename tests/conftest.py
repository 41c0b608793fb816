"""What every test shares: an interrupted run still tears down, and tests that need more than this machine has say so."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.postgres import postgres, postgres_server  # noqa: F401 (fixtures of everybody)

REPOSITORY = Path(__file__).resolve().parent.parent


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: through pytest's teardown, so that nothing is left behind."""
    raise KeyboardInterrupt(f"signal {number}")


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest once, before collecting."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A run started in the background ignores Ctrl-C, and so would everything that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `root` are skipped, with the reason, where the run is not root's."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: run scripts/test as root to include it"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone."""
    return REPOSITORY


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter under test."""
    return sys.executable
