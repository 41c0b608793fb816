"""`dayfly schedules`: what is sent for what a person typed, and what is refused before anything is sent."""

import json

import pytest


def test_put_sends_what_was_said_and_nothing_else(cli, api, tmp_path):
    (tmp_path / "p.json").write_text('{"a": [1, null]}')
    words = ["schedules", "put", "daily", "hello", "--cron", "0 8 * * mon-fri", "--timezone", "Europe/Berlin", "--overlap", "queue"]
    assert cli(*words, "--payload", f"@{tmp_path / 'p.json'}").code == 0
    sent = api.seen[-1]
    assert (sent.method, sent.path, sent.query) == ("PUT", "/api/v1/schedules/daily", {"namespace": "default"})
    assert json.loads(sent.body) == {
        "function": "hello", "enabled": True, "cron": "0 8 * * mon-fri", "timezone": "Europe/Berlin", "overlap": "queue",
        "payload": {"a": [1, None]},
    }  # fmt: skip
    cli(
        "schedules", "put", "daily", "hello", "--rate", "1 hour", "--off", "--payload", "null", "--jitter-seconds", "2.5", "--missed", "all"
    )
    assert json.loads(api.seen[-1].body) == {
        "function": "hello", "enabled": False, "rate": "1 hour", "payload": None, "jitter_seconds": 2.5, "missed": "all",
    }  # fmt: skip


@pytest.mark.parametrize("payload", ["{", "@/no/such/file"])
def test_a_payload_that_is_none_is_refused_here(cli, api, payload):
    done = cli("schedules", "put", "daily", "hello", "--rate", "1 hour", "--payload", payload)
    assert done.code == 2 and "do:" in done.err and not api.seen


def test_next_asks_for_a_schedule_or_tries_an_expression_but_not_both(cli, api):
    assert len(cli("schedules", "next", "daily", "--count", "2").out.splitlines()) == 2
    assert api.seen[-1].query == {"namespace": "default", "count": "2"}
    assert cli("schedules", "next", "--rate", "1 hour").code == 0
    assert (api.seen[-1].path, api.seen[-1].query) == ("/api/v1/schedule-times", {"rate": "1 hour", "count": "10"})
    seen = len(api.seen)
    for words in (["next"], ["next", "daily", "--cron", "* * * * *"]):
        assert cli("schedules", *words).code == 2
    assert len(api.seen) == seen


def test_show_and_ls_say_in_words_what_it_does(cli, api):
    said = cli("schedules", "show", "daily").out
    for part in ("rate(1 hour)", "3 fired, 2 skipped, 1 missed", "12.5 of 60 s", "the API", "the event of the firing"):
        assert part in said
    assert cli("schedules", "ls", "hello").out.splitlines()[0].split("\t") == ["name", "function", "when", "state", "next"]
    assert api.seen[-1].query == {"namespace": "default", "function": "hello"}
