"""Credentials: mode, precedence, and what a new address or another platform does to them."""

import json
import stat

import pytest

from dayfly.cli import profile
from dayfly.cli.failure import Failure
from dayfly.cli.profile import Profile, checked_url, remember


def test_the_store_is_private_and_keeps_tokens_by_data_directory():
    assert remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    path = profile.config_dir() / profile.CREDENTIALS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "current": "http://127.0.0.1:1",
        "platforms": {"http://127.0.0.1:1": {"data": "/data", "run": ""}},
        "tokens": {"/data": "dfy_a_b"},
    }
    assert Profile().url == "http://127.0.0.1:1"
    assert Profile().token == "dfy_a_b"


def test_a_token_follows_its_data_directory_to_a_new_address():
    remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    assert remember("http://127.0.0.1:2", "/data", "")
    assert Profile().token == "dfy_a_b"


def test_another_platform_at_a_known_address_does_not_get_the_old_token():
    remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    assert not remember("http://127.0.0.1:1", "/other", "")
    assert Profile().token == ""


def test_two_platforms_that_take_turns_at_one_address_both_keep_their_tokens():
    """The admin token is shown once: replaced by another platform's at the same port, it would be lost for good."""
    assert remember("http://127.0.0.1:1", "/a", "dfy_a_a")
    assert remember("http://127.0.0.1:1", "/b", "dfy_b_b")
    assert Profile().token == "dfy_b_b"
    assert remember("http://127.0.0.1:1", "/a", "")
    assert (Profile().token, Profile().data) == ("dfy_a_a", "/a")


def stored_before(**platforms: dict[str, str]) -> None:
    path = profile.config_dir() / profile.CREDENTIALS
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"current": "http://127.0.0.1:1", "platforms": {f"http://127.0.0.1:{n[1:]}": p for n, p in platforms.items()}})
    )


def test_credentials_of_the_earlier_form_are_read_and_written_in_the_new_one():
    stored_before(_1={"token": "new", "data": "/a"}, _2={"token": "old", "data": "/a"}, _3={"token": "c", "data": "/c"})
    assert Profile().token == "new"
    assert Profile("http://127.0.0.1:3").token == "c"
    assert remember("http://127.0.0.1:1", "/c", "")
    assert Profile().token == "c"
    assert remember("http://127.0.0.1:1", "/a", "")
    assert Profile().token == "new"
    path = profile.config_dir() / profile.CREDENTIALS
    assert path.read_text().count('"c"') == path.read_text().count('"new"') == 1


def test_a_token_written_by_hand_for_a_platform_elsewhere_stays_with_its_address():
    stored_before(_1={"token": "mine"})
    remember("http://127.0.0.1:2", "/data", "dfy_a_b")
    assert Profile("http://127.0.0.1:1").token == "mine"


def test_flags_win_over_variables_and_variables_over_the_store(monkeypatch):
    remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    monkeypatch.setenv("DAYFLY_URL", "http://127.0.0.1:2")
    monkeypatch.setenv("DAYFLY_TOKEN", "env")
    monkeypatch.setenv("DAYFLY_NAMESPACE", "team")
    found = Profile()
    assert (found.url, found.token, found.namespace) == ("http://127.0.0.1:2", "env", "team")
    found = Profile("127.0.0.1:3", "flag", "mine")
    assert (found.url, found.token, found.namespace) == ("http://127.0.0.1:3", "flag", "mine")
    assert "flag" not in repr(found)


def test_a_stored_token_goes_to_its_own_address_only():
    remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    assert Profile("http://127.0.0.1:2").token == ""


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://x:port", "http://x:99999"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(Failure):
        checked_url(text)


def test_a_damaged_store_is_an_error_and_not_an_empty_one():
    path = profile.config_dir() / profile.CREDENTIALS
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(Failure, match="cannot be read"):
        Profile()
