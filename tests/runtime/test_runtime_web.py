"""Web applications: WSGI and ASGI, bodies that come while they are read, answers that go on through a socket of their own."""

import socket
from typing import Any

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import Answer, Driver, Frame, http_head

ROOT = b"\n:root: /function/hello"
HEADERS = [("host", "fn.example:8080"), ("x-a", "1"), ("cookie", "a=1"), ("x-a", "2"), ("cookie", "b=2"), ("x_a", "not me")]

WSGI = """
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/environ":
        start_response("201 Created", [("Content-Type", "text/plain"), ("X-Two", "a"), ("X-Two", "b\\xe9"), ("Content-Length", "9999")])
        return [repr({k: v for k, v in sorted(environ.items()) if isinstance(v, (str, bool))}).encode()]
    if path == "/context":
        start_response("200 OK", [])
        return [environ["dayfly.context"].aws_request_id.encode()]
    if path == "/silent":
        return [b"x"]
    if path == "/text":
        start_response("200 OK", [])
        return ["text"]
    if path == "/split":
        start_response("200 OK", [("x-a", "1\\r\\nset-cookie: b")])
        return []
    if path == "/raise":
        raise KeyError("k")
    if path == "/late":
        write = start_response("200 OK", [])
        write(b"written,")
        return Parts([b"a", b"", b"b"])
    if path == "/broken":
        start_response("200 OK", [])
        return broken()
    if path == "/length":
        start_response("200 OK", [("content-length", "3")])
        return iter([b"abc"])
    if path == "/lines":
        start_response("200 OK", [])
        return [b"|".join(environ["wsgi.input"])]
    start_response("200 OK", [])
    try:
        return [b"%d" % len(environ["wsgi.input"].read())]
    except OSError as error:
        return [repr(error).encode()]

def broken():
    yield b"x"
    raise ValueError("v")

class Parts:
    def __init__(self, parts): self.parts = iter(parts)
    def __iter__(self): return self
    def __next__(self): return next(self.parts)
    def close(self): print("closed")
"""

ASGI = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["started"] = "yes"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        print("shut down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"].removeprefix(scope["root_path"])
    async def start(status=200, headers=()):
        await send({"type": "http.response.start", "status": status, "headers": headers})
    async def say(body, more=False):
        await send({"type": "http.response.body", "body": body, "more_body": more})
    if path == "/scope":
        await start(201, [(b"X-Two", b"a"), (b"x-two", b"b\\xe9"), (b"content-length", b"9999")])
        return await say(repr({k: v for k, v in scope.items() if not k.startswith("dayfly")}).encode())
    if path == "/context":
        await start()
        return await say(scope["dayfly.context"].aws_request_id.encode())
    if path == "/silent":
        return
    if path == "/half":
        await start()
        return await say(b"x", True)
    if path == "/twice":
        await start()
        await say(b"whole")
        return await say(b"more")
    if path == "/split":
        return await start(200, [(b"x-a", b"1\\r\\nset-cookie: b")])
    if path == "/raise":
        raise KeyError("k")
    if path == "/broken":
        await start()
        await say(b"x", True)
        raise ValueError("v")
    if path == "/behind":
        await start()
        await say(b"done")
        print("behind")
        raise ValueError("behind")
    if path == "/endless":
        await start()
        try:
            while True:
                await say(b"x" * 1000, True)
                await asyncio.sleep(0)
        finally:
            print("ended")
    if path == "/waits":
        await start()
        await say(b"x", True)
        while (await receive())["type"] != "http.disconnect": pass
        print("told")
        return
    if path == "/deaf":
        await start()
        await say(b"x", True)
        try:
            await asyncio.sleep(3600)
        finally:
            print("cancelled")
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await start()
            return await say(b"gone")
        size += len(message["body"])
        if not message["more_body"]:
            break
    await start()
    await say(b"%d" % size)
"""

CODES = {"wsgi": WSGI, "asgi": ASGI}


@pytest.fixture(params=["wsgi", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def booted(start: Start, code: str, **options: Any) -> Driver:
    instance = start({"web.py": code}, handler="web:app", **options)
    ready = instance.boot()
    assert ready.kind == frames.READY, ready
    return instance


def get(instance: Driver, path: str, body: bytes = b"", **options: Any) -> Answer:
    return instance.request(http_head("POST", path, "q=1&r=%20", HEADERS) + ROOT, body, **options)


def logged(instance: Driver, text: str) -> Frame:
    found = next((frame for frame in instance.seen if frame.kind == frames.LOG and text in frame.body.decode()), None)
    return found or instance.wait_for(lambda frame: frame.kind == frames.LOG and text in frame.body.decode())


def test_a_wsgi_application_gets_an_environ(every: Start) -> None:
    instance = booted(every, WSGI)
    answer = get(instance, "/environ")
    environ = eval(answer.body)
    assert answer.status == 201 and answer.meta == "content-type: text/plain\r\nx-two: a\r\nx-two: bé\r\n".encode("latin-1")
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/function/hello",
        "PATH_INFO": "/environ",
        "QUERY_STRING": "q=1&r=%20",
        "SERVER_NAME": "fn.example",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "RAW_URI": "/function/hello/environ?q=1&r=%20",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "HTTP_HOST": "fn.example:8080",
        "HTTP_X_A": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
    }
    assert get(instance, "/context").body == f"call-{instance.seq}".encode()
    assert get(instance, "/lines", b"a\nb").body == b"a\n|b"


def test_an_asgi_application_gets_a_scope_and_its_lifespan(every: Start) -> None:
    instance = booted(every, ASGI)
    answer = get(instance, "/sc%6Fpe")
    scope = eval(answer.body)
    assert answer.status == 201 and answer.meta == "x-two: a\r\nx-two: bé\r\n".encode("latin-1")
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/function/hello/scope",
        "raw_path": b"/function/hello/sc%6Fpe",
        "root_path": "/function/hello",
        "query_string": b"q=1&r=%20",
        "client": ("192.0.2.7", 0),
        "server": ("fn.example", 8080),
        "extensions": {},
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS],
        "state": {"started": "yes"},
    }
    assert get(instance, "/context").body == f"call-{instance.seq}".encode()
    instance.retire()
    logged(instance, "shut down")
    assert instance.wait_exit() == 0


def test_an_asgi_application_without_lifespan_does_without(every: Start) -> None:
    for refuses in ("raise NotImplementedError", "return"):
        code = f"async def app(scope, receive, send):\n    if scope['type'] != 'http': {refuses}\n{ECHO}"
        instance = booted(every, code)
        assert get(instance, "/", b"abc").body == b"abc"
        instance.retire()
        assert instance.wait_exit() == 0


ECHO = """
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": (await receive())["body"]})
"""


def test_a_startup_that_fails_is_an_init_that_failed(every: Start) -> None:
    said = "await send({'type': 'lifespan.startup.failed', 'message': 'no database'})"
    instance = every({"web.py": f"async def app(scope, receive, send):\n    {said}\n"}, handler="web:app")
    failed = instance.boot()
    assert failed.kind == frames.FAILED and b"Runtime.StartupFailed" in failed.meta and b"no database" in failed.meta


@pytest.mark.parametrize("size", [0, 5, 60_000, 3_000_000])
def test_bodies_of_every_way_of_travelling_are_read(start: Start, kind: str, size: int) -> None:
    instance = booted(start, CODES[kind])
    assert get(instance, "/", bytes(size), fd=size > frames.INLINE_BYTES_MAX).body == b"%d" % size
    seq, body = instance.send_streamed(http_head("POST"))
    with body:
        body.sendall(bytes(size))
        body.recv(1)
    assert instance.answer(seq).body == b"%d" % size


def test_a_body_that_breaks_off_is_an_error_and_no_end(start: Start, kind: str) -> None:
    instance = booted(start, CODES[kind])
    for _ in range(2):
        seq, body = instance.send_streamed(http_head("POST"))
        body.sendall(b"half")
        body.close()
        if kind == "wsgi":
            assert b"ConnectionResetError" in instance.answer(seq).body
        else:  # whoever answers a client that has left is told so
            assert instance.answer(seq).failed
    assert get(instance, "/", b"abc").body == b"3"


def test_a_lost_descriptor_is_an_error_of_the_call(start: Start, kind: str) -> None:
    instance = booted(start, CODES[kind])
    head = frames.REQUEST.pack(frames.HTTP, frames.BODY_IN_STREAM, 1, len(http_head()), 99, 1 << 62)
    instance.requests.sendall(head + b"x" + http_head())
    answer = instance.answer(99)
    assert answer.failed and answer.json()["errorType"] == "Runtime.TruncatedRequest"


@pytest.mark.parametrize(
    ("path", "error_type"),
    [("/silent", "Runtime.BadAnswer"), ("/split", "Runtime.BadAnswer"), ("/raise", "KeyError")],
)
def test_what_is_no_answer_is_an_error(start: Start, kind: str, path: str, error_type: str) -> None:
    instance = booted(start, CODES[kind])
    for _ in range(2):
        answer = get(instance, path)
        assert answer.failed and answer.status == 502 and answer.json()["errorType"] == error_type
    assert get(instance, "/", b"abc").body == b"3"


def test_what_breaks_behind_its_beginning_ends_with_an_error(start: Start, kind: str) -> None:
    instance = booted(start, CODES[kind])
    found = instance.stream(instance.send(frames.HTTP, meta=http_head(path="/broken")))
    assert [frame.body for frame in found[:-1] if frame.body] == [b"x"] and found[-1].json()["errorType"] == "ValueError"


def test_wsgi_answers_are_whole_where_they_can_be_and_closed_always(start: Start) -> None:
    instance = booted(start, WSGI)
    assert get(instance, "/length").body == b"abc"
    assert get(instance, "/text").failed
    found = instance.stream(instance.send(frames.HTTP, meta=http_head(path="/late")))
    assert [frame.body for frame in found] == [b"", b"written,a", b"b", b""]
    logged(instance, "closed")


def test_asgi_answers_have_one_end(start: Start) -> None:
    instance = booted(start, ASGI)
    assert get(instance, "/twice").body == b"whole"
    logged(instance, "behind its answer")
    found = instance.stream(instance.send(frames.HTTP, meta=http_head(path="/half")))
    assert found[-1].failed and found[-1].json()["errorType"] == "Runtime.BadAnswer"
    assert get(instance, "/behind").body == b"done"
    logged(instance, "ValueError: behind")
    assert get(instance, "/", b"abc").body == b"3"


def test_an_application_takes_no_events(start: Start, kind: str) -> None:
    answer = booted(start, CODES[kind]).invoke({})
    assert answer.failed and answer.json()["errorType"] == "Runtime.InvalidRequest"


@pytest.mark.parametrize(("path", "says"), [("/endless", "ended"), ("/waits", "told"), ("/deaf", "cancelled")])
def test_an_asgi_application_is_told_that_its_client_has_left_and_then_cancelled(start: Start, path: str, says: str) -> None:
    instance = booted(start, ASGI, concurrency=2)
    seq = instance.send(frames.HTTP, meta=http_head(path=path))
    instance.wait_for(lambda frame: frame.kind == frames.HEAD)
    instance.cancel(seq)
    assert not instance.stream(seq)[-1].failed
    logged(instance, says)
    instance.wait_idle()


GENERATORS = {
    "def": "def handler(event, context):\n    for n in range(400): yield bytes([n % 256]) * 50_000\n",
    "async def": "async def handler(event, context):\n    for n in range(400): yield bytes([n % 256]) * 50_000\n",
    "one piece": "def handler(event, context):\n    yield b''.join(bytes([n % 256]) * 50_000 for n in range(400))\n",
}
WHOLE = b"".join(bytes([n % 256]) * 50_000 for n in range(400))


@pytest.mark.parametrize("code", GENERATORS.values(), ids=GENERATORS)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_stream_goes_on_through_the_socket_it_is_offered(start: Start, code: str, concurrency: int) -> None:
    """Nothing is lost, doubled or out of order between the two ways; a second call is not held up by the first one's reader."""
    instance = start(code, concurrency=concurrency)
    instance.boot()
    for _ in range(2):
        seq = instance.send(frames.DIRECT)
        instance.wait_for(lambda frame: frame.kind == frames.HEAD)
        with instance.move(seq) as way:
            instance.wait_for(lambda frame, seq=seq: frame.kind == frames.MOVED and frame.seq == seq)
            if concurrency > 1 and "async" in code:
                assert instance.stream_through(instance.send(frames.DIRECT)) == WHOLE
            begun = b"".join(f.body for f in instance.seen if f.seq == seq and f.kind in (frames.HEAD, frames.CHUNK))
            assert begun + read_all(way) == WHOLE
        end = instance.stream(seq)[-1]
        assert not end.failed


def read_all(way: socket.socket) -> bytes:
    received = []
    while piece := way.recv(1 << 20):
        received.append(piece)
    return b"".join(received)


@pytest.mark.parametrize("code", list(GENERATORS.values())[:2], ids=list(GENERATORS)[:2])
def test_who_closes_the_socket_has_left(start: Start, code: str) -> None:
    endless = code.replace("range(400)", "range(1 << 60)")
    instance = start(endless)
    instance.boot()
    for _ in range(3):
        seq = instance.send(frames.DIRECT)
        instance.wait_for(lambda frame: frame.kind == frames.HEAD)
        with instance.move(seq):
            instance.wait_for(lambda frame, seq=seq: frame.kind == frames.MOVED and frame.seq == seq)
        assert not instance.stream(seq)[-1].failed


def test_a_socket_that_comes_too_late_is_let_go(start: Start) -> None:
    """For sequential and for concurrent calls: however many streams were over before they were told, no descriptor stays."""
    code = "import os\n{} handler(event, context):\n    yield b'x' * 100_000\n    yield str(len(os.listdir('/proc/self/fd')))\n"
    for keyword in ("def", "async def"):
        instance = start(code.format(keyword))
        instance.boot()
        counts = []
        for _ in range(6):
            found = instance.stream(instance.send(frames.DIRECT))
            counts.append(found[-2].body)
            instance.move(found[0].seq).close()
        assert len(set(counts[2:])) == 1, counts
