"""Maps through the ASGI application: who may, what comes back, what bad input gets."""

from typing import Any

from tests.api.test_api import Client, api, token_for
from tests.control.test_maps import Worker
from tests.control.world import run

LINES: dict[str, str] = {"Content-Type": "application/x-ndjson"}


async def _map(c: Client, **more: Any) -> tuple[int, Any]:
    return await c("POST", "/maps", json={"function": "hello", "id": "m1"} | more)


def test_a_map_is_made_filled_read_and_deleted() -> None:
    import asyncio

    async def main() -> None:
        async with api() as c:
            await c.deploy()
            working = asyncio.create_task(Worker(c.world.gateway).work())
            status, made = await _map(c)
            assert (status, made["state"], made["total"], made["accepted"]) == (201, "filling", -1, 0)
            assert (await _map(c))[0] == 200
            _, fed = await c("POST", "/maps/m1/items", content=b"1\n2\n", headers=LINES)
            assert (fed["accepted"], fed["total"]) == (2, -1)
            _, fed = await c("POST", "/maps/m1/items?first=2&last=true", content=b"3", headers=LINES)
            assert (fed["accepted"], fed["total"]) == (3, 3)
            _, shown = await c("GET", "/maps/m1?wait=20s")
            assert (shown["state"], shown["done"], shown["failed"], shown["running"]) == ("done", 3, 0, 0)
            _, results = await c("GET", "/maps/m1/results")
            assert results == [{"index": n, "ok": True, "attempts": 1, "after": str(n), "result": 2 * (n + 1)} for n in range(3)]
            _, rest = await c("GET", "/maps/m1/results?after=1&progress=true&wait=1s")
            assert rest[0]["progress"]["id"] == "m1" and rest[1] == results[2] and rest[-1]["progress"]["state"] == "done"
            _, queues = await c("GET", "/queues")
            assert [(it["function"], it["done"]) for it in queues["queues"]] == [("hello", 3)]
            _, calls = await c("GET", "/calls?function=hello&tag=map:m1")
            assert len(calls["calls"]) == 3 and (await c("GET", "/calls?function=hello"))[1]["calls"] == []
            assert [it["id"] for it in (await c("GET", "/maps"))[1]["maps"]] == ["m1"]
            assert await c("DELETE", "/maps/m1") == (200, {"removed": "m1"})
            assert await c.code("GET", "/maps/m1") == "map_not_found"
            working.cancel()

    run(main())


def test_bad_orders_are_refused_by_name() -> None:
    async def main() -> None:
        async with api(upload_bytes_max=1000) as c:
            await c.deploy()
            for order in ({"function": "nobody"}, {"function": "hello", "reduce": "nobody"}):
                assert await c.code("POST", "/maps", json=order) == "function_not_found"
            for order in ({"function": "hello", "speed": 1}, {"function": "hello", "concurrency": "many"}, {}):
                assert (await c("POST", "/maps", json=order))[0] == 400
            assert await c.code("POST", "/maps", json={"function": "a b"}) == "bad_name"
            await _map(c)
            assert await c.code("POST", "/maps", json={"function": "hello", "id": "m1", "concurrency": 2}) == "conflict"
            assert await c.code("POST", "/maps/m1/items?first=1", content=b"1") == "conflict"
            assert await c.code("POST", "/maps/m1/items?first=-1", content=b"1") == "bad_request"
            assert await c.code("POST", "/maps/m1/items?last=true", content=b"\n\n") == "bad_request"
            status, answer = await c("POST", "/maps/m1/items", content=b"1\nnope\n")
            assert (status, answer["error"]["code"], answer["error"]["line"]) == (400, "bad_json", 2)
            assert (await c("GET", "/maps/m1"))[1]["accepted"] == 1
            assert await c.code("POST", "/maps/m1/items?first=1", content=b"1\n" * 600) == "body_too_large"
            for query in ("order=none", "after=x", "order=completed&after=3", "wait=soon", "wait=61m"):
                assert await c.code("GET", f"/maps/m1/results?{query}") == "bad_request", query
            for verb in ("redrive", "cancel", "cancel"):
                assert (await c("POST", f"/maps/m1/{verb}"))[0] in ((409,) if verb == "redrive" else (200, 409))
            assert await c.code("GET", "/maps/m1/result") == "conflict"
            assert await c.code("GET", "/maps/m1?namespace=*") == "bad_request"

    run(main())


def test_who_may_do_what_with_a_map() -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            await _map(c)
            reader, invoker = await token_for(c, "read"), await token_for(c, "invoke")
            stranger = await token_for(c, "read", "invoke", "deploy", namespaces=("elsewhere",))
            for headers, path, may in (
                (reader, "/maps/m1", True), (reader, "/maps/m1/results", True), (reader, "/maps", True), (invoker, "/maps/m1", True),
                (invoker, "/maps", False), (stranger, "/maps/m1", False), (stranger, "/maps", False),
            ):  # fmt: skip
                assert ((await c("GET", path, headers=headers))[0] == 200) is may, (path, headers)
            assert await c.code("POST", "/maps", json={"function": "hello"}, headers=reader) == "forbidden"
            assert await c.code("POST", "/maps/m1/items", content=b"1", headers=reader) == "forbidden"
            assert await c.code("POST", "/maps/m1/cancel", headers=reader) == "forbidden"
            assert await c.code("DELETE", "/maps/m1", headers=invoker) == "forbidden"
            assert await c.code("GET", "/maps/m1?namespace=elsewhere", headers=stranger) == "map_not_found"
            assert await c.code("GET", "/maps/m1", headers={"Authorization": "Bearer no"}) == "unauthorized"
            assert (await c("POST", "/maps/m1/items", content=b"1", headers=invoker))[0] == 200

    run(main())
