"""WebSocket events as API Gateway has them, and what handlers may answer. The contract is tried directly, as it needs no process."""

from types import SimpleNamespace
from typing import Any

import pytest

from dayfly.runtime import frames
from dayfly.runtime.contracts.socket import SocketContract
from dayfly.runtime.inbox import Call
from tests.runtime.driver import http_head

HEAD = http_head(query="a=b", headers=[("host", "a.example"), ("user-agent", "me"), ("origin", "https://a.example")])


def contract() -> SocketContract:
    return SocketContract(SimpleNamespace(function="hello"))  # type: ignore[arg-type]


def event(line: bytes, body: bytes = b"") -> dict[str, Any]:
    meta = HEAD + b"\n" + frames.SOCKET_LINE + line
    return contract().event(Call(frames.SOCKET, 1, 0, "call-1", meta, body))


def test_a_message_has_the_shape_of_api_gateways() -> None:
    found = event(b"MESSAGE text c-1 1700000000000 7 ", "grüße".encode())
    assert (found["body"], found["isBase64Encoded"], "headers" in found) == ("grüße", False, False)
    context = found["requestContext"]
    assert (context["routeKey"], context["eventType"], context["connectionId"], context["connectedAt"]) == (
        "$default",
        "MESSAGE",
        "c-1",
        1700000000000,
    )
    assert (context["messageId"], context["requestId"], context["messageDirection"], context["stage"]) == (
        "c-1-7",
        "call-1",
        "IN",
        "$default",
    )
    assert context["identity"]["userAgent"] == "me"
    assert event(b"MESSAGE binary c-1 0 8 ", b"\x00\xff")["body"] == "AP8="


def test_connect_has_headers_and_query_and_disconnect_says_why() -> None:
    found = event(b"CONNECT - c-1 0 1 ")
    assert (found["requestContext"]["routeKey"], found["queryStringParameters"], found["headers"]["origin"]) == (
        "$connect",
        {"a": "b"},
        "https://a.example",
    )
    assert "body" not in found
    found = event(b"DISCONNECT - c-1 0 9 1001 going away now")
    context = found["requestContext"]
    assert (context["routeKey"], context["disconnectStatusCode"], context["disconnectReason"]) == ("$disconnect", 1001, "going away now")


@pytest.mark.parametrize(
    ("result", "body"),
    [
        (None, b""),
        ("hi", b"hi"),
        (b"\x00", b"\x00"),
        ({"statusCode": 200}, b""),
        ({"statusCode": 200, "body": "x"}, b"x"),
        ({"a": 1}, b'{"a":1}'),
        ([1], b"[1]"),
    ],
)
def test_what_a_handler_returns_is_the_message(result: object, body: bytes) -> None:
    assert contract().answer(result)[2] == body
