"""Control as a process: order of start and end, and `kill -9` at every step of a deploy without half a state."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from dayfly.core.model.layout import Layout
from dayfly.core.wire import link
from dayfly.store.migrate import open_database
from tests.control.fakes import FakeGateway, FakeNode, proves_everything
from tests.control.world import HELLO, folders, run, zipped

PROGRAM = """
import sys
from dayfly.api.main import run
from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
data, path = sys.argv[1:]
run(Settings(data=data, run=path), Layout(data=data, run=path), lifeline=0, ready=lambda: print("ready", flush=True))
"""
NEEDY = HELLO | {"requirements.txt": "idna==3.10\n"}
MEMORY_KB_MAX = 90 * 1024


def spawn(layout: Layout) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, layout.data, layout.run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@asynccontextmanager
async def process(layout: Layout) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """Control, ready; killed at the end when it still runs."""
    child = spawn(layout)
    try:
        assert child.stdout is not None and child.stderr is not None
        line = await asyncio.to_thread(child.stdout.readline)
        assert line == b"ready\n", child.stderr.read().decode()
        yield child
    finally:
        child.kill()
        await asyncio.to_thread(child.communicate)


def client(layout: Layout) -> httpx.AsyncClient:
    token = Path(layout.control, "admin-token").read_text().strip()
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=layout.api_socket),
        base_url="http://control/api/v1",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )


async def deploy(http: httpx.AsyncClient, files: dict[str, str]) -> list[str]:
    """The events of a deploy, as far as they came."""
    lines: list[str] = []
    try:
        parts = {"config": (None, "{}"), "bundle": ("b.zip", zipped(files))}
        async with http.stream("PUT", "/functions/hello", files=parts) as answer:
            lines.extend([line async for line in answer.aiter_lines()])
    except httpx.TransportError:
        pass  # control was killed under us
    return lines


def test_it_makes_its_first_token_private_sockets_and_ends_when_told_within_its_memory() -> None:
    async def main() -> None:
        with folders() as layout:
            async with process(layout) as child:
                modes = {path: Path(path).stat().st_mode & 0o777 for path in (layout.api_socket, layout.link_socket)}
                assert set(modes.values()) == {0o600}
                token = Path(layout.control, "admin-token")
                first = token.read_text()
                assert token.stat().st_mode & 0o777 == 0o600
                async with FakeNode(layout.node_socket, layout.builds), FakeGateway(layout.link_socket), client(layout) as http:
                    assert '"deployed"' in (await deploy(http, NEEDY))[-1]
                    assert (await http.get("/functions")).json()["functions"][0]["version"] == 1
                    rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
                    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
                    assert pss < MEMORY_KB_MAX
                child.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(child.wait, 10) == 0
            async with process(layout) as child:
                assert token.read_text() == first, "a token is made only on the very first start"
                assert child.stdin is not None
                child.stdin.close()
                child.stdin = None
                assert await asyncio.to_thread(child.wait, 10) == 0, "the supervisor is gone, so it ends"

    run(main())


def test_an_open_log_stream_does_not_keep_it_from_ending() -> None:
    async def main() -> None:
        with folders() as layout:
            async with process(layout) as child, FakeGateway(layout.link_socket), client(layout) as http:
                async with http.stream("GET", "/logs?follow=true") as answer:
                    assert answer.status_code == 200
                    child.send_signal(signal.SIGTERM)
                    assert [line async for line in answer.aiter_lines()] == []
                assert await asyncio.to_thread(child.wait, 10) == 0

    run(main())


@pytest.mark.parametrize("step", ["build", "prove", "activated"])
def test_killed_at_any_step_it_comes_back_whole_and_the_next_deploy_works(step: str) -> None:
    async def main() -> None:
        with folders() as layout:
            child: subprocess.Popen[bytes]

            def judge(prove: link.Prove) -> link.Proved | None:
                if step == "prove" and prove.number == 2:
                    child.kill()
                    return None
                return proves_everything(prove)

            async with FakeNode(layout.node_socket, layout.builds) as node:
                async with process(layout) as child, FakeGateway(layout.link_socket, judge=judge) as gateway, client(layout) as http:
                    assert '"version":1' in (await deploy(http, HELLO))[-1]
                    if step == "build":
                        node.hold = asyncio.to_thread(os.kill, child.pid, signal.SIGKILL)
                    killing = asyncio.create_task(_kill_when_activated(gateway, child) if step == "activated" else asyncio.sleep(0))
                    events = await deploy(http, NEEDY)
                    await killing
                    await asyncio.to_thread(child.wait, 10)
                    assert not events or '"deployed"' not in events[-1] or step == "activated"
                node.hold = None
                async with process(layout), FakeGateway(layout.link_socket) as gateway, client(layout) as http:
                    expected = 2 if step == "activated" else 1
                    function = gateway.functions[("default", "hello")]
                    assert [it.number for it in function.versions] == list(range(1, expected + 1))
                    assert function.aliases[0].weights == ((expected, 1.0),)
                    assert Path(layout.code, function.versions[-1].code_digest, "hello.py").read_text() == HELLO["hello.py"]
                    assert list(Path(layout.builds).iterdir()) == []
                    assert not [it for it in Path(layout.code).iterdir() if it.name.startswith(".tmp")]
                    last = (await deploy(http, NEEDY))[-1]
                    assert f'"unchanged":{"true" if step == "activated" else "false"}' in last and '"deployed"' in last

    run(main())


async def _kill_when_activated(gateway: FakeGateway, child: "subprocess.Popen[bytes]") -> None:
    await gateway.wait_told(link.FunctionChanged, 2)
    child.kill()


def test_a_data_directory_of_a_newer_release_is_refused_before_any_socket_exists() -> None:
    async def main() -> None:
        with folders() as layout:
            database = open_database(Path(layout.database), 1.0)
            with database.transaction() as tx:
                tx.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
            database.close()
            child = spawn(layout)
            out, err = await asyncio.to_thread(child.communicate, b"", 30)
            assert child.returncode != 0 and out == b""
            assert b"a newer Dayfly wrote it" in err
            assert list(Path(layout.control_sockets).iterdir()) == []
            assert not Path(layout.control, "admin-token").exists()

    run(main())


def test_a_client_that_leaves_in_the_middle_of_an_upload_leaves_nothing_behind() -> None:
    async def main() -> None:
        with folders() as layout:
            async with process(layout), FakeGateway(layout.link_socket), client(layout) as http:
                head = (
                    "PUT /api/v1/functions/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n"
                    f"Authorization: {http.headers['authorization']}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
                    '--b\r\nContent-Disposition: form-data; name="bundle"; filename="b.zip"\r\n\r\n'
                )
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(layout.api_socket)
                    raw.sendall(head.encode() + b"x" * 2_000_000)
                    while not list(Path(layout.builds).iterdir()):
                        await asyncio.sleep(0.001)
                while list(Path(layout.builds).iterdir()):
                    await asyncio.sleep(0.001)
                assert (await http.get("/functions")).json() == {"functions": []}

    run(main())
