"""core/decide/cors.py: what browsers are told, by the Fetch standard's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.cors import answer_lines, preflight_lines
from dayfly.core.model.function import Cors

APP = "https://app.example.com"


def told(lines: bytes) -> dict[str, str]:
    assert lines.endswith(b"\r\n") and lines.count(b"\r\n") == lines.count(b"\n") == lines.count(b"\r")
    return dict(line.split(": ", 1) for line in lines.decode().splitlines())


def test_a_listed_origin_is_named_and_told_everything() -> None:
    cors = Cors(
        origins=(APP, "http://b.test"), methods=("GET", "PUT"), headers=("x-a", "x-b"), expose=("x-c",), credentials=True, max_age=60
    )
    common = {"access-control-allow-origin": APP, "vary": "origin", "access-control-allow-credentials": "true"}
    assert told(answer_lines(cors, APP)) == common | {"access-control-expose-headers": "x-c"}
    assert told(preflight_lines(cors, APP)) == common | {
        "access-control-allow-methods": "GET, PUT",
        "access-control-allow-headers": "x-a, x-b",
        "access-control-max-age": "60",
    }


@pytest.mark.parametrize(
    "origin", ["", "null", "*", "https://app.example.com.evil.test", "http://app.example.com", "https://APP.example.com"]
)
def test_any_other_origin_is_told_nothing_but_that_the_answer_varies(origin: str) -> None:
    cors = Cors(origins=(APP,), methods=("PUT",), headers=("x",), expose=("x",))
    assert told(answer_lines(cors, origin)) == told(preflight_lines(cors, origin)) == {"vary": "origin"}


def test_everybody_is_everybody_and_needs_no_vary() -> None:
    cors = Cors(origins=("*",), methods=("*",), headers=("*",))
    for origin in ("", APP):
        assert told(answer_lines(cors, origin)) == {"access-control-allow-origin": "*"}
    assert told(preflight_lines(cors, APP))["access-control-allow-headers"] == "*"
    assert told(preflight_lines(Cors(origins=("*",)), APP)) == {"access-control-allow-origin": "*", "access-control-max-age": "0"}


TEXTS = st.lists(st.sampled_from(("*", APP, "http://b.test")), max_size=3).map(tuple)


@given(st.builds(Cors, origins=TEXTS, credentials=st.booleans()), st.sampled_from(("", "*", APP, "http://c.test")))
def test_whatever_was_configured_no_star_stands_beside_credentials_and_an_origin_always_beside_vary(cors: Cors, origin: str) -> None:
    for lines in (told(answer_lines(cors, origin)), told(preflight_lines(cors, origin))):
        allowed = lines.get("access-control-allow-origin")
        assert not (allowed == "*" and "access-control-allow-credentials" in lines)
        assert allowed in (None, "*", origin)
        assert (allowed == "*") != ("vary" in lines)
