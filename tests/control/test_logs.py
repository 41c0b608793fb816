"""control/logs.py before a store that is away: what was said waits, in order and within its bound, and is written when it is back."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from dayfly.control import logs as under_test
from dayfly.control.logs import BATCH_MAX, QUEUE_RECORDS_MAX, Logs
from dayfly.core.model.records import LogRecord
from dayfly.store.logs import LogQuery
from dayfly.store.trouble import Doubtful, Unreachable


class Away:
    """A log store whose server can be away: real ones are tried in tests/e2e/test_postgres.py, this one fails when it is told to."""

    shared = True

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.asked = asyncio.Event()
        self.kept: list[LogRecord] = []
        self._loop = asyncio.get_running_loop()

    def append(self, records: Sequence[LogRecord]) -> None:
        self._loop.call_soon_threadsafe(self.asked.set)
        if self.trouble is not None:
            raise self.trouble
        self.kept += records

    def read(self, query: LogQuery) -> list[tuple[int, LogRecord]]:
        return [(number, record) for number, record in enumerate(self.kept, 1) if number > query.after][: query.limit]

    def last_id(self) -> int:
        return len(self.kept)

    def forget(self, before: float, keep: int) -> int:
        return 0

    def shrink(self, bytes_max: int) -> int:
        return 0

    def tidy(self) -> bool:
        return False

    def close(self) -> None: ...


def said(number: int) -> LogRecord:
    return LogRecord(float(number), "default", "f", 1, "i", "", "stdout", 20, str(number))


async def tried(store: Away) -> None:
    store.asked.clear()
    await asyncio.wait_for(store.asked.wait(), 10)


def test_what_is_said_while_a_server_is_away_is_written_afterwards_and_once(monkeypatch) -> None:
    monkeypatch.setattr(under_test, "AWAY_SECONDS", 0.01)

    async def story() -> None:
        store = Away()
        logs = Logs(store, 1 << 30)
        store.trouble = Unreachable("away")
        running = asyncio.create_task(logs.run())
        logs.add([said(number) for number in range(BATCH_MAX + 10)])
        await tried(store)
        logs.add([said(BATCH_MAX + 10)])
        await tried(store)
        store.trouble = None
        async with asyncio.timeout(10):
            while len(store.kept) < BATCH_MAX + 11:
                await tried(store)
                await asyncio.sleep(0)
        assert [record.text for record in store.kept] == [str(number) for number in range(BATCH_MAX + 11)] and logs.dropped == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        logs.close()

    asyncio.run(story())


@pytest.mark.parametrize("trouble", [None, Unreachable("away")])
def test_an_end_in_the_middle_of_a_write_loses_nothing_and_writes_nothing_twice(trouble: Exception | None) -> None:
    async def story() -> None:
        store, go_on = Away(), threading.Event()
        logs = Logs(store, 1 << 30)
        append = store.append

        def slow(records: Sequence[LogRecord]) -> None:
            store.trouble = None if go_on.is_set() else trouble
            store._loop.call_soon_threadsafe(store.asked.set)
            assert go_on.wait(10)
            append(records)

        store.append = slow
        running = asyncio.create_task(logs.run())
        logs.add([said(number) for number in range(BATCH_MAX + 10)])
        await tried(store)
        running.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(running, return_exceptions=True)
        await logs.drain()
        assert [record.text for record in store.kept] == [str(number) for number in range(BATCH_MAX + 10)] and logs.dropped == 0
        logs.close()

    asyncio.run(story())


def test_more_than_fits_is_dropped_and_counted(monkeypatch) -> None:
    monkeypatch.setattr(under_test, "AWAY_SECONDS", 0.01)

    async def story() -> None:
        store = Away()
        logs = Logs(store, 1 << 30)
        store.trouble = Unreachable("away")
        running = asyncio.create_task(logs.run())
        for _ in range(3):
            logs.add([said(1)] * QUEUE_RECORDS_MAX)
            await tried(store)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        store.trouble = None
        await logs.drain()
        assert len(store.kept) + logs.dropped == 3 * QUEUE_RECORDS_MAX and len(store.kept) <= QUEUE_RECORDS_MAX
        logs.close()

    asyncio.run(story())


def test_what_may_have_been_written_is_not_written_twice_and_the_end_waits_for_nobody() -> None:
    async def story() -> None:
        store = Away()
        logs = Logs(store, 1 << 30)
        for trouble in (Doubtful("the server"), Unreachable("away")):
            store.trouble = trouble
            logs.add([said(1)])
            await logs.drain(patient=isinstance(trouble, Doubtful))
        assert store.kept == [] and logs.dropped == 2
        logs.close()

    asyncio.run(story())


def test_a_follower_hears_what_another_control_wrote(monkeypatch) -> None:
    monkeypatch.setattr(under_test, "SHARED_SECONDS", 0.01)

    async def story() -> None:
        store = Away()
        logs = Logs(store, 1 << 30)
        follower = logs.follow(LogQuery(namespaces=("default",)))
        first = asyncio.create_task(anext(follower))
        await asyncio.sleep(0)
        store.kept.append(said(1))  # by somebody else: nobody is woken
        found = await asyncio.wait_for(first, 10)
        assert [record.text for record in found] == ["1"]
        await follower.aclose()
        logs.close()

    asyncio.run(story())
