"""Large bodies and long answers of a real platform: whole, in bounded memory, and with the right end when somebody leaves half way."""

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Platform

pytestmark = pytest.mark.one_user

SIZE = 100_000_000
PIECE = bytes(range(256)) * 1024  # 256 KiB, so that a lost or doubled piece changes the digest
GROWTH_BYTES_MAX = 30_000_000
PATIENCE_SECONDS = 60

ASGI = """
import asyncio, hashlib, os
PIECE = bytes(range(256)) * 256

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"].removeprefix(scope["root_path"])
    async def begin(status=200):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/event-stream")]})
    async def say(body, more=True):
        await send({"type": "http.response.body", "body": body, "more_body": more})
    if path == "/early":
        await begin(403)
        return await say(b"no", False)
    if path == "/never":
        await asyncio.sleep(60)
    if path == "/die":
        await receive()
        os._exit(9)
    if path == "/die-late":
        await begin()
        for _ in range(1000):
            await say(PIECE)
        os._exit(9)
    if path == "/events":
        await begin()
        for number in range(int(scope["query_string"] or 1000)):
            await say(b"data: %d\\n\\n" % number)
        return await say(b"", False)
    if path == "/down":
        await begin()
        left = int(scope["query_string"])
        try:
            while left > 0:
                await say(PIECE[:left])
                left -= len(PIECE)
            return await say(b"", False)
        except OSError as error:
            print("left with", left, type(error).__name__)
            raise
    if path == "/two":  # answers the first event, and the second only when it has come
        await begin()
        while True:
            message = await receive()
            await say(b"got " + message["body"], message["more_body"])
            if not message["more_body"]:
                return
    if path == "/slowly":
        await asyncio.sleep(0.3)
    digest, size = hashlib.sha256(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            print("broke", scope["query_string"], "at", size)
            return
        digest.update(message["body"])
        size += len(message["body"])
        if not message["more_body"]:
            break
    await begin()
    await say(b"%d %s" % (size, digest.hexdigest().encode()), False)
"""

WSGI = """
import hashlib
PIECE = bytes(range(256)) * 256

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/down":
        start_response("200 OK", [("content-type", "application/octet-stream")])
        left = int(environ["QUERY_STRING"])
        return (PIECE[: left - at] for at in range(0, left, len(PIECE)))
    digest, size = hashlib.sha256(), 0
    try:
        while piece := environ["wsgi.input"].read(1 << 20):
            digest.update(piece)
            size += len(piece)
    except OSError as error:
        print("broke", environ["QUERY_STRING"], "at", size)
        raise
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"%d %s" % (size, digest.hexdigest().encode())]
"""


@pytest.fixture(scope="module")
def streams(platform: Platform) -> Iterator[Platform]:
    for name, source in (("asgi", ASGI), ("wsgi", WSGI)):
        platform.put(name, {"app.py": source}, handler="app:app", auth="none", timeout_seconds=90, memory_mb=256, concurrency=4)
    yield platform


def gateway_memory(platform: Platform, field: str = "VmHWM") -> int:
    status = Path(f"/proc/{platform.roles()['gateway']}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def reset_peak(platform: Platform) -> int:
    Path(f"/proc/{platform.roles()['gateway']}/clear_refs").write_text("5")
    return gateway_memory(platform, "VmRSS")


def pieces(size: int) -> Iterator[bytes]:
    for at in range(0, size, len(PIECE)):
        yield PIECE[: size - at]


def said_of(size: int) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return b"%d %b" % (size, digest.hexdigest().encode())


def head(name: str, path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} /function/{name}{path} HTTP/1.1", "host: test", *lines, "", "")).encode()


def opened(platform: Platform) -> socket.socket:
    one = socket.create_connection(platform.address, timeout=PATIENCE_SECONDS)
    one.settimeout(PATIENCE_SECONDS)
    return one


def answer_on(one: socket.socket, method: str = "POST") -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(one, method=method)
    answer.begin()
    return answer.status, answer.read()


def wait_log(platform: Platform, name: str, text: str) -> None:
    path = f"/api/v1/logs?function={name}&limit=1000"
    platform.wait_for(f"{name} printed {text!r}", lambda: text in platform.request("GET", path).body.decode())


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_a_hundred_megabytes_go_up_whole_and_in_bounded_memory(streams: Platform, name: str) -> None:
    before = reset_peak(streams)
    with opened(streams) as one:
        one.sendall(head(name, "/", f"content-length: {SIZE}"))
        for piece in pieces(SIZE):
            one.sendall(piece)
        assert answer_on(one) == (200, said_of(SIZE))
        one.sendall(head(name, "/", "content-length: 3", "connection: close") + b"abc")
        assert answer_on(one)[1].startswith(b"3 "), "the connection goes on behind the body"
    assert gateway_memory(streams) - before < GROWTH_BYTES_MAX


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_a_hundred_megabytes_come_down_whole_and_in_bounded_memory(streams: Platform, name: str) -> None:
    before = reset_peak(streams)
    digest, size = hashlib.sha256(), 0
    connection = http.client.HTTPConnection(*streams.address, timeout=PATIENCE_SECONDS)
    connection.request("GET", f"/function/{name}/down?{SIZE}")
    answer = connection.getresponse()
    while piece := answer.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    connection.close()
    assert b"%d %b" % (size, digest.hexdigest().encode()) == said_of(SIZE)
    assert gateway_memory(streams) - before < GROWTH_BYTES_MAX


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_a_chunked_body_of_unknown_length_is_passed_on_too(streams: Platform, name: str) -> None:
    size = 20_000_000
    with opened(streams) as one:
        one.sendall(head(name, "/", "transfer-encoding: chunked"))
        for piece in pieces(size):
            one.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        one.sendall(b"0\r\n\r\n")
        assert answer_on(one) == (200, said_of(size))


def test_a_slow_reader_gets_everything_and_holds_up_no_other_call_of_its_instance(streams: Platform) -> None:
    streams.put("single", {"app.py": ASGI}, handler="app:app", auth="none", timeout_seconds=90, concurrency=4, max_instances=1)
    before = reset_peak(streams)
    with opened(streams) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(head("single", f"/down?{SIZE}", method="GET"))
        received = slow.recv(1000)
        for _ in range(20):  # it is stuck by now, or will be; the others run through it
            assert streams.request("POST", "/function/single/", b"abc", token="").body.startswith(b"3 ")
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-5:] + slow.recv(1 << 20)
    assert gateway_memory(streams) - before < GROWTH_BYTES_MAX


def test_an_application_that_does_not_read_yet_stops_the_client_and_then_gets_it_all(streams: Platform) -> None:
    before = reset_peak(streams)
    with opened(streams) as one:
        one.sendall(head("asgi", "/slowly", f"content-length: {SIZE}"))
        for piece in pieces(SIZE):
            one.sendall(piece)
        assert answer_on(one) == (200, said_of(SIZE))
    assert gateway_memory(streams) - before < GROWTH_BYTES_MAX


def test_a_slow_writer_is_waited_for(streams: Platform) -> None:
    """Its body comes in two halves, the second only when the application has said that it got the first."""
    with opened(streams) as one:
        one.sendall(head("asgi", "/two", "transfer-encoding: chunked") + b"5\r\nfirst\r\n")
        received = b""
        while b"got first" not in received:
            received += one.recv(4096)
        one.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
        while b"got second" not in received:
            received += one.recv(4096)
        assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("name", "mark"), [("asgi", "b'{}' at 10000000"), ("wsgi", "{} at ")])
@pytest.mark.parametrize("framing", ["content-length: 50000000", "transfer-encoding: chunked"])
def test_half_a_body_never_looks_like_a_whole_one(streams: Platform, name: str, mark: str, framing: str) -> None:
    with opened(streams) as one:
        one.sendall(head(name, f"/?{framing[:7]}", framing) + (b"" if "length" in framing else b"%x\r\n" % SIZE))
        for piece in pieces(10_000_000):
            one.sendall(piece)
    wait_log(streams, name, f"broke {mark.format(framing[:7])}")


def test_who_leaves_a_download_ends_it_for_the_application(streams: Platform) -> None:
    size = 5_000_000_000
    with opened(streams) as one:
        one.sendall(head("asgi", f"/down?{size}", method="GET"))
        received = 0
        while received < 10_000_000:
            received += len(one.recv(1 << 20))
    wait_log(streams, "asgi", "left with")
    assert streams.request("POST", "/function/asgi/", b"abc", token="").body.startswith(b"3 ")


def test_an_application_may_answer_before_it_has_read_the_body(streams: Platform) -> None:
    with opened(streams) as one:
        one.sendall(head("asgi", "/early", f"content-length: {SIZE}") + PIECE)
        answer = http.client.HTTPResponse(one, method="POST")
        answer.begin()
        assert (answer.status, answer.read(), answer.getheader("connection")) == (403, b"no", "close")


def test_expect_100_continue_is_said_before_the_body_is_passed_on(streams: Platform) -> None:
    size = 20_000_000
    with opened(streams) as one:
        one.sendall(head("asgi", "/", f"content-length: {size}", "expect: 100-continue"))
        assert one.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for piece in pieces(size):
            one.sendall(piece)
        assert answer_on(one) == (200, said_of(size))


def test_an_instance_that_dies_in_the_middle_of_an_upload_is_an_answer(streams: Platform) -> None:
    with opened(streams) as one:
        one.sendall(head("asgi", "/die", f"content-length: {SIZE}") + PIECE)
        status, body = answer_on(one)
    assert status == 502 and json.loads(body)["error"]["code"] == "function_crashed"


def test_an_instance_that_dies_in_the_middle_of_an_answer_cuts_it(streams: Platform) -> None:
    with opened(streams) as one, pytest.raises(http.client.IncompleteRead):
        one.sendall(head("asgi", "/die-late", "content-length: 0"))
        answer_on(one)


def test_a_thousand_events_arrive_in_order_and_the_first_before_the_second_is_made(streams: Platform) -> None:
    answer = streams.request("GET", "/function/asgi/events?1000", token="")
    assert answer.body == b"".join(b"data: %d\n\n" % number for number in range(1000))
    with opened(streams) as one:  # whoever asks for the second has got the first
        one.sendall(head("asgi", "/two", "transfer-encoding: chunked"))
        received = b""
        for number in range(50):
            text = b"event %d;" % number
            one.sendall(b"%x\r\n%b\r\n" % (len(text), text))
            while b"got " + text not in received:
                received += one.recv(4096)


def test_many_uploads_at_once_are_all_right(streams: Platform) -> None:
    size, results = 8_000_000, []

    def upload(name: str) -> None:
        with opened(streams) as one:
            one.sendall(head(name, "/", f"content-length: {size}"))
            for piece in pieces(size):
                one.sendall(piece)
            results.append(answer_on(one))

    threads = [threading.Thread(target=upload, args=(("asgi", "wsgi")[number % 2],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert results == [(200, said_of(size))] * 12


def test_a_handler_of_events_still_takes_what_fits_an_event(streams: Platform) -> None:
    streams.put("event", "def handler(event, context):\n    return len(event['body'])\n", auth="none")
    answer = streams.request("POST", "/function/event", b"x" * 7_000_000, token="")
    assert answer.status == 413 and answer.json()["error"]["code"] == "body_too_large"
    answer = streams.request("POST", "/api/v1/functions/asgi/invoke", b"{}")
    assert answer.status == 400 and "web application" in answer.json()["error"]["message"]
