"""Without BPF (an ordinary user's node) the broker is an HTTP proxy: the same policy, names resolved by the broker."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from dayfly.node.egress_proxy import ProxyError, parsed
from tests.egress.world import HERE, MACHINE, MACHINE6, PLATFORM_UID, PUBLIC, Platform, World


@pytest.fixture(scope="module")
def seen(world: World, platform: Platform) -> dict[str, Any]:
    """All that the node without root reports; its platform belongs to the ordinary user."""
    os.chown(platform.folder, PLATFORM_UID, PLATFORM_UID)
    platform.kill_broker()
    platform.start_broker()
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
    argv = ["ip", "netns", "exec", world.machine, sys.executable, str(HERE / "userns_node.py"), platform.socket_path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.root
def test_the_pool_says_that_steering_is_refused_and_offers_the_proxy(seen: dict[str, Any]) -> None:
    """available() names the reason; proxy_environment() is what the instance needs."""
    available = seen["available"]
    assert available["netns"] is True
    assert available["egress_internet"] is True
    assert "Operation not permitted" in available["egress_steering"]
    assert seen["environment"]["HTTPS_PROXY"] == seen["environment"]["https_proxy"] == "http://127.0.0.1:3128"


@pytest.mark.root
def test_public_hosts_answer_through_the_proxy(seen: dict[str, Any]) -> None:
    """Plain requests by absolute address and tunnels by CONNECT, by name and by number."""
    request = seen["http://example.test/path?x=1"]
    assert request.startswith("GET /path?x=1 HTTP/1.1\r\nHost: example.test\r\nConnection: close\r\n")
    assert MACHINE in seen["tunnel example.test"]
    assert PUBLIC in seen["tunnel 93.184.216.34"]
    assert MACHINE6 in seen["tunnel [2606:2800:220:1::34]"]


@pytest.mark.root
def test_refused_hosts_get_403_with_the_reason(seen: dict[str, Any]) -> None:
    """A name that points inside, private and metadata addresses, the machine itself, and its loopback."""
    assert seen["http://evil.test/"].startswith("403 Egress does not go there: private.")
    assert seen["http://10.1.2.3/"].startswith("403 ")
    assert "403" in seen["tunnel evil.test"]
    assert "403" in seen["tunnel 169.254.169.254"]
    assert "403" in seen["tunnel 93.184.215.2"]


@pytest.mark.root
def test_other_failures_have_their_own_status(seen: dict[str, Any]) -> None:
    """Unknown names are 502; what is no proxy request is 400."""
    assert seen["http://nowhere.test/"].startswith("502 nowhere.test cannot be resolved.")
    assert len(seen["rubbish"]) == 4
    assert all(answer.startswith("HTTP/1.1 400 ") for answer in seen["rubbish"])


@pytest.mark.root
def test_a_list_of_hosts_holds_in_the_proxy(seen: dict[str, Any]) -> None:
    """By name as the client says it, to the port of the rule; an address counts only where a rule has it, however it is written."""
    for host in ("example.test", "EXAMPLE.test.", "93.184.216.35"):
        assert MACHINE in seen[f"listed {host}"], host
    for host in ("93.184.216.34", "big.test", "0x5db8d822", "example.test:81"):
        assert "403" in seen[f"listed {host}"], host


@pytest.mark.root
def test_nothing_else_leaves(seen: dict[str, Any]) -> None:
    """A client that ignores the proxy gets nowhere, and instances without egress have no proxy."""
    assert seen["direct"] == "OSError"
    assert seen["none"] == "ConnectionRefusedError"


def test_a_tunnel_keeps_what_came_behind_its_head() -> None:
    """Bytes sent along with CONNECT go to the destination first."""
    request = parsed(b"CONNECT example.test:443 HTTP/1.1\r\nHost: other\r\n\r\n", b"\x16\x03")
    assert (request.host, request.port, request.tunnel, request.first) == ("example.test", 443, True, b"\x16\x03")


def test_a_forwarded_request_loses_what_is_meant_for_the_proxy() -> None:
    """Host comes from the address, hop-by-hop headers go, everything else stays; the body follows."""
    head = (
        b"POST http://user@example.test:8080/a?b=c#d HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: Basic x\r\n"
        b"Connection: keep-alive\r\nContent-Length: 2\r\nX-A: 1\r\n\r\n"
    )
    request = parsed(head, b"ok")
    assert request.first == (
        b"POST /a?b=c HTTP/1.1\r\nHost: example.test:8080\r\nConnection: close\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nok"
    )
    assert parsed(b"GET http://[2606:2800:220:1::34]/ HTTP/1.1\r\n\r\n", b"").host == "2606:2800:220:1::34"


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT example.test HTTP/1.1\r\n\r\n", b"CONNECT :443 HTTP/1.1\r\n\r\n", b"GET https://example.test/ HTTP/1.1\r\n\r\n",
        b"GET http:/// HTTP/1.1\r\n\r\n", b"GET http://a:99999/ HTTP/1.1\r\n\r\n", b"GET http://\xff/ HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nA: b\r\n c: d\x00\r\n\r\n", b"\r\n\r\n", b"\x16\x03\x01\r\n\r\n",
    ],
)  # fmt: skip
def test_hostile_heads_are_refused(head: bytes) -> None:
    """Nothing but a well-formed absolute request or CONNECT gets anywhere."""
    with pytest.raises(ProxyError) as caught:
        parsed(head, b"")
    assert caught.value.status == 400
