"""store/functions.py, access.py, usage.py: what goes in comes out, and what belongs together leaves together. On both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dayfly.core.model.function import Alias, FunctionConfig, Token, Version
from dayfly.core.model.limits import Limits
from dayfly.store import access, functions, usage
from dayfly.store.migrate import open_database
from dayfly.store.server import Server
from dayfly.store.usage import UsageDay


@pytest.fixture
def tx(where: Path | Server) -> Iterator[sa.Connection]:
    database = open_database(where, 1.0)
    with database.transaction() as connection:
        yield connection
    database.close()


def version(number: int, code: str = "c", layer: str = "") -> Version:
    config = FunctionConfig(handler="a.b", env={"K": "vé"}, secrets=("s",), timeout_seconds=1.5)
    return Version(
        namespace="default", function="f", number=number, config=config, code_digest=code, layer_digest=layer, created_at=float(number)
    )


def test_a_version_comes_back_as_it_was(tx: sa.Connection) -> None:
    functions.add_version(tx, version(1))
    functions.add_version(tx, version(2, layer="l"))
    assert functions.versions_of(tx, "default", "f") == [version(1), version(2, layer="l")]
    assert functions.created_at(tx, "default", "f") == 1.0
    assert functions.referenced(tx) == ({"c"}, {"l"})


def test_a_number_is_never_given_twice_not_even_after_the_function_was_removed(tx: sa.Connection) -> None:
    assert [functions.reserve_number(tx, "default", "f") for _ in range(2)] == [1, 2]
    functions.add_version(tx, version(2))
    assert functions.drop_function(tx, "default", "f")
    assert functions.reserve_number(tx, "default", "f") == 3
    assert functions.reserve_number(tx, "default", "g") == 1


def test_aliases_and_moves_leave_with_their_version_and_everything_with_the_function(tx: sa.Connection) -> None:
    for number in (1, 2):
        functions.add_version(tx, version(number))
        functions.push_move(tx, "default", "f", number, 1.0)
    split = Alias(name="live", weights=((1, 0.25), (2, 0.75)))
    functions.put_alias(tx, "default", "f", split)
    assert functions.aliases_of(tx, "default", "f") == [split]
    functions.drop_versions(tx, "default", "f", [1])
    assert functions.aliases_of(tx, "default", "f") == [Alias(name="live", weights=((2, 0.75),))]
    assert functions.moves_of(tx, "default", "f") == [2]
    assert functions.drop_function(tx, "default", "f")
    assert not functions.drop_function(tx, "default", "f")
    assert functions.aliases_of(tx, "default", "f") == functions.moves_of(tx, "default", "f") == []
    assert functions.created_at(tx, "default", "f") is None


def test_an_alias_cannot_name_a_version_that_is_not_kept(tx: sa.Connection) -> None:
    functions.add_version(tx, version(1))
    with pytest.raises(sa.exc.IntegrityError):
        functions.put_alias(tx, "default", "f", Alias(name="live", weights=((9, 1.0),)))


def test_the_newest_moves_are_forgotten_first(tx: sa.Connection) -> None:
    for number in (1, 2, 3):
        functions.add_version(tx, version(number))
        functions.push_move(tx, "default", "f", number, 1.0)
    functions.pop_moves(tx, "default", "f", 1)
    assert functions.moves_of(tx, "default", "f") == [1]


def test_a_namespace_with_something_in_it_cannot_go(tx: sa.Connection) -> None:
    assert access.add_namespace(tx, "team", 1.0) and not access.add_namespace(tx, "team", 1.0)
    access.put_secret(tx, "team", "s", b"1", 1.0)
    assert access.namespace_contents(tx, "team") == (0, 1)
    with pytest.raises(sa.exc.IntegrityError):
        access.drop_namespace(tx, "team")


def test_a_secret_is_replaced_and_listed_without_its_value(tx: sa.Connection) -> None:
    access.put_secret(tx, "default", "s", b"1", 1.0)
    access.put_secret(tx, "default", "s", b"2", 2.0)
    assert access.secret_names(tx, "default") == [("s", 2.0)]
    assert access.sealed_secrets(tx, "default", {"s", "t"}) == {"s": b"2"}
    assert access.drop_secret(tx, "default", "s") and not access.drop_secret(tx, "default", "s")


def test_a_token_comes_back_as_it_was(tx: sa.Connection) -> None:
    token = Token(id="i", digest=b"\0\xff" * 16, namespaces=("*",), verbs=("read", "admin"), name="n", created_at=1.5)
    access.add_token(tx, token)
    assert access.all_tokens(tx) == [token]
    assert access.drop_token(tx, "i") and not access.drop_token(tx, "i")


def test_usage_adds_up_per_function_and_day(tx: sa.Connection) -> None:
    day = UsageDay(day="2026-01-02", namespace="default", function="f", calls=1, mb_ms=2**40)
    for _ in range(3):
        usage.add(tx, [day, UsageDay(day="2026-01-03", namespace="other", function="f", calls=5)])
    usage.add(tx, [])
    assert [(it.day, it.calls, it.mb_ms) for it in usage.between(tx, "2026-01-01", "2026-01-31", ["default"])] == [
        ("2026-01-02", 3, 3 * 2**40)
    ]
    assert usage.between(tx, "2026-01-03", "2026-01-03", ["default", "other"], "f")[0].calls == 15
    assert usage.between(tx, "2026-01-03", "2026-01-03", ["other"], "g") == []


def test_garbage_is_marked_once_and_forgotten_when_it_is_named_again(tx: sa.Connection) -> None:
    usage.mark_garbage(tx, [("code", "a"), ("code", "b")], 1.0)
    usage.mark_garbage(tx, [("code", "b"), ("layer", "c")], 2.0)
    assert usage.marked_garbage(tx) == {("code", "b"): 1.0, ("layer", "c"): 2.0}


def test_a_namespaces_limits_come_back_are_taken_away_and_leave_with_it(tx: sa.Connection) -> None:
    access.add_namespace(tx, "team", 1.0)
    limits = Limits(rate_per_second=2.5, concurrency=0, calls_per_day=1 << 53)
    access.put_limits(tx, "team", Limits(burst=1))
    access.put_limits(tx, "team", limits)
    access.put_limits(tx, "default", Limits(concurrency=1))
    assert access.all_limits(tx) == {"team": limits, "default": Limits(concurrency=1)}
    access.put_limits(tx, "default", Limits())
    assert access.drop_namespace(tx, "team")
    assert access.all_limits(tx) == {}
