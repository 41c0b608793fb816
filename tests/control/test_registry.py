"""Many functions that nobody calls, in control: small, and their numbers add up although gateways forget."""

import asyncio
import gc
import time
import tracemalloc
from hashlib import sha256
from pathlib import Path

from dayfly.control.catalog import Catalog
from dayfly.control.folders import CODE, _mark
from dayfly.control.statistics import Sums
from dayfly.control.usage import Usage
from dayfly.core.model.function import Alias, Function, FunctionConfig, Provisioned, Route, Version
from dayfly.core.model.limits import Limits
from dayfly.core.model.records import FunctionStatistics, GatewayStatistics
from dayfly.core.wire import link
from tests.control.world import folders, run, world

MANY = 2000
FUNCTION_BYTES_MAX = 650  # of one that was deployed, has a route and was never called; it was 599


def function(name: str, **config: object) -> Function:
    version = Version(
        namespace="default", function=name, number=1, config=FunctionConfig(**config), code_digest=sha256(name.encode()).hexdigest()
    )  # type: ignore[arg-type]
    return Function(namespace="default", name=name, aliases=(Alias(name="live", weights=((1, 1.0),)),), versions=(version,))


def numbers(name: str = "hello", since: int = 1, **counted: int) -> GatewayStatistics:
    return GatewayStatistics(
        gateway="g", at=0.0, functions=[FunctionStatistics(namespace="default", function=name, since=since, **counted)]
    )  # type: ignore[arg-type]


def received(statistics: GatewayStatistics) -> GatewayStatistics:
    message = link.decode_to_control(link.encode(link.Statistics(statistics))[link.LENGTH_BYTES :])
    assert isinstance(message, link.Statistics)
    return message.statistics


def test_a_registered_function_takes_few_bytes() -> None:
    catalog, sums = Catalog(Usage(None)), Sums()  # type: ignore[arg-type]
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(MANY):
            catalog.put(function(f"f{number}", route=(Route(path=f"/f{number}/{{rest+}}"),)))
            sums.put(("g", 1), received(numbers(f"f{number}", number, instances_started=1)))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / MANY < FUNCTION_BYTES_MAX
    assert len(catalog.functions) == len(sums.by_function()) == MANY


def test_what_is_not_told_again_is_as_it_was_told_last() -> None:
    sums = Sums()
    sums.put(("g", 1), numbers("a", calls=3, instances=1))
    sums.put(("g", 1), numbers("b", since=2, calls=1))
    assert {key[1]: (it.calls, it.instances) for key, it in sums.by_function().items()} == {"a": (3, 1), "b": (1, 0)}
    assert [gateway.functions for gateway in sums.gateways()] == [[]]


def test_what_a_gateway_has_forgotten_stays_in_the_sum_and_its_gauges_do_not() -> None:
    sums = Sums()
    sums.put(("g", 1), numbers(since=1, instances_started=1, instances=1))
    sums.put(("g", 1), numbers(since=1, instances_started=2, instances=1))
    sums.put(("g", 1), numbers(since=5, instances_started=1))
    assert (sums.of("default", "hello").instances_started, sums.of("default", "hello").instances) == (3, 0)
    sums.gone(("g", 1))
    sums.put(("g", 1), numbers(since=5, instances_started=4))  # only the link broke
    sums.put(("h", 2), numbers(since=1, instances_started=10, instances=2))
    assert (sums.of("default", "hello").instances_started, sums.of("default", "hello").instances) == (16, 2)


def test_numbers_of_functions_that_are_gone_are_forgotten_wherever_they_stand() -> None:
    sums = Sums()
    for since in (1, 2):
        sums.put(("g", 1), numbers("gone", since, calls=1))
    sums.put(("g", 1), numbers("here", 3, calls=1))
    sums.put(("h", 2), numbers("gone", 1, calls=1))
    sums.gone(("h", 2))
    assert sums.of("default", "gone").calls == 3
    sums.keep({("default", "here")})
    assert set(sums.by_function()) == {("default", "here")}


def test_housekeeping_forgets_the_numbers_of_what_was_removed() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy()
                for name in ("hello", "removed"):
                    w.control.sums.put(("g1", 1), numbers(name, calls=1))
                await w.control._tidy()
                assert set(w.control.sums.by_function()) == {("default", "hello")}

    run(main())


def test_a_folder_that_a_deploy_names_while_the_sweep_looks_is_not_garbage() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy()
                [digest] = [it.name for it in Path(layout.code).iterdir()]
                looked = [(CODE, digest), (CODE, "f" * 64)]  # as if the version had not been there yet when it looked
                assert await w.control.store(_mark, looked, 100.0, False) == {(CODE, "f" * 64): 100.0}

    run(main())


def test_housekeeping_looks_only_at_functions_that_ask_for_it(monkeypatch) -> None:
    """Each second for windows and quotas, each scrape for limits: of ten thousand functions hardly one has any."""
    office = Provisioned(cron="0 8 * * *", duration_seconds=3600.0, min_instances=2)
    asked: list[str] = []

    async def main() -> None:
        catalog = Catalog(Usage(None))  # type: ignore[arg-type]
        catalog.fill(
            [function("plain"), function("window", provisioned=(office,)), function("limit", limits=Limits(calls_per_day=1))], [], {}
        )
        of = catalog._floors.of
        monkeypatch.setattr(catalog._floors, "of", lambda versions, now: asked.append(versions[0].function) or of(versions, now))
        catalog.open_windows(time.time())
        assert asked == ["window"] and catalog.limited == {("default", "limit")}
        assert [it.function for it in catalog.used(time.time()).consumed] == ["limit"]
        catalog.put(function("window"))
        catalog.put(function("limit"))
        asked.clear()
        catalog.open_windows(time.time())
        assert not asked and not catalog.limited and not catalog.used(time.time()).consumed
        catalog.put(function("limit", limits=Limits(calls_per_day=1), provisioned=(office,)))
        catalog.remove("default", "limit")
        catalog.open_windows(time.time())
        assert not catalog.limited and not catalog.used(time.time()).consumed

    asyncio.run(main())
