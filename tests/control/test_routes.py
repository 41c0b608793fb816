"""Routes through a real control plane: who may have one, who is told so, and what a rollback, an alias and a removal do to them."""

import asyncio
from typing import Any

import msgspec
import pytest

from dayfly.control.events import Deployed, Event, Failed, Stage
from dayfly.core.model.errors import Refusal
from dayfly.core.wire import link
from dayfly.core.wire.packed import unpack
from tests.control.fakes import proves_everything
from tests.control.test_deploy import HELLO, deployed, failed
from tests.control.world import World, folders, run, world

USERS = {"path": "/users/{id}", "methods": ["GET"]}
OTHER = HELLO | {"more.txt": "2"}


def refused(events: list[Event]) -> str:
    error = failed(events)
    assert (error["code"], error["fault"]) == ("conflict", "caller")
    return str(error["message"])


def owner(w: World, path: str) -> str | None:
    found = w.control.catalog.routes.find("", "GET", path)
    return found.function if found else None


def test_a_deploy_from_a_manifest_says_its_routes_and_so_do_list_and_description() -> None:
    async def main() -> None:
        manifest = {"dayfly.toml": '[[route]]\npath = "/users/{id}"\nmethods = ["GET"]\n\n[[route]]\nhost = "*.example.com"\n'}
        with folders() as layout:
            async with world(layout) as w:
                assert deployed(await w.deploy(HELLO | manifest)).routes == ("GET /users/{id}", "ANY *.example.com/")
                assert deployed(await w.deploy(HELLO | manifest)).routes == ("GET /users/{id}", "ANY *.example.com/"), "unchanged"
                (summary,) = await w.control.functions.list(("default",))
                assert [route.text for route in summary.version.config.route] == ["GET /users/{id}", "ANY *.example.com/"]
                assert w.gateway.functions["default", "hello"].versions[0].config.route == summary.version.config.route

    run(main())


def test_a_route_that_another_function_has_is_refused_before_anything_is_built_or_proved() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                deployed(await w.deploy(name="first", route=[USERS]))
                await w.control.access.make_namespace("team")
                for namespace in ("default", "team"):
                    events = await w.deploy(name="second", namespace=namespace, route=[{"path": "/users/{name}"}])
                    said = refused(events)
                    assert said == "The route ANY /users/{name} is taken by function 'first' in namespace 'default'."
                    assert [event.stage for event in events if isinstance(event, Stage)] == ["unpack"]
                assert set(w.gateway.functions) == {("default", "first")}
                deployed(await w.deploy(OTHER, name="first", route=[USERS]))  # its own it keeps
                await w.control.functions.remove("default", "first")
                deployed(await w.deploy(name="second", route=[{"path": "/users/{name}"}]))
                assert owner(w, "/users/1") == "second"

    run(main())


def test_of_two_deploys_at_once_one_gets_the_route() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                proofs: list[link.Prove] = []

                def judge(prove: link.Prove) -> link.Proved | None:
                    """Both are checked and proved before either is activated."""
                    proofs.append(prove)
                    if len(proofs) < 2:
                        return None
                    w.gateway.send(proves_everything(proofs[0]))
                    return proves_everything(prove)

                w.gateway.judge = judge
                both = await asyncio.gather(w.deploy(name="a", route=[USERS]), w.deploy(name="b", route=[USERS]))
                ends = {type(events[-1]): events for events in both}
                assert set(ends) == {Deployed, Failed}
                assert "is taken by function" in refused(ends[Failed])
                assert len(w.gateway.functions) == 1, "what was refused did not happen"
                assert len(await w.control.functions.list(("default",))) == 1

    run(main())


def test_routes_go_back_with_a_rollback_unless_others_took_them_meanwhile() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                deployed(await w.deploy(name="f", route=[{"path": "/one"}]))
                deployed(await w.deploy(OTHER, name="f", route=[{"path": "/two"}]))
                assert (owner(w, "/one"), owner(w, "/two")) == (None, "f")
                await w.control.functions.rollback("default", "f", None)
                assert (owner(w, "/one"), owner(w, "/two")) == ("f", None)
                deployed(await w.deploy(name="g", route=[{"path": "/two"}]))
                moves: tuple[Any, ...] = (
                    w.control.functions.rollback("default", "f", 2),
                    w.control.functions.put_alias("default", "f", "live", {1: 0.2, 2: 0.8}),
                )
                for move in moves:
                    with pytest.raises(Refusal, match="/two is taken by function 'g'") as refusal:
                        await move
                    assert refusal.value.kind.code == "conflict"
                assert w.live("f") == ((1, 1.0),), "what was refused did not happen"
                await w.control.functions.put_alias("default", "f", "live", {1: 0.8, 2: 0.2})  # most calls stay where /one is
                await w.control.functions.put_alias("default", "f", "canary", {2: 1.0})  # an alias has no routes
                assert (owner(w, "/one"), owner(w, "/two")) == ("f", "g")

    run(main())


def test_routes_are_there_again_after_a_restart() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                deployed(await w.deploy(name="first", route=[USERS]))
            async with world(layout) as w:
                assert owner(w, "/users/1") == "first"
                assert "is taken by function 'first'" in refused(await w.deploy(name="second", route=[USERS]))
                whole = next(message for message in w.gateway.told if isinstance(message, link.Snapshot))
                assert msgspec.to_builtins(unpack(whole.catalog.functions[0].data).versions[0].config)["route"][0]["path"] == "/users/{id}"

    run(main())
