"""The control API through its ASGI application over a real control plane: who may, what comes back, what bad input gets."""

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from dayfly import telemetry
from dayfly.api.app import create_app
from dayfly.core.decide import meter
from dayfly.core.decide.isolate import WALLS
from dayfly.core.model.errors import BY_CODE
from dayfly.core.model.records import FunctionStatistics, GatewayStatistics, LogRecord, UsageSum
from dayfly.core.wire import link
from tests.control.world import HELLO, World, folders, run, world, zipped

V1 = "http://control/api/v1"


class Client:
    """httpx over the application, and short verbs."""

    def __init__(self, http: httpx.AsyncClient, w: World) -> None:
        self.http, self.world = http, w

    async def __call__(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        answer = await self.http.request(method, V1 + path, **options)
        kind = answer.headers.get("content-type", "")
        body = [json.loads(line) for line in answer.text.splitlines()] if "ndjson" in kind else answer.json()
        return answer.status_code, body

    async def code(self, method: str, path: str, **options: Any) -> str:
        """The error code of an answer, whose shape and status are checked."""
        status, body = await self(method, path, **options)
        kind = BY_CODE[body["error"]["code"]]
        assert status == kind.status and body["error"]["fault"] == kind.fault.value and body["error"]["message"]
        return kind.code

    async def deploy(self, name: str = "hello", config: str = "{}", bundle: bytes | None = None, query: str = "") -> tuple[int, Any]:
        parts = {"config": (None, config), "bundle": ("b.zip", zipped(HELLO) if bundle is None else bundle)}
        return await self("PUT", f"/functions/{name}{query}", files=parts)


@asynccontextmanager
async def api(**settings: Any) -> AsyncIterator[Client]:
    with folders() as layout:
        async with world(layout, **settings) as w:
            token = Path(layout.control, "admin-token").read_text().strip()
            transport = httpx.ASGITransport(app=create_app(w.control), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, headers={"Authorization": f"Bearer {token}"}) as http:
                yield Client(http, w)


async def token_for(c: Client, *verbs: str, namespaces: tuple[str, ...] = ("default",)) -> dict[str, str]:
    """Headers of a new token."""
    status, made = await c("POST", "/tokens", json={"name": "t", "namespaces": namespaces, "verbs": verbs})
    assert status == 201, made
    return {"Authorization": f"Bearer {made['token']}"}


def test_egress_is_a_word_or_a_list_that_the_administrator_allows() -> None:
    async def main() -> None:
        async with api() as c:
            _, events = await c.deploy(config='{"egress": ["a.test:443", "*.b.test"]}')
            assert events[-1]["event"] == "deployed"
            _, described = await c("GET", "/functions/hello")
            assert described["config"]["egress"] == ["a.test:443", "*.b.test"]
            for egress, why in (('"all"', "egress_max"), ('["10.0.0.0/8"]', "out of reach"), ('["a b"]', "no host name")):
                _, events = await c.deploy(config=f'{{"egress": {egress}}}')
                assert events[-1]["event"] == "failed" and why in events[-1]["error"]["message"]

    run(main())


def test_routes_and_cors_are_in_a_deploys_answer_in_the_list_and_in_the_description() -> None:
    async def main() -> None:
        route = '{"path": "/users/{id}", "methods": ["GET"]}, {"host": "shop.example.com"}'
        texts = ["GET /users/{id}", "ANY shop.example.com/"]
        async with api() as c:
            _, events = await c.deploy(config=f'{{"route": [{route}], "cors": {{"origins": ["*"]}}}}')
            assert events[-1]["event"] == "deployed" and events[-1]["routes"] == texts
            _, listed = await c("GET", "/functions")
            _, described = await c("GET", "/functions/hello")
            assert listed["functions"][0]["routes"] == described["routes"] == texts
            assert described["config"]["route"][0] == {"host": "", "path": "/users/{id}", "methods": ["GET"]}
            assert described["config"]["cors"]["origins"] == ["*"]
            _, events = await c.deploy(name="other", config=f'{{"route": [{route}]}}')
            assert events[-1]["event"] == "failed" and events[-1]["error"]["code"] == "conflict"
            assert "taken by function 'hello' in namespace 'default'" in events[-1]["error"]["message"]
            assert await c("DELETE", "/functions/hello") == (200, {"removed": "hello"})
            assert (await c.deploy(name="other", config=f'{{"route": [{route}]}}'))[1][-1]["routes"] == texts

    run(main())


def test_a_deploy_streams_its_stages_and_the_function_can_be_listed_described_and_removed() -> None:
    async def main() -> None:
        async with api() as c:
            status, events = await c.deploy(config='{"memory_mb": 256}')
            assert status == 200 and [event["event"] for event in events] == ["stage", "stage", "stage", "deployed"]
            assert events[-1]["version"] == 1 and events[-1]["url"] == "/function/hello"
            _, listed = await c("GET", "/functions")
            assert [(f["name"], f["version"], f["memory_mb"], f["live"]) for f in listed["functions"]] == [("hello", 1, 256, {"1": 1.0})]
            _, described = await c("GET", "/functions/hello")
            names = [*described["walls"], *(text.partition(":")[0] for text in described["missing"])]
            assert sorted(names) == sorted(WALLS)
            assert described["config"]["handler"] == "hello.handler" and described["aliases"] == {"live": {"1": 1.0}}
            assert described["statistics"]["calls"] == 0 == described["usage_today"]["calls"]
            assert await c("DELETE", "/functions/hello") == (200, {"removed": "hello"})
            assert await c.code("GET", "/functions/hello") == "function_not_found"
            assert await c.code("DELETE", "/functions/hello") == "function_not_found"

    run(main())


def test_a_failed_deploy_ends_its_stream_with_the_same_error_as_any_answer() -> None:
    async def main() -> None:
        async with api() as c:
            status, events = await c.deploy(config='{"memory_mb": 1}')
            assert status == 200 and events[-1]["event"] == "failed"
            assert events[-1]["error"]["code"] == "bad_config" and "memory_mb = 1" in events[-1]["error"]["problems"][0]

    run(main())


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("application/json", b"{}", "bad_request"),
        ("multipart/form-data", b"", "bad_request"),
        ("multipart/form-data; boundary=" + "b" * 300, b"", "bad_request"),
        ("multipart/form-data; boundary=b", b"", "bad_request"),
        ("multipart/form-data; boundary=b", b"no multipart at all", "bad_request"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="config"\r\n\r\n{}\r\n--b--\r\n', "bad_request"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="evil"\r\n\r\n{}\r\n--b--\r\n', "bad_request"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="config"\r\n\r\n{}', "bad_request"),
        ("multipart/form-data; boundary=b", b"--b\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n{}\r\n--b--\r\n", "bad_request"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="config"\r\n\r\n' + b" " * 2**19, "bad_request"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_deploy_is_refused_and_leaves_no_file(content_type: str, body: bytes, code: str) -> None:
    async def main() -> None:
        async with api() as c:
            assert await c.code("PUT", "/functions/hello", content=body, headers={"content-type": content_type}) == code
            assert list(Path(c.world.control.layout.builds).iterdir()) == []

    run(main())


@pytest.mark.parametrize("config", ["", "{", "[]", "1", "null", '{"a":', "\x00", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(config: str) -> None:
    async def main() -> None:
        async with api() as c:
            status, body = await c.deploy(config=config)
            assert (status, body["error"]["code"]) == (400, "bad_json")
            assert list(Path(c.world.control.layout.builds).iterdir()) == []

    run(main())


def test_an_upload_over_the_bound_is_refused_while_it_comes() -> None:
    async def main() -> None:
        async with api(upload_bytes_max=100_000) as c:
            status, body = await c.deploy(bundle=b"x" * 3_000_000)
            assert (status, body["error"]["code"]) == (413, "bundle_too_large")
            assert list(Path(c.world.control.layout.builds).iterdir()) == []

    run(main())


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer x", "Basic dXNlcjpwYXNz", "dfy_a_b", "Bearer dfy_aaaaaaaaaaaa_" + "0" * 64,
     "Bearer " + "x" * 10_000, "Bearer dfy_é_é"],
)  # fmt: skip
def test_without_a_valid_token_nothing_is_told_about_what_exists(header: str | None) -> None:
    async def main() -> None:
        async with api() as c:
            await c.deploy()
            headers = {"Authorization": header.encode()} if header is not None else {"Authorization": ""}
            for method, path in (("GET", "/functions/hello"), ("GET", "/functions/nope"), ("PUT", "/functions/hello"), ("GET", "/tokens")):
                answer = await c.http.request(method, V1 + path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "unauthorized"

    run(main())


def test_a_right_id_with_a_wrong_secret_is_no_token() -> None:
    async def main() -> None:
        async with api() as c:
            right = c.http.headers["authorization"]
            wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
            assert await c.code("GET", "/functions", headers={"Authorization": wrong}) == "unauthorized"

    run(main())


SCOPED = [
    ("read", "GET", "/functions"), ("read", "GET", "/functions/hello"), ("read", "GET", "/status"), ("read", "GET", "/doctor"),
    ("read", "GET", "/logs"), ("read", "GET", "/statistics"), ("read", "GET", "/usage"), ("read", "GET", "/namespaces"),
    ("deploy", "PUT", "/functions/hello"), ("deploy", "DELETE", "/functions/hello"), ("deploy", "POST", "/functions/hello/rollback"),
    ("deploy", "PUT", "/functions/hello/aliases/a"), ("deploy", "DELETE", "/functions/hello/aliases/a"),
    ("deploy", "GET", "/secrets"), ("deploy", "PUT", "/secrets/s"), ("deploy", "DELETE", "/secrets/s"),
    ("admin", "POST", "/namespaces"), ("admin", "DELETE", "/namespaces/x"), ("admin", "GET", "/tokens"), ("admin", "POST", "/tokens"),
    ("admin", "DELETE", "/tokens/x"), ("read", "GET", "/../../metrics"), ("admin", "PUT", "/namespaces/default/limits"),
]  # fmt: skip


def test_every_route_asks_for_its_verb_in_its_namespace() -> None:
    async def main() -> None:
        async with api() as c:
            tokens = {verb: await token_for(c, verb) for verb in ("invoke", "read", "deploy", "admin")}
            everywhere = {verb: await token_for(c, verb, namespaces=("*",)) for verb in ("read", "deploy", "admin")}
            for verb, method, path in SCOPED:
                for held, headers in tokens.items():
                    answer = await c.http.request(method, V1 + path, headers=headers)
                    whole = verb == "admin" or "metrics" in path  # the platform's matters need a token of all namespaces
                    may = not whole and held in (verb, "admin")
                    assert (answer.status_code != 403) is may, (held, method, path)
                answer = await c.http.request(method, V1 + path, headers=everywhere[verb], params={"namespace": "default"})
                assert answer.status_code != 403, (method, path)
                if verb != "admin":
                    for query in ({"namespace": "other"}, {"namespace": "*"}):
                        answer = await c.http.request(method, V1 + path, headers=tokens["invoke"], params=query)
                        assert answer.status_code in (400, 403), (method, path, query)

    run(main())


def test_a_token_of_one_namespace_sees_only_that_one_in_lists() -> None:
    async def main() -> None:
        async with api() as c:
            assert await c("POST", "/namespaces", json={"name": "team"}) == (201, {"name": "team"})
            await c.deploy()
            assert (await c.deploy(name="hello.team"))[1][-1]["url"] == "/function/hello.team"
            headers = await token_for(c, "read", namespaces=("team",))
            _, listed = await c("GET", "/functions?namespace=*", headers=headers)
            assert [(f["namespace"], f["name"]) for f in listed["functions"]] == [("team", "hello")]
            assert len((await c("GET", "/functions?namespace=*"))[1]["functions"]) == 2
            assert await c("GET", "/namespaces", headers=headers) == (200, {"namespaces": [{"name": "team"}]})
            assert await c.code("GET", "/functions", headers=headers) == "forbidden"
            assert await c.code("GET", "/functions/hello", headers=headers) == "forbidden"
            assert (await c("GET", "/functions/hello.team", headers=headers))[0] == 200
            assert (await c("GET", "/statistics?namespace=*", headers=headers))[1]["functions"][0]["namespace"] == "team"
            assert await c.code("GET", "/functions/hello.team?namespace=default") == "bad_request"
            assert await c.code("DELETE", "/namespaces/team") == "conflict"
            await c("DELETE", "/functions/hello.team")
            assert await c("DELETE", "/namespaces/team") == (200, {"removed": "team"})
            assert await c.code("DELETE", "/namespaces/team") == "not_found"
            assert await c.code("DELETE", "/namespaces/default") == "conflict"
            assert await c.code("GET", "/functions?namespace=team") == "not_found"

    run(main())


def test_rollback_and_aliases() -> None:
    async def main() -> None:
        async with api() as c:
            for n in (1, 2):
                await c.deploy(bundle=zipped({"hello.py": f"x = {n}"}))
            assert await c("POST", "/functions/hello/rollback") == (200, {"name": "live", "weights": {"1": 1.0}})
            assert await c.code("POST", "/functions/hello/rollback", json={}) == "version_not_found"
            assert await c.code("POST", "/functions/hello/rollback", json={"to": 9}) == "version_not_found"
            assert await c.code("POST", "/functions/hello/rollback", json={"to": "x"}) == "bad_request"
            assert await c.code("POST", "/functions/hello/rollback", json={"two": 1}) == "bad_request"
            assert await c("POST", "/functions/hello/rollback", json={"to": 2}) == (200, {"name": "live", "weights": {"2": 1.0}})
            beta = {"weights": {"1": 0.9, "2": 0.1}}
            assert await c("PUT", "/functions/hello/aliases/beta", json=beta) == (200, {"name": "beta"} | beta)
            assert await c.code("PUT", "/functions/hello/aliases/b%20c", json=beta) == "bad_name"
            assert await c.code("PUT", "/functions/hello/aliases/beta", json={"weights": {"1": 0.9}}) == "bad_request"
            assert await c.code("PUT", "/functions/hello/aliases/beta", json={"weights": {"x": 1}}) == "bad_request"
            assert await c("DELETE", "/functions/hello/aliases/beta") == (200, {"removed": "beta"})
            assert await c.code("DELETE", "/functions/hello/aliases/beta") == "not_found"
            assert await c.code("DELETE", "/functions/hello/aliases/live") == "conflict"
            assert await c.code("POST", "/functions/nope/rollback") == "function_not_found"

    run(main())


def test_secrets_are_set_and_listed_and_their_values_shown_nowhere() -> None:
    async def main() -> None:
        async with api() as c:
            assert await c("PUT", "/secrets/db", content=b"\xff\x00hunter2") == (200, {"secret": "db"})
            answer = await c.http.get(V1 + "/secrets")
            assert [s["name"] for s in answer.json()["secrets"]] == ["db"] and "hunter2" not in answer.text
            await c.deploy(config='{"secrets": ["db"]}')
            assert "hunter2" not in (await c.http.get(V1 + "/functions/hello")).text
            await c.world.gateway.wait_told(link.FunctionChanged)
            assert c.world.gateway.functions[("default", "hello")].secrets == {"db": b"\xff\x00hunter2"}
            assert await c.code("DELETE", "/secrets/db") == "conflict"
            assert await c.code("PUT", "/secrets/db", content=b"") == "bad_request"
            assert await c.code("PUT", "/secrets/db", content=b"x" * 100_000) == "body_too_large"
            assert await c.code("PUT", "/secrets/a%2Fb", content=b"x") in ("bad_name", "not_found")
            assert await c.code("PUT", "/secrets/..%00", content=b"x") == "bad_name"
            await c("DELETE", "/functions/hello")
            assert await c("DELETE", "/secrets/db") == (200, {"removed": "db"})
            assert await c.code("DELETE", "/secrets/db") == "not_found"

    run(main())


def test_tokens_are_shown_once_and_the_last_administrator_stays() -> None:
    async def main() -> None:
        async with api() as c:
            status, made = await c("POST", "/tokens", json={"name": "ci", "namespaces": ["default"], "verbs": ["deploy"]})
            assert status == 201 and made["token"].startswith(f"dfy_{made['id']}_")
            listed = await c.http.get(V1 + "/tokens")
            assert [t["name"] for t in listed.json()["tokens"]] == ["admin", "ci"] and made["token"] not in listed.text
            await c.world.gateway.wait_told(link.TokensChanged)
            assert [token.name for token in c.world.gateway.tokens] == ["admin", "ci"]
            assert made["token"].split("_")[2].encode() not in Path(c.world.control.layout.database).read_bytes()
            headers = {"Authorization": f"Bearer {made['token']}"}
            assert (await c("GET", "/secrets", headers=headers))[0] == 200
            assert await c("DELETE", f"/tokens/{made['id']}") == (200, {"removed": made["id"]})
            assert await c.code("GET", "/secrets", headers=headers) == "unauthorized"
            assert await c.code("DELETE", f"/tokens/{made['id']}") == "not_found"
            assert await c.code("DELETE", f"/tokens/{listed.json()['tokens'][0]['id']}") == "conflict"
            for bad in ({"name": "x", "namespaces": [], "verbs": ["read"]}, {"name": "x", "namespaces": ["default"], "verbs": ["all"]}):
                assert await c.code("POST", "/tokens", json=bad) == "bad_request"
            assert await c.code("POST", "/tokens", json={"name": "a b", "namespaces": ["default"], "verbs": ["read"]}) == "bad_name"
            assert await c.code("POST", "/tokens", content=b"{", headers={"content-type": "application/json"}) == "bad_json"
            assert await c.code("POST", "/tokens", json={"name": "x"}) == "bad_request"
            assert await c.code("POST", "/tokens", json={"name": "x" * 2_000_000}) == "body_too_large"

    run(main())


def test_logs_are_asked_for_by_function_call_and_time() -> None:
    async def main() -> None:
        async with api() as c:
            records = [LogRecord(float(n), "default", f"f{n % 2}", 1, "i", f"c{n}", "stdout", 20, f"line {n}\n") for n in range(1, 7)]
            c.world.control.logs.add(records)
            await c.world.control.logs.drain()

            async def texts(query: str) -> list[str]:
                return [line["text"].strip() for line in (await c("GET", f"/logs{query}"))[1]]

            assert await texts("") == [f"line {n}" for n in range(1, 7)]
            assert await texts("?function=f1") == ["line 1", "line 3", "line 5"]
            assert await texts("?call=c2") == ["line 2"]
            assert await texts("?since=5") == ["line 5", "line 6"]
            assert await texts("?limit=2") == ["line 5", "line 6"]
            first = (await c("GET", "/logs?limit=1"))[1][0]
            assert first == {"at": 6.0, "namespace": "default", "function": "f0", "version": 1, "instance": "i", "call_id": "c6",
                             "stream": "stdout", "level": 20, "text": "line 6\n"}  # fmt: skip
            for bad in ("?limit=-1", "?limit=x", "?limit=1000000", "?since=yesterday", "?since=-1", "?call=a%20b", "?follow=perhaps"):
                assert await c.code("GET", f"/logs{bad}") == "bad_request", bad
            assert await c.code("GET", "/logs?function=a%20b") == "bad_name"
            assert await c.code("GET", "/logs?namespace=..") == "bad_name"

    run(main())


def test_logs_of_a_function_that_never_was_are_an_error_and_those_of_a_removed_one_are_not() -> None:
    async def main() -> None:
        async with api() as c:
            for query in ("?function=nosuch", "?function=nosuch&follow=true", "?function=nosuch&namespace=*"):
                assert await c.code("GET", f"/logs{query}") == "function_not_found", query
            await c.deploy("hello")
            assert await c("GET", "/logs?function=hello") == (200, [])
            c.world.control.logs.add([LogRecord(1.0, "default", "hello", 1, "i", "c1", "stdout", 20, "line\n")])
            await c.world.control.logs.drain()
            await c("DELETE", "/functions/hello")
            assert (await c("GET", "/logs?function=hello&call=c1"))[1][0]["text"] == "line\n"
            assert await c("GET", "/logs?function=hello&call=c2") == (200, [])

    run(main())


def test_statistics_usage_and_metrics_say_the_same() -> None:
    async def main() -> None:
        async with api(tariff_per_million_calls=1.0, tariff_per_gb_second=1.0, currency="EUR") as c:
            await c.deploy(config='{"memory_mb": 1024}')
            counts = meter.empty()
            counts[meter.bucket(100_000)] = 4
            numbers = FunctionStatistics(
                namespace="default", function="hello", calls=4, errors=1, cold=1, instances=2, waiting=3, in_flight=1,
                histograms={"exec": counts}, sums_us={"exec": 400_000}, outcomes={"ok": 3, "function_error": 1},
            )  # fmt: skip
            c.world.control.sums.put(("g1", 1), GatewayStatistics(gateway="g1", at=0.0, connections=7, requests=9, functions=[numbers]))
            used = [UsageSum(1, "default", "hello", 1, exec_us=100_000, billed_ms=100, mb_ms=102_400, bytes_in=1, bytes_out=2)] * 4
            c.world.control.usage.add(used)
            _, statistics = await c("GET", "/statistics")
            found = statistics["functions"][0]
            assert (found["name"], found["calls"], found["instances"], found["memory_mb"], found["waiting"]) == ("hello", 4, 2, 2048, 3)
            assert 63 < found["phases"]["exec"]["p50_ms"] <= 100 and found["phases"]["exec"]["mean_ms"] == 100
            assert found["cost"] == pytest.approx(4e-6 + 0.4)
            _, usage = await c("GET", "/usage?from=1970-01-01&to=1970-01-31")
            assert usage["currency"] == "EUR" and usage["cost"] == pytest.approx(0.400004)
            assert [(it["day"], it["calls"], it["billed_ms"], it["gb_seconds"]) for it in usage["usage"]] == [("1970-01-02", 4, 400, 0.4)]
            assert (await c("GET", "/usage?from=1970-01-03&to=1970-01-31"))[1]["usage"] == []
            assert await c.code("GET", "/usage?from=1970-13-01") == "bad_request"
            assert await c.code("GET", "/usage?from=2000-01-02&to=2000-01-01") == "bad_request"
            text = (await c.http.get("http://control/metrics")).text
            for line in (
                'dayfly_calls_total{function="hello",namespace="default",outcome="function_error"} 1.0',
                'dayfly_instances{function="hello",namespace="default"} 2.0',
                'dayfly_call_phase_seconds_bucket{le="0.1",phase="exec"} 4.0',
                'dayfly_call_phase_seconds_bucket{le="+Inf",phase="exec"} 4.0',
                'dayfly_call_phase_seconds_sum{phase="exec"} 0.4',
                'dayfly_billed_gb_seconds_total{function="hello",namespace="default"} 0.4',
                'dayfly_gateway_connections{gateway="g1"} 7.0',
            ):
                assert line in text.splitlines(), (line, text)

    run(main())


def test_metrics_may_be_open_and_the_documented_names_are_those_that_come() -> None:
    async def main() -> None:
        async with api(metrics_auth="none") as c:
            answer = await c.http.get("http://control/metrics", headers={"Authorization": ""})
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
            names = set(re.findall(r"^# TYPE (\w+)", answer.text, re.MULTILINE))
            page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
            assert names == set(re.findall(r"^\| `(dayfly_\w+)", page, re.MULTILINE))

    run(main())


def test_status_and_doctor_say_what_control_and_the_node_see() -> None:
    async def main() -> None:
        async with api() as c:
            _, status = await c("GET", "/status")
            assert status["node"] == "ok" and [gateway["name"] for gateway in status["gateways"]] == ["g1"]
            _, doctor = await c("GET", "/doctor")
            assert doctor["features"] == {"pidns": True, "cgroup": "not here"} and "python3.11" in doctor["runtimes"]
            await c.world.node.__aexit__()
            assert (await c("GET", "/status"))[1]["node"].startswith("The node does not answer")
            assert await c.code("GET", "/doctor") == "start_failed"

    run(main())


def test_the_openapi_document_names_every_route_of_the_api_page_without_a_token() -> None:
    async def main() -> None:
        async with api() as c:
            document = (await c.http.get("http://control/openapi.json", headers={"Authorization": ""})).json()
            assert document["openapi"].startswith("3.1")
            described = {re.sub(r"\{\w+\}", "{}", path) for path in document["paths"]}
            page = (Path(__file__).parents[2] / "docs" / "api.md").read_text().partition("## Control")[2]
            named = {re.sub(r"/[A-Z]+(?=/|$)", "/{}", path) for path in re.findall(r"(/(?:api/v1|metrics)[^\s`?\[]*)", page)}
            assert named <= described
            body = document["paths"]["/api/v1/functions/{name}"]["put"]["requestBody"]
            assert "multipart/form-data" in body["content"]

    run(main())


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", "not_found"),
        ("PATCH", "/tokens", "method_not_allowed"),
        ("DELETE", "/functions", "method_not_allowed"),
        ("GET", "/functions/a%20b", "bad_name"),
        ("GET", "/functions/" + "x" * 64, "bad_name"),
        ("GET", "/functions/x.y.z", "bad_name"),
        ("GET", "/functions/x?namespace=*", "bad_request"),
        ("GET", "/functions/x?namespace=..%2F", "bad_name"),
    ],
)
def test_bad_addresses_get_the_errors_of_the_table(method: str, path: str, code: str) -> None:
    async def main() -> None:
        async with api() as c:
            assert await c.code(method, path) == code

    run(main())


@pytest.fixture
def platform_log(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """Log events as the platform writes them, to standard error; the process's own set-up comes back afterwards."""
    handlers, level = logging.root.handlers[:], logging.root.level
    logging.root.handlers.clear()
    telemetry.configure("control", json=True)
    yield capsys
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_a_defect_of_ours_is_a_500_with_an_incident_id_and_without_the_request(platform_log: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with api() as c:

            async def broken(*_: object) -> None:
                raise RuntimeError("boom")

            c.world.control.access.put_secret = broken  # type: ignore[method-assign]
            status, body = await c("PUT", "/secrets/db", content=b"hunter2")
            assert status == 500 and body["error"]["code"] == "internal" and body["error"]["incident"] in body["error"]["message"]
            said = platform_log.readouterr().err
            assert body["error"]["incident"] in said and "hunter2" not in said
            assert c.http.headers["authorization"].split("_")[2] not in said

    run(main())
