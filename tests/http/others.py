"""Well-known servers on ports of their own, all answering with the target that they saw. Started by compare.py, from a temporary folder.

uvicorn (on h11) and aiohttp answer by themselves; nginx and HAProxy pass on to `origin`, a server that believes whatever they send.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UVICORN = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    while (await receive()).get("more_body"):
        pass
    body = scope["raw_path"] + b"?" + scope["query_string"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), http="h11", lifespan="off", log_level="critical", timeout_keep_alive=1)
"""
AIOHTTP = """
import sys
from aiohttp import web
async def handler(request):
    await request.read()
    return web.Response(text=request.raw_path)
app = web.Application()
app.router.add_route("*", "/{rest:.*}", handler)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, keepalive_timeout=1, access_log=None)
"""
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; client_header_timeout 1; client_body_timeout 1; keepalive_timeout 1; merge_slashes off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; server_name _; location / {{ proxy_pass http://127.0.0.1:{origin}; }} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout client 1s
  timeout server 2s
  timeout connect 1s
  timeout http-request 1s
  timeout http-keep-alive 1s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server o 127.0.0.1:{origin}
"""


@dataclass(frozen=True)
class Server:
    """One of them, running. `name` has its version."""

    name: str
    port: int


async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer, no doubts: what reaches it has been through a proxy."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError, asyncio.LimitOverrunError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await reader.readexactly(size + 2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
        elif "content-length" in headers:
            await reader.readexactly(int(headers["content-length"]))
        target = lines[0].split(" ")[1].encode("latin-1")
        body = b"" if head.startswith("HEAD") else target
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(target), body))
    writer.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_listens(port: int, process: subprocess.Popen[bytes], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, f"{process.args!r} has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on {port}")


def version_of(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The first number with dots in what a command says of itself."""
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    words = (said.stdout + said.stderr).replace("/", " ").replace("-", " ").split()
    return next(word for word in words if word[0].isdigit() and "." in word)


@contextlib.contextmanager
def running(folder: Path, python: str, root: Path, origin_port: int) -> Iterator[list[Server]]:
    """All of them: `python` has the packages, `root` the unpacked Debian packages, `folder` takes what they write."""
    libraries = os.environ | {"LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")}
    nginx, haproxy = str(root / "usr/sbin/nginx"), str(root / "usr/sbin/haproxy")
    ports = [free_port() for _ in range(4)]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=ports[2], origin=origin_port))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=ports[3], origin=origin_port))
    ask = [python, "-c", "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"]
    uvicorn, aiohttp, h11 = subprocess.run([*ask, "uvicorn", "aiohttp", "h11"], capture_output=True, text=True, check=True).stdout.split()
    plans = [
        (f"uvicorn {uvicorn} (h11 {h11})", [python, "-c", UVICORN, str(ports[0])]),
        (f"aiohttp {aiohttp}", [python, "-c", AIOHTTP, str(ports[1])]),
        (f"nginx {version_of([nginx, '-v'])}", [nginx, "-p", f"{folder}", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/nginx.log"]),
        (f"HAProxy {version_of([haproxy, '-v'], libraries)}", [haproxy, "-q", "-f", f"{folder}/haproxy.cfg"]),
    ]
    processes = [subprocess.Popen(command, env=libraries, stderr=subprocess.DEVNULL) for _, command in plans]
    try:
        for port, process in zip(ports, processes, strict=True):
            wait_until_it_listens(port, process)
        yield [Server(name, port) for (name, _), port in zip(plans, ports, strict=True)]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)
