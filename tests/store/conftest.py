"""The store's tests run on both databases: `where` is a file, or a fresh database of the session's PostgreSQL."""

from pathlib import Path

import pytest

from dayfly.store.server import Server


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Server:
    """Where a database may be made: nothing is there yet."""
    if request.param == "sqlite":
        return tmp_path / "x.db"
    return Server(request.getfixturevalue("postgres"))
