"""Tables of a function's dayfly.toml that say how it is reached and by whom: [[route]], [cors]."""

from typing import Any

import pytest

from dayfly.core.decide.routes import RESERVED
from dayfly.core.manifest.cors import ITEMS_MAX, MAX_AGE_SECONDS_MAX
from dayfly.core.manifest.function import Surroundings, checked_config
from dayfly.core.manifest.route import PATH_LENGTH_MAX, ROUTES_MAX, SEGMENTS_MAX
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Cors, Route

AROUND = Surroundings(runtimes=("python3.11",), default_runtime="python3.11", secrets=(), files=("hello.py",))


def problems(**table: Any) -> list[str]:
    with pytest.raises(Refusal) as refusal:
        checked_config(table, {}, AROUND)
    assert refusal.value.kind.code == "bad_config"
    found = refusal.value.extra["problems"]
    assert isinstance(found, list)
    return found


def test_routes_are_read_with_their_defaults_and_in_one_spelling() -> None:
    given = [{"host": "Shop.Example.com"}, {"path": "/users/{id}/{rest+}", "methods": ["get", "POST"]}, {"path": "/", "host": "*.a.test"}]
    assert checked_config({"route": given}, {}, AROUND).route == (
        Route(host="shop.example.com"),
        Route(path="/users/{id}/{rest+}", methods=("GET", "POST")),
        Route(path="/", host="*.a.test"),
    )
    assert [route.text for route in checked_config({"route": given}, {}, AROUND).route] == [
        "ANY shop.example.com/",
        "GET,POST /users/{id}/{rest+}",
        "ANY *.a.test/",
    ]
    assert checked_config({}, {}, AROUND).route == ()


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a/", "/{a}", "/{a+}", "/a.b-c_d~e!$&'()*+,;=:@/ü", "/a/{b}/c/{d+}", "/" + "/".join("x" * SEGMENTS_MAX), "/" + "x" * 511],
)
def test_a_path_is_text_and_parameters(path: str) -> None:
    assert checked_config({"route": [{"path": path}]}, {}, AROUND).route == (Route(path=path),)


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({}, "must have a host, a path or both"),
        ({"path": "users"}, "must begin with '/'"),
        ({"path": 5}, "must begin with '/'"),
        ({"path": "/" + "x" * PATH_LENGTH_MAX}, f"at most {PATH_LENGTH_MAX} characters"),
        ({"path": "/a" * (SEGMENTS_MAX + 1)}, f"has 17 segments; at most {SEGMENTS_MAX}"),
        ({"path": "/{rest+}/a"}, "{rest+} takes all that follows, so it must be last"),
        ({"path": "/{a}/{a}"}, "names a parameter twice"),
        ({"path": "/{a}/{a+}"}, "names a parameter twice"),
        ({"path": "/a//b"}, "the segment ''"),
        ({"path": "/a/../b"}, "the segment '..'"),
        ({"path": "/a%20b"}, "not percent-encoded"),
        ({"path": "/a b"}, "the segment 'a b'"),
        ({"path": "/x{a}"}, "a whole {name}"),
        ({"path": "/{}"}, "a whole {name}"),
        ({"path": "/{1a}"}, "a whole {name}"),
        ({"path": "/{rest...}"}, "{name+} at the end"),
        ({"path": "/a?b"}, "the segment 'a?b'"),
        ({"path": "/a\nb"}, "the segment"),
        ({"host": "exa mple.com"}, "must be a name such as"),
        ({"host": "*"}, "must be a name such as"),
        ({"host": "*.com"}, "must be a name such as"),
        ({"host": "a.*.com"}, "must be a name such as"),
        ({"host": "example.com:8080"}, "must be a name such as"),
        ({"host": "-a.com"}, "must be a name such as"),
        ({"host": "bücher.example"}, "xn--"),
        ({"host": "a." * 127 + "com"}, "must be a name such as"),
        ({"host": None}, "must be a name such as"),
        ({"path": "/a", "methods": ["BREW"]}, "must be a list of some of DELETE, GET"),
        ({"path": "/a", "methods": "GET"}, "must be a list of some of"),
        ({"path": "/a", "methods": ["GET", "GET"]}, "names one twice"),
        ({"host": "a.test", "methods": ["GET"]}, "methods need a path"),
        ({"path": "/a", "verb": "GET"}, "unknown key 'verb'; there are host, path, methods"),
        ("/a", "must be a table"),
    ],
)
def test_a_wrong_route_is_refused_and_named(route: Any, said: str) -> None:
    (problem,) = problems(route=[route])
    assert problem.startswith("route[0]: ") and said in problem


@pytest.mark.parametrize("first", sorted(RESERVED))
def test_a_route_below_the_platforms_own_addresses_is_refused(first: str) -> None:
    for host in ("", "shop.example.com"):
        (problem,) = problems(route=[{"path": f"/{first}/x", "host": host}])
        assert f"/{first} is the platform's own" in problem


def test_routes_are_so_many_at_most_and_none_stands_twice() -> None:
    checked_config({"route": [{"path": f"/{number}"} for number in range(ROUTES_MAX)]}, {}, AROUND)
    assert f"at most {ROUTES_MAX} tables" in problems(route=[{"path": "/a"}] * (ROUTES_MAX + 1))[0]
    assert "must be at most" in problems(route={"path": "/a"})[0]
    (problem,) = problems(route=[{"path": "/a/{x}"}, {"path": "/b"}, {"path": "/a/{y}", "methods": []}])
    assert problem == "route[2]: ANY /a/{y} stands here twice."
    checked_config({"route": [{"path": "/a"}, {"path": "/a", "methods": ["GET"]}]}, {}, AROUND)


def test_cors_is_read_with_its_defaults_and_in_one_spelling() -> None:
    given = {"origins": ["HTTPS://App.example.com", "http://localhost:3000", "http://[::1]:8080"], "methods": ["put"], "headers": ["X-A"]}
    cors = checked_config({"cors": given}, {}, AROUND).cors
    assert cors == Cors(
        origins=("https://app.example.com", "http://localhost:3000", "http://[::1]:8080"), methods=("PUT",), headers=("x-a",)
    )
    assert checked_config({}, {}, AROUND).cors is None
    everything = {"origins": ["*"], "methods": ["*"], "headers": ["*"], "expose": ["*"], "max_age": MAX_AGE_SECONDS_MAX}
    assert checked_config({"cors": everything}, {}, AROUND).cors is not None


APP = {"origins": ["https://app.example.com"]}


@pytest.mark.parametrize(
    ("cors", "said"),
    [
        ({}, "origins must be there"),
        ({"origins": []}, "origins must be there"),
        ({"origins": "*"}, "origins must be a list of at most 64 texts"),
        ({"origins": ["*"] * (ITEMS_MAX + 1)}, "origins must be a list of at most 64 texts"),
        ({"origins": ["app.example.com"]}, "must be what a browser sends"),
        ({"origins": ["https://app.example.com/"]}, "must be what a browser sends"),
        ({"origins": ["https://app.example.com:443"]}, "must be what a browser sends"),
        ({"origins": ["http://app.example.com:80"]}, "must be what a browser sends"),
        ({"origins": ["https://*.example.com"]}, "must be what a browser sends"),
        ({"origins": ["null"]}, "must be what a browser sends"),
        ({"origins": ["https://a.test\r\nx: y"]}, "must be what a browser sends"),
        ({"origins": ["https://" + "a" * 260]}, "origins must be a list"),
        (APP | {"methods": ["BREW"]}, "methods: 'BREW' must be one of"),
        (APP | {"methods": "GET"}, "methods must be a list"),
        (APP | {"headers": ["x a"]}, "headers: 'x a' is no header's name"),
        (APP | {"headers": [5]}, "headers must be a list"),
        (APP | {"expose": ["x:"]}, "expose: 'x:' is no header's name"),
        (APP | {"credentials": 1}, "credentials must be true or false"),
        (APP | {"max_age": MAX_AGE_SECONDS_MAX + 1}, "from 0 to 86400 (seconds)"),
        (APP | {"max_age": -1}, "from 0 to 86400"),
        (APP | {"max_age": True}, "from 0 to 86400"),
        (APP | {"max_age": 1.5}, "from 0 to 86400"),
        (APP | {"allow": []}, "unknown key 'allow'; there are origins, methods, headers, expose, credentials, max_age"),
        ("*", "must be a table"),
        ([APP], "must be a table"),
    ],
)
def test_a_wrong_cors_table_is_refused_and_named(cors: Any, said: str) -> None:
    found = problems(cors=cors)
    assert all(problem.startswith("cors: ") for problem in found) and any(said in problem for problem in found), found


@pytest.mark.parametrize("key", ["origins", "methods", "headers", "expose"])
def test_a_star_beside_credentials_is_refused(key: str) -> None:
    (problem,) = problems(cors=APP | {"credentials": True, key: ["*"]})
    assert problem == f"cors: credentials = true: name what is allowed instead of '*' in {key}; browsers would not take it."
