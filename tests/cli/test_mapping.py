"""`dayfly map` and `dayfly maps` against a fake API: what is sent, what is kept in a file, what is waited for, how it ends."""

import json
from pathlib import Path

import pytest

from dayfly.cli import items, mapping
from dayfly.cli.items import Out, chunks
from tests.cli.fake import MAP, Seen, error


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("1\n\n 2 \n3")
    return path


def test_a_map_is_made_filled_and_read(cli, api, numbers):
    done = cli("map", "hello", str(numbers), "-c", "5", "--fail-fast", "--id", "m1")
    assert done.code == 0
    assert [json.loads(line)["index"] for line in done.out.splitlines()] == [2, 0, 1] and "after" not in done.out
    made, sent = api.seen[0], api.seen[1]
    assert json.loads(made.body) == {"function": "hello", "concurrency": 5, "reduce": "", "fail_fast": True, "id": "m1"}
    assert (sent.path, sent.query["first"], sent.query["last"], sent.body) == ("/api/v1/maps/m1/items", "0", "true", b"1\n2\n3")
    assert "3 of 3 done" in done.err


def test_a_reducers_answer_is_printed_and_nothing_else(cli, api, numbers):
    reduced = MAP | {"reduce": "total", "result_call": "s.r0.0.0"}

    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes] | None:
        found = reduced if seen.path == "/api/v1/maps/m1" or seen.path.endswith("/items") else None
        if seen.method == "POST" and seen.path == "/api/v1/maps":
            found = reduced | {"state": "filling", "total": -1, "accepted": 0, "result_call": ""}
        return (200, {}, json.dumps(found).encode()) if found else None

    api.answer = answer
    assert cli("map", "hello", str(numbers), "--reduce", "total").out == "6\n"
    assert json.loads(cli("map", "hello", str(numbers), "--reduce", "total", "--json").out) == {"map": reduced, "result": 6}
    assert not [seen for seen in api.seen if seen.path.endswith("/results")]


def test_what_is_away_for_a_moment_is_waited_for(cli, api, numbers, monkeypatch):
    monkeypatch.setattr(mapping, "AGAIN_SECONDS", 0.0)
    troubles = [("/items", 503, "control_unavailable"), ("/items", 429, "async_queue_full"), ("/results", 503, "shutting_down")]

    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if troubles and seen.path.endswith(troubles[0][0]):
            _, status, code = troubles.pop(0)
            return error(status, code, "capacity", "Not now.")
        return None

    api.answer = answer
    assert cli("map", "hello", str(numbers)).code == 0 and not troubles
    api.answer = lambda seen: error(404, "map_not_found", "caller", "Gone.") if seen.path.endswith("/results") else None
    assert cli("map", "hello", str(numbers)).code == 4


def test_results_that_never_come_are_said(cli, api, numbers):
    api.answer = lambda seen: (200, {}, b"") if seen.path.endswith("/results") else None
    done = cli("map", "hello", str(numbers))
    assert done.code == 5 and "Only 0 results of 3" in done.err


def test_a_line_that_the_platform_refuses_is_named_as_the_file_has_it(cli, api, numbers):
    api.answer = lambda seen: error(413, "body_too_large", "caller", "Line 2 is over 9 bytes.") if seen.path.endswith("/items") else None
    done = cli("map", "hello", str(numbers))
    assert done.code == 4 and "Line 3 is over" in done.err


def test_a_failed_map_ends_with_1_and_one_that_is_not_whole_wants_its_items(cli, api):
    api.answer = lambda seen: (200, {}, json.dumps(MAP | {"failed": 1, "done": 2}).encode()) if seen.path == "/api/v1/maps/m1" else None
    done = cli("map", "--resume", "m1")
    assert done.code == 1 and "1 failed" in done.err and "redrive" in done.err
    filling = MAP | {"state": "filling", "total": -1, "accepted": 1}
    api.answer = lambda seen: (200, {}, json.dumps(filling).encode()) if seen.path == "/api/v1/maps/m1" and seen.method == "GET" else None
    assert "not whole: 1 items" in cli("map", "--resume", "m1").err
    assert cli("map", "--resume", "m1", "other", "x.jsonl").code == 2


def test_maps_are_listed_shown_cancelled_redriven_and_removed(cli):
    assert "m1\thello\tdone\t3\t3\t0" in cli("maps", "ls").out
    assert json.loads(cli("maps", "ls", "--json").out)["maps"][0]["id"] == "m1"
    assert "done      3, 0 failed" in cli("maps", "show", "m1").out
    assert cli("maps", "cancel", "m1").out == "map m1 is ending\n"
    assert "map m1 is redriving" in cli("maps", "redrive", "m1").out
    assert cli("maps", "rm", "m1").code == 2 and cli("maps", "rm", "m1", "--yes").out == "map m1 is deleted\n"


def test_items_go_in_pieces_behind_those_that_are_there(numbers, monkeypatch):
    monkeypatch.setattr(items, "CHUNK_ITEMS", 1)
    with numbers.open("rb") as file:
        found = [(it.first, it.lines, it.numbers, it.last) for it in chunks(file, "x", 1)]
    assert found == [(1, [b"2"], [3], False), (2, [b"3"], [4], True)]
    with numbers.open("rb") as file:
        assert [(it.first, it.lines, it.last) for it in chunks(file, "x", 3)] == [(3, [], True)]


@pytest.mark.parametrize(("ordered", "kept"), [(False, {0, 2}), (True, {0})])
def test_a_file_of_results_is_gone_on_with_without_failures_and_torn_lines(tmp_path, ordered, kept):
    path = tmp_path / "out"
    whole = ['{"index": 0, "ok": true}', '{"index": 1, "ok": false}', '{"index": 2, "ok": true}', '{"index": 2, "ok": true}']
    path.write_text("\n".join(whole) + '\n{"index": 3, "ok": tr')
    out = Out(path, kept=True, ordered=ordered)
    assert out.seen == kept
    for index in range(4):
        out.write({"index": index, "ok": True, "after": "x"})
    out.close()
    assert sorted(json.loads(line)["index"] for line in path.read_text().splitlines()) == [0, 1, 2, 3]
