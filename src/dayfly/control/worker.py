"""The thread in which control touches the store, so that its event loop never waits for a disk. One thread, one writer.

Jobs run in the order in which they were handed in, and the coroutines that wait for them go on in that order too: what was
committed first is published first. Never called from inside a job.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from dayfly.store.database import Database
from dayfly.store.trouble import Doubtful

TIDY_STEPS_MAX = 32  # each minute; a step is 4 MiB

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """A thread of its own for blocking work. `close()` waits for what was handed in."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in the thread. Cancelling the caller does not stop work that has begun."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Store:
    """The database behind its worker: `await store(verb, …)` runs `verb(tx, …)` as one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.doubtful = asyncio.Event()  # a commit's outcome is unknown: what control has in memory may be wrong
        self._worker = Worker("store")

    async def __call__(self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One transaction in the worker. Raises what the verb raises, and Refusal storage_full or data_unusable."""

        def transact() -> T:
            with self.database.transaction() as tx:
                return verb(tx, *args, **kwargs)

        try:
            return await self._worker.call(transact)
        except Doubtful:
            self.doubtful.set()
            raise

    async def tidy(self) -> None:
        """Give room that is free in the file back to the disk, in steps between which others have their turn."""
        for _ in range(TIDY_STEPS_MAX):
            if not await self._worker.call(self.database.tidy):
                break

    def close(self) -> None:
        self._worker.close()
        self.database.close()
