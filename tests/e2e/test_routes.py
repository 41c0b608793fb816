"""Functions by addresses of their own, on a real platform: events, conflicts, rollbacks, and what `dayfly ls` and `describe` show."""

import json

import pytest

from tests.e2e.harness import Platform

pytestmark = pytest.mark.one_user

ECHO = """
def handler(event, context):
    return [context.function_version, event["routeKey"], event.get("pathParameters"), event["rawPath"]]
"""


def manifest(*routes: str) -> dict[str, str | bytes]:
    tables = "".join(f"\n[[route]]\n{route}\n" for route in routes)
    return {"handler.py": ECHO, "dayfly.toml": 'auth = "none"\n' + tables}


def test_a_route_reaches_its_function_follows_live_and_is_free_when_it_is_gone(platform: Platform) -> None:
    platform.put("routed", manifest('path = "/e2e/users/{id}"\nmethods = ["GET"]', 'host = "*.routed.test"'))
    assert platform.request("GET", "/e2e/users/a%20b?x=1").json() == ["1", "GET /e2e/users/{id}", {"id": "a b"}, "/e2e/users/a%20b"]
    assert platform.request("POST", "/any", b"", {"Host": "eu.routed.test"}).json() == ["1", "$default", None, "/any"]
    assert platform.request("PUT", "/e2e/users/1", b"").status == 405
    assert platform.request("GET", "/e2e/nobody").json()["error"]["code"] == "not_found"

    taken = platform.try_put("thief", manifest('path = "/e2e/users/{name}"'))
    assert taken["error"]["code"] == "conflict" and "function 'routed' in namespace 'default'" in taken["error"]["message"]

    assert platform.put("routed", manifest('path = "/e2e/files/{rest+}"'))["routes"] == ["ANY /e2e/files/{rest+}"]
    assert platform.request("GET", "/e2e/files/a/b").json() == ["2", "ANY /e2e/files/{rest+}", {"rest": "a/b"}, "/e2e/files/a/b"]
    assert platform.request("GET", "/e2e/users/1").status == 404
    platform.cli("rollback", "routed")
    assert platform.request("GET", "/e2e/users/1").json()[0] == "1"
    assert platform.request("GET", "/e2e/files/a/b").status == 404

    assert "GET /e2e/users/{id}; ANY *.routed.test/" in platform.cli("ls")
    assert "  route GET /e2e/users/{id}\n  route ANY *.routed.test/\n" in platform.cli("describe", "routed")
    platform.cli("rm", "routed", "--yes")
    assert platform.request("GET", "/e2e/users/1").status == 404
    platform.put("thief", manifest('path = "/e2e/users/{name}"'))
    assert platform.request("GET", "/e2e/users/1").json()[1] == "ANY /e2e/users/{name}"


def test_a_reserved_path_and_a_wrong_route_are_refused_by_name(platform: Platform) -> None:
    failed = platform.try_put("wrong", manifest('path = "/api/v1/mine"', 'path = "/a{b}"'))
    assert failed["error"]["code"] == "bad_config"
    assert [text.partition(":")[0] for text in failed["error"]["problems"]] == ["route[0]", "route[1]"]
    assert "/api is the platform's own" in json.dumps(failed)
