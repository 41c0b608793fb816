"""store/kv.py's promises on both databases."""

from collections.abc import Callable

import pytest

from dayfly.store import kv as bounds
from dayfly.store.kv import KV, NEVER, Entry, Write, Written

NOW = 100.0


def put(kv: KV, key: str, value: bytes = b"v", expected: int | None = None, expires: float = NEVER, now: float = NOW) -> Written:
    (answer,) = kv.put([Write(key=key, value=value, expected=expected, expires=expires)], now)
    return answer


def version(kv: KV, key: str, value: bytes = b"v", **more: float) -> int:
    answer = put(kv, key, value, **more)  # type: ignore[arg-type]
    assert not answer.conflict
    return answer.version


def values(kv: KV, *keys: str, now: float = NOW) -> list[bytes | None]:
    return [entry and entry.value for entry in kv.get(keys, now)]


def keys(kv: KV, prefix: str = "", after: str = "", limit: int = 100, now: float = NOW) -> list[str]:
    return [entry.key for entry in kv.list(prefix, now, after=after, limit=limit)]


def test_a_value_comes_back_with_a_version_that_rises_with_every_write(kv: KV) -> None:
    first = version(kv, "a", b"1")
    assert kv.get(["a", "b"], NOW) == [Entry(key="a", value=b"1", version=first, expires=NEVER), None]
    second = version(kv, "a", b"2", expires=200.0)
    assert second > first > 0
    assert kv.get(["a"], NOW) == [Entry(key="a", value=b"2", version=second, expires=200.0)]


def test_a_write_that_expects_another_version_changes_nothing(kv: KV) -> None:
    first = version(kv, "a", b"1", expected=0)
    assert put(kv, "a", b"no", expected=0) == put(kv, "a", b"no", expected=first + 1) == Written(version=first, conflict=True)
    assert put(kv, "none", b"no", expected=5) == Written(version=0, conflict=True)
    assert values(kv, "a", "none") == [b"1", None]
    second = version(kv, "a", b"2", expected=first)
    assert second > first and put(kv, "a", expected=first).conflict


def test_a_version_never_comes_back_not_even_after_a_deletion(kv: KV) -> None:
    first = version(kv, "a")
    assert kv.delete([("a", None)], NOW) == [True]
    again = version(kv, "a", expected=0)
    assert again > first and put(kv, "a", expected=first).conflict


def test_writes_of_a_batch_follow_each_other(kv: KV) -> None:
    batch = [
        Write(key="a", value=b"1", expected=0),
        Write(key="a", value=b"no", expected=0),
        Write(key="b", value=b"no", expected=9),
        Write(key="a", value=b"2"),
    ]
    one, conflict, missing, two = kv.put(batch, NOW)
    assert (conflict.conflict, conflict.version) == (True, one.version) and missing == Written(version=0, conflict=True)
    assert two.version > one.version and values(kv, "a", "b") == [b"2", None]
    assert put(kv, "a", expected=two.version).conflict is False


def test_an_expired_entry_is_not_there_swept_or_not(kv: KV) -> None:
    old = version(kv, "a", expires=150.0)
    assert values(kv, "a", now=149.0) == [b"v"]
    assert values(kv, "a", now=150.0) == [None] and keys(kv, now=150.0) == []
    assert kv.delete([("a", None)], 150.0) == [False]
    assert put(kv, "a", expected=old, now=150.0) == Written(version=0, conflict=True)
    assert version(kv, "a", b"new", expected=0, now=150.0) > old and values(kv, "a", now=150.0) == [b"new"]


def test_sweeping_deletes_what_has_expired_in_steps(kv: KV) -> None:
    for n in range(5):
        put(kv, f"k{n}", expires=float(n))
    put(kv, "stays")
    put(kv, "later", expires=200.0)
    assert [kv.sweep(NOW, 3), kv.sweep(NOW, 3), kv.sweep(NOW, 3)] == [3, 2, 0]
    assert keys(kv, now=0.0) == ["later", "stays"]


def test_deleting_compares_versions_when_told_to(kv: KV) -> None:
    a, b = version(kv, "a"), version(kv, "b")
    assert kv.delete([("a", a + 100), ("b", b), ("b", None), ("none", None), ("a", None)], NOW) == [False, True, False, False, True]
    assert values(kv, "a", "b") == [None, None]


def test_a_list_goes_by_prefix_in_pages(kv: KV) -> None:
    for key in ("a/1", "a/2", "a/3", "a%", "ab", "b/1", "é", "a/\U0001f600"):
        put(kv, key)
    assert keys(kv, "a/") == ["a/1", "a/2", "a/3", "a/\U0001f600"]
    assert keys(kv, "a/", limit=2) == ["a/1", "a/2"] and keys(kv, "a/", after="a/2") == ["a/3", "a/\U0001f600"]
    assert keys(kv, "a%") == ["a%"] and keys(kv, "none") == keys(kv, "a/", limit=0) == []
    assert keys(kv) == sorted(["a/1", "a/2", "a/3", "a%", "ab", "b/1", "é", "a/\U0001f600"])


def test_a_list_is_bounded_in_entries_and_bytes_but_gives_one_at_least(kv: KV) -> None:
    kv.put([Write(key=f"{n:05}", value=b"") for n in range(bounds.LIST_MAX + 1)], NOW)
    assert len(keys(kv, limit=10**9)) == bounds.LIST_MAX
    large = b"x" * bounds.VALUE_BYTES_MAX
    kv.put([Write(key=f"large{n}", value=large) for n in range(6)], NOW)
    most = bounds.LIST_BYTES_MAX // bounds.VALUE_BYTES_MAX
    assert keys(kv, "large") == [f"large{n}" for n in range(most)]


def test_what_breaks_a_bound_is_refused_and_takes_the_batch_with_it(kv: KV) -> None:
    for bad in (
        Write(key="", value=b""),
        Write(key="x" * (bounds.TEXT_MAX + 1), value=b""),
        Write(key="nul\0", value=b""),
        Write(key="big", value=b"x" * (bounds.VALUE_BYTES_MAX + 1)),
    ):
        with pytest.raises(ValueError):
            kv.put([Write(key="good", value=b""), bad], NOW)
    with pytest.raises(ValueError, match="batch"):
        kv.put([Write(key="a", value=b"")] * (bounds.BATCH_MAX + 1), NOW)
    with pytest.raises(ValueError, match="batch"):
        kv.get(["a"] * (bounds.BATCH_MAX + 1), NOW)
    with pytest.raises(ValueError, match="batch"):
        kv.delete([("a", None)] * (bounds.BATCH_MAX + 1), NOW)
    assert keys(kv) == kv.put([], NOW) == kv.get([], NOW) == kv.delete([], NOW) == []


def test_text_and_bytes_are_data(kv: KV) -> None:
    evil = "'; DROP TABLE kv_entries; -- %s"
    put(kv, evil, b"\0\xff")
    assert values(kv, evil) == [b"\0\xff"] and keys(kv, evil) == [evil]


def test_a_second_opening_finds_what_the_first_left(open_kv: Callable[[], KV]) -> None:
    first, second = open_kv(), open_kv()
    one = version(first, "a", b"1", expected=0)
    assert put(second, "a", expected=0).conflict
    assert version(second, "a", b"2", expected=one) > one
    assert values(first, "a") == [b"2"]
