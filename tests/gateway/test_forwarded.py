"""The client's address, scheme and host as a function sees them, with and without proxies that are believed."""

import asyncio
from typing import Any

import uvloop

from dayfly.core.model.function import Route
from tests.gateway.rig import Rig, function, gateway

CLAIMS = (
    "x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.example.com\r\nx-forwarded-port: 8443\r\n"
    "forwarded: for=192.0.2.7\r\n"
)


def run(coroutine: Any) -> None:
    uvloop.run(asyncio.wait_for(coroutine, 30))


def head(rig: Rig) -> list[bytes]:
    return rig.behaviour.instances[-1].calls[-1].meta.split(b"\n")


def forwarded(rig: Rig) -> list[bytes]:
    return [line for line in head(rig) if b"forwarded" in line]


def test_what_strangers_claim_is_dropped_and_loopback_is_a_stranger_until_it_is_named() -> None:
    async def main() -> None:
        for proxies in ("", "10.0.0.0/8, ::1"):
            async with gateway(trusted_proxies=proxies) as rig:
                rig.serve(function(route=(Route(host="shop.example.com"),)))
                assert (await rig.request("GET", "/function/hello", CLAIMS))[0] == 200
                assert head(rig)[3:5] == [b"127.0.0.1", b"http"] and not forwarded(rig)
                assert (await rig.request("GET", "/x", CLAIMS))[0] == 503, "a host that a stranger claims leads nowhere"

    run(main())


def test_a_believed_proxy_says_who_called_how_and_which_host() -> None:
    async def main() -> None:
        async with gateway(trusted_proxies="127.0.0.0/8") as rig:
            rig.serve(function(route=(Route(host="shop.example.com"),)))
            for target in ("/function/hello", "/x"):
                assert (await rig.request("GET", target, CLAIMS))[0] == 200
                assert head(rig)[3:5] == [b"192.0.2.7", b"https"]
                assert forwarded(rig) == [
                    b"x-forwarded-for: 192.0.2.7, 127.0.0.1",
                    b"forwarded: for=192.0.2.7",
                    b"x-forwarded-host: shop.example.com",
                    b"x-forwarded-port: 8443",
                ]
            assert (await rig.request("GET", "/function/hello"))[0] == 200
            assert head(rig)[3:5] == [b"127.0.0.1", b"http"] and forwarded(rig) == [b"x-forwarded-for: 127.0.0.1"]

    run(main())
