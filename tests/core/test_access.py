"""core/decide/access.py: token texts, secrets, scopes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import access
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Token

SECRET = "a1" * 32


def token(namespaces: tuple[str, ...] = ("default",), verbs: tuple[str, ...] = ("read",)) -> Token:
    return Token(id="abcdef012345", digest=access.digest(SECRET), namespaces=namespaces, verbs=verbs)


def test_a_token_text_comes_apart_as_it_was_put_together() -> None:
    assert access.parse_token(access.token_text("abcdef012345", SECRET)) == ("abcdef012345", SECRET)


@pytest.mark.parametrize(
    "text",
    ["", "dfy_", "dfy_abcdef012345_", f"dfy_ABCDEF012345_{SECRET}", f"dfx_abcdef012345_{SECRET}", f"dfy_abcdef012345_{SECRET}\n",
     f" dfy_abcdef012345_{SECRET}", f"dfy_abcdef012345_{SECRET}_x", "dfy_abcdef012345_" + "a" * 1000, f"dfy_abcdef01234é_{SECRET}"],
)  # fmt: skip
def test_any_other_text_is_no_token(text: str) -> None:
    assert access.parse_token(text) is None


@given(st.text(max_size=200))
def test_no_text_whatever_makes_parsing_fail(text: str) -> None:
    parsed = access.parse_token(text)
    assert parsed is None or access.token_text(*parsed) == text


def test_only_the_right_secret_is_verified_and_an_unknown_id_never_is() -> None:
    assert access.verified(token(), SECRET) is not None
    assert access.verified(token(), SECRET[:-1] + "x") is None
    assert access.verified(None, SECRET) is None
    assert access.verified(None, "") is None


@pytest.mark.parametrize(
    ("namespaces", "verbs", "verb", "namespace", "expected"),
    [
        (("default",), ("read",), "read", "default", True),
        (("default",), ("read",), "read", "other", False),
        (("default",), ("read",), "deploy", "default", False),
        (("default",), ("admin",), "invoke", "default", True),
        (("default",), ("admin",), "admin", "*", False),
        (("*",), ("admin",), "admin", "*", True),
        (("*",), ("read",), "read", "anything", True),
        (("*",), ("read",), "admin", "*", False),
        ((), ("admin",), "read", "default", False),
    ],
)
def test_scopes_are_namespaces_times_verbs(
    namespaces: tuple[str, ...], verbs: tuple[str, ...], verb: str, namespace: str, expected: bool
) -> None:
    assert access.allowed(token(namespaces, verbs), verb, namespace) is expected
    assert access.allowed(None, verb, namespace) is False


@pytest.mark.parametrize(("namespaces", "verbs"), [((), ("read",)), (("default",), ()), (("default",), ("write",))])
def test_a_token_without_meaning_is_not_made(namespaces: tuple[str, ...], verbs: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as refusal:
        access.checked_scopes(namespaces, verbs)
    assert refusal.value.kind.code == "bad_request"
