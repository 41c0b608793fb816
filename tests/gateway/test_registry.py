"""Many functions that nobody calls: what the gateway knows of them is small, current, and nothing is left of a deploy beside it."""

import gc
import tracemalloc
from hashlib import sha256

import msgspec
import pytest

from dayfly.control.statistics import Sums
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Catalog, Function, Route
from dayfly.core.model.records import GatewayStatistics
from dayfly.core.wire import link
from dayfly.gateway import catalog as gateway_catalog
from dayfly.gateway.catalog import CatalogMirror
from dayfly.testing.provider import Behaviour
from tests.gateway.rig import Rig, function, gateway, packed, until
from tests.gateway.test_calls import run

MANY = 2000
FUNCTION_BYTES_MAX = 500  # of one that is registered, has a route and is not called; it was 461


def snapshot(*functions: Function, revision: int = 1) -> Catalog:
    return Catalog(revision=revision, functions=packed(*functions), tokens=())


def routed(name: str, path: str) -> Function:
    made = function(name, route=(Route(path=path),))
    version = msgspec.structs.replace(made.versions[0], code_digest=sha256(name.encode()).hexdigest())
    return msgspec.structs.replace(made, versions=(version,))


def test_a_registered_function_takes_few_bytes():
    messages = [link.encode(link.FunctionChanged(n, routed(f"f{n}", f"/f{n}/{{rest+}}")))[link.LENGTH_BYTES :] for n in range(MANY)]
    mirror = CatalogMirror()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for message in messages:
            change = link.decode_to_gateway(message)
            assert isinstance(change, link.FunctionChanged)
            mirror.set_function(change.revision, change.function)
        del change
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / MANY < FUNCTION_BYTES_MAX
    assert mirror.function("default", f"f{MANY - 1}").versions[0].config.route[0].path == f"/f{MANY - 1}/{{rest+}}"


def test_of_those_that_are_called_a_bounded_number_is_unpacked_and_none_outlives_a_change(monkeypatch):
    monkeypatch.setattr(gateway_catalog, "UNPACKED_MAX", 3)
    mirror = CatalogMirror()
    mirror.replace(snapshot(*(function(f"f{n}") for n in range(9))))
    first = mirror.function("default", "f0")
    assert mirror.function("default", "f0") is first, "the same, while nothing changes"
    for n in range(9):
        mirror.function("default", f"f{n}")
    assert len(mirror._unpacked) == 3
    mirror.set_function(2, function("f8", memory_mb=256))
    assert mirror.function("default", "f8").versions[0].config.memory_mb == 256
    mirror.replace(snapshot(function("f8", memory_mb=512)))
    assert mirror.function("default", "f8").versions[0].config.memory_mb == 512
    mirror.remove_function(3, "default", "f8")
    with pytest.raises(Refusal):
        mirror.function("default", "f8")
    assert not mirror._unpacked


def test_every_change_is_counted_also_one_that_changes_nothing():
    mirror, seen = CatalogMirror(), [0]
    for change in (
        lambda: mirror.replace(snapshot(function())),
        lambda: mirror.replace(snapshot(function())),
        lambda: mirror.set_function(2, function(memory_mb=256)),
        lambda: mirror.set_tokens(3, ()),
        lambda: mirror.remove_function(4, "default", "hello"),
    ):
        change()
        seen.append(mirror.changes)
    assert seen == sorted(set(seen))


def test_a_snapshot_that_says_what_is_known_opens_nothing(monkeypatch):
    mirror = CatalogMirror()
    assert mirror.replace(snapshot(function("a"), routed("b", "/b"))) == [("default", "a"), ("default", "b")]
    for module in ("core.wire.packed", "gateway.catalog"):
        monkeypatch.setattr(f"dayfly.{module}.unpack", lambda _: pytest.fail("it was opened"))
    assert mirror.replace(snapshot(function("a"), routed("b", "/b"), revision=2)) == []
    monkeypatch.undo()
    assert mirror.revision == 2 and mirror.routes.find("", "GET", "/b") is not None


def test_a_route_that_went_from_one_to_another_between_two_snapshots_is_the_others():
    mirror = CatalogMirror()
    mirror.replace(snapshot(function("a"), routed("b", "/x"), routed("c", "/c")))
    mirror.replace(snapshot(routed("a", "/x"), function("b")))
    assert mirror.routes.find("", "GET", "/x").function == "a" and mirror.routes.find("", "GET", "/c") is None
    assert set(mirror.functions) == {("default", "a"), ("default", "b")}


def test_a_version_has_a_name_as_long_as_an_alias_has_it():
    mirror = CatalogMirror()
    assert not mirror.names(("default", "hello", 1))
    mirror.replace(snapshot(function()))
    assert mirror.names(("default", "hello", 1)) and not mirror.names(("default", "hello", 2))
    mirror.set_function(2, function(number=2))
    assert mirror.names(("default", "hello", 2)) and not mirror.names(("default", "hello", 1))


def told(rig: Rig, sums: Sums) -> list[str]:
    """Tell control; whose numbers those were."""
    found = rig.fleet.observe()
    message = link.encode(link.Statistics(GatewayStatistics(gateway="g", at=0.0, functions=found)))
    statistics = link.decode_to_control(message[link.LENGTH_BYTES :])
    assert isinstance(statistics, link.Statistics)
    sums.put(("g", 1), statistics.statistics)
    return [numbers.function for numbers in found]


async def deploy(rig: Rig, it: Function) -> None:
    """As control does it: proved, then named."""
    errors: list[dict[str, object]] = []
    rig.fleet.prove(msgspec.structs.replace(it, aliases=()), it.versions[0], lambda _, error: errors.append(error))
    await until(lambda: errors)
    assert errors == [{}]
    rig.catalog.set_function(rig.catalog.revision + 1, it)
    rig.fleet.functions_changed(rig.catalog.names, (it.namespace, it.name))
    rig.fleet.warm(it)


def test_nothing_is_left_of_a_deployed_version_that_nobody_calls_and_what_was_counted_stays(monkeypatch):
    monkeypatch.setattr("dayfly.gateway.fleet.DORMANT_SECONDS", 0.05)

    async def main():
        async with gateway(Behaviour()) as rig:
            rig.serve()
            sums = Sums()
            for number in (1, 2):
                await deploy(rig, function(number=number, keep_alive_seconds=0.0))
                assert told(rig, sums) == ["hello"]
                await until(lambda: not rig.fleet._entries and not rig.fleet._leaving)
                while told(rig, sums):
                    pass
                assert not rig.ledger.functions and not rig.fleet.templates._by_key and not rig.fleet.templates._wanted
                found = sums.of("default", "hello")
                assert (found.instances_started, found.instances, found.instances_lost) == (number, 0, 0)
            assert (await rig.request("GET", "/function/hello"))[0] == 200
            assert told(rig, sums) == ["hello"]
            assert (sums.of("default", "hello").instances_started, sums.of("default", "hello").calls) == (3, 1)

    run(main())


def test_only_what_changed_is_told_and_everything_to_a_control_that_comes_back(monkeypatch):
    monkeypatch.setattr("dayfly.gateway.fleet.DORMANT_SECONDS", 0.05)

    async def main():
        async with gateway() as rig:
            rig.serve(function("a", keep_alive_seconds=0.0), function("b"))
            sums = Sums()
            for name in ("a", "b"):
                assert (await rig.request("GET", f"/function/{name}"))[0] == 200
            assert sorted(told(rig, sums)) == ["a", "b"]
            await until(lambda: [key[1] for key in rig.fleet._entries] == ["b"] and not rig.fleet._leaving)
            while told(rig, sums):
                pass
            assert list(rig.ledger._awake) == [("default", "b")], "an instance is there: it may have something to tell at any time"
            assert told(rig, sums) == []
            assert (await rig.request("GET", "/function/a"))[0] == 200
            assert told(rig, sums) == ["a"]
            rig.ledger.tell_all()
            assert sorted(told(rig, sums)) == ["a", "b"]
            assert [sums.of("default", name).calls for name in ("a", "b")] == [2, 1]

    run(main())
