"""Several gateways on one port: they share the callers, and what holds for one holds for all of them together."""

import json
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from websockets.sync.client import connect

from tests.e2e.harness import Answer, Platform
from tests.e2e.load import ECHO, Load

pytestmark = pytest.mark.one_user


@pytest.fixture(scope="module")
def pair() -> Iterator[Platform]:
    with Platform(settings={"gateways": 2, "drain_timeout_seconds": 5}) as platform:
        platform.put("echo", ECHO.format(version=1), timeout_seconds=20)
        yield platform


def gateways(platform: Platform) -> dict[int, dict[str, int]]:
    """Those that control knows, by pid."""
    return {one["pid"]: one for one in platform.request("GET", "/api/v1/status").json()["gateways"]}


SLOW = """
import time
def handler(event, context):
    time.sleep(event["seconds"])
    return "done"
"""
SOCKET = """
import json
def handler(event, context):
    about = event["requestContext"]
    return {"statusCode": 200, "body": about["connectionId"]}
"""


MIRROR = """
import json
def handler(event, context):
    about = event["requestContext"]["http"]
    if event["rawPath"].endswith("/empty"):
        return {"statusCode": 204, "headers": {"X-Mirror": "yes"}}
    if event["rawPath"].endswith("/fails"):
        raise ValueError("no")
    seen = {name: value for name, value in event["headers"].items() if name in ("x-said", "x-dayfly-peer", "content-length", "te")}
    body = {"path": event["rawPath"], "query": event["rawQueryString"], "ip": about["sourceIp"], "method": about["method"], "seen": seen,
            "body": event.get("body"), "cookies": event.get("cookies")}
    return {"statusCode": 203, "headers": {"X-Mirror": "yes"}, "cookies": ["a=1", "b=2"], "body": json.dumps(body)}
"""


def instances(platform: Platform, name: str) -> int:
    rows = platform.request("GET", "/api/v1/statistics").json()["functions"]
    return sum(row["instances"] for row in rows if row["name"] == name)


def at_once(platform: Platform, name: str, calls: int, seconds: float) -> list[Answer]:
    """So many calls at the same time, each on a connection of its own: both gateways get some of them."""
    barrier = threading.Barrier(calls)

    def call(_: int) -> Answer:
        barrier.wait(20)
        return platform.invoke(name, {"seconds": seconds})

    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(call, range(calls)))


def lost_nothing(load: Load) -> None:
    assert set(load.statuses) == {200} and not load.broken and not load.wrong and load.accounted == load.sent, load


def test_both_serve_and_share_the_connections(pair: Platform) -> None:
    ours = {pair.roles()["gateway"], pair.roles()["gateway-1"]}
    assert {"gateway", "gateway-1"} <= set(pair.cli_json("status", f"--data={pair.data}")["roles"])
    assert set(gateways(pair)) == ours
    before = {pid: one["requests"] for pid, one in gateways(pair).items()}
    with Load(pair, "echo", threads=16) as load:
        pair.wait_for("each of them answers some", lambda: all(one["requests"] - before[pid] > 20 for pid, one in gateways(pair).items()))
    lost_nothing(load)


def limited(platform: Platform) -> None:
    """One whose calls are all relayed by the gateway that is not its home, however many there are."""
    platform.put("counted", ECHO.format(version=1), timeout_seconds=20, limits={"concurrency": 1000})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["gateway", "gateway-1"])
@pytest.mark.parametrize("name", ["echo", "counted"])
def test_a_gateway_that_dies_takes_its_own_calls_along_and_no_others(pair: Platform, role: str, name: str) -> None:
    """Of eight callers, each can lose the call that it has there, and no more: the next one is served by whoever is there."""
    limited(pair)
    old = pair.roles()[role]
    with Load(pair, name, threads=8) as load:
        load.wait_answers(50)
        os.kill(old, signal.SIGKILL)
        load.wait_answers(50)
        pair.wait_for("it is back", lambda: pair.roles()[role] not in (0, old))
        load.wait_answers(50)
    lost = sum(load.broken.values()) + load.statuses[502]
    assert not load.wrong and lost <= 8 and load.accounted == load.sent and set(load.statuses) <= {200, 502}, load
    assert set(load.codes) <= {"gateway_lost"}, load


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["echo", "counted"])
@pytest.mark.parametrize("flag", [["--rolling"], []])
def test_a_restart_of_both_loses_no_call(pair: Platform, flag: list[str], name: str) -> None:
    limited(pair)
    before = pair.roles()
    with Load(pair, name, threads=4) as load:
        load.wait_answers(20)
        for _ in range(2):
            pair.cli("restart", f"--data={pair.data}", *flag)
            load.wait_answers(20)
    lost_nothing(load)
    assert not set(before.values()) & set(pair.roles().values())


def test_a_function_that_is_called_now_and_then_has_one_instance_whoever_takes_the_call(pair: Platform) -> None:
    for name in ("few-a", "few-b", "few-c", "few-d"):
        pair.put(name, ECHO.format(version=1))
        answers = [pair.invoke(name, {"sent": ""}) for _ in range(8)]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["x-dayfly-instance"] for answer in answers}) == 1


def test_a_floor_is_held_once(pair: Platform) -> None:
    pair.put("floor", SLOW, min_instances=2)
    pair.wait_for("two instances", lambda: instances(pair, "floor") == 2)
    assert {pair.invoke("floor", {"seconds": 0}).status for _ in range(6)} == {200}
    assert instances(pair, "floor") == 2


def test_a_function_with_one_instance_serves_the_callers_of_both_gateways(pair: Platform) -> None:
    pair.put("single", SLOW, max_instances=1, timeout_seconds=20)
    answers = at_once(pair, "single", 12, 0.02)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["x-dayfly-instance"] for answer in answers}) == 1


def test_a_concurrency_limit_is_one_for_both_and_refuses_nobody_while_there_is_room(pair: Platform) -> None:
    pair.put("careful", SLOW, limits={"concurrency": 1}, timeout_seconds=20)
    for _ in range(12):
        assert pair.invoke("careful", {"seconds": 0}).status == 200, "one after the other, each on a connection of its own"
    answers = at_once(pair, "careful", 12, 1.0)
    assert Counter(answer.status for answer in answers) == {200: 1, 429: 11}


def test_a_rate_is_one_for_both(pair: Platform) -> None:
    pair.put("slowly", SLOW, limits={"rate_per_second": 0.001, "burst": 7}, timeout_seconds=20)
    answers = at_once(pair, "slowly", 20, 0.0)
    assert Counter(answer.status for answer in answers) == {200: 7, 429: 13}


def test_limits_of_a_namespace_are_one_for_both_and_for_all_of_its_functions(pair: Platform) -> None:
    pair.cli("namespace", "create", "bounded", status=None)
    for name in ("one", "two", "three"):
        pair.put(name, SLOW, namespace="bounded", timeout_seconds=20)
    order = json.dumps({"concurrency": 2}).encode()
    answer = pair.request("PUT", "/api/v1/namespaces/bounded/limits", order, {"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    barrier = threading.Barrier(12)

    def call(name: str) -> int:
        barrier.wait(20)
        body = json.dumps({"seconds": 1.0}).encode()
        return pair.request("POST", f"/api/v1/functions/{name}/invoke?namespace=bounded", body).status

    with ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(call, ("one", "two", "three") * 4)) == {200: 2, 429: 10}


@pytest.mark.timeout(120)
def test_a_function_that_is_called_much_is_served_by_both_within_its_bound(pair: Platform) -> None:
    pair.put("popular", ECHO.format(version=1), max_instances=4, timeout_seconds=20)
    served: set[str] = set()

    def both_serve() -> bool:
        served.add(pair.invoke("popular", {"sent": ""}).headers["x-dayfly-instance"].partition("-")[0])
        assert instances(pair, "popular") <= 4
        return len(served) == 2

    with Load(pair, "popular", threads=16) as load:
        pair.wait_for("instances of both gateways answer", both_serve, seconds=60)
        load.wait_answers(200)
        assert instances(pair, "popular") <= 4
    lost_nothing(load)


@pytest.mark.timeout(120)
def test_limits_that_a_deploy_brings_hold_from_its_answer_on_though_there_was_a_guest(pair: Platform) -> None:
    source = ECHO.format(version=1).replace("    return", "    __import__('time').sleep(event.pop('seconds', 0))\n    return")
    source = source.replace('event["sent"]', 'event.get("sent")')
    pair.put("tamed", source, timeout_seconds=20)
    with Load(pair, "tamed", threads=16) as load:
        pair.wait_for(
            "a guest serves", lambda: len({pair.invoke("tamed", {}).headers["x-dayfly-instance"].partition("-")[0] for _ in range(8)}) == 2,
            seconds=60,
        )  # fmt: skip
    lost_nothing(load)
    pair.put("tamed", source, timeout_seconds=20, limits={"concurrency": 1})
    assert Counter(answer.status for answer in at_once(pair, "tamed", 8, 1.0)) == {200: 1, 429: 7}


def test_a_stream_and_a_large_body_pass_between_gateways(pair: Platform) -> None:
    pair.put("streams", "def handler(event, context):\n    yield event['body'] * 3\n    yield 'end'\n", auth="none")
    body = b"x" * 700_000
    answers = [pair.request("POST", "/function/streams", body, {"Content-Type": "text/plain"}) for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    assert {answer.body == body * 3 + b"end" for answer in answers} == {True}
    missing = [pair.request("GET", "/function/no-such-function").status for _ in range(4)]
    assert set(missing) == {404}


@pytest.mark.timeout(120)
def test_sockets_live_at_home_and_are_found_by_any_gateway(pair: Platform) -> None:
    host, port = pair.address
    for name in ("sockets-a", "sockets-b", "sockets-c"):
        pair.put(name, SOCKET, auth="none", websocket=True)
        with connect(f"ws://{host}:{port}/function/{name}") as one, connect(f"ws://{host}:{port}/function/{name}") as two:
            for client in (one, two):
                client.send("who am I?")
                identity = str(client.recv(timeout=20))
                for _ in range(4):
                    answer = pair.request("POST", f"/api/v1/connections/{identity}", b"news")
                    assert (answer.status, client.recv(timeout=20)) == (200, "news")
                assert pair.request("GET", f"/api/v1/connections/{identity}").json()["source_ip"] == "127.0.0.1"
    assert {pair.request("GET", "/api/v1/connections/01nobody").status for _ in range(4)} == {404}


APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    while (said := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": said["text"] * 2})
"""


@pytest.mark.timeout(120)
def test_an_application_speaks_with_the_clients_of_both_gateways(pair: Platform) -> None:
    host, port = pair.address
    more = {"handler": "web:app", "auth": "none", "websocket": True, "concurrency": 20, "max_instances": 1}
    for name in ("speaks-a", "speaks-b"):
        pair.put(name, {"web.py": APPLICATION}, **more)
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(f"ws://{host}:{port}/function/{name}")) for _ in range(12)]
            for number, client in enumerate(clients):
                client.send(f"{number},")
                assert client.recv(timeout=20) == f"{number},{number},"


@pytest.mark.timeout(120)
def test_a_full_machine_is_full_for_both_and_idle_instances_of_one_make_room_for_the_other() -> None:
    with Platform(settings={"gateways": 2, "instances_max": 6}) as platform:
        names = [f"f{number}" for number in range(8)]
        for name in names:
            platform.put(name, SLOW, keep_alive_seconds=600, timeout_seconds=20)
        for name in names * 2:
            assert platform.invoke(name, {"seconds": 0}).status == 200
            total = sum(row["instances"] for row in platform.request("GET", "/api/v1/statistics").json()["functions"])
            assert total <= 6, "statistics are a second old; never more than there may be"
        answers = [answer.status for name in names for answer in at_once(platform, name, 3, 0.3)]
        assert set(answers) <= {200, 503} and answers.count(200) >= 18, answers


def raw(platform: Platform, request: bytes) -> bytes:
    """What comes back on a connection of its own, without what differs from call to call."""
    with socket.create_connection(platform.address, timeout=20) as client:
        client.sendall(request)
        said = b"".join(iter(lambda: client.recv(65536), b""))
    changing = rb"(?im)^(date|x-call-id|x-dayfly-instance|x-dayfly-version|server-timing|x-dayfly-[a-z-]+): [^\r]*\r\n"
    return re.sub(rb'"(call_id|requestId)":"[^"]*"', b"", re.sub(changing, b"", said))


REQUESTS = {
    "get": b"GET /function/mirror/a%20b?x=%2F&y HTTP/1.1\r\nhost: h\r\nx-said: one\r\nx-dayfly-peer: 9.9.9.9\r\ncookie: c=1\r\n",
    "head": b"HEAD /function/mirror HTTP/1.1\r\nhost: h\r\n",
    "empty": b"GET /function/mirror/empty HTTP/1.1\r\nhost: h\r\n",
    "fails": b"GET /function/mirror/fails HTTP/1.1\r\nhost: h\r\n",
    "old": b"GET /function/mirror HTTP/1.0\r\nhost: h\r\nte: trailers\r\n",
    "own route": b"GET /mirrored/7 HTTP/1.1\r\nhost: h\r\n",
    "version": b"GET /function/mirror:1 HTTP/1.1\r\nhost: h\r\n",
    "no version": b"GET /function/mirror:77 HTTP/1.1\r\nhost: h\r\n",
    "preflight": b"OPTIONS /function/mirror HTTP/1.1\r\nhost: h\r\norigin: https://a.example\r\naccess-control-request-method: PUT\r\n",
    "cors": b"GET /function/mirror HTTP/1.1\r\nhost: h\r\norigin: https://a.example\r\n",
    "not a socket": b"GET /function/mirror HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "invoke": b"POST /api/v1/functions/mirror/invoke HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nauthorization: Bearer nobody\r\n",
    "awaited": b"POST /function/mirror HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nexpect: 100-continue\r\n",
    "too long": b"POST /function/mirror HTTP/1.1\r\nhost: h\r\ncontent-length: 7000000\r\nexpect: 100-continue\r\n",
}  # fmt: skip
POST = b"POST /function/mirror HTTP/1.1\r\nhost: h\r\n"
LAST = b"connection: close\r\n"
BODIES = {
    "length": POST + LAST + b"content-length: 5\r\n\r\nhello",
    "chunked": POST + LAST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "over its own bound": POST + LAST + b"content-length: 2000\r\n\r\n" + b"x" * 2000,
    "two": POST + b"content-length: 5\r\n\r\nhelloGET /function/mirror/2 HTTP/1.1\r\nhost: h\r\n" + LAST + b"\r\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def mirror(pair: Platform) -> Platform:
    """Everything of it is counted, so that only its home serves it and the other gateway relays."""
    more: dict[str, object] = {"cors": {"origins": ["https://a.example"], "methods": ["PUT"]}, "route": [{"path": "/mirrored/{id}"}]}
    pair.put("mirror", MIRROR, auth="none", limits={"concurrency": 100, "body_bytes_max": 1000}, **more)
    return pair


@pytest.mark.parametrize("kind", [*REQUESTS, *BODIES])
def test_nobody_can_tell_which_gateway_has_answered(mirror: Platform, kind: str) -> None:
    request = BODIES.get(kind) or REQUESTS[kind] + b"connection: close\r\n\r\n"
    if kind == "not a socket":
        request = REQUESTS[kind] + b"connection: upgrade, close\r\n\r\n"
    before = {pid: one["requests"] for pid, one in gateways(mirror).items()}
    answers = Counter(raw(mirror, request) for _ in range(10))
    assert len(answers) == 1, answers
    (answer,) = answers
    assert answer.startswith(b"HTTP/1.1 ") and b"internal" not in answer
    if kind == "get":
        assert b'"ip": "127.0.0.1"' in answer and b'{"x-said": "one", "x-dayfly-peer": "9.9.9.9"}' in answer, (
            "what callers say is just that"
        )
    mirror.wait_for("both were asked", lambda: all(one["requests"] > before[pid] for pid, one in gateways(mirror).items()))
