"""Every test of this folder that asks for `queue`, `log` or `kv` runs on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dayfly.store.queue import Queue
from dayfly.store.queue_postgres import PostgresQueue
from dayfly.store.queue_sqlite import SqliteQueue


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Where the durable rows are: a file's path, or PostgreSQL's address."""
    return tmp_path / "durable.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres"))


@pytest.fixture
def open_queue(database: str | Path) -> Iterator[Callable[[], Queue]]:
    """Opens one more Queue on the database; all are closed after the test."""
    with ExitStack() as stack:

        def opened() -> Queue:
            queue: Queue = SqliteQueue(database) if isinstance(database, Path) else PostgresQueue(database)
            stack.callback(queue.close)
            return queue

        yield opened


@pytest.fixture
def queue(open_queue: Callable[[], Queue]) -> Queue:
    return open_queue()
