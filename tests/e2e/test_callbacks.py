"""Who is told how a call ended: destinations and callbacks, on a real platform with a receiver that misbehaves in every way."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.harness import Platform
from tests.e2e.test_async import BROKEN, ECHO, accepted, send, settled

pytestmark = pytest.mark.one_user

KEEP = "def handler(event, context):\n    return event\n"
ONCE = {"policy": "own", "attempts": 1}


class Receiver(ThreadingHTTPServer):
    """Remembers what it was told; answers by path: /ok, /busy (503 the first time), /redirect, /hang, /endless."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, dict[str, str], bytes]] = []
        self.heard = threading.Condition()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def about(self, call_id: str, count: int = 1) -> list[tuple[str, dict[str, str], bytes]]:
        """What it was told about a call, once that was so often."""

        def found() -> list[tuple[str, dict[str, str], bytes]]:
            return [it for it in self.told if it[1].get("x-dayfly-call-id") == call_id]

        with self.heard:
            assert self.heard.wait_for(lambda: len(found()) >= count, 20), f"told {self.told}"
            return found()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        with server.heard:
            before = sum(it[2] == body for it in server.told)
            server.told.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            server.heard.notify_all()
        if self.path == "/hang":
            server.over.wait(60)
        elif self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while not server.over.is_set():
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass
        else:
            busy = self.path == "/busy" and not before
            self.send_response(503 if busy else 204)
            if busy:
                self.send_header("Retry-After", "0")
            self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, receiver: Receiver) -> Iterator[Platform]:
    """A platform that may call this machine back."""
    with Platform({"callback_allow": "127.0.0.0/8", "callback_timeout_seconds": 1}) as platform:
        platform.put("keep", KEEP)
        platform.put("good", ECHO, **{"async": {"on_success": "keep", "on_failure": f"{receiver.url}/ok"}})
        platform.put("bad", BROKEN, **{"async": ONCE | {"on_failure": f"{receiver.url}/ok"}})
        platform.put("worse", BROKEN, **{"async": ONCE | {"on_failure": "keep"}})
        platform.put("circle", BROKEN, **{"async": ONCE | {"on_failure": "circle"}})
        platform.put("echo", ECHO)
        yield platform


def made_by(platform: Platform, call_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.request("GET", f"/api/v1/calls?tag=from:{call_id}").json()["calls"]
    return found


def test_a_functions_destination_gets_lambdas_record(told: Platform) -> None:
    for name, condition, error in (("good", "Success", None), ("worse", "RetriesExhausted", "Unhandled")):
        call = settled(told, accepted(send(told, name, {"n": 1})))
        (destination,) = made_by(told, call["id"])
        record = settled(told, destination["id"])["result"]["body"]
        assert record["version"] == "1.0" and record["requestPayload"] == {"n": 1}
        assert (record["requestContext"]["requestId"], record["requestContext"]["condition"]) == (call["id"], condition)
        assert record["responseContext"].get("functionError") == error
        assert record["responsePayload"] == call["result"]["body"]
        assert record["requestContext"]["functionArn"].endswith(f"function:{name}:$LATEST")


def test_an_http_destination_gets_the_record_signed(told: Platform, receiver: Receiver) -> None:
    call = settled(told, accepted(send(told, "bad", 5)))
    ((path, headers, body),) = receiver.about(call["id"])
    assert path == "/ok" and json.loads(body)["requestContext"]["condition"] == "RetriesExhausted"
    key = bytes.fromhex(told.request("GET", "/api/v1/callback-key").json()["key"])
    signed = hmac.new(key, headers["x-dayfly-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-dayfly-signature"] == f"v1={signed}"


def test_a_callback_url_gets_the_answer_with_openfaas_headers(told: Platform, receiver: Receiver) -> None:
    call_id = accepted(send(told, "echo", "text", X_Callback_Url=f"{receiver.url}/busy"))
    call = settled(told, call_id)
    first, second = receiver.about(call_id, 2)
    assert first[2] == second[2] and json.loads(second[2]) == call["result"]["body"]
    headers = second[1]
    assert (headers["x-call-id"], headers["x-function-name"], headers["x-function-status"]) == (call_id, "echo.default", "200")
    assert float(headers["x-duration-seconds"]) >= 0 and headers["content-type"] == "application/json"


@pytest.mark.parametrize(("path", "word"), [("/redirect", "redirects are not followed"), ("/hang", "callback_timeout_seconds")])
def test_a_receiver_that_redirects_or_hangs_is_tried_again(told: Platform, receiver: Receiver, path: str, word: str) -> None:
    call_id = accepted(send(told, "echo", path, X_Callback_Url=f"{receiver.url}{path}"))
    settled(told, call_id)
    (callback,) = made_by(told, call_id)
    url = f"/api/v1/calls/{callback['id']}"
    seen = told.wait_until("an attempt is written down", url, lambda it: it["tries"])
    assert seen["tries"][0]["outcome"] == "error" and word in seen["tries"][0]["detail"] and seen["state"] != "done"
    assert callback["function"] == "@callback"
    assert told.request("POST", f"{url}/cancel").status == 200
    assert all(it[0] != "/ok" for it in receiver.about(call_id))


def test_an_endless_answer_is_read_to_a_bound(told: Platform, receiver: Receiver) -> None:
    call_id = accepted(send(told, "echo", "endless", X_Callback_Url=f"{receiver.url}/endless"))
    settled(told, call_id)
    (callback,) = made_by(told, call_id)
    assert settled(told, callback["id"])["state"] == "done"


def test_a_circle_of_destinations_ends_at_the_depth(told: Platform) -> None:
    root = accepted(send(told, "circle", 1))

    def is_over(said: dict[str, Any]) -> bool:
        return len([it for it in said["calls"] if it["state"] == "dead"]) == 33  # async_depth_max 32, and the first

    told.wait_until("every link of the chain is dead", "/api/v1/calls?function=circle&limit=100", is_over)
    assert settled(told, root)["state"] == "dead"


def test_a_callback_to_this_machine_is_refused_unless_it_was_allowed(platform: Platform, receiver: Receiver) -> None:
    platform.put("c-echo", ECHO)
    for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"):
        call_id = accepted(send(platform, "c-echo", 1, X_Callback_Url=f"http://{host}:{receiver.server_address[1]}/ok"))
        settled(platform, call_id)
        (callback,) = made_by(platform, call_id)
        call = settled(platform, callback["id"])
        assert (call["state"], call["reason"]) == ("dead", "callback_not_allowed"), (host, call)
