"""A small HTTP API with the shapes of docs/api.md, for tests of the command line alone. Records every request it gets."""

import email.parser
import email.policy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

CONFIG = {"handler": "hello.handler", "memory_mb": 128}
FUNCTION = {
    "namespace": "default",
    "name": "hello",
    "url": "/function/hello",
    "routes": ["GET /users/{id}"],
    "version": 2,
    "live": {"2": 1.0},
    "runtime": "python3.11",
    "memory_mb": 128,
    "auth": "token",
    "created_at": 1.0,
    "updated_at": 2.0,
}
STATISTICS = {
    "namespace": "default",
    "name": "hello",
    **dict.fromkeys(("calls", "errors", "cold", "in_flight", "waiting", "instances", "memory_mb"), 1),
    "cost": 0.0,
    "phases": {"total": {"p50_ms": 1.0, "p99_ms": 2.0, "mean_ms": 1.1}},
}
USAGE = {
    "day": "2026-01-01",
    "namespace": "default",
    "function": "hello",
    "calls": 3,
    "errors": 0,
    "cold": 1,
    "gb_seconds": 0.1,
    "cost": 0.01,
}
LIMITS = {
    "namespace": "team",
    "limits": {"concurrency": 5, "calls_per_day": 1_000_000},
    "state": [
        {"scope": "namespace", "limit": "concurrency", "value": 5.0, "used_today": None},
        {"scope": "namespace", "limit": "calls_per_day", "value": 1e6, "used_today": 1234.0},
    ],
}
SCHEDULE = {
    "namespace": "default",
    "name": "daily",
    "function": "hello",
    "expression": "rate(1 hour)",
    "timezone": "UTC",
    "jitter_seconds": 60.0,
    "offset_seconds": 12.5,
    "overlap": "skip",
    "missed": "last",
    "enabled": True,
    "declared": False,
    "paused": False,
    "next_at": 3601.0,
    "last_due": 1.0,
    "last_call": "c1",
    "counts": {"fired": 3, "skipped": 2, "missed": 1},
}
DESCRIPTION = FUNCTION | {
    "config": CONFIG,
    "versions": [{"number": 2, "created_at": 2.0, "code_digest": "ab" * 32}],
    "aliases": {"live": {"2": 0.9, "1": 0.1}},
    "statistics": STATISTICS,
    "usage_today": USAGE,
    "limits": LIMITS["state"],
}
CALL = {
    "id": "c1",
    "namespace": "default",
    "function": "hello",
    "state": "done",
    "reason": "",
    "attempts": 1,
    "accepted_at": 1.0,
    "due": 1.0,
    "expires": 9.0,
    "settled_at": 2.0,
    "qualifier": "live",
    "source": "native",
    "cost": 0.0,
    "tries": [{"leased_at": 1.0, "outcome": "ok", "status": 200, "exec_ms": 1.0, "detail": "", "again_at": 0.0}],
    "result": {"ok": True, "status": 200, "bytes": 1, "body": 1, "body_base64": "", "truncated": False},
}
MAP = {
    **dict.fromkeys(("namespace", "qualifier"), "default"),
    **dict.fromkeys(("reduce", "reason", "result_call"), ""),
    **dict.fromkeys(("concurrency", "failed", "running"), 0),
    **dict.fromkeys(("accepted", "total", "done"), 3),
    **dict.fromkeys(("created_at", "ended_at", "rate"), 1.0),
    "id": "m1",
    "function": "hello",
    "fail_fast": False,
    "state": "done",
}
ANSWERS: dict[tuple[str, str], Any] = {
    ("POST", "/api/v1/maps"): MAP | {"state": "filling", "total": -1, "accepted": 0, "done": 0},
    ("POST", "/api/v1/maps/m1/items"): MAP,
    ("GET", "/api/v1/maps"): {"maps": [MAP]},
    ("GET", "/api/v1/maps/m1"): MAP,
    ("GET", "/api/v1/maps/m1/result"): 6,
    ("POST", "/api/v1/maps/m1/cancel"): MAP | {"state": "ending"},
    ("POST", "/api/v1/maps/m1/redrive"): MAP | {"state": "redriving"},
    ("DELETE", "/api/v1/maps/m1"): {"removed": "m1"},
    ("GET", "/api/v1/calls"): {"calls": [CALL], "next": ""},
    ("GET", "/api/v1/calls/c1"): CALL,
    ("GET", "/api/v1/calls/c1/result"): 1,
    ("POST", "/api/v1/calls/cancel"): {"calls": {"c1": "cancelled"}},
    ("POST", "/api/v1/calls/redrive"): {"calls": {"c1": "waiting"}, "more": False},
    ("POST", "/api/v1/calls/purge"): {"calls": {"c1": "purged"}, "more": False},
    ("GET", "/api/v1/functions"): {"functions": [FUNCTION]},
    ("GET", "/api/v1/functions/hello"): DESCRIPTION,
    ("DELETE", "/api/v1/functions/hello"): {"removed": "hello"},
    ("POST", "/api/v1/functions/hello/rollback"): {"name": "live", "weights": {"1": 1.0}},
    ("PUT", "/api/v1/functions/hello/aliases/canary"): {"name": "canary", "weights": {"1": 0.9, "2": 0.1}},
    ("DELETE", "/api/v1/functions/hello/aliases/canary"): {"removed": "canary"},
    ("GET", "/api/v1/secrets"): {"secrets": [{"name": "key", "updated_at": 1.0}]},
    ("PUT", "/api/v1/secrets/key"): {"secret": "key"},
    ("DELETE", "/api/v1/secrets/key"): {"removed": "key"},
    ("GET", "/api/v1/tokens"): {"tokens": [{"id": "ab", "name": "ci", "namespaces": ["default"], "verbs": ["invoke"], "created_at": 1.0}]},
    ("POST", "/api/v1/tokens"): {
        "id": "ab",
        "name": "ci",
        "namespaces": ["default"],
        "verbs": ["invoke"],
        "created_at": 1.0,
        "token": "dfy_ab_cd",
    },
    ("DELETE", "/api/v1/tokens/ab"): {"removed": "ab"},
    ("GET", "/api/v1/namespaces"): {"namespaces": [{"name": "default"}]},
    ("POST", "/api/v1/namespaces"): {"name": "team"},
    ("DELETE", "/api/v1/namespaces/team"): {"removed": "team"},
    ("GET", "/api/v1/namespaces/team/limits"): LIMITS,
    ("PUT", "/api/v1/namespaces/team/limits"): LIMITS,
    ("GET", "/api/v1/schedules"): {"schedules": [SCHEDULE]},
    ("GET", "/api/v1/schedules/daily"): SCHEDULE,
    ("PUT", "/api/v1/schedules/daily"): SCHEDULE,
    ("DELETE", "/api/v1/schedules/daily"): {"removed": "daily"},
    ("POST", "/api/v1/schedules/daily/pause"): SCHEDULE | {"paused": True, "next_at": None},
    ("POST", "/api/v1/schedules/daily/resume"): SCHEDULE,
    ("POST", "/api/v1/schedules/daily/run"): {"call_id": "c2"},
    ("GET", "/api/v1/schedules/daily/next"): {"times": [3601.0, 7201.0]},
    ("GET", "/api/v1/schedule-times"): {"times": [3600.0]},
    ("GET", "/api/v1/statistics"): {"functions": [STATISTICS]},
    ("GET", "/api/v1/usage"): {"first": "2026-01-01", "last": "2026-01-01", "currency": "USD", "cost": 0.01, "usage": [USAGE]},
}
NDJSON: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("GET", "/api/v1/maps/m1/results"): [
        *({"index": index, "ok": True, "attempts": 1, "after": f"a-{index}", "result": 2 * index} for index in (2, 0, 1)),
        {"progress": MAP},
    ],
    ("GET", "/api/v1/logs"): [
        {"at": 1.0, "function": "hello", "call_id": "c1", "stream": "stdout", "level": 20, "text": "hi \x1b[31mred [bold]x[/bold]"}
    ],
    ("PUT", "/api/v1/functions/hello"): [
        {"event": "stage", "stage": "unpack", "message": ""},
        {
            "event": "deployed",
            "version": 3,
            "unchanged": False,
            "url": "/function/hello",
            "init_ms": 1.5,
            "missing": ["landlock"],
            "seconds": {"unpack": 0.1},
        },
    ],
}


class Seen:
    """One request as it came."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.path, self.query = method, parts.path, dict(parse_qsl(parts.query))
        self.headers, self.body = headers, body

    def parts(self) -> dict[str, bytes]:
        """A multipart body by name of its parts."""
        raw = b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n" + self.body
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw)
        return {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in message.iter_parts()}


class FakeApi:
    """Listens on a free port of 127.0.0.1. `answer` may replace the answer to a request: (status, headers, body)."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Seen], tuple[int, dict[str, str], bytes] | None] = lambda seen: None
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                api.seen.append(seen)
                status, headers, answer = api.answer(seen) or _usual(seen)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(answer))}.items() | headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _usual(seen: Seen) -> tuple[int, dict[str, str], bytes]:
    key = (seen.method, seen.path)
    if seen.path.endswith("/invoke"):
        headers = {"X-Call-Id": "c1", "X-Dayfly-Version": "2", "X-Dayfly-Start": "cold", "Server-Timing": "queue;dur=0.1, exec;dur=2.5"}
        return 200, headers | {"X-Amz-Log-Result": "bGluZQ=="}, seen.body
    if key in NDJSON:
        return 200, {"Content-Type": "application/x-ndjson"}, b"".join(json.dumps(line).encode() + b"\n" for line in NDJSON[key])
    if key in ANSWERS:
        return 200, {}, json.dumps(ANSWERS[key]).encode()
    return error(404, "function_not_found", "caller", "There is no such thing.")


def error(status: int, code: str, fault: str, message: str, **extra: Any) -> tuple[int, dict[str, str], bytes]:
    """An error answer as docs/api.md shapes it."""
    body = {"error": {"code": code, "fault": fault, "message": message, "hint": "Do this.", "retryable": False} | extra}
    return status, {}, json.dumps(body).encode()
