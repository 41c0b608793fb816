"""CORS through a whole gateway: preflights cost no instance, every answer of a function with [cors] says who may read it."""

import asyncio
from typing import Any

import uvloop

from dayfly.core.model.function import Cors, Route
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway

APP = "https://app.example.com"
CORS = Cors(origins=(APP,), methods=("PUT",), headers=("x-a",), credentials=True, max_age=600)
ORIGIN = f"origin: {APP}\r\n"
ALLOWED = {"access-control-allow-origin": APP, "access-control-allow-credentials": "true", "vary": "origin"}


def run(coroutine: Any) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


def about(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-") or name == "vary"}


async def preflight(rig: Rig, target: str, origin: str = APP, method: str = "PUT") -> tuple[int, dict[str, str]]:
    asks = f"origin: {origin}\r\naccess-control-request-method: {method}\r\naccess-control-request-headers: x-a\r\n"
    status, headers, body = await rig.request("OPTIONS", target, asks)
    assert status != 204 or (body == b"" and "content-length" not in headers)
    return status, about(headers)


def test_a_preflight_is_answered_without_token_and_instance() -> None:
    told = {"access-control-allow-methods": "PUT", "access-control-allow-headers": "x-a", "access-control-max-age": "600"}

    async def main() -> None:
        async with gateway() as rig:
            route = Route(path="/mine/{id}", methods=("PUT",))
            rig.serve(function(auth="token", cors=CORS, route=(route,)))
            for target in ("/function/hello", "/function/hello:1/x?y", "/mine/7"):
                assert await preflight(rig, target) == (204, ALLOWED | told), target
                assert await preflight(rig, target, "https://evil.test") == (204, {"vary": "origin"})
            assert (await preflight(rig, "/mine/7", method="DELETE"))[0] == 405, "no route takes what was asked about"
            assert (await preflight(rig, "/function/nobody"))[0] == 404
            assert not rig.behaviour.instances
            status, headers, _ = await rig.request("OPTIONS", "/function/hello", ORIGIN)
            assert (status, about(headers)) == (401, ALLOWED), "without asking for a method it is a call"

    run(main())


def test_a_function_without_cors_answers_preflights_itself() -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        return FakeAnswer(status=204, block=b"access-control-allow-origin: its own\r\n")

    async def main() -> None:
        async with gateway(Behaviour(handler)) as rig:
            rig.serve(function(route=(Route(path="/mine", methods=("OPTIONS", "GET")),)))
            own = {"access-control-allow-origin": "its own"}
            assert await preflight(rig, "/function/hello") == (204, own)
            assert await preflight(rig, "/mine", method="GET") == await preflight(rig, "/mine", method="DELETE") == (204, own)

    run(main())


def test_the_gateways_word_stands_in_every_answer_instead_of_the_functions() -> None:
    async def handler(call: TakenCall) -> FakeAnswer:
        if call.body == b"fail":
            return FakeAnswer(b'{"errorType":"ValueError"}', flags=frames.ERROR)
        block = b"Access-Control-Allow-Origin: *\r\nvary: accept\r\naccess-control-allow-methods: TRACE\r\nx-a: 1\r\n"
        if call.body == b"stream":
            await call.instance.send(frames.HEAD, 0, 200, 0, call.seq, block)
            await call.instance.send(frames.END, 0, 0, 0, call.seq)
            return FakeAnswer(streamed=True)
        return FakeAnswer(block=block)

    async def main() -> None:
        async with gateway(Behaviour(handler), body_bytes_max=1000) as rig:
            rig.serve(function(cors=CORS), function("private", cors=CORS, auth="token"))
            for body in (b"", b"stream"):
                raw = await rig.raw(
                    f"POST /function/hello HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{ORIGIN}content-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                head = raw.partition(b"\r\n\r\n")[0].lower()
                assert head.count(b"access-control-allow-origin") == 1 and f"access-control-allow-origin: {APP}".encode() in head
                assert b"access-control-allow-methods" not in head and b"x-a: 1" in head
                assert b"vary: accept" in head and b"vary: origin" in head
            for name, body, expected in (("hello", b"fail", 502), ("hello", bytes(2000), 413), ("private", b"", 401)):
                status, headers, _ = await rig.request("POST", f"/function/{name}", ORIGIN, body)
                assert (status, about(headers)) == (expected, ALLOWED), "a script may read why it was refused"
            assert about((await rig.request("GET", "/function/hello"))[1])["vary"] == "origin", "a cache may keep it for others"
            assert "access-control-allow-origin" not in (await rig.request("POST", "/api/v1/functions/hello/invoke", ORIGIN, b"{}"))[1]

    run(main())
