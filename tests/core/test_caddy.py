"""core/wire/caddy.py: what the TLS front is told. That Caddy does as it is told is tried in tests/gateway/test_front.py."""

import json
from typing import Any

import pytest

from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy


def told(**settings: Any) -> dict[str, Any]:
    found = caddy.config(Settings(domain="Example.org, www.example.org", **settings), "/data/front", (7, 8))
    assert json.loads(json.dumps(found)) == found
    return found


def test_it_has_no_admin_api_no_port_of_its_own_and_no_http_3() -> None:
    config = told()
    assert config["admin"] == {"disabled": True, "config": {"persist": False}}
    servers = config["apps"]["http"]["servers"]
    assert {name: (server["listen"], server["protocols"]) for name, server in servers.items()} == {
        "https": (["fd/7"], ["h1", "h2"]),
        "http": (["fd/8"], ["h1"]),
    }
    assert config["storage"]["root"] == "/data/front"
    assert config["apps"]["tls"]["certificates"]["automate"] == ["example.org", "www.example.org"]


@pytest.mark.parametrize(
    ("host", "dial"),
    [
        ("127.0.0.1", "127.0.0.1:8080"),
        ("0.0.0.0", "127.0.0.1:8080"),
        ("::", "[::1]:8080"),
        ("::1", "[::1]:8080"),
        ("192.0.2.1", "192.0.2.1:8080"),
    ],
)
def test_it_connects_to_the_gateway_where_that_listens(host: str, dial: str) -> None:
    (proxy,) = told(host=host)["apps"]["http"]["servers"]["https"]["routes"][0]["handle"]
    assert proxy["upstreams"] == [{"dial": dial}]


@pytest.mark.parametrize(
    ("domain", "tls", "said"),
    [
        ("exa mple.org", "acme", "no host name"),
        ("https://example.org", "acme", "no host name"),
        ("example.org:443", "acme", "no host name"),
        (",", "acme", "names nothing"),
        ("*.example.org", "acme", "to a name server only"),
        ("*.org", "internal", "no host name"),
        (",".join(f"h{number}.example.org" for number in range(caddy.DOMAINS_MAX + 1)), "acme", "at most 100"),
    ],
)
def test_what_is_no_domain_is_refused(domain: str, tls: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        caddy.domains_of(Settings(domain=domain, front_tls=tls))


def test_domains_are_read_once_each_and_shown_with_their_port() -> None:
    assert caddy.domains_of(Settings(domain="")) == ()
    assert caddy.domains_of(Settings(domain="*.a.test, A.test,a.test", front_tls="internal")) == ("*.a.test", "a.test")
    assert caddy.urls_of("a.test, B.test", 443) == ["https://a.test", "https://b.test"]
    assert caddy.urls_of("a.test", 8443) == ["https://a.test:8443"]
    assert caddy.urls_of("", 443) == []
