"""Schedules through the API over a real control plane: put, look, pause, preview, what is refused; and what deploys make of manifests."""

import json
import time
from typing import Any

import pytest

from tests.api.test_api import Client, api, token_for
from tests.control.world import HELLO, run, zipped

SCHEDULE = '[[schedule]]\nname = "nightly"\ncron = "0 3 * * *"\ntimezone = "Europe/Berlin"\n'
SECOND = '[[schedule]]\nrate = "1 hour"\npayload = {a = 1}\n'


async def deploy(c: Client, manifest: str = "", name: str = "hello", query: str = "") -> Any:
    files = {"hello.py": HELLO["hello.py"], "dayfly.toml": manifest}
    return (await c.deploy(name=name, bundle=zipped(files), query=query))[1][-1]


async def names(c: Client) -> list[str]:
    return [it["name"] for it in (await c("GET", "/schedules"))[1]["schedules"]]


def test_a_schedule_is_put_shown_replaced_paused_resumed_and_removed() -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            order = {
                "function": "hello",
                "cron": "30 8 * * mon-fri",
                "timezone": "Europe/Berlin",
                "payload": {"a": [1]},
                "jitter_seconds": 60,
            }
            status, made = await c("PUT", "/schedules/daily", json=order)
            assert status == 200 and made["expression"] == "cron(30 8 * * mon-fri)" and made["payload"] == {"a": [1]}
            assert (made["overlap"], made["missed"], made["enabled"], made["declared"], made["paused"]) == (
                "skip",
                "last",
                True,
                False,
                False,
            )
            assert 0 <= made["offset_seconds"] <= 60 and made["counts"] == {"fired": 0, "skipped": 0, "missed": 0}
            assert await c("GET", "/schedules/daily") == (200, made) and (await c("GET", "/schedules"))[1] == {"schedules": [made]}
            _, times = await c("GET", "/schedules/daily/next?count=2")
            assert times["times"][0] == pytest.approx(made["next_at"], abs=0.001) and len(times["times"]) == 2
            _, paused = await c("POST", "/schedules/daily/pause")
            assert paused["paused"] and paused["next_at"] is None and (await c("GET", "/schedules/daily/next"))[1] == {"times": []}
            _, same = await c("PUT", "/schedules/daily", json=order | {"overlap": "queue"})
            assert same["paused"] and same["overlap"] == "queue" and same["offset_seconds"] == made["offset_seconds"]
            _, resumed = await c("POST", "/schedules/daily/resume")
            assert resumed["next_at"] == made["next_at"]
            _, other = await c("PUT", "/schedules/daily", json={"function": "hello", "rate": "1 hour"})
            assert other["next_at"] > time.time() and "payload" not in other and other["offset_seconds"] == 0
            _, null = await c("PUT", "/schedules/daily", json={"function": "hello", "rate": "1 hour", "payload": None, "enabled": False})
            assert null["payload"] is None and null["next_at"] is None
            assert await c("DELETE", "/schedules/daily") == (200, {"removed": "daily"})
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/run"), ("GET", "/next")):
                assert await c.code(method, f"/schedules/daily{path}") == "schedule_not_found"

    run(main())


def test_what_a_manifest_declares_follows_the_version_that_is_live() -> None:
    async def main() -> None:
        async with api() as c:
            await deploy(c, SCHEDULE + SECOND)
            assert await names(c) == ["hello-2", "nightly"]
            await c("POST", "/schedules/nightly/pause")
            before = (await c("GET", "/schedules/hello-2"))[1]
            await deploy(c, SCHEDULE.replace("0 3", "0 4") + SECOND)
            _, nightly = await c("GET", "/schedules/nightly")
            assert nightly["cron"] == "0 4 * * *" and nightly["paused"] and nightly["declared"]
            assert (await c("GET", "/schedules/hello-2"))[1] == before, "what is not changed goes on as it was"
            await deploy(c, "")
            assert await names(c) == []
            await c("POST", "/functions/hello/rollback")
            assert (await c("GET", "/schedules/nightly"))[1]["cron"] == "0 4 * * *"
            await c("PUT", "/functions/hello/aliases/live", json={"weights": {"1": 0.9, "3": 0.1}})
            assert (await c("GET", "/schedules/nightly"))[1]["cron"] == "0 3 * * *", "of two, the one that gets most calls"
            await c("PUT", "/functions/hello/aliases/canary", json={"weights": {"3": 1.0}})
            assert await names(c) == ["hello-2", "nightly"], "other aliases do not matter"
            await c("PUT", "/schedules/mine", json={"function": "hello", "rate": "1 hour"})
            await c("DELETE", "/functions/hello")
            assert await names(c) == []

    run(main())


def test_a_manifest_and_the_api_do_not_touch_each_others_schedules() -> None:
    async def main() -> None:
        async with api() as c:
            await deploy(c, SCHEDULE)
            assert await c.code("PUT", "/schedules/nightly", json={"function": "hello", "rate": "1 hour"}) == "conflict"
            assert await c.code("DELETE", "/schedules/nightly") == "conflict"
            failed = await deploy(c, SCHEDULE, name="other")
            assert failed["error"]["code"] == "conflict" and "'nightly'" in failed["error"]["message"]
            await c("PUT", "/schedules/mine", json={"function": "hello", "rate": "1 hour"})
            await deploy(c, "")
            assert await names(c) == ["mine"]
            failed = await deploy(c, SCHEDULE.replace("nightly", "mine"))
            assert failed["error"]["code"] == "conflict"
            assert (await c("GET", "/functions/hello"))[1]["version"] == 2
            await c("PUT", "/schedules/nightly", json={"function": "hello", "rate": "1 hour"})
            assert await c.code("POST", "/functions/hello/rollback", json={"to": 1}) == "conflict"
            assert (await c("GET", "/functions/hello"))[1]["live"] == {"2": 1.0}, "nothing of it happened"

    run(main())


def test_a_manifest_with_a_schedule_that_says_nothing_is_refused_with_all_that_is_wrong() -> None:
    async def main() -> None:
        async with api(schedule_payload_bytes_max=100) as c:
            failed = await deploy(c, f'[[schedule]]\nrate = "1 hour"\npayload = "{"x" * 99}"\n')
            assert failed["error"]["code"] == "bad_config" and "schedule_payload_bytes_max" in failed["error"]["message"]
            failed = await deploy(c, '[[schedule]]\ncron = "61 * * * *"\n[[schedule]]\ncron = "* * * * *"\ntimezone = "Mars/Olympus"\n')
            assert failed["error"]["code"] == "bad_config" and len(failed["error"]["problems"]) == 2
            assert "Bad minute" in failed["error"]["problems"][0] and "Mars/Olympus" in failed["error"]["problems"][1]
            failed = await deploy(c, '[[schedule]]\ncron = "* * * * *"\nsecond = 5\n')
            assert "unknown key 'second'" in failed["error"]["message"]
            long = "f" * 62
            failed = await deploy(c, '[[schedule]]\nrate = "1 hour"\n', name=long)
            assert "name" in failed["error"]["message"], "no name is left for it"
            deployed = await deploy(c, '[[schedule]]\nat = "2020-01-01T00:00:00"\n')
            assert deployed["event"] == "deployed" and (await c("GET", "/schedules/hello-1"))[1]["next_at"] is None

    run(main())


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({"function": "hello"}, "bad_config"),
        ({"rate": "1 hour"}, "bad_request"),
        ({"function": "hello", "rate": "1 hour", "cron": "* * * * *"}, "bad_config"),
        ({"function": "hello", "cron": "cron nonsense"}, "bad_config"),
        ({"function": "hello", "cron": "0 0 30 2 *"}, "bad_config"),
        ({"function": "hello", "cron": "* * * * *", "timezone": "Nowhere"}, "bad_config"),
        ({"function": "hello", "rate": "1 fortnight"}, "bad_config"),
        ({"function": "hello", "rate": 5}, "bad_request"),
        ({"function": "hello", "at": "2020-01-01T00:00:00"}, "bad_config"),
        ({"function": "hello", "at": "noon"}, "bad_config"),
        ({"function": "hello", "rate": "1 hour", "jitter_seconds": 1e9}, "bad_config"),
        ({"function": "hello", "rate": "1 hour", "overlap": "forbid"}, "bad_request"),
        ({"function": "hello", "rate": "1 hour", "missed": "most"}, "bad_request"),
        ({"function": "hello", "rate": "1 hour", "speed": 5}, "bad_request"),
        ({"function": "hello", "rate": "1 hour", "payload": "x" * 1001}, "bad_config"),
        ({"function": "nobody", "rate": "1 hour"}, "function_not_found"),
        ({"function": "a b", "rate": "1 hour"}, "bad_name"),
        ({"function": "hello", "rate": "30 seconds"}, "bad_config"),  # schedule_period_seconds_min
        ({"function": "hello", "cron": "*/30 * * * * *"}, "bad_config"),
    ],
)
def test_what_makes_no_sense_is_refused(order: dict[str, Any], code: str) -> None:
    async def main() -> None:
        async with api(schedule_period_seconds_min=60, schedule_payload_bytes_max=1000) as c:
            await c.deploy()
            assert await c.code("PUT", "/schedules/daily", json=order) == code
            assert await names(c) == []

    run(main())


def test_bodies_and_names_that_are_none() -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            good = {"function": "hello", "rate": "1 hour"}
            assert await c.code("PUT", "/schedules/a%20b", json=good) == "bad_name"
            assert await c.code("PUT", f"/schedules/{'n' * 64}", json=good) == "bad_name"
            assert await c.code("PUT", "/schedules/x", content=b"{", headers={"Content-Type": "application/json"}) == "bad_json"
            deep = b'{"function": "hello", "rate": "1 hour", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
            assert await c.code("PUT", "/schedules/x", content=deep, headers={"Content-Type": "application/json"}) in (
                "bad_json",
                "bad_config",
            )
            nested = json.dumps(good | {"payload": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]})
            assert await c.code("PUT", "/schedules/x", content=nested, headers={"Content-Type": "application/json"}) == "bad_config"
            for count in ("0", "101", "x"):
                assert await c.code("GET", f"/schedule-times?rate=1%20hour&count={count}") == "bad_request"
            assert await c.code("GET", "/schedules?namespace=nowhere") == "not_found"

    run(main())


def test_a_namespace_has_room_for_so_many() -> None:
    async def main() -> None:
        async with api(schedules_per_namespace_max=3) as c:
            await deploy(c, SECOND + SECOND)
            order = {"function": "hello", "rate": "1 hour"}
            assert (await c("PUT", "/schedules/third", json=order))[0] == 200
            assert await c.code("PUT", "/schedules/fourth", json=order) == "conflict"
            assert (await c("PUT", "/schedules/third", json=order))[0] == 200
            assert (await deploy(c, SECOND * 3))["error"]["code"] == "conflict"
            assert (await deploy(c, SECOND))["event"] == "deployed" and await names(c) == ["hello-1", "third"]

    run(main())


def test_an_expression_can_be_tried_before_it_is_saved() -> None:
    async def main() -> None:
        async with api() as c:
            query = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "count": "100"}
            _, found = await c("GET", "/schedule-times", params=query)
            assert len(found["times"]) == 100 and found["times"][0] > time.time() and found["times"] == sorted(found["times"])
            assert (await c("GET", "/schedule-times", params={"at": "2020-01-01"}))[1] == {"times": []}
            assert len((await c("GET", "/schedule-times", params={"rate": "rate(1 day)"}))[1]["times"]) == 10
            assert await c.code("GET", "/schedule-times", params={"cron": "nonsense"}) == "bad_config"
            assert await c.code("GET", "/schedule-times") == "bad_config"

    run(main())


def test_run_now_makes_a_call_beside_the_clock_paused_or_not() -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            await c("PUT", "/schedules/daily", json={"function": "hello", "cron": "0 0 1 1 *", "payload": 5})
            await c("POST", "/schedules/daily/pause")
            made = {(await c("POST", "/schedules/daily/run"))[1]["call_id"] for _ in range(2)}
            assert len(made) == 2
            found = await c.world.control.calls.newest(("default",), "hello", tag="schedule:daily")
            assert {it.id for it in found} == made
            assert (await c("GET", "/schedules/daily"))[1]["counts"]["fired"] == 0

    run(main())


def test_each_verb_needs_its_scope_in_its_namespace() -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            await c("POST", "/namespaces", json={"name": "team"})
            await c("PUT", "/schedules/daily", json={"function": "hello", "rate": "1 hour"})
            routes = {
                "read": [
                    ("GET", "/schedules"),
                    ("GET", "/schedules/daily"),
                    ("GET", "/schedules/daily/next"),
                    ("GET", "/schedule-times?rate=1h"),
                ],
                "deploy": [
                    ("PUT", "/schedules/x"),
                    ("DELETE", "/schedules/x"),
                    ("POST", "/schedules/x/pause"),
                    ("POST", "/schedules/x/resume"),
                ],
                "invoke": [("POST", "/schedules/daily/run")],
            }
            bearers = {verb: await token_for(c, verb) for verb in routes} | {"elsewhere": await token_for(c, "admin", namespaces=("team",))}
            for verb, wanted in routes.items():
                for method, path in wanted:
                    body = {"json": {"function": "hello", "rate": "1 hour"}} if method == "PUT" else {}
                    for bearer, headers in bearers.items():
                        status, _ = await c(method, path, headers=headers, **body)
                        may = bearer == verb or (bearer == "elsewhere" and path.startswith("/schedule-times"))
                        assert (status != 403) == may, (bearer, method, path, status)
            assert (await c("GET", "/schedules?namespace=*", headers=bearers["elsewhere"]))[1] == {"schedules": []}
            assert [it["name"] for it in (await c("GET", "/schedules?namespace=*&function=hello"))[1]["schedules"]] == ["daily"]

    run(main())
