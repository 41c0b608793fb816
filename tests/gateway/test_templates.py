"""Which templates the gateway has made, in which order, and what starts from them; the node and its instances are played."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop

from dayfly.core.model.function import Function
from dayfly.core.wire.node import Start
from dayfly.gateway.channel import Ready
from dayfly.gateway.templates import CHEAP_MAX
from dayfly.testing.provider import Behaviour, FakeInstance
from tests.gateway.rig import Rig, function, gateway, until

MODULES = ["numpy", "numpy.linalg"]


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run it in a loop of its own, within half a minute."""

    @functools.wraps(test)
    def run() -> None:
        uvloop.run(asyncio.wait_for(test(), 30))

    return run


def with_layer(number: int, **config: Any) -> Function:
    """Version `number` of a function; all have one layer, each code of its own."""
    made = function(number=number, **({"keep_alive_seconds": 0.0} | config))
    version = msgspec.structs.replace(made.versions[0], code_digest=f"{number:064x}", layer_digest="1" * 64)
    return msgspec.structs.replace(made, versions=(version,))


def costly(start: Start) -> dict[str, Any]:
    """READY of an init of 40 ms, nearly all of it packages."""
    if start.role == "packages":
        return {"init_us": 39_000, "init_cpu_us": 39_000, "origin": "template"}
    if start.parent:
        return {"init_us": 1_000, "init_cpu_us": 1_000, "origin": "packages"}
    return {"init_us": 40_000, "init_cpu_us": 40_000, "origin": "fork", "imports": MODULES}


def of_role(rig: Rig, role: str) -> list[FakeInstance]:
    return [it for it in rig.behaviour.instances if it.start.role == role and it.boot]


async def call(rig: Rig) -> int:
    return (await rig.request("POST", "/function/hello", body=b"1"))[0]


async def packages_stand(rig: Rig) -> FakeInstance:
    """After a first call of version 1."""
    rig.serve(with_layer(1))
    assert await call(rig) == 200
    await until(lambda: any(it.imports and it.standing for it in rig.fleet.templates._by_key.values()))
    return of_role(rig, "packages")[0]


@in_loop
async def test_packages_come_after_the_versions_own_template_and_serve_the_next_version() -> None:
    """Asked for without code, with the modules that init imported. A version that started from them gets a template of its own, too."""
    async with gateway(Behaviour(ready=costly)) as rig:
        packages = await packages_stand(rig)
        assert [it.start.role for it in rig.behaviour.instances] == ["instance", "template", "packages"]
        assert (packages.start.code, packages.start.layer, packages.boot["imports"]) == ("", "1" * 64, MODULES)
        assert "imports" not in of_role(rig, "template")[0].boot
        rig.serve(with_layer(2, memory_mb=256))
        assert await call(rig) == 200
        started = rig.behaviour.instances[3].start
        assert (started.parent, started.code, started.memory_mb) == (packages.start.instance, f"{2:064x}", 256)
        await until(lambda: len(of_role(rig, "template")) == 2)
        assert of_role(rig, "template")[1].start.code == f"{2:064x}"


@in_loop
async def test_what_may_not_share_starts_without() -> None:
    async with gateway(Behaviour(ready=costly)) as rig:
        await packages_stand(rig)
        for number, config in enumerate(({"snapshot": "off"}, {"env": {"A": "b"}}, {"tmp_mb": 65}), 2):
            rig.serve(with_layer(number, **config))
            assert await call(rig) == 200
            assert [it.start.parent for it in of_role(rig, "instance")][-1] == ""


@in_loop
async def test_after_a_start_from_packages_that_failed_the_version_does_without_them() -> None:
    """Whether they were to blame cannot be known."""
    async with gateway(Behaviour(ready=costly)) as rig:
        packages = await packages_stand(rig)
        rig.behaviour.init_error = {"errorType": "Error", "errorMessage": "no"}
        rig.serve(with_layer(2))
        assert await call(rig) == 422
        assert of_role(rig, "instance")[-1].start.parent == packages.start.instance
        rig.behaviour.init_error = None
        while await call(rig) != 200:  # a version whose start failed is not started again at once
            await asyncio.sleep(0.05)
        assert of_role(rig, "instance")[-1].start.parent == ""


@in_loop
async def test_packages_that_cost_nothing_are_let_go() -> None:
    """Then it was the function's own code that was dear."""
    cheap = {"packages": {"init_us": 100, "init_cpu_us": 100, "origin": "template"}}
    async with gateway(Behaviour(ready=lambda start: cheap.get(start.role) or costly(start))) as rig:
        rig.serve(with_layer(1))
        assert await call(rig) == 200
        await until(lambda: of_role(rig, "packages") and of_role(rig, "packages")[0].closed)
        rig.serve(with_layer(2))
        assert await call(rig) == 200
        assert of_role(rig, "instance")[-1].start.parent == ""


@in_loop
async def test_packages_go_with_the_last_version_that_has_them() -> None:
    async with gateway(Behaviour(ready=costly)) as rig:
        packages = await packages_stand(rig)
        rig.serve(with_layer(2))
        assert await call(rig) == 200
        rig.serve(with_layer(3, env={"A": "b"}))
        assert await call(rig) == 200
        await until(lambda: packages.closed)


def test_names_that_are_none_are_garbage() -> None:
    """What an instance says of its imports is checked like all that it says."""
    for name in ("a b", "a..b", ".a", "a.", "1a", "a\n", "", "a/b", "é", "a" * 201):
        try:
            msgspec.json.decode(msgspec.json.encode({"imports": [name]}), type=Ready)
        except msgspec.ValidationError:
            continue
        raise AssertionError(name)
    assert msgspec.json.decode(msgspec.json.encode({"imports": MODULES}), type=Ready).imports == MODULES


@in_loop
async def test_an_init_that_was_cheap_once_is_not_dear_because_the_machine_is_busy() -> None:
    """The cheapest init seen counts: a later one that took long says nothing about the function."""
    costs = iter([500, *[90_000] * 100])

    def ready(start: Start) -> dict[str, Any]:
        return {"init_us": 90_000, "init_cpu_us": next(costs), "origin": "fork"}

    async with gateway(Behaviour(ready=ready)) as rig:
        rig.serve(function(keep_alive_seconds=0.0))
        for _ in range(3):
            assert await call(rig) == 200
            await until(lambda: not rig.fleet._channels)
        rig.fleet.templates.tick(quiet=True)
        assert len(of_role(rig, "instance")) == 3
        assert of_role(rig, "template") == []
        assert not rig.fleet.templates._by_key, "nothing is kept but that it was cheap"


@in_loop
async def test_how_many_cheap_inits_are_remembered_has_a_bound() -> None:
    async with gateway(Behaviour()) as rig:
        templates = rig.fleet.templates
        for number in range(CHEAP_MAX + 10):
            templates._note_cheap(("default", "hello", number))
        templates._note_cheap(("default", "hello", 10))
        assert len(templates._cheap) == CHEAP_MAX
        assert next(iter(templates._cheap)) == ("default", "hello", 11), "the one that was seen last is the last to be forgotten"
