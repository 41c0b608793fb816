"""HTTP calls: payload format 2.0 in, AWS's answer rules out. The contract is also tried directly, as it needs no process."""

import base64
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from dayfly.runtime import frames
from dayfly.runtime.contracts import headers
from dayfly.runtime.contracts.http import HEADS_MAX, HttpContract, port_of, query_parameters, unquote
from dayfly.runtime.failure import Fault
from dayfly.runtime.inbox import Call
from tests.runtime.conftest import Start
from tests.runtime.driver import http_head

HEADERS = [
    ("host", "fn.example.org:8080"),
    ("user-agent", "curl/8"),
    ("accept", "a"),
    ("accept", "b"),
    ("cookie", "k=v; l=w"),
    ("cookie", "m=x"),
    ("x-colon", "a: b"),
]


def contract() -> HttpContract:
    return HttpContract(SimpleNamespace(function="hello"))  # type: ignore[arg-type]


def event(body: bytes = b"", **options: Any) -> dict[str, Any]:
    return contract().event(Call(frames.HTTP, 1, 0, "call-1", http_head(**options), body))


def test_the_event_is_payload_format_2(every: Start) -> None:
    """Every field, exactly: nothing that AWS leaves out is there."""
    instance = every("def handler(event, context):\n    return event\n")
    instance.boot()
    seen = instance.request(http_head("GET", "/a%20b/c", "x=1&x=%C3%A4&y", HEADERS), call_id="id-1").json()
    context = seen["requestContext"]
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", context.pop("time"))
    assert abs(context.pop("timeEpoch")) > 1_500_000_000_000
    assert seen == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%20b/c",
        "rawQueryString": "x=1&x=%C3%A4&y",
        "cookies": ["k=v", "l=w", "m=x"],
        "headers": {
            "host": "fn.example.org:8080",
            "user-agent": "curl/8",
            "accept": "a,b",
            "x-colon": "a: b",
            "x-forwarded-for": "192.0.2.7",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "fn.example.org:8080",
            "x-forwarded-port": "8080",
        },
        "queryStringParameters": {"x": "1,ä", "y": ""},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "hello",
            "domainName": "fn.example.org:8080",
            "domainPrefix": "fn",
            "http": {
                "method": "GET",
                "path": "/a%20b/c",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.7",
                "userAgent": "curl/8",
            },
            "requestId": "id-1",
            "routeKey": "$default",
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }


def test_what_is_not_there_is_absent() -> None:
    assert event().keys().isdisjoint({"body", "cookies", "queryStringParameters", "pathParameters"})


def test_remembered_heads_never_leak_what_user_code_changed() -> None:
    """Two calls with the same head get events of their own; the memory is bounded."""
    http = contract()
    call = Call(frames.HTTP, 1, 0, "a", http_head(query="a=b", headers=HEADERS), b"")
    first = http.event(call)
    expected = json.loads(json.dumps(first))
    for part in (first["headers"], first["queryStringParameters"], first["requestContext"]["http"], first["requestContext"]):
        part.clear()
    first["cookies"].clear()
    again = http.event(call)
    for one in (again, expected):
        one["requestContext"].pop("time"), one["requestContext"].pop("timeEpoch")
    assert again == expected
    for number in range(5 * HEADS_MAX):
        http.event(Call(frames.HTTP, 1, 0, "a", http_head(path=f"/{number}"), b""))
    http.event(Call(frames.HTTP, 1, 0, "a", http_head(path="/" + "x" * 10_000), b""))
    assert len(http._heads) <= HEADS_MAX


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("a%20b+c", "a b c"),
        ("100%", "100%"),
        ("%4", "%4"),
        ("%zz%41", "%zzA"),
        ("%+1", "% 1"),
        ("%C3%A4%ff", "ä\ufffd"),
        ("%25%32%30", "%20"),
    ],
)
def test_percent_decoding_keeps_what_is_no_escape(raw: str, text: str) -> None:
    assert unquote(raw) == text


def test_query_strings() -> None:
    assert query_parameters("a=1&b=2&a=3&&=x&c&d==") == {"a": "1,3", "b": "2", "": "x", "c": "", "d": "="}


@pytest.mark.parametrize(
    ("kind", "body", "is_text"),
    [
        ("text/plain", b"abc", True),
        ("text/html; charset=utf-8", "ä".encode(), True),
        ("application/json", b"{}", True),
        ("APPLICATION/JSON;x=y", b"{}", True),
        ("application/xml", b"<a/>", True),
        ("application/javascript", b"1", True),
        ("application/x-www-form-urlencoded", b"a=b", True),
        ("application/problem+json", b"{}", True),
        ("image/svg+xml", b"<svg/>", True),
        ("text/plain", b"\xff", False),
        ("multipart/form-data; boundary=x", b"--x", False),
        ("image/png", b"\x89PNG", False),
        ("", b"abc", False),
    ],
)
def test_text_bodies_are_text_and_others_base64(kind: str, body: bytes, is_text: bool) -> None:
    seen = event(body, headers=[("host", "a"), ("content-type", kind)] if kind else [("host", "a")])
    assert seen["isBase64Encoded"] is not is_text
    assert (seen["body"].encode() if is_text else base64.b64decode(seen["body"])) == body


def test_compressed_bodies_are_base64_whatever_their_type() -> None:
    assert event(b"abc", headers=[("content-type", "text/plain"), ("content-encoding", "gzip")])["isBase64Encoded"]
    assert not event(b"abc", headers=[("content-type", "text/plain"), ("content-encoding", "identity")])["isBase64Encoded"]


JSON = [("content-type", "application/json")]


@pytest.mark.parametrize(
    ("result", "status", "head", "body"),
    [
        ({"a": 1}, 200, JSON, b'{"a":1}'),
        ("hello", 200, JSON, b"hello"),
        ("a\ud800b", 200, JSON, b"a?b"),
        ([1, "x"], 200, JSON, b'[1,"x"]'),
        (7, 200, JSON, b"7"),
        (True, 200, JSON, b"true"),
        (None, 200, JSON, b"null"),
        (b"\x00\xff", 200, [("content-type", "application/octet-stream")], b"\x00\xff"),
        ({"statusCode": 204}, 204, JSON, b""),
        ({"statusCode": "418", "body": "tea"}, 418, JSON, b"tea"),
        ({"statusCode": 200, "body": None}, 200, JSON, b""),
        ({"statusCode": 200, "body": {"a": [1]}}, 200, JSON, b'{"a":[1]}'),
        ({"statusCode": 200, "body": b"\xff"}, 200, JSON, b"\xff"),
        ({"statusCode": 200, "body": "AP8=", "isBase64Encoded": True}, 200, JSON, b"\x00\xff"),
        ({"statusCode": 200, "body": "AP\n8=\n", "isBase64Encoded": True}, 200, JSON, b"\x00\xff"),
        (
            {"statusCode": 200, "headers": {"Content-Type": "text/html", "X-N": 5, "X-F": 1.5, "X-B": True}, "body": "x"},
            200,
            [("content-type", "text/html"), ("x-n", "5"), ("x-f", "1.5"), ("x-b", "true")],
            b"x",
        ),
        (
            {"statusCode": 302, "headers": {"location": "/ä"}, "cookies": ["a=b; Path=/", "c=d"]},
            302,
            [*JSON, ("location", "/ä"), ("set-cookie", "a=b; Path=/"), ("set-cookie", "c=d")],
            b"",
        ),
        (
            {"statusCode": 200, "headers": {"a": "x", "b": "y"}, "multiValueHeaders": {"A": ["1", "2"]}},
            200,
            [*JSON, ("b", "y"), ("a", "1"), ("a", "2")],
            b"",
        ),
        (
            {"statusCode": 200, "headers": {"Content-Length": "999", "Connection": "x", "Transfer-Encoding": "chunked", "ok": "1"}},
            200,
            [*JSON, ("ok", "1")],
            b"",
        ),
    ],
)
def test_answers_follow_awss_rules(result: object, status: int, head: list[tuple[str, str]], body: bytes) -> None:
    got_status, block, got_body = contract().answer(result)
    lines = [tuple(line.split(": ", 1)) for line in block.decode().split("\r\n") if line]
    assert (got_status, lines, got_body) == (status, head, body)


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": 99},
        {"statusCode": 600},
        {"statusCode": -200},
        {"statusCode": True},
        {"statusCode": None},
        {"statusCode": 200.5},
        {"statusCode": "2 0"},
        {"statusCode": "²00"},
        {"statusCode": "abc"},
        {"statusCode": [200]},
        {"statusCode": 200, "headers": {"a": "b\r\nset-cookie: x"}},
        {"statusCode": 200, "headers": {"a": "b\nc"}},
        {"statusCode": 200, "headers": {"a": "b\rc"}},
        {"statusCode": 200, "headers": {"a": "b\0c"}},
        {"statusCode": 200, "headers": {"a\r\nb": "c"}},
        {"statusCode": 200, "headers": {"a b": "c"}},
        {"statusCode": 200, "headers": {"a:b": "c"}},
        {"statusCode": 200, "headers": {"": "c"}},
        {"statusCode": 200, "headers": {"ä": "c"}},
        {"statusCode": 200, "headers": {1: "c"}},
        {"statusCode": 200, "headers": {"a": None}},
        {"statusCode": 200, "headers": {"a": ["b"]}},
        {"statusCode": 200, "headers": {"a": "\ud800"}},
        {"statusCode": 200, "headers": "text"},
        {"statusCode": 200, "headers": {"a": "x" * 70_000}},
        {"statusCode": 200, "multiValueHeaders": {"a": ["b\r\nc"]}},
        {"statusCode": 200, "multiValueHeaders": ["a"]},
        {"statusCode": 200, "cookies": "a=b"},
        {"statusCode": 200, "cookies": [5]},
        {"statusCode": 200, "cookies": ["a\r\nb: c"]},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
        {"statusCode": 200, "body": "QQ", "isBase64Encoded": True},
        {"statusCode": 200, "body": "ä", "isBase64Encoded": True},
    ],
)
def test_what_is_no_http_answer_is_refused(answer: dict[str, Any]) -> None:
    """Twice: what was refused once is not remembered as good."""
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            contract().answer(answer)
        assert caught.value.error_type == "Runtime.BadAnswer"


def test_header_names_that_are_remembered_are_bounded() -> None:
    for number in range(3 * headers.NAMES_MAX):
        headers.block({f"X-{number}": "v"}, {}, [])
    assert len(headers._names) <= headers.NAMES_MAX


def test_a_bad_answer_and_an_exception_reach_the_gateway_as_errors(every: Start) -> None:
    code = (
        "def handler(event, context):\n"
        "    if event['rawPath'] == '/raise': raise ValueError('no')\n"
        "    return {'statusCode': 'x'} if event['rawPath'] == '/bad' else 'x' * 7_000_000 if event['rawPath'] == '/big' else 'ok'\n"
    )
    instance = every(code)
    instance.boot()
    for path, error_type in (("/raise", "ValueError"), ("/bad", "Runtime.BadAnswer"), ("/big", "Function.ResponseSizeTooLarge")):
        answer = instance.request(http_head(path=path))
        assert answer.failed and answer.status == 502 and answer.meta == b""
        assert answer.json()["errorType"] == error_type
        assert f"[ERROR] {error_type}" in answer.text
    answer = instance.request()
    assert (answer.status, answer.meta, answer.body) == (200, b"content-type: application/json\r\n", b"ok")


def test_a_large_binary_body_arrives_by_descriptor(start: Start) -> None:
    instance = start("import base64\ndef handler(event, context):\n    return base64.b64decode(event['body'])[::-1]\n")
    instance.boot()
    body = bytes(range(256)) * 8192
    assert instance.request(http_head("POST", headers=[("host", "a")]), body, fd=True).body == body[::-1]


def test_a_call_by_a_route_says_which_and_what_its_parameters_are(every: Start) -> None:
    instance = every("def handler(event, context):\n    return event\n")
    instance.boot()
    head = http_head("GET", "/users/a%20b+c/x%2Fy/z", "", HEADERS) + b"\n:route: GET /users/{id}/{rest+}"
    seen = instance.request(head, call_id="id-1").json()
    assert (seen["routeKey"], seen["requestContext"]["routeKey"]) == ("GET /users/{id}/{rest+}", "GET /users/{id}/{rest+}")
    assert seen["pathParameters"] == {"id": "a b+c", "rest": "x/y/z"}
    assert seen["rawPath"] == seen["requestContext"]["http"]["path"] == "/users/a%20b+c/x%2Fy/z"
    assert not [name for name in seen["headers"] if "route" in name]
    seen = instance.request(http_head("GET", "/fixed", "", HEADERS) + b"\n:route: ANY /fixed", call_id="id-2").json()
    assert seen["routeKey"] == "ANY /fixed" and "pathParameters" not in seen


@pytest.mark.parametrize(
    ("host", "scheme", "port"),
    [("a.test", "http", "80"), ("a.test", "https", "443"), ("a.test:8443", "https", "8443"), ("[::1]", "http", "80"), ("", "http", "80")],
)
def test_the_port_is_the_one_the_client_used(host: str, scheme: str, port: str) -> None:
    assert port_of(host, scheme) == port
    seen = event(headers=[("host", host), ("x-forwarded-host", "shop.example.com:1"), ("x-forwarded-for", "192.0.2.1, 10.0.0.1")])
    assert seen["requestContext"]["domainName"] == seen["headers"]["x-forwarded-host"] == "shop.example.com:1"
    assert (seen["headers"]["x-forwarded-port"], seen["headers"]["x-forwarded-for"]) == ("1", "192.0.2.1, 10.0.0.1")
