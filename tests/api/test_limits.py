"""Limits through the API: set, shown with what was used, told to gateways before they are needed, and kept across a restart of control."""

import asyncio
import time
from typing import Any

from dayfly.control.plane import Control
from dayfly.core.decide.quota import day_of
from dayfly.core.model.limits import Consumed, Limits
from dayfly.core.model.records import FunctionStatistics, GatewayStatistics, UsageSum
from dayfly.core.model.settings import Settings
from dayfly.core.wire import link
from tests.api.test_api import api, token_for
from tests.control.fakes import FakeGateway
from tests.control.world import folders, run, world

CONFIG = '{"limits": {"rate_per_second": 5, "calls_per_day": 10, "gb_seconds_per_day": 1}}'


def used(name: str = "hello", calls: int = 1, day: int | None = None) -> list[UsageSum]:
    """Calls of a second and 128 MB each."""
    on = day_of(time.time()) if day is None else day
    return [UsageSum(on, "default", name, calls, mb_ms=128_000 * calls, bytes_out=20 * calls)]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_functions_limits_are_described_with_what_was_used_today_and_scraped() -> None:
    async def main() -> None:
        async with api() as c:
            assert (await c.deploy(config=CONFIG))[1][-1]["event"] == "deployed"
            _, set_ = await c("PUT", "/namespaces/default/limits", json={"concurrency": 7, "calls_per_day": 100})
            assert set_["limits"] == {"concurrency": 7, "calls_per_day": 100}
            c.world.gateway.send(link.Usage(used(calls=3)))
            await until(lambda: c.world.control.usage.calls == 3)
            statistics = FunctionStatistics(namespace="default", function="hello", rejected=2, refusals={"function_rate": 2})
            c.world.gateway.send(link.Statistics(GatewayStatistics(gateway="g1", at=1.0, functions=[statistics])))
            await until(lambda: c.world.control.sums.by_function())
            _, found = await c("GET", "/functions/hello")
            state = {(it["scope"], it["limit"]): (it["value"], it["used_today"]) for it in found["limits"]}
            assert state == {
                ("function", "rate_per_second"): (5.0, None),
                ("function", "calls_per_day"): (10.0, 3.0),
                ("function", "gb_seconds_per_day"): (1.0, 0.375),
                ("namespace", "concurrency"): (7.0, None),
                ("namespace", "calls_per_day"): (100.0, 3.0),
            }
            assert found["config"]["limits"] == {"rate_per_second": 5.0, "calls_per_day": 10, "gb_seconds_per_day": 1.0}
            assert found["statistics"]["refusals"] == {"function_rate": 2}
            text = (await c.http.get("http://control/metrics")).text
            for line in (
                'dayfly_limit{function="hello",limit="calls_per_day",namespace="default"} 10.0',
                'dayfly_limit_used_today{function="hello",limit="calls_per_day",namespace="default"} 3.0',
                'dayfly_limit{function="",limit="concurrency",namespace="default"} 7.0',
                'dayfly_refusals_total{function="hello",namespace="default",reason="function_rate"} 2.0',
            ):
                assert line in text.splitlines(), text

    run(main())


def test_wrong_limits_and_unknown_namespaces_are_refused_and_strangers_see_nothing() -> None:
    async def main() -> None:
        async with api() as c:
            assert await c.code("PUT", "/namespaces/default/limits", json={"concurrency": -1}) == "bad_request"
            assert await c.code("PUT", "/namespaces/default/limits", json={"burst": 1}) == "bad_request"
            assert await c.code("PUT", "/namespaces/default/limits", json={"rate": 1}) == "bad_request"
            for method in ("GET", "PUT"):
                assert await c.code(method, "/namespaces/nowhere/limits", **({"json": {}} if method == "PUT" else {})) == "not_found"
            _, events = await c.deploy(config='{"limits": {"burst": 3, "calls": -1}}')
            assert events[-1]["error"]["code"] == "bad_config" and len(events[-1]["error"]["problems"]) == 2
            await c("POST", "/namespaces", json={"name": "team"})
            headers = await token_for(c, "read", namespaces=("team",))
            assert await c("GET", "/namespaces/team/limits", headers=headers) == (
                200,
                {"namespace": "team", "limits": {}, "state": []},
            )
            assert await c.code("GET", "/namespaces/default/limits", headers=headers) == "forbidden"

    run(main())


def test_limits_of_a_namespace_reach_gateways_before_the_answer_and_end_with_it() -> None:
    async def main() -> None:
        async with api() as c:
            await c("POST", "/namespaces", json={"name": "team"})
            await c("PUT", "/namespaces/team/limits", json={"calls_per_day": 5})
            assert c.world.gateway.limits == {"team": Limits(calls_per_day=5)}
            kinds = [type(message).__name__ for message in c.world.gateway.told]
            assert kinds[-2:] == ["UsedToday", "LimitsChanged"], "what was used comes first"
            async with FakeGateway(c.world.control.layout.link_socket, "g2", 2) as second:
                assert second.limits == {"team": Limits(calls_per_day=5)}
            await c("DELETE", "/namespaces/team")
            assert c.world.gateway.limits == {"team": Limits()}
            await c("POST", "/namespaces", json={"name": "team"})
            assert (await c("GET", "/namespaces/team/limits"))[1]["limits"] == {}

    run(main())


def test_what_was_used_is_told_when_it_changes_and_survives_a_restart_of_control() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy(limits={"calls_per_day": 10})
                await w.deploy(name="free")
                await w.control.access.put_limits("default", Limits(calls_per_day=1000))
                w.gateway.send(link.Usage(used(calls=3) + used("free", 4) + used("gone", 5)))
                await until(lambda: w.control.usage.calls == 12)
                told = [Consumed("default", "hello", 3, 3 * 128_000, 60), Consumed("default", "", 12, 12 * 128_000, 240)]
                await until(lambda: w.gateway.told[-1] == link.UsedToday(day_of(time.time()), told))
                w.gateway.send(link.Usage(used("free", 1)))
                told[1] = Consumed("default", "", 13, 13 * 128_000, 260)
                await until(lambda: w.gateway.told[-1] == link.UsedToday(day_of(time.time()), told[1:]))
                await w.control.usage.flush()
                assert w.control.catalog.used(time.time()).consumed == told, "written, and not forgotten"
                count = len(w.gateway.told)
                w.control.catalog.tell_used(time.time())
                await w.control.access.make_token("t", ("default",), ("read",))
                assert [type(it).__name__ for it in w.gateway.told[count:]] == ["TokensChanged"], "nothing is told twice"
                await w.control.functions.remove("default", "hello")
                await w.deploy(limits={"calls_per_day": 10})
                changes = [type(it).__name__ for it in w.gateway.told[-2:]]
                assert changes == ["UsedToday", "FunctionChanged"], "but to whom has forgotten it, again"
            control = Control(Settings(data=layout.data, run=layout.run), layout)
            try:
                await control.start()
                assert control.catalog.used(time.time()).consumed == told
                assert control.catalog.limits == {"default": Limits(calls_per_day=1000)}
                assert all(it.calls == 0 for it in control.catalog.used(time.time() + 86_400).consumed), "tomorrow begins with nothing"
            finally:
                await control.close()

    run(main())


def test_a_date_out_of_the_blue_pushes_nobodys_day_out() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                usage, day = w.control.usage, day_of(time.time())
                for strange in (0, 1 << 62, 1, 2, 3):
                    usage.add(used())
                    usage.add(used(day=strange))
                    await usage.flush()
                assert usage.used_on(day)["default", "hello"].calls == 5

    run(main())
