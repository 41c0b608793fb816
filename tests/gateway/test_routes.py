"""Functions by routes of their own, through a whole gateway with fake instances: what the instance is sent, and who is refused."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
import uvloop

from dayfly.core.decide.rollout import whole
from dayfly.core.model.function import Function, Route
from dayfly.gateway.dispatch import Dispatch
from tests.gateway.rig import BEARER, Rig, function, gateway


def run(coroutine: Any) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


def routed(name: str, *routes: Route, **config: Any) -> Function:
    return function(name, route=routes, **config)


def lines_of(rig: Rig, call: int = -1) -> list[bytes]:
    return rig.behaviour.instances[-1].calls[call].meta.split(b"\n")


def test_a_routed_call_has_the_whole_raw_path_and_the_routes_key() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(routed("users", Route(path="/users/{id}", methods=("GET",)), Route(host="u.example.com")))
            status, headers, _ = await rig.request("GET", "/users/a%20b?x=1&y")
            assert (status, headers["x-dayfly-version"]) == (200, "1")
            assert lines_of(rig)[:3] == [b"GET", b"/users/a%20b", b"x=1&y"]
            assert b":route: GET /users/{id}" in lines_of(rig)
            head = "PUT /any/thing HTTP/1.1\r\nhost: U.example.com:8443\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"
            assert (await rig.raw(head.encode())).startswith(b"HTTP/1.1 200")
            assert lines_of(rig)[:3] == [b"PUT", b"/any/thing", b""]
            assert not any(line.startswith(b":route") for line in lines_of(rig)), "$default is what an instance assumes"
            assert (await rig.request("GET", "/function/users/x"))[0] == 200
            assert not any(line.startswith(b":route") for line in lines_of(rig))
            status, headers, body = await rig.request("DELETE", "/users/1")
            assert (status, headers["allow"], json.loads(body)["error"]["code"]) == (405, "GET", "method_not_allowed")
            assert (await rig.raw(b"GET /\xc3\xbc HTTP/1.1\r\nhost: u.example.com\r\nconnection: close\r\n\r\n"))[:12] == b"HTTP/1.1 400"

    run(main())


def test_a_route_opens_no_door_that_auth_closes_and_the_token_stays_outside() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(routed("secret", Route(path="/secret"), auth="token"))
            assert (await rig.request("GET", "/secret"))[0] == 401
            assert (await rig.request("GET", "/secret", BEARER))[0] == 200
            assert not any(line.startswith(b"authorization") for line in lines_of(rig))

    run(main())


def test_what_is_the_platforms_stays_the_platforms_whatever_routes_say() -> None:
    async def main() -> None:
        async with gateway() as rig:
            rig.serve(routed("greedy", Route(path="/{proxy+}")), function("hello"))
            assert (await rig.request("GET", "/healthz"))[2] == b'{"status":"ok"}'
            for path in ("/api/v1/functions", "/%61pi/v1/functions", "/system/functions", "/metrics"):
                status, _, body = await rig.request("GET", path)
                assert (status, json.loads(body)["error"]["code"]) == (503, "control_unavailable"), "there is no control here"
            assert (await rig.request("GET", "/function/nobody"))[0] == 404
            assert not rig.behaviour.instances
            assert (await rig.request("GET", "/else"))[0] == 200

    run(main())


def test_routes_follow_live_and_go_with_their_function() -> None:
    async def main() -> None:
        async with gateway() as rig:
            first = routed("f", Route(path="/old"))
            second = function("f", 2, route=(Route(path="/new"),))
            both = msgspec.structs.replace(second, versions=(*first.versions, *second.versions))
            rig.serve(first)

            async def answers() -> list[int]:
                return [(await rig.request("GET", path))[0] for path in ("/old", "/new")]

            assert await answers() == [200, 503]
            rig.catalog.set_function(2, both)
            assert await answers() == [503, 200]
            rig.catalog.set_function(3, msgspec.structs.replace(both, aliases=(whole("live", 1),)))
            assert await answers() == [200, 503]
            rig.catalog.remove_function(4, "default", "f")
            assert await answers() == [503, 503]
            rig.serve(both)
            assert await answers() == [503, 200]

    run(main())


@pytest.mark.parametrize("target", ["/function/hello", "/function/hello/a/b?c"])
def test_a_call_by_name_asks_no_route(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a route was looked for")

    async def main() -> None:
        async with gateway() as rig:
            rig.serve(routed("hello", Route(path="/{proxy+}")))
            monkeypatch.setattr(Dispatch, "_open_routed", asked)  # what must not happen has no other trace
            assert [(await rig.request("GET", target))[0] for _ in range(2)] == [200, 200]

    run(main())
