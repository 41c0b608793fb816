"""store/log.py's promises on both databases."""

from collections.abc import Callable

import pytest

from dayfly.store import log as bounds
from dayfly.store.log import Append, Appended, Cursor, Ends, Event, Log


def add(log: Log, *events: bytes, stream: str = "s", expected: int | None = None) -> Appended:
    (answer,) = log.append([Append(stream=stream, events=events, at=7.0, expected=expected)])
    return answer


def read(log: Log, after: int = 0, limit: int = 100, stream: str = "s") -> list[tuple[int, bytes]]:
    return [(event.position, event.body) for event in log.read(stream, after, limit)]


def move(log: Log, position: int, subscriber: str = "me", stream: str = "s") -> int:
    (now,) = log.commit([Cursor(subscriber=subscriber, stream=stream, position=position)])
    return now


def test_events_have_positions_without_a_gap_and_come_back_in_order(log: Log) -> None:
    assert add(log, b"a", b"b") == Appended(position=2, conflict=False)
    assert add(log, b"c") == Appended(position=3, conflict=False)
    assert read(log) == [(1, b"a"), (2, b"b"), (3, b"c")]
    assert read(log, after=1, limit=1) == [(2, b"b")]
    assert read(log, after=3) == read(log, limit=0) == read(log, stream="other") == []
    assert log.read("s", 0, 1) == [Event(position=1, at=7.0, body=b"a")]


def test_streams_are_apart(log: Log) -> None:
    add(log, b"a")
    assert add(log, b"b", stream="t").position == 1
    assert read(log, stream="t") == [(1, b"b")]
    assert (log.ends("s"), log.ends("none")) == (Ends(first=1, last=1), Ends(first=1, last=0))


def test_a_writer_that_expects_another_end_appends_nothing(log: Log) -> None:
    assert add(log, b"first", expected=0) == Appended(position=1, conflict=False)
    assert add(log, b"late", expected=0) == Appended(position=1, conflict=True)
    assert add(log, b"early", expected=2) == Appended(position=1, conflict=True)
    assert add(log, b"next", expected=1) == Appended(position=2, conflict=False)
    assert [body for _, body in read(log)] == [b"first", b"next"]


def test_one_conflict_in_a_batch_does_not_keep_the_others(log: Log) -> None:
    batch = [
        Append(stream="s", events=(b"1",), at=1.0, expected=0),
        Append(stream="s", events=(b"no",), at=1.0, expected=0),
        Append(stream="s", events=(b"2", b"3"), at=1.0, expected=1),
        Append(stream="t", events=(), at=1.0, expected=5),
        Append(stream="t", events=(b"t",), at=1.0),
    ]
    answers = [(answer.position, answer.conflict) for answer in log.append(batch)]
    assert answers == [(1, False), (1, True), (3, False), (0, True), (1, False)]
    assert read(log) == [(1, b"1"), (2, b"2"), (3, b"3")] and read(log, stream="t") == [(1, b"t")]


def test_a_cursor_goes_forward_only_and_not_past_the_end(log: Log) -> None:
    add(log, *[b"e"] * 5)
    assert log.position("me", "s") == 0
    assert [move(log, 3), move(log, 1), move(log, 99)] == [3, 3, 5]
    assert log.position("me", "s") == 5 and log.position("you", "s") == log.position("me", "t") == 0
    add(log, b"new")
    assert read(log, after=log.position("me", "s")) == [(6, b"new")]
    assert move(log, 1, stream="unknown") == 0


def test_a_batch_of_cursors_may_name_one_twice(log: Log) -> None:
    add(log, *[b"e"] * 5)
    moves = [Cursor(subscriber=name, stream="s", position=position) for name, position in [("a", 4), ("a", 2), ("b", 1)]]
    assert log.commit(moves) == [4, 4, 1]
    assert log.cursors("s") == [Cursor(subscriber="a", stream="s", position=4), Cursor(subscriber="b", stream="s", position=1)]
    assert log.unsubscribe("a", "s") and not log.unsubscribe("a", "s")
    assert [cursor.subscriber for cursor in log.cursors("s")] == ["b"]


def test_trimming_deletes_the_past_and_positions_go_on(log: Log) -> None:
    add(log, *[b"e"] * 5)
    assert log.trim("s", 4) == 3 and log.trim("s", 4) == 0
    assert log.ends("s") == Ends(first=4, last=5)
    assert [position for position, _ in read(log)] == [4, 5]
    assert log.trim("s", 99) == 2 and log.ends("s") == Ends(first=6, last=5)
    assert add(log, b"on", expected=5).position == 6 and read(log) == [(6, b"on")]
    assert log.trim("unknown", 5) == 0


def test_trimming_goes_in_steps(log: Log) -> None:
    add(log, *[b""] * bounds.BATCH_MAX)
    add(log, *[b""] * 5)
    assert [log.trim("s", 10**9), log.trim("s", 10**9)] == [bounds.TRIM_MAX, 5]


def test_a_removed_stream_begins_anew_without_cursors(log: Log) -> None:
    add(log, b"a")
    move(log, 1)
    assert log.remove("s") and not log.remove("s")
    assert read(log) == log.cursors("s") == [] and log.ends("s") == Ends(first=1, last=0)
    assert add(log, b"b", expected=0).position == 1 and log.position("me", "s") == 0


def test_a_read_is_bounded_in_events_and_bytes_but_gives_one_at_least(log: Log) -> None:
    add(log, *[b"x"] * (bounds.READ_MAX + 1))
    assert len(read(log, limit=10**9)) == bounds.READ_MAX
    large = b"x" * bounds.EVENT_BYTES_MAX
    for _ in range(6):
        add(log, large, stream="large")
    most = bounds.READ_BYTES_MAX // bounds.EVENT_BYTES_MAX
    assert [position for position, _ in read(log, stream="large")] == list(range(1, most + 1))
    assert [position for position, _ in read(log, after=most, stream="large")] == [most + 1, most + 2]


def test_text_and_bytes_are_data(log: Log) -> None:
    evil = "'; DROP TABLE log_events; -- %s \U0001f600"
    add(log, b"\0\xff", stream=evil)
    assert read(log, stream=evil) == [(1, b"\0\xff")] and move(log, 1, evil, evil) == 1


def test_what_breaks_a_bound_is_refused_and_takes_the_batch_with_it(log: Log) -> None:
    good = Append(stream="s", events=(b"a",), at=1.0)
    for bad in (
        Append(stream="", events=(), at=1.0),
        Append(stream="x" * (bounds.TEXT_MAX + 1), events=(), at=1.0),
        Append(stream="nul\0", events=(), at=1.0),
        Append(stream="s", events=(b"x" * (bounds.EVENT_BYTES_MAX + 1),), at=1.0),
        Append(stream="s", events=(b"",) * bounds.BATCH_MAX, at=1.0),
    ):
        with pytest.raises(ValueError):
            log.append([good, bad])
    with pytest.raises(ValueError):
        move(log, 1, subscriber="")
    with pytest.raises(ValueError):
        log.commit([Cursor(subscriber="a", stream="s", position=1)] * (bounds.BATCH_MAX + 1))
    assert log.append([]) == log.commit([]) == read(log) == []


def test_a_second_opening_finds_what_the_first_left(open_log: Callable[[], Log]) -> None:
    first, second = open_log(), open_log()
    add(first, b"a")
    assert add(second, b"b", expected=1).position == 2
    move(first, 2)
    assert second.position("me", "s") == 2 and read(first) == read(second) == [(1, b"a"), (2, b"b")]
