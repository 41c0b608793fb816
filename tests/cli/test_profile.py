"""Credentials: mode, precedence, and what a new address or another platform does to them."""

import json
import stat

import pytest

from dayfly.cli import profile
from dayfly.cli.failure import Failure
from dayfly.cli.profile import Profile, checked_url, remember


def test_the_store_is_private_and_keyed_by_address():
    assert remember("http://127.0.0.1:1", "/data", "dfy_a_b")
    path = profile.config_dir() / profile.CREDENTIALS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["platforms"] == {"http://127.0.0.1:1": {"token": "dfy_a_b", "data": "/data"}}
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
