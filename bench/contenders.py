"""Who is measured: Dayfly, and the baselines in the same run. Each can be started, called, weighed and ended.

Baselines run in an environment of their own (DAYFLY_BENCH_BASELINES: its Python) and the Lambda emulator is the binary from the
aws-sam-cli wheel (DAYFLY_BENCH_EMULATOR); scripts/bench provides both. One that is not there is left out, and the report says so.
"""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bench.load import Client, Reply, Request
from bench.processes import cpu_seconds
from tests.e2e.harness import Platform, descendants, end_with_parent

SUBJECTS = Path(__file__).parent / "subjects"
START_SECONDS_MAX = 20.0
EVENT = {"name": "Ada", "visits": 41, "note": "a direct event of one hundred bytes, as small callers send it"}
EVENT_PATH = "/greet/ada?name=Ada&lang=en"
ROWS = [
    {"id": n, "title": f"Row number {n} of a table", "price": n * 1.25, "tags": ["a", "bc", "def"], "there": n % 2 == 0} for n in range(106)
]
BODIES = {  # by kind; "proxy" is a whole HTTP request
    "direct": json.dumps(EVENT).encode(),
    "big": json.dumps({"name": "Ada", "rows": ROWS}, separators=(",", ":")).encode(),
}


class Baseline:
    """A server in processes of its own. Subclasses say how it is started and how it is called."""

    name = ""

    def __init__(self, kind: str) -> None:
        self.kind = kind  # a key of BODIES, or "proxy"; also the module of the handler
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ("127.0.0.1", 0)

    def command(self, port: int) -> list[str]:
        """argv of the server."""
        raise NotImplementedError

    def request(self) -> Request:
        """The call that is measured."""
        if self.kind in BODIES:
            return Request("POST", "/", {"Content-Type": "application/json"}, BODIES[self.kind])
        return Request("GET", EVENT_PATH, {"User-Agent": "bench"})

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> float:
        """Start it and make one call. Returns the milliseconds from the start to the answer. Raises RuntimeError."""
        begun = self.begin()
        return (self.first_answer() - begun) * 1000

    def begin(self, port: int = 0) -> float:
        """Start its process, on a free port or this one, without waiting for it. Returns when, by time.perf_counter."""
        port = port or free_port()
        self.address = ("127.0.0.1", port)
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            self.command(port),
            cwd=SUBJECTS,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        return begun

    def first_answer(self) -> float:
        """Wait until it listens and make one call. Returns when it was answered. Raises RuntimeError."""
        client = self._connect(time.perf_counter() + START_SECONDS_MAX)
        reply = client.call(self.request().raw("127.0.0.1"))
        client.close()
        if reply.status != 200 or b"Hello, Ada!" not in reply.body:
            raise RuntimeError(f"{self.name} answers {reply.status} {reply.body[:300]!r}")
        return time.perf_counter()

    def _connect(self, deadline: float) -> Client:
        while time.perf_counter() < deadline and self.process is not None and self.process.poll() is None:
            try:
                return Client(self.address)
            except ConnectionRefusedError:
                time.sleep(0.0005)  # a server that is not listening yet tells nobody when it does
        raise RuntimeError(f"{self.name} does not start: {self.command(self.address[1])}")

    def roots(self) -> list[int]:
        """Pids whose trees are all that it runs."""
        return [self.process.pid] if self.process is not None else []

    def stop(self) -> None:
        """End all of it; safe to call again."""
        if self.process is None:
            return
        tree = list(descendants(self.process.pid))
        for pid in reversed(tree):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None


class Bare(Baseline):
    """The handler behind its own socket: the limit."""

    name = "bare handler"

    def command(self, port: int) -> list[str]:
        mode = "direct" if self.kind in BODIES else "event"
        return [baselines_python(), "bare.py", f"{self.kind}.py", mode, str(port)]


class FunctionsFramework(Baseline):
    """Google's framework under gunicorn, as its documentation deploys it: one worker per core, threads."""

    name = "functions-framework"

    def command(self, port: int) -> list[str]:
        cores = len(os.sched_getaffinity(0))
        app = f"functions_framework:create_app('{self.kind}', 'gcf.py')"
        return [
            baselines_python(),
            "-m",
            "gunicorn",
            "-b",
            f"127.0.0.1:{port}",
            "-w",
            str(cores),
            "--threads",
            "8",
            "--keep-alive",
            "75",
            app,
        ]


class Emulator(Baseline):
    """AWS's Lambda runtime interface emulator with AWS's own Python client. It runs one call at a time."""

    name = "lambda emulator"

    def command(self, port: int) -> list[str]:
        listen = [
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{port}",
            "--runtime-api-address",
            f"127.0.0.1:{free_port()}",
        ]
        return [emulator(), *listen, "--log-level", "error", baselines_python(), "-m", "awslambdaric", f"{self.kind}.handler"]

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
            "AWS_LAMBDA_FUNCTION_NAME": "subject",
            "LAMBDA_TASK_ROOT": str(SUBJECTS),
        }

    def request(self) -> Request:
        path = "/2015-03-31/functions/function/invocations"
        body = BODIES.get(self.kind) or json.dumps(proxy_event()).encode()
        return Request("POST", path, {"Content-Type": "application/json"}, body)


class Dayfly:
    """A function on a platform, called over its public port with a token, as any caller would."""

    name = "dayfly"

    def __init__(self, platform: Platform, function: str, kind: str) -> None:
        self.platform = platform
        self.function = function
        self.kind = kind
        self.address = platform.address

    def request(self) -> Request:
        bearer = {"Authorization": f"Bearer {self.platform.token}"}
        if self.kind in BODIES:
            path = f"/api/v1/functions/{self.function}/invoke"
            return Request("POST", path, bearer | {"Content-Type": "application/json"}, BODIES[self.kind])
        return Request("GET", f"/function/{self.function}{EVENT_PATH}", bearer | {"User-Agent": "bench"})

    def roots(self) -> list[int]:
        return [self.platform.pid]

    def check(self) -> Reply:
        """One call, and that its answer is the handler's."""
        client = Client(self.address)
        try:
            reply = client.call(self.request().raw("127.0.0.1"))
        finally:
            client.close()
        if reply.status != 200 or b"Hello, Ada!" not in reply.body:
            raise RuntimeError(f"dayfly answers {reply.status} {reply.body[:500]!r}\n{self.platform.log_text()[-2000:]}")
        return reply


def baselines(kind: str) -> list[Baseline]:
    """Those that can be run here."""
    found: list[Baseline] = []
    if baselines_python():
        found += [Bare(kind), FunctionsFramework(kind)]
        if emulator():
            found.append(Emulator(kind))
    return found


def proxy_event() -> dict[str, Any]:
    """What a gateway in front of Lambda would have made of the HTTP request."""
    http = {"method": "GET", "path": "/greet/ada", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "bench"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/greet/ada",
        "rawQueryString": "name=Ada&lang=en",
        "headers": {"user-agent": "bench", "host": "127.0.0.1"},
        "queryStringParameters": {"name": "Ada", "lang": "en"},
        "requestContext": {"http": http, "requestId": "0", "stage": "$default"},
        "isBase64Encoded": False,
    }


def baselines_python() -> str:
    return os.environ.get("DAYFLY_BENCH_BASELINES", "")


def emulator() -> str:
    return os.environ.get("DAYFLY_BENCH_EMULATOR", "")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As many different ones."""
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def cpu_us_per_call(roots: list[int], before: float, calls: int) -> float:
    """CPU time since `before` (from `cpu_seconds`) per call, in microseconds."""
    return (cpu_seconds(roots) - before) * 1e6 / max(1, calls)
