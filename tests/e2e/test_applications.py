"""Web applications written for other servers run as functions, unchanged: Flask (WSGI) and Starlette (ASGI)."""

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Platform

pytestmark = [pytest.mark.one_user, pytest.mark.network, pytest.mark.slow]

FLASK = """
from flask import Flask, Response, redirect, request, session, stream_with_context, url_for

app = Flask(__name__)
app.secret_key = "not one"

@app.get("/users/<int:number>")
def user(number):
    return {"number": number, "query": request.args.getlist("q"), "at": url_for("user", number=1), "for": request.remote_addr}

@app.post("/upload")
def upload():
    return {"size": sum(map(len, iter(lambda: request.stream.read(65536), b""))), "type": request.content_type}

@app.get("/count")
def count():
    return Response(stream_with_context(f"{number}\\n" for number in range(5)), mimetype="text/plain")

@app.get("/in")
def sign_in():
    session["name"] = "ada"
    return redirect(url_for("whoami"))

@app.get("/whoami")
def whoami():
    return session.get("name", "nobody")
"""

STARLETTE = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

done = []

@asynccontextmanager
async def lifespan(app):
    yield {"greeting": "hello"}
    print("stopped")

async def user(request):
    return JSONResponse({
        "number": request.path_params["number"], "greeting": request.state.greeting, "at": str(request.url_for("sub:user", number=1)),
        "cookies": request.cookies, "client": request.client.host, "function": request.scope["dayfly.context"].function_name,
    })

async def upload(request):
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size})

async def count(request):
    async def numbers():
        for number in range(5):
            yield f"{number}\\n"
    return StreamingResponse(numbers(), media_type="text/plain")

async def later(request):
    return PlainTextResponse(str(len(done)), background=BackgroundTask(done.append, 1))

async def wrong(request):
    raise KeyError("lost")

class Plain(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        answer = await call_next(request)
        answer.headers["x-plain"] = "yes"
        return answer

routes = [Route("/users/{number:int}", user, name="user"), Route("/upload", upload, methods=["POST"]), Route("/count", count),
          Route("/later", later), Route("/wrong", wrong)]
app = Starlette(routes=[Mount("/sub", routes=routes, name="sub")], lifespan=lifespan, middleware=[Middleware(Plain)])
"""


@pytest.fixture(scope="module")
def applications(platform: Platform) -> Iterator[Platform]:
    more = {"handler": "web:app", "auth": "none", "max_instances": 1}
    platform.put("flask", {"web.py": FLASK, "requirements.txt": "flask==3.1.2\n"}, **more)
    platform.put("starlette", {"web.py": STARLETTE, "requirements.txt": "starlette==0.50.0\n"}, concurrency=8, **more)
    yield platform


def test_flask(applications: Platform) -> None:
    asked = applications.request("GET", "/function/flask/users/7?q=a&q=b%20c", token="").json()
    assert asked == {"number": 7, "query": ["a", "b c"], "at": "/function/flask/users/1", "for": "127.0.0.1"}
    for size in (10, 1_000_000, 20_000_000):
        answer = applications.request("POST", "/function/flask/upload", bytes(size), {"content-type": "image/png"}, token="")
        assert answer.json() == {"size": size, "type": "image/png"}
    assert applications.request("GET", "/function/flask/count", token="").body == b"0\n1\n2\n3\n4\n"
    answer = applications.request("GET", "/function/flask/in", token="")
    assert (answer.status, answer.headers["location"]) == (302, "/function/flask/whoami")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert applications.request("GET", "/function/flask/whoami", headers={"cookie": cookie}, token="").body == b"ada"
    assert applications.request("GET", "/function/flask/nothing", token="").status == 404
    assert applications.request("DELETE", "/function/flask/count", token="").headers["allow"]


def test_starlette(applications: Platform) -> None:
    host = ":".join(map(str, applications.address))
    asked = applications.request("GET", "/function/starlette/sub/users/7", headers={"cookie": "a=1; b=2"}, token="")
    at = f"http://{host}/function/starlette/sub/users/1"
    told = {"number": 7, "greeting": "hello", "at": at, "cookies": {"a": "1", "b": "2"}, "client": "127.0.0.1", "function": "starlette"}
    assert asked.json() == told and asked.headers["x-plain"] == "yes"
    for size in (10, 1_000_000, 20_000_000):
        assert applications.request("POST", "/function/starlette/sub/upload", bytes(size), token="").json() == {"size": size}
    assert applications.request("GET", "/function/starlette/sub/count", token="").body == b"0\n1\n2\n3\n4\n"
    applications.wait_for(
        "background work is done", lambda: applications.request("GET", "/function/starlette/sub/later", token="").body != b"0"
    )
    assert applications.request("GET", "/function/starlette/sub/wrong", token="").status == 500
    logs = "/api/v1/logs?function=starlette&limit=100"
    applications.wait_for("the traceback is in the log", lambda: "KeyError: 'lost'" in applications.request("GET", logs).body.decode())
    redirected = applications.request("GET", "/function/starlette/sub/count/", token="")
    assert (redirected.status, redirected.headers["location"]) == (307, f"http://{host}/function/starlette/sub/count")


def test_an_application_on_a_route_of_its_own_stands_at_the_root(applications: Platform) -> None:
    more = {"handler": "web:app", "auth": "none", "route": [{"host": "flask.example"}]}
    applications.put("web-routed", {"web.py": FLASK, "requirements.txt": "flask==3.1.2\n"}, **more)
    answer = applications.request("GET", "/in", headers={"host": "flask.example"}, token="")
    assert (answer.status, answer.headers["location"]) == (302, "/whoami")
