"""Every test of this folder that asks for `queue`, `log` or `kv` runs on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dayfly.store.durable import open_kv as kv_at
from dayfly.store.durable import open_log as log_at
from dayfly.store.durable import open_queue as queue_at
from dayfly.store.kv import KV
from dayfly.store.log import Log
from dayfly.store.queue import Queue
from dayfly.store.server import Server


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Closes what it is given when the test is over."""
    with ExitStack() as stack:

        def kept(opened: Any) -> Any:
            stack.callback(opened.close)
            return opened

        yield kept


@pytest.fixture
def open_queue(where: Path | Server, closing: Callable[[Any], Any]) -> Callable[[], Queue]:
    return lambda: closing(queue_at(where))  # type: ignore[no-any-return]


@pytest.fixture
def open_log(where: Path | Server, closing: Callable[[Any], Any]) -> Callable[[], Log]:
    return lambda: closing(log_at(where))  # type: ignore[no-any-return]


@pytest.fixture
def open_kv(where: Path | Server, closing: Callable[[Any], Any]) -> Callable[[], KV]:
    return lambda: closing(kv_at(where))  # type: ignore[no-any-return]


@pytest.fixture
def queue(open_queue: Callable[[], Queue]) -> Queue:
    return open_queue()


@pytest.fixture
def log(open_log: Callable[[], Log]) -> Log:
    return open_log()


@pytest.fixture
def kv(open_kv: Callable[[], KV]) -> KV:
    return open_kv()
