"""A WebSocket of a real function: written for API Gateway, unchanged; a chat in which an instance serves many sockets, or none."""

import json
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.harness import Platform

pytestmark = pytest.mark.one_user

HANDLER = """
import json
def handler(event, context):
    context_of = event["requestContext"]
    if context_of["routeKey"] == "$connect":
        return {"statusCode": 200 if event["queryStringParameters"]["name"] != "mallory" else 403}
    if context_of["routeKey"] == "$disconnect":
        print("left", context_of["connectionId"], context_of["disconnectStatusCode"])
        return {"statusCode": 200}
    body = event["body"]
    if body == "count":
        def counting():
            for number in range(3):
                yield str(number)
        return counting()
    if body == "fail":
        raise ValueError("no")
    return {"statusCode": 200, "body": json.dumps([context_of["connectionId"], body, event["isBase64Encoded"]])}
"""


@pytest.fixture(scope="module")
def address(platform: Platform) -> Iterator[str]:
    platform.put("chat", HANDLER, auth="none", websocket=True, keep_alive_seconds=0)
    host, port = platform.address
    yield f"ws://{host}:{port}/function/chat?name="


def said(socket: ClientConnection, message: str | bytes) -> object:
    socket.send(message)
    return json.loads(socket.recv(timeout=20))


def test_a_handler_written_for_api_gateway_serves_sockets(platform: Platform, address: str) -> None:
    with connect(address + "ada") as ada, connect(address + "bob") as bob:
        of_ada, text, is_base64 = said(ada, "grüße")  # type: ignore[misc]
        assert (text, is_base64) == ("grüße", False)
        assert said(bob, b"\x00\xff") != [of_ada, "AP8=", True], "each has an id of its own"
        ada.send("count")
        assert [ada.recv(timeout=20) for _ in range(3)] == ["0", "1", "2"]
        assert said(ada, "fail")["error"]["code"] == "function_error"  # type: ignore[index]
        assert said(ada, "on")[1] == "on"  # type: ignore[index]
        answer = platform.request("POST", f"/api/v1/connections/{of_ada}", b"news from outside")
        assert (answer.status, ada.recv(timeout=20)) == (200, "news from outside")
    deadline = time.monotonic() + 20
    while f"left {of_ada} 1000" not in platform.request("GET", "/api/v1/logs?function=chat&limit=1000").body.decode():
        assert time.monotonic() < deadline, "the function was not told of the end"


def test_a_deploy_changes_the_code_behind_open_sockets(platform: Platform, address: str) -> None:
    with connect(address + "ada") as ada:
        assert said(ada, "one")[1] == "one"  # type: ignore[index]
        platform.put("chat", HANDLER.replace("body, event", "body.upper(), event"), auth="none", websocket=True, keep_alive_seconds=0)
        assert said(ada, "two")[1] == "TWO"  # type: ignore[index]
        platform.request("DELETE", "/api/v1/functions/chat")
        ada.send("three")
        with pytest.raises(ConnectionClosed):
            ada.recv(timeout=20)
            ada.recv(timeout=20)
