"""WebSockets of web applications from PyPI, unchanged (Starlette and FastAPI), spoken with by a client library: what is said both ways, who
closes and how, what goes wrong, and that whoever does not read stops the other and fills no memory."""

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.e2e.harness import Platform

pytestmark = [pytest.mark.one_user, pytest.mark.network, pytest.mark.slow]

PIECE = 256 * 1024
MUCH = 400  # pieces: far more than all sockets between two ends hold

STARLETTE = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

over, progress, here = [], {"out": 0, "in": 0}, set()

async def talk(socket):
    await socket.accept(subprotocol="v2", headers=[(b"x-room", socket.path_params["room"].encode())])
    here.add(socket)
    await socket.send_json({
        "url": str(socket.url), "client": socket.client.host, "offered": socket.scope["subprotocols"], "query": dict(socket.query_params),
        "cookies": socket.cookies, "here": len(here), "call": socket.scope["dayfly.context"].aws_request_id,
    })
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            text = message.get("text")
            if text == "close":
                return await socket.close(4001, "as you like")
            if text == "raise":
                raise ValueError("no")
            if text == "return":
                return
            if text == "huge":
                await socket.send_text("x" * (2 * 1024 * 1024))
            elif text == "all":
                for other in here:
                    await other.send_text("to all")
            elif text is not None:
                await socket.send_text(text)
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect as end:
        over.append([end.code, end.reason])
    finally:
        here.discard(socket)

async def deny(socket):
    await socket.close()

async def refuse(socket):
    await socket.send_denial_response(PlainTextResponse("not you", 401, headers={"x-why": "because"}))

async def never(socket):
    await asyncio.sleep(3600)

async def fail(socket):
    raise KeyError("early")

async def pour(socket):
    await socket.accept()
    for number in range(400):
        await socket.send_bytes(bytes([number % 256]) * 262144)
        progress["out"] = number + 1
    await socket.close()

async def drink(socket):
    await socket.accept()
    while not progress.get("thirsty"):
        await asyncio.sleep(0.01)
    while True:
        if await socket.receive_text() == "last":
            break
        progress["in"] += 1
    await socket.send_text(str(progress["in"]))

async def told(request):
    progress.update(request.query_params)
    return JSONResponse([over, progress])

routes = [WebSocketRoute("/talk/{room}", talk)] + [WebSocketRoute(f"/{it.__name__}", it) for it in (deny, refuse, never, fail, pour, drink)]
app = Starlette(routes=[*routes, Route("/told", told)])
"""

FASTAPI = """
from fastapi import Depends, FastAPI, WebSocket, WebSocketException

app = FastAPI()

async def name(q: str | None = None):
    if q is None:
        raise WebSocketException(code=1008)
    return q

@app.websocket("/items/{item}")
async def items(websocket: WebSocket, item: int, name: str = Depends(name)):
    await websocket.accept()
    async for said in websocket.iter_json():
        await websocket.send_json({"item": item, "name": name, "said": said})
"""

CONFIG: dict[str, Any] = {"handler": "web:app", "auth": "none", "websocket": True, "max_instances": 1, "concurrency": 8}


@pytest.fixture(scope="module")
def served(platform: Platform) -> Iterator[Platform]:
    platform.put("talks", {"web.py": STARLETTE, "requirements.txt": "starlette==0.50.0\n"}, timeout_seconds=120, **CONFIG)
    yield platform


@pytest.fixture
def client(served: Platform) -> Callable[..., connect]:
    host, port = served.address
    return lambda path, name="talks", **options: connect(f"ws://{host}:{port}/function/{name}{path}", compression=None, **options)


def told(served: Platform, query: str = "", name: str = "talks") -> Any:
    return served.request("GET", f"/function/{name}/told{query}", token="").json()


def wait_told(served: Platform, code: int, reason: str, name: str = "talks") -> None:
    """`reason`: how it begins."""
    served.wait_for(
        f"the application is told of {code}", lambda: any(c == code and r.startswith(reason) for c, r in told(served, name=name)[0])
    )


def answers(served: Platform) -> bool:
    try:
        return bool(told(served))
    except (OSError, http.client.HTTPException):
        return False


def end_of(socket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            socket.recv(timeout=20)
    found = closed.value.rcvd
    return (found.code, found.reason) if found is not None else (1006, "")


def test_a_conversation(served: Platform, client: Callable[..., connect]) -> None:
    host = ":".join(map(str, served.address))
    options = {"subprotocols": [Subprotocol("v1"), Subprotocol("v2")], "additional_headers": {"cookie": "a=1"}}
    with client("/talk/b%20c?q=1", **options) as ada:
        hello = json.loads(ada.recv(timeout=20))
        assert ada.response is not None and ada.response.headers["x-room"] == "b c" and ada.subprotocol == "v2"
        assert hello.pop("call") == ada.response.headers["x-call-id"]
        url = f"ws://{host}/function/talks/talk/b c?q=1"  # as Starlette decodes it
        assert hello == {"url": url, "client": "127.0.0.1", "offered": ["v1", "v2"], "query": {"q": "1"}, "cookies": {"a": "1"}, "here": 1}
        for message in ("grüße", "", b"\x00\xff", b"", "x" * (1024 * 1024), b"y" * (1024 * 1024)):
            ada.send(message)
            assert ada.recv(timeout=20) == message
        ada.send(["in ", "three ", "pieces"])
        assert ada.recv(timeout=20) == "in three pieces"
        with client("/talk/x") as bob:
            assert json.loads(bob.recv(timeout=20))["here"] == 2, "one instance has both"
            bob.send("all")
            assert (ada.recv(timeout=20), bob.recv(timeout=20)) == ("to all", "to all")
        assert ada.ping().wait(20)


def test_either_side_closes_and_the_other_knows_how(served: Platform, client: Callable[..., connect]) -> None:
    with client("/talk/x") as socket:
        socket.send("close")
        assert end_of(socket) == (4001, "as you like")
    with client("/talk/x") as socket:
        socket.send("return")
        assert end_of(socket) == (1000, "")
    with client("/talk/x") as socket:
        socket.close(4002, "enough")
    wait_told(served, 4002, "enough")
    with client("/talk/x") as socket:
        socket.socket.close()
    wait_told(served, 1006, "")


def test_a_connection_that_is_denied_is_answered_in_http(served: Platform, client: Callable[..., connect]) -> None:
    found = {}
    for path in ("/deny", "/refuse", "/fail", "/nothing"):
        with pytest.raises(InvalidStatus) as denied:
            client(path).__enter__()
        found[path] = (denied.value.response.status_code, bytes(denied.value.response.body or b""))
        if path == "/refuse":
            assert denied.value.response.headers["x-why"] == "because"
    assert (found["/deny"], found["/refuse"], found["/nothing"][0]) == ((403, b""), (401, b"not you"), 403)
    assert found["/fail"][0] == 502 and json.loads(found["/fail"][1])["error"]["code"] == "function_error"


def test_what_goes_wrong_has_its_code(served: Platform, client: Callable[..., connect]) -> None:
    with client("/talk/x") as socket:
        socket.send("raise")
        assert end_of(socket) == (1011, "function_error")
    logs = "/api/v1/logs?function=talks&limit=1000"
    served.wait_for("the traceback is in the log", lambda: "ValueError: no" in served.request("GET", logs).body.decode())
    with client("/talk/x") as socket:
        socket.send("huge")
        assert end_of(socket) == (1011, "function_bad_answer"), "more than a message may have"
    with client("/talk/x", max_size=None) as socket:
        socket.send("x" * (1024 * 1024 + 1))
        assert end_of(socket)[0] == 1009
    wait_told(served, 1009, "")


def test_an_application_that_pours_is_stopped_by_a_client_that_does_not_read(served: Platform, client: Callable[..., connect]) -> None:
    with client("/pour", max_size=None, max_queue=1) as socket:
        counts = [told(served)[1]["out"]]
        served.wait_for("it stands still", lambda: counts.append(told(served)[1]["out"]) or counts[-1] == counts[-2] > 0)
        assert counts[-1] < MUCH // 2, "most of it was never said"
        for number in range(MUCH):
            assert socket.recv(timeout=20) == bytes([number % 256]) * PIECE
        assert end_of(socket) == (1000, "")


def test_a_client_that_pours_is_stopped_by_an_application_that_does_not_read(served: Platform, client: Callable[..., connect]) -> None:
    with client("/drink", close_timeout=0.1) as socket:
        socket.socket.settimeout(1.0)
        sent = []
        with pytest.raises(TimeoutError):
            for _ in range(MUCH // 2):
                sent.append(socket.socket.sendall(b"\x81\xff" + PIECE.to_bytes(8, "big") + b"\0\0\0\0" + b"x" * PIECE))
        assert sent, "the first fit the sockets between"
    with client("/drink") as socket:
        told(served, "?thirsty=yes")
        before = told(served)[1]["in"]
        for _ in range(MUCH):
            socket.send("x" * PIECE)
        socket.send("last")
        assert int(socket.recv(timeout=60)) == told(served)[1]["in"] >= before + MUCH


def test_a_connection_has_its_time_and_one_that_nobody_accepts_too(served: Platform, client: Callable[..., connect]) -> None:
    served.put("brief", {"web.py": STARLETTE, "requirements.txt": "starlette==0.50.0\n"}, timeout_seconds=2, **CONFIG)
    with client("/talk/x", name="brief") as socket:
        assert end_of(socket) == (1001, "function_timeout")
    wait_told(served, 1001, "function_timeout", name="brief")
    with pytest.raises(InvalidStatus) as denied:
        client("/never", name="brief").__enter__()
    assert denied.value.response.status_code == 504


def test_a_deploy_leaves_open_connections_where_they_are(served: Platform, client: Callable[..., connect]) -> None:
    files = {"web.py": STARLETTE, "requirements.txt": "starlette==0.50.0\n"}
    served.put("stays", files, timeout_seconds=60, **CONFIG)
    with client("/talk/x", name="stays") as old:
        old.recv(timeout=20)
        served.put("stays", files | {"web.py": STARLETTE.replace('"to all"', '"to the new"')}, timeout_seconds=60, **CONFIG)
        with client("/talk/x", name="stays") as new:
            assert json.loads(new.recv(timeout=20))["here"] == 1
            new.send("all")
            old.send("all")
            assert (new.recv(timeout=20), old.recv(timeout=20)) == ("to the new", "to all")
        served.request("DELETE", "/api/v1/functions/stays")
        old.send("more")
        assert end_of(old)[0] == 1008


def test_a_gateway_that_dies_or_leaves_takes_its_connections_along_and_says_so_where_it_can(
    served: Platform, client: Callable[..., connect]
) -> None:
    with client("/talk/x") as socket:
        socket.recv(timeout=20)
        old = served.roles()["gateway"]
        served.cli("restart", "--rolling")
        assert end_of(socket) == (1001, "the platform is stopping")
    served.wait_for("a new gateway serves", lambda: served.roles()["gateway"] not in (0, old))
    with client("/talk/x") as socket:
        socket.recv(timeout=20)
        os.kill(served.roles()["gateway"], signal.SIGKILL)
        assert end_of(socket) == (1006, "")
    served.wait_for("calls are answered again", lambda: served.roles()["gateway"] and answers(served))
    with client("/talk/x") as socket:
        assert json.loads(socket.recv(timeout=20))["here"] == 1


def test_fastapi(served: Platform, client: Callable[..., connect]) -> None:
    served.put("fast", {"web.py": FASTAPI, "requirements.txt": "fastapi==0.121.0\n"}, **CONFIG)
    with client("/items/7?q=ada", name="fast") as socket:
        socket.send('{"a": [1]}')
        assert json.loads(socket.recv(timeout=20)) == {"item": 7, "name": "ada", "said": {"a": [1]}}
    with pytest.raises(InvalidStatus) as denied:
        client("/items/7", name="fast").__enter__()
    assert denied.value.response.status_code == 403
