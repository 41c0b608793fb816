"""An ASGI application's `websocket` scope in a real instance: messages both ways, who closes, what is cancelled half way."""

import pytest

from dayfly.runtime import frames
from dayfly.runtime.messages import Incoming, farewell, farewell_in, message
from tests.runtime.conftest import Start
from tests.runtime.driver import Driver, Frame, http_head
from tests.runtime.test_runtime_web import ROOT, WSGI, booted, logged

ASGI = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError
    path = scope["path"].removeprefix(scope["root_path"])
    async def say(text): await send({"type": "websocket.send", "text": text})
    async def accept(**more): await send({"type": "websocket.accept", **more})
    assert (await receive()) == {"type": "websocket.connect"}
    if path == "/scope":
        await accept(subprotocol=scope["subprotocols"][1], headers=[(b"X-A", b"1")])
        del scope["dayfly.context"]
        return await say(repr(scope))
    if path == "/deny":
        return await send({"type": "websocket.close", "code": 1000})
    if path == "/answer":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"because")]})
        return await send({"type": "websocket.http.response.body", "body": b"no"})
    if path == "/nothing":
        return
    if path == "/early":
        return await say("before it is accepted")
    if path == "/raise":
        raise KeyError("k")
    if path == "/split":
        return await accept(headers=[(b"x-a", b"1\\r\\nx-b: 2")])
    if path == "/leaves":
        print((await receive()))
        return
    await accept()
    if path == "/twice":
        await accept()
    if path == "/late":
        raise ValueError("v")
    if path == "/code":
        await send({"type": "websocket.close", "code": 99})
    if path == "/behind":
        await send({"type": "websocket.close", "code": 4000, "reason": "bye"})
        print(await receive())
        await say("too late")
    if path == "/deaf":
        try:
            await asyncio.sleep(3600)
        finally:
            print("cancelled")
    if path == "/stubborn":
        while (await receive())["type"] != "websocket.disconnect": pass
        try:
            await say("anybody?")
        except OSError as error:
            print("refused:", error)
        return
    if path == "/impatient":
        got = []
        while len(got) < 200:
            try:
                got.append((await asyncio.wait_for(receive(), 0.001))["text"])
            except asyncio.TimeoutError:
                pass
        return await say(",".join(got))
    if path == "/cut":
        for number in range(20):
            try:
                await asyncio.wait_for(send({"type": "websocket.send", "bytes": bytes([number]) * 100_000}), 0.01)
            except asyncio.TimeoutError:
                pass
        return
    if path == "/both":
        async def shout():
            for _ in range(10): await say("x" * 300_000)
        return await asyncio.gather(shout(), shout(), shout()) and None
    while (said := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: value for key, value in said.items() if key != "type"}})
    print("over", said["code"], said["reason"])
"""
HEADERS = [("host", "fn.example:8080"), ("sec-websocket-protocol", "v1, v2"), ("sec-websocket-protocol", "v3")]


class Spoken:
    """The gateway's end of one connection."""

    def __init__(self, instance: Driver, path: str) -> None:
        self.instance = instance
        self.seq, self.way = instance.send_streamed(http_head("GET", path, "q=1", HEADERS) + ROOT, kind=frames.WEBSOCKET)
        self.way.settimeout(20)
        self._incoming = Incoming(1 << 24)

    def head(self) -> Frame:
        return self.instance.wait_for(lambda frame: frame.seq == self.seq and frame.kind in (frames.HEAD, frames.RESULT))

    def say(self, kind: int, body: bytes) -> None:
        self.way.sendall(message(kind, body))

    def hear(self) -> tuple[int, bytes] | None:
        while (found := self._incoming.next()) is None:
            data = self.way.recv(1 << 16)
            if not data:
                return None
            self._incoming.feed(data)
        return found

    def leave(self, code: int = 1006, reason: str = "") -> None:
        self.way.sendall(farewell(code, reason))
        self.instance.cancel(self.seq)

    def end(self) -> Frame:
        return self.instance.stream(self.seq)[-1]


@pytest.fixture
def instance(start: Start) -> Driver:
    return booted(start, ASGI, concurrency=4)


def test_an_application_gets_a_scope_and_accepts(every: Start) -> None:
    spoken = Spoken(booted(every, ASGI), "/sc%6Fpe")
    head = spoken.head()
    assert (head.status, head.headers) == (101, [("x-a", "1"), ("sec-websocket-protocol", "v2")])
    found = spoken.hear()
    assert found is not None and eval(found[1]) == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/function/hello/scope",
        "raw_path": b"/function/hello/sc%6Fpe",
        "root_path": "/function/hello",
        "query_string": b"q=1",
        "client": ("192.0.2.7", 0),
        "server": ("fn.example", 8080),
        "subprotocols": ["v1", "v2", "v3"],
        "extensions": {"websocket.http.response": {}},
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS],
        "state": {},
    }
    assert spoken.hear() is None and not spoken.end().failed


def test_messages_pass_both_ways_until_the_client_has_left(instance: Driver) -> None:
    spoken = Spoken(instance, "/")
    for kind, body in ((1, "grüße".encode()), (2, b"\x00\xff"), (1, b""), (2, b""), (1, b"x" * 3_000_000)):
        spoken.say(kind, body)
        assert spoken.hear() == (kind, body)
    spoken.leave(4001, "enough")
    logged(instance, "over 4001 enough")
    assert spoken.hear() is None and not spoken.end().failed
    vanished = Spoken(instance, "/")
    assert vanished.head().status == 101
    vanished.way.close()
    logged(instance, "over 1006")
    assert not vanished.end().failed
    instance.wait_idle()


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/deny", 403, ""),
        ("/answer", 401, ""),
        ("/nothing", 502, "Runtime.BadAnswer"),
        ("/early", 502, "Runtime.BadAnswer"),
        ("/split", 502, "Runtime.BadAnswer"),
        ("/raise", 502, "KeyError"),
    ],
)
def test_what_does_not_accept_is_an_answer(instance: Driver, path: str, status: int, error: str) -> None:
    answer = Spoken(instance, path).head()
    assert (answer.kind, answer.status, answer.failed) == (frames.RESULT, status, bool(error))
    assert not error or answer.json()["errorType"] == error
    instance.wait_idle()


@pytest.mark.parametrize(("path", "error"), [("/twice", "Runtime.BadAnswer"), ("/late", "ValueError"), ("/code", "Runtime.BadAnswer")])
def test_what_breaks_behind_its_acceptance_ends_with_an_error(instance: Driver, path: str, error: str) -> None:
    spoken = Spoken(instance, path)
    assert spoken.hear() is None
    assert spoken.end().failed and spoken.end().json()["errorType"] == error


def test_an_application_that_closes_hears_of_the_end_and_says_no_more(instance: Driver) -> None:
    spoken = Spoken(instance, "/behind")
    found = spoken.hear()
    assert found is not None and (found[0], farewell_in(found[1])) == (frames.CLOSE, (4000, "bye"))
    spoken.leave(4000, "bye")
    logged(instance, "'websocket.disconnect', 'code': 4000")
    assert not spoken.end().failed, "OSError behind the client's leaving is no failure"


@pytest.mark.parametrize(("path", "says"), [("/leaves", "1006"), ("/stubborn", "refused:"), ("/deaf", "cancelled")])
def test_an_application_is_told_that_its_client_has_left_and_then_cancelled(instance: Driver, path: str, says: str) -> None:
    spoken = Spoken(instance, path)
    if path == "/leaves":
        spoken.way.close()
    else:
        assert spoken.head().status == 101
        spoken.leave()
    logged(instance, says)
    instance.wait_idle()
    assert not [frame for frame in instance.seen if frame.failed]


def test_a_receive_that_is_cancelled_loses_nothing(instance: Driver) -> None:
    spoken = Spoken(instance, "/impatient")
    for number in range(200):
        whole = message(frames.TEXT, b"%d" % number)
        spoken.way.sendall(whole[:3])
        spoken.way.sendall(whole[3:])
    assert spoken.hear() == (frames.TEXT, b",".join(b"%d" % number for number in range(200)))


def test_a_send_that_is_cancelled_leaves_no_half_message(instance: Driver) -> None:
    spoken = Spoken(instance, "/cut")
    assert spoken.head().status == 101
    bodies = []
    while (found := spoken.hear()) is not None:
        bodies.append(found[1])
    assert bodies and all(body == body[:1] * 100_000 for body in bodies)
    assert not spoken.end().failed


def test_messages_of_several_senders_never_mix(instance: Driver) -> None:
    spoken = Spoken(instance, "/both")
    bodies = []
    while (found := spoken.hear()) is not None:
        bodies.append(found[1])
    assert bodies == [b"x" * 300_000] * 30


def test_an_application_that_does_not_receive_is_not_read_for(instance: Driver) -> None:
    spoken = Spoken(instance, "/deaf")
    assert spoken.head().status == 101
    spoken.way.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100:
            spoken.say(frames.BINARY, bytes(100_000))
            sent += 1
    assert sent < 100
    spoken.way.close()


def test_wsgi_takes_no_websockets(start: Start) -> None:
    instance = booted(start, WSGI)
    answer = Spoken(instance, "/").head()
    assert answer.failed and answer.json()["errorType"] == "Runtime.InvalidRequest" and "WebSockets" in answer.json()["errorMessage"]


def test_the_codec_believes_no_length_and_no_kind() -> None:
    found = Incoming(10)
    data = message(frames.TEXT, b"0123456789") + message(frames.BINARY, b"") + farewell(1001, "bye")
    heard = []
    for at in range(len(data)):
        found.feed(data[at : at + 1])
        if (one := found.next()) is not None:
            heard.append(one)
    assert heard == [(1, b"0123456789"), (2, b""), (3, b"\xe9\x03bye")] and farewell_in(heard[2][1]) == (1001, "bye")
    for wrong in (frames.MESSAGE.pack(0, 1), frames.MESSAGE.pack(4, 1), frames.MESSAGE.pack(frames.TEXT, 11)):
        bad = Incoming(10)
        bad.feed(wrong)
        with pytest.raises(ValueError):
            bad.next()
    with pytest.raises(ValueError):
        farewell_in(b"x")
