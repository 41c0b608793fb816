"""Who may come in, and what may be said at the door: tokens, namespaces, malformed HTTP, limits, clients that leave."""

import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Platform

pytestmark = pytest.mark.one_user

HELLO = "def handler(event, context):\n    return 'hello'\n"
SLOW = """
import time, os
def handler(event, context):
    if event.get("rawPath", "").endswith("/who") or event.get("act") == "who": return "free"
    print("began", flush=True)
    time.sleep(3600)
"""
ENDLESS = """
import os, time
def handler(event, context):
    print("began " + context.aws_request_id)
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.005)
    finally:
        print("closed " + context.aws_request_id)
"""


@pytest.fixture(scope="module")
def doors(platform: Platform) -> Iterator[Platform]:
    platform.put("private", HELLO)
    platform.put("public", HELLO, auth="none")
    platform.put("endless", ENDLESS, timeout_seconds=60)
    platform.put("single", SLOW, timeout_seconds=6, max_instances=1, queue_max=2)
    for name in ("shop", "other"):
        platform.request("POST", "/api/v1/namespaces", json.dumps({"name": name}).encode())
    platform.put("private", HELLO.replace("hello", "shop"), namespace="shop")
    yield platform


def make_token(platform: Platform, namespaces: list[str], verbs: list[str]) -> dict[str, str]:
    body = json.dumps({"name": "made-by-a-test", "namespaces": namespaces, "verbs": verbs}).encode()
    answer = platform.request("POST", "/api/v1/tokens", body)
    assert answer.status in (200, 201), answer.body
    made: dict[str, str] = answer.json()
    return made


INVOKE = "/api/v1/functions/private/invoke"


@pytest.mark.parametrize("path", ["/function/private", INVOKE, "/api/v1/functions", "/metrics"])
@pytest.mark.parametrize("token", ["", "nonsense", "dfy_", "dfy_x_y", "dfy_" + "0" * 12 + "_" + "0" * 48, "x" * 4000, "dfy_é_é"])
def test_a_missing_or_bad_token_opens_nothing(doors: Platform, path: str, token: str) -> None:
    method = "POST" if path == INVOKE else "GET"
    answer = doors.request(method, path, b"{}" if method == "POST" else None, token=token)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "unauthorized"), answer.body
    assert "www-authenticate" in answer.headers


def test_the_right_id_with_a_wrong_secret_opens_nothing(doors: Platform) -> None:
    wrong = doors.token[:-1] + ("0" if doors.token[-1] != "0" else "1")
    assert doors.request("POST", INVOKE, b"{}", token=wrong).status == 401


def test_a_bad_token_is_refused_even_at_a_public_door_or_ignored_but_never_believed(doors: Platform) -> None:
    assert doors.request("GET", "/function/public", token="").status == 200
    assert doors.request("GET", "/api/v1/functions", token="dfy_a_b").status == 401


def test_a_token_opens_its_namespace_and_verbs_and_nothing_else(doors: Platform) -> None:
    shop = make_token(doors, ["shop"], ["invoke"])["token"]
    assert doors.request("POST", INVOKE + "?namespace=shop", b"{}", token=shop).json() == "shop"
    assert doors.request("GET", "/function/private.shop", token=shop).body == b"shop"
    for method, path in (
        ("POST", INVOKE),
        ("GET", "/function/private"),
        ("GET", "/api/v1/functions?namespace=shop"),
        ("DELETE", "/api/v1/functions/private?namespace=shop"),
        ("GET", "/api/v1/tokens"),
        ("GET", "/api/v1/logs?function=private&namespace=shop"),
        ("GET", "/metrics"),
    ):
        answer = doors.request(method, path, b"{}" if method == "POST" else None, token=shop)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "forbidden"), (method, path, answer.body)
    reader = make_token(doors, ["shop"], ["read"])["token"]
    assert doors.request("POST", INVOKE + "?namespace=shop", b"{}", token=reader).status == 403
    assert doors.request("GET", "/api/v1/functions?namespace=shop", token=reader).status == 200
    assert doors.request("GET", "/api/v1/functions?namespace=other", token=reader).status == 403
    seen = doors.request("GET", "/api/v1/functions?namespace=*", token=reader).json()["functions"]
    assert {function["namespace"] for function in seen} <= {"shop"}
    answer = doors.upload("private", b"", {}, namespace="shop", token=reader)
    assert answer.status == 403, answer.body


def test_a_revoked_token_is_refused_by_the_very_next_call(doors: Platform) -> None:
    for _ in range(10):
        made = make_token(doors, ["default"], ["invoke", "read"])
        connection = http.client.HTTPConnection(*doors.address, timeout=20)
        headers = {"Authorization": f"Bearer {made['token']}"}
        statuses = []
        connection.request("GET", "/function/private", headers=headers)
        answer = connection.getresponse()
        statuses.append((answer.status, answer.read()))
        assert doors.request("DELETE", f"/api/v1/tokens/{made['id']}").status == 200
        connection.request("GET", "/function/private", headers=headers)
        answer = connection.getresponse()
        statuses.append((answer.status, answer.read()))
        connection.close()
        assert [status for status, _ in statuses] == [200, 401], statuses


def test_a_new_token_and_a_new_function_work_with_the_very_next_call(doors: Platform) -> None:
    for number in range(10):
        made = make_token(doors, ["default"], ["invoke"])
        assert doors.request("GET", "/function/private", token=made["token"]).status == 200
        doors.put(f"fresh{number}", HELLO)
        assert doors.invoke(f"fresh{number}").json() == "hello"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/function/nobody", 404, "function_not_found"),
        ("POST", "/api/v1/functions/nobody/invoke", 404, "function_not_found"),
        ("GET", "/function/private:nothing", 404, "version_not_found"),
        ("GET", "/function/private.nowhere", 404, "function_not_found"),
        ("GET", "/function/..%2f..%2fetc", 400, "bad_name"),
        ("GET", "/function/", 400, "bad_name"),
        ("GET", INVOKE, 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("PATCH", "/api/v1/functions", 405, "method_not_allowed"),
        ("GET", "/nothing/here", 404, "not_found"),
        ("GET", "/api/v1/logs?limit=many", 400, "bad_request"),
    ],
)
def test_wrong_addresses_and_methods_are_told_so(doors: Platform, method: str, path: str, status: int, code: str) -> None:
    answer = doors.request(method, path, b"{}" if method == "POST" else None)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code), answer.body
    if status == 405:
        assert answer.headers.get("allow")


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"'x'", b"[1,]", b"[" * 100_000])
def test_an_event_that_is_no_json_is_told_so_and_the_handler_is_not_called(doors: Platform, body: bytes) -> None:
    answer = doors.request("POST", INVOKE, body)
    assert (answer.status, answer.headers["x-amz-function-error"]) == (200, "Unhandled"), answer.body[:500]
    assert answer.json()["errorType"] == "Runtime.UnmarshalError", answer.body[:500]
    assert doors.invoke("private").json() == "hello"


def raw(platform: Platform, data: bytes) -> bytes:
    """Send bytes, read until the platform closes or has answered once and is silent."""
    with socket.create_connection(platform.address, timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR) if data.endswith(b"<EOF>") else None
        said = b""
        while b"\r\n\r\n" not in said and (block := connection.recv(65536)):
            said += block
        return said


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        (b"GET /function/public HTTP/1.1\r\n\r\n", 400),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\nBad Header: b\r\n\r\n", 400),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /function/public HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST /function/public HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /function/public HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET /function/public?" + b"q" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 50_000 + b"\r\n\r\n", 431),
        (b"GET /function/public HTTP/1.1\r\nHost: a\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"POST /function/public HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"CONNECT example.org:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ],
)
def test_malformed_http_is_answered_with_its_status_and_the_door_stays_open(doors: Platform, data: bytes, status: int) -> None:
    said = raw(doors, data)
    assert said.startswith(b"HTTP/1.1 %d " % status), said[:300]
    assert doors.request("GET", "/function/public", token="").body == b"hello"


def test_a_client_that_closes_its_sending_side_is_answered(doors: Platform) -> None:
    """`printf … | nc -N`."""
    with socket.create_connection(doors.address, timeout=30) as connection:
        connection.sendall(b"GET /function/public HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while piece := connection.recv(65_536):
            said += piece
    assert said.startswith(b"HTTP/1.1 200 ") and said.endswith(b"hello")


def test_a_chunked_body_over_the_limit_is_cut_off(doors: Platform) -> None:
    with socket.create_connection(doors.address, timeout=30) as connection:
        connection.sendall(b"POST /function/public HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        said = b""
        chunk = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))
        try:
            for _ in range(200):
                connection.sendall(chunk)
                if select.select([connection], [], [], 0)[0]:
                    break
        except OSError:
            pass
        said = connection.recv(65536)
    assert said.startswith(b"HTTP/1.1 413 "), said[:300]
    assert doors.request("GET", "/function/public", token="").body == b"hello"


def logs(platform: Platform, name: str) -> str:
    return platform.request("GET", f"/api/v1/logs?function={name}&limit=10000").body.decode()


def test_a_client_that_leaves_a_stream_closes_the_generator_and_frees_the_instance(doors: Platform) -> None:
    connection = http.client.HTTPConnection(*doors.address, timeout=30)
    connection.request("GET", "/function/endless", headers={"Authorization": f"Bearer {doors.token}", "X-Call-Id": "leaves-a-stream"})
    answer = connection.getresponse()
    assert answer.read(5000) and answer.getheader("x-call-id") == "leaves-a-stream"
    answer.close()
    connection.close()
    doors.wait_for("the generator was closed", lambda: "closed leaves-a-stream" in logs(doors, "endless"))
    statistics = {"path": "/api/v1/statistics", "condition": lambda said: in_flight(said, "endless") == 0}
    doors.wait_until("the call is over", **statistics)


def in_flight(said: dict[str, list[dict[str, object]]], name: str) -> object:
    return next(f["in_flight"] for f in said["functions"] if f["name"] == name)


def test_a_client_that_leaves_the_queue_makes_room_in_it(doors: Platform) -> None:
    """One instance is busy, two callers wait, a third is refused; when the waiting ones leave, there is room again."""

    def hang() -> socket.socket:
        connection = socket.create_connection(doors.address, timeout=30)
        head = (
            f"POST /api/v1/functions/single/invoke HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {doors.token}\r\nContent-Length: 2\r\n\r\n"
        )
        connection.sendall(head.encode() + b"{}")
        return connection

    def waiting() -> tuple[object, object]:
        (one,) = (f for f in doors.request("GET", "/api/v1/statistics").json()["functions"] if f["name"] == "single")
        return one["in_flight"], one["waiting"]

    connections = [hang()]
    doors.wait_for("one call runs", lambda: "began" in logs(doors, "single"))
    connections += [hang(), hang()]
    doors.wait_for("two calls wait", lambda: waiting() == (1, 2))
    full = doors.invoke("single", {})
    assert (full.status, full.json()["error"]["code"]) == (429, "queue_full") and int(full.headers["retry-after"]) >= 1
    for connection in connections[1:]:
        connection.close()
    doors.wait_for("nobody waits", lambda: waiting() == (1, 0))
    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(doors.invoke("single", {"act": "who"}).json()))
    thread.start()
    doors.wait_for("one call waits again", lambda: waiting()[1] == 1 or bool(said))
    connections[0].close()
    thread.join(60)
    assert said == ["free"], "it got the instance that came after the one that ran into its timeout"
