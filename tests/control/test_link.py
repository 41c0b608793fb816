"""The link between control and gateways over a real socket: snapshots, changes in order, slow and broken gateways, batches."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dayfly.control import link as control_link
from dayfly.control.statistics import GONE_MAX, Sums
from dayfly.control.usage import Usage, today
from dayfly.core.decide.quota import day_of
from dayfly.core.model.records import FunctionStatistics, GatewayStatistics, LogRecord, UsageSum
from dayfly.core.wire import link
from dayfly.store.logs import LogQuery
from tests.control.fakes import FakeGateway
from tests.control.world import folders, run, world

QUERY = LogQuery(namespaces=("default",))


def used(calls: int = 1, day: int | None = None) -> UsageSum:
    on = day_of(time.time()) if day is None else day
    each = {"exec_us": 1500, "billed_ms": 10, "mb_ms": 1280, "bytes_in": 10, "bytes_out": 20}
    return UsageSum(on, "default", "hello", calls, errors=1, cold=2, **{name: value * calls for name, value in each.items()})


def said(text: str) -> LogRecord:
    return LogRecord(time.time(), "default", "hello", 1, "i", "c", "stdout", 20, text)


async def until(condition: Any) -> None:
    """Turn the loop until something holds; the test's deadline ends it."""
    while not condition():
        await asyncio.sleep(0.001)


def test_a_gateway_gets_the_whole_state_first_and_then_every_change_in_order() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy()
                async with FakeGateway(layout.link_socket, "g2", 2) as second:
                    assert second.functions == dict(w.control.catalog.functions)
                    await asyncio.gather(*(w.control.access.make_token(f"t{n}", ("default",), ("read",)) for n in range(20)))
                    await second.wait_told(link.TokensChanged, 20)
                    revisions = [it.revision for it in second.told if isinstance(it, link.TokensChanged)]
                    assert isinstance(second.told[0], link.UsedToday), "nobody decides by quotas without what was used"
                    start = second.told[1].catalog.revision
                    assert revisions == list(range(start + 1, start + 21))
                    assert len(second.tokens) == 21 == len(w.control.catalog.tokens)

    run(main())


def test_the_socket_is_private_and_a_stale_one_is_replaced() -> None:
    async def main() -> None:
        with folders() as layout:
            Path(layout.link_socket).write_text("left by a killed control")
            async with world(layout):
                mode = Path(layout.link_socket).stat().st_mode
                assert mode & 0o777 == 0o600

    run(main())


def test_a_gateway_that_does_not_read_is_dropped_and_others_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "OUTBOX_MAX", 20)

    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                reader, writer = await asyncio.open_unix_connection(layout.link_socket)
                writer.write(link.encode(link.Hello("deaf", 9)))
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await until(lambda: ("deaf", 9) in w.control.link.peers)
                await w.control.access.put_secret("default", "big", b"x" * 60_000)
                await w.deploy(secrets=["big"])
                for _ in range(100):
                    w.control.catalog.put(w.control.catalog.functions[("default", "hello")])
                    await asyncio.sleep(0)
                await until(lambda: ("deaf", 9) not in w.control.link.peers)
                await w.gateway.wait_told(link.FunctionChanged, 101)
                writer.transport.abort()

    run(main())


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\x03abc", link.encode(link.Usage([])), link.encode(link.Hello("a", 1)) * 2, b"\0\0", b""],
    ids=["huge", "garbage", "no hello", "two hellos", "half", "nothing"],
)
def test_a_stranger_on_the_socket_is_dropped(data: bytes) -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                reader, writer = await asyncio.open_unix_connection(layout.link_socket)
                writer.write(data)
                writer.write_eof()
                while await reader.read(65536):
                    pass
                writer.close()
                await until(lambda: list(w.control.link.peers) == [("g1", 1)])
                await w.deploy()

    run(main())


def test_a_gateway_that_comes_back_takes_the_place_of_its_old_link() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w, FakeGateway(layout.link_socket) as again:
                await until(lambda: len(w.control.link.peers) == 1)
                await w.control.access.make_token("t", ("default",), ("read",))
                await again.wait_told(link.TokensChanged)

    run(main())


def test_what_gateways_added_up_is_added_up() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                w.gateway.send(link.Usage([used(2), used(1)]))
                w.gateway.send(link.Usage([used(1)]))
                await until(lambda: w.control.usage.calls == 4)
                day = today(time.time())
                found = await w.control.usage.between(day, day, ["default"])
                assert [(it.calls, it.errors, it.cold, it.billed_ms, it.mb_ms) for it in found] == [(4, 3, 6, 40, 40 * 128)]
                assert (found[0].bytes_in, found[0].bytes_out, found[0].exec_us) == (40, 80, 6000)
                assert w.control.usage.billed_mb_ms() == {("default", "hello"): 40 * 128}

    run(main())


def test_what_is_just_being_written_counts_for_quotas() -> None:
    async def main() -> None:
        seen: list[int] = []

        async def store(*_: Any) -> None:
            seen.append(usage.used_on(day)["default", "hello"].calls)

        usage, day = Usage(store), day_of(time.time())  # type: ignore[arg-type]
        usage.add([used()])
        await usage.flush()
        usage.add([used()])
        await usage.flush()
        assert seen == [1, 2] and usage.used_on(day)["default", "hello"].calls == 2

    run(main())


def test_usage_that_could_not_be_written_is_kept_and_written_later() -> None:
    async def main() -> None:
        failing = [True]

        async def store(verb: Any, *args: Any) -> Any:
            if failing[0]:
                raise RuntimeError("disk")
            written.extend(args[0])

        written: list[Any] = []
        usage = Usage(store)  # type: ignore[arg-type]
        usage.add([used(day=0)])
        with pytest.raises(RuntimeError):
            await usage.flush()
        usage.add([used(day=0), used(day=-1), used(day=1 << 62)])
        failing[0] = False
        await usage.flush()
        assert [(it.day, it.calls) for it in written] == [("1970-01-01", 2), ("1970-01-01", 1), ("9999-12-31", 1)]

    run(main())


def test_what_was_counted_and_said_is_on_disk_after_an_orderly_end() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                w.gateway.send(link.Usage([used()]))
                w.gateway.send(link.Logs([said("last words")]))
                await until(lambda: w.control.usage.calls == 1)
                w.gateway.send(link.Statistics(GatewayStatistics(gateway="g1", at=1.0)))
                await until(lambda: w.control.sums.gateways())
            async with world(layout) as w:
                assert [it.text for it in await w.control.logs.read(QUERY)] == ["last words"]
                assert (await w.control.functions.list(("default",))) == []
                assert len(await w.control.usage.between("1970-01-01", "9999-12-31", ["default"])) == 1

    run(main())


def test_a_follower_gets_what_was_there_and_then_everything_new_once() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                w.gateway.send(link.Logs([said("0")]))
                seen: list[str] = []

                async def follow() -> None:
                    async for batch in w.control.logs.follow(QUERY):
                        seen.extend(record.text for record in batch)

                task = asyncio.create_task(follow())
                for n in range(1, 50):
                    w.gateway.send(link.Logs([said(str(n))]))
                    if n % 7 == 0:
                        await asyncio.sleep(0)
                await until(lambda: len(seen) == 50)
                assert seen == [str(n) for n in range(50)]
                task.cancel()

    run(main())


def test_log_records_beyond_the_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dayfly.control.logs.QUEUE_RECORDS_MAX", 10)

    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                w.control.logs.add([said(str(n)) for n in range(25)], dropped=2)
                assert w.control.logs.dropped == 17
                await w.control.logs.drain()
                assert len(await w.control.logs.read(QUERY)) == 10

    run(main())


def counted(calls: int, instances: int = 0) -> GatewayStatistics:
    numbers = FunctionStatistics(
        namespace="default", function="f", calls=calls, instances=instances, histograms={"exec": [calls]}, outcomes={"ok": calls}
    )
    return GatewayStatistics(gateway="g", at=0.0, functions=[numbers])


def test_counters_never_go_back_when_gateways_come_and_go_and_gauges_leave_with_them() -> None:
    sums, expected = Sums(), 0
    for pid in range(GONE_MAX + 5):
        sums.put(("g", pid), counted(10, 3))
        expected += 10
        assert (sums.of("default", "f").calls, sums.of("default", "f").instances) == (expected, 3)
        sums.gone(("g", pid))
        found = sums.of("default", "f")
        assert (found.calls, found.instances, found.outcomes, found.histograms) == (expected, 0, {"ok": expected}, {"exec": [expected]})


def test_a_link_that_only_broke_does_not_count_twice() -> None:
    sums = Sums()
    sums.put(("g", 1), counted(10))
    sums.gone(("g", 1))
    sums.put(("g", 1), counted(12))
    assert sums.of("default", "f").calls == 12
