"""core/decide/routes.py: whose a host and path are; who is refused; that looking up costs the same however many functions there are."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.rollout import whole
from dayfly.core.decide.routes import DEFAULT_KEY, RESERVED, Match, Routes
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Alias, Function, FunctionConfig, Route, Version


def function(name: str, *routes: Route, namespace: str = "default", live: Alias | None = None, before: tuple[Route, ...] = ()) -> Function:
    """Version 1 has the routes `before`, version 2 `routes`; live is 2 unless it is said."""
    versions = tuple(
        Version(namespace=namespace, function=name, number=number, config=FunctionConfig(route=its), code_digest="0" * 64)
        for number, its in ((1, before), (2, routes))
    )
    return Function(namespace=namespace, name=name, aliases=(live or whole("live", 2),), versions=versions)


def at(path: str = "", host: str = "", *methods: str) -> Route:
    return Route(host=host, path=path, methods=methods)


def table(*functions: Function) -> Routes:
    routes = Routes()
    for it in functions:
        routes.put(it)
    return routes


def who(routes: Routes, target: str, method: str = "GET") -> str | None:
    """`host/path` → the function's name."""
    host, slash, path = target.partition("/")
    found = routes.find(host, method, slash + path)
    return found.function if found else None


def test_the_longest_match_wins_text_before_parameter_before_the_rest() -> None:
    routes = table(
        function("root", at("/")),
        function("rest", at("/{proxy+}")),
        function("one", at("/users/{id}")),
        function("me", at("/users/me")),
        function("posts", at("/users/{id}/posts")),
        function("files", at("/users/{id}/{rest+}")),
        function("mine", at("/users/me/settings/{rest+}")),
        function("slash", at("/users/")),
    )
    for target, name in {
        "x/": "root",
        "x/a": "rest",
        "x/a/b": "rest",
        "x/users": "rest",
        "x/users/": "slash",
        "x/users/7": "one",
        "x/users/7/": "rest",  # a slash at the end counts, and {id} is not empty
        "x/users/me": "me",
        "x/users/me/posts": "posts",  # /users/me leads nowhere, so that step is taken back
        "x/users/me/other/x": "files",
        "x/users/me/settings/a/b": "mine",
        "x/users/me/settings": "files",
        "x/users/m%65": "me",
        "x/users/a%2Fb": "one",  # an encoded slash ends no segment
        "x/users//posts": "rest",
    }.items():
        assert who(routes, target) == name, target


def test_the_most_specific_host_is_chosen_first_and_is_closed() -> None:
    routes = table(
        function("anywhere", at("/a"), at("/b")),
        function("shop", at("/a", "shop.example.com")),
        function("below", at("", "*.example.com")),
        function("deep", at("", "*.eu.example.com")),
        function("local", at("/a", "localhost")),
    )
    for target, name in {
        "other.org/a": "anywhere",
        "/a": "anywhere",
        "[::1]:8080/a": "anywhere",
        "example.com/a": "anywhere",  # a star stands for one label or more
        "shop.example.com/a": "shop",
        "SHOP.Example.com.:8443/a": "shop",
        "x.example.com/b": "below",
        "x.y.example.com/b": "below",
        "x.eu.example.com/b": "deep",
        "localhost:8080/a": "local",
        "." * 300 + "example.com/a": "anywhere",
    }.items():
        assert who(routes, target) == name, target
    with pytest.raises(Refusal) as refusal:
        routes.find("shop.example.com", "GET", "/b")  # neither *.example.com nor the routes without a host
    assert refusal.value.kind.code == "not_found"


def test_a_method_has_its_own_route_or_the_one_for_all_and_a_wrong_one_is_told_which_there_are() -> None:
    routes = table(
        function("read", at("/x", "", "GET")),
        function("write", at("/x", "", "POST", "PUT")),
        function("any", at("/y/{id}")),
        function("get", at("/y/special", "", "GET")),
    )
    assert [who(routes, "h/x", method) for method in ("GET", "HEAD", "POST", "PUT")] == ["read", "read", "write", "write"]
    assert routes.find("h", "HEAD", "/x") == Match("default", "read", "GET", "/x")
    assert routes.find("h", "DELETE", "/y/special") == Match("default", "any", "ANY", "/y/{id}"), "a less special path that takes it"
    with pytest.raises(Refusal) as refusal:
        routes.find("h", "DELETE", "/x")
    assert (refusal.value.kind.code, refusal.value.extra["allow"]) == ("method_not_allowed", "GET, POST, PUT")


def test_keys_are_those_of_payload_format_2() -> None:
    routes = table(function("f", at("/users/{id}", "", "GET"), at("/all/{proxy+}"), at("", "a.test")))
    found = [routes.find(host, "GET", path) for host, path in (("", "/users/1"), ("", "/all/x"), ("a.test", "/q"))]
    assert [it and (it.function, it.key) for it in found] == [("f", "GET /users/{id}"), ("f", "ANY /all/{proxy+}"), ("f", DEFAULT_KEY)]


@pytest.mark.parametrize("first", sorted(RESERVED))
def test_the_platforms_own_addresses_are_nobodys_on_any_host(first: str) -> None:
    routes = table(function("greedy", at("/{proxy+}"), at("/{x}"), at("", "shop.example.com")))
    for path in (f"/{first}", f"/{first}/x", "/" + "".join(f"%{ord(letter):02x}" for letter in first) + "/x"):
        assert routes.find("", "GET", path) is None
        assert routes.find("shop.example.com", "GET", path) is None


def test_a_function_has_the_routes_of_the_version_that_gets_most_of_lives_calls() -> None:
    old, new = (at("/old"),), (at("/new"),)
    routes, last = Routes(), None
    for live, answers in (
        (whole("live", 2), (None, "f")),
        (whole("live", 1), ("f", None)),  # rolled back
        (Alias(name="live", weights=((1, 0.9), (2, 0.1))), ("f", None)),
        (Alias(name="live", weights=((1, 0.1), (2, 0.9))), (None, "f")),
        (Alias(name="other", weights=((1, 1.0),)), (None, None)),
    ):
        it = function("f", *new, before=old, live=live)
        routes.put(it, last)
        last = it
        assert (who(routes, "/old"), who(routes, "/new")) == answers
    routes.put(function("f", *new), last)
    routes.remove(function("f", *new))
    routes.remove(function("f", *new))
    assert not routes and who(routes, "/new") is None


TAKEN = [
    ("/a", "", (), "GET", "is taken by function 'first' in namespace 'default'"),
    ("/users/{name}", "", (), "", "is taken by function 'first'"),  # what a parameter is called makes no difference
    ("/one", "", ("GET",), "", "is taken by function 'first'"),  # all methods are not shared with one of them
    ("/files/{x+}", "", (), "", "is taken by function 'first'"),
    ("", "shop.example.com", (), "", "is taken by function 'first'"),
]


@pytest.mark.parametrize(("path", "host", "methods", "_", "said"), TAKEN)
def test_what_is_taken_is_refused_and_the_owner_named(path: str, host: str, methods: tuple[str, ...], _: str, said: str) -> None:
    first = (at("/a", "", "GET"), at("/users/{id}"), at("/one"), at("/files/{rest+}"))
    owner = function("first", *first, at("", "shop.example.com"), at("/s", "shop.example.com"))
    routes = table(owner)
    with pytest.raises(Refusal) as refusal:
        routes.check("default", "second", (at("/free"), at(path, host, *methods)))
    assert refusal.value.kind.code == "conflict" and said in refusal.value.detail
    routes.check("default", "first", (at(path, host, *methods),))  # its own it keeps
    routes.remove(owner)
    routes.check("default", "second", (at(path, host, *methods),))


def test_other_methods_and_other_depths_of_a_path_are_free() -> None:
    routes = table(function("first", at("/a", "", "GET"), at("/users/{id}"), at("/files/{rest+}"), at("/deep/er/path")))
    free = (at("/a", "", "POST"), at("/users"), at("/users/{id}/x"), at("/users/me"), at("/files"), at("/files/{id}"), at("/deep/{rest+}"))
    routes.check("default", "second", (*free, at("/users/{id}", "shop.example.com")))


@pytest.mark.parametrize(
    ("theirs", "mine", "meet"),
    [
        ("shop.example.com", "shop.example.com", True),
        ("*.example.com", "shop.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("shop.example.com", "*.example.com", True),
        ("*.eu.example.com", "*.example.com", True),
        ("*.example.com", "*.eu.example.com", True),
        ("shop.example.com", "api.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "notexample.com", False),
        ("*.a.example.com", "*.b.example.com", False),
        ("", "shop.example.com", False),
        ("shop.example.com", "", False),
    ],
)
def test_a_host_belongs_to_one_namespace(theirs: str, mine: str, meet: bool) -> None:
    routes = table(function("first", at("/deep/{id}/x", theirs, "GET"), namespace="team-a"))
    wanted = (at("/other", mine),)
    routes.check("team-a", "second", wanted)
    if not meet:
        routes.check("team-b", "second", wanted)
        return
    with pytest.raises(Refusal, match="'first' in namespace 'team-a'") as refusal:
        routes.check("team-b", "second", wanted)
    assert refusal.value.kind.code == "conflict"


def test_the_first_keeps_what_two_claim_and_the_other_takes_nothing_with_it_when_it_leaves() -> None:
    routes = table(function("first", at("/a")), function("second", at("/a")))
    assert who(routes, "/a") == "first"
    routes.remove(function("second", at("/a")))
    assert who(routes, "/a") == "first"


def steps(routes: Routes, host: str, path: str) -> int:
    """Python calls that one look-up makes."""
    count = 0

    def seen(_frame: Any, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        found = routes.find(host, "GET", path)
    finally:
        sys.setprofile(None)
    assert found is not None
    return count


def test_looking_up_takes_as_many_steps_with_ten_thousand_functions_as_with_ten() -> None:
    few, many = Routes(), Routes()
    for number in range(10_000):
        it = function(f"f{number}", at(f"/f{number}/{{id}}/x"), at("/a/{rest+}", f"h{number}.example.com"))
        many.put(it)
        if number < 10:
            few.put(it)
    for host, path in (("", "/f5/1/x"), ("h5.example.com", "/a/b/c/d")):
        assert steps(few, host, path) == steps(many, host, path) < 20


HOSTS = ("", "a.test", "*.test", "b.a.test")
SEGMENTS = st.sampled_from(("x", "y", "{p}"))
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts)) | st.lists(SEGMENTS, max_size=3).map(
    lambda parts: "/" + "/".join((*parts, "{q+}"))
)
ROUTES = st.builds(lambda host, path: at(path, host), st.sampled_from(HOSTS), PATHS)


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(ROUTES, max_size=3)), max_size=12), st.lists(st.sampled_from("xyz"), max_size=5))
def test_however_it_was_changed_the_table_is_what_a_fresh_one_would_be_and_ends_empty(
    changes: list[tuple[int, list[Route]]], parts: list[str]
) -> None:
    routes, now = Routes(), {}
    for number, its in changes:
        name = f"f{number}"
        try:
            routes.check("default", name, tuple(its))
        except Refusal:
            continue
        last, now[name] = now.get(name), function(name, *its)
        routes.put(now[name], last)
    fresh = table(*now.values())
    for host in ("", "a.test", "b.a.test", "c.test", "d.org"):
        path = "/" + "/".join(parts)
        try:
            expected = fresh.find(host, "GET", path)
        except Refusal:
            with pytest.raises(Refusal):
                routes.find(host, "GET", path)
            continue
        assert routes.find(host, "GET", path) == expected
    for it in now.values():
        routes.remove(it)
    assert not routes and not routes._roots
