"""Which sandboxes stand ready, which zygote a start comes from, and which versions get a template."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide import snapshot
from dayfly.core.decide.ancestor import FORKS_MAX, IDLE_SECONDS, RENEW_SECONDS, ZYGOTES_MAX, Age, idle_ones, is_due
from dayfly.core.decide.prepare import COMING_MAX, KINDS_MAX, QUIET_SECONDS, Stock
from dayfly.core.model.function import FunctionConfig, Version
from dayfly.runtime import ready


def test_what_was_asked_for_stands_ready_and_the_emptiest_kind_comes_first():
    stock: Stock[str] = Stock(each=3, in_all=100, forget_seconds=60.0)
    assert stock.next({}, 0, 0.0) is None, "nobody asked for anything"
    stock.asked("a", 0.0)
    stock.asked("b", 1.0)
    assert stock.next({"a": 1}, 0, 1.0) == "b"
    assert stock.next({"a": 1, "b": 2}, 0, 1.0) == "a"
    assert stock.next({"a": 3, "b": 3}, 0, 1.0) is None


def test_nothing_more_is_begun_while_enough_are_on_their_way_or_all_room_is_taken():
    stock: Stock[str] = Stock(each=8, in_all=10, forget_seconds=60.0)
    stock.asked("a", 0.0)
    assert stock.next({"a": COMING_MAX}, COMING_MAX, 0.0) is None
    assert stock.next({"a": 1, "b": 9}, 0, 0.0) is None


def test_nothing_is_made_behind_which_a_start_would_have_to_wait():
    stock: Stock[str] = Stock(each=3, in_all=100, forget_seconds=60.0)
    stock.asked("a", 0.0)
    stock.asked("b", 1.0)
    assert stock.next({"b": 2}, 0, 1.0, {"a"}) == "b", "the parent of the emptier kind still has to fork what it was asked for"
    assert stock.next({}, 0, 1.0, {"a", "b"}) is None


def test_a_kind_that_nobody_asks_for_goes():
    stock: Stock[str] = Stock(each=2, in_all=10, forget_seconds=60.0)
    stock.asked("a", 0.0)
    assert stock.surplus({"a": 2}, 59.0) is None
    assert stock.surplus({"a": 2}, 61.0) == "a"
    assert stock.next({"a": 1}, 0, 61.0) is None
    stock.asked("b", 0.0)
    stock.forget("b")
    assert stock.surplus({"b": 1}, 1.0) == "b"


@given(st.lists(st.integers(0, 40), max_size=200))
def test_only_so_many_kinds_are_remembered_and_the_latest_are(asked: list[int]):
    stock: Stock[int] = Stock(each=1, in_all=1000, forget_seconds=1e9)
    for now, kind in enumerate(asked):
        stock.asked(kind, float(now))
    latest = list(dict.fromkeys(reversed(asked)))[:KINDS_MAX]
    assert set(stock.kinds()) == set(latest)


def test_zero_means_that_none_stand_ready():
    stock: Stock[str] = Stock(each=0, in_all=0, forget_seconds=60.0)
    stock.asked("a", 0.0)
    assert stock.next({}, 0, 0.0) is None
    assert stock.patience_seconds({}, 0.0) == QUIET_SECONDS


def test_the_fewer_stand_the_shorter_the_pause_that_a_refill_waits_for():
    """Under steady load pauses are short: an empty stock waits for none, a full one for the longest; the emptiest kind counts."""
    stock: Stock[str] = Stock(each=4, in_all=32, forget_seconds=60.0)
    assert stock.patience_seconds({}, 0.0) == QUIET_SECONDS, "nobody asked for anything"
    stock.asked("a", 0.0)
    stock.asked("b", 1.0)
    waits = [stock.patience_seconds({"a": 4, "b": count}, 2.0) for count in range(5)]
    assert waits == [QUIET_SECONDS * count / 4 for count in range(5)]
    assert stock.patience_seconds({"a": 9, "b": 9}, 2.0) == QUIET_SECONDS, "more than wanted is no more than full"
    assert stock.patience_seconds({"b": 4}, 60.5) == QUIET_SECONDS, "a kind that was forgotten hurries nothing"


def test_a_zygote_is_renewed_by_age_and_by_forks():
    assert not is_due(Age(0.0, 0, 0.0, 0), RENEW_SECONDS - 1)
    assert is_due(Age(0.0, 0, 0.0, 0), RENEW_SECONDS)
    assert is_due(Age(0.0, FORKS_MAX, 0.0, 0), 1.0)


def test_idle_zygotes_end_and_those_with_instances_never_do():
    now = 10_000.0
    ages = {"busy": Age(0.0, 1, 0.0, 1), "idle": Age(0.0, 1, now - IDLE_SECONDS - 1, 0), "lately": Age(0.0, 1, now - 1, 0)}
    assert idle_ones(ages, now) == ["idle"]
    many = {f"z{i}": Age(0.0, 1, now - i / 100, 0) for i in range(ZYGOTES_MAX + 2)}
    assert idle_ones(many, now) == [f"z{ZYGOTES_MAX + 1}", f"z{ZYGOTES_MAX}"], "the longest idle first"


def test_every_pair_outside_the_snapshot_table_raises():
    events = {event for row in snapshot.STEPS.values() for event in row}
    for state, row in snapshot.STEPS.items():
        for event in events:
            if event in row:
                assert snapshot.step(state, event) == row[event]
            else:
                try:
                    snapshot.step(state, event)
                except snapshot.IllegalStep:
                    continue
                raise AssertionError((state, event))


def test_only_an_init_that_is_worth_it_gets_a_template():
    worth = snapshot.WORTH_US
    assert snapshot.is_wanted("auto", snapshot.NONE, worth, 0, 1e9)
    assert not snapshot.is_wanted("auto", snapshot.NONE, worth - 1, 0, 1e9)
    assert not snapshot.is_wanted("off", snapshot.NONE, worth, 0, 1e9)
    assert not snapshot.is_wanted("auto", snapshot.NONE, worth, snapshot.TRIES_MAX, 1e9)
    assert not snapshot.is_wanted("auto", snapshot.NONE, worth, 0, snapshot.REMAKE_SECONDS - 1)
    for state in (snapshot.MAKING, snapshot.READY, snapshot.OFF):
        assert not snapshot.is_wanted("auto", state, worth, 0, 1e9)


def test_a_new_kind_finds_room_where_others_have_several() -> None:
    """When as many stand as may in all, the kind asked for longest ago gives one of its several away; nobody gives its last one."""
    stock: Stock[str] = Stock(2, 4, 60.0)
    for now, kind in enumerate("abc"):
        stock.asked(kind, float(now))
    assert stock.next({"a": 2, "b": 2}, 0, 3.0) is None
    assert stock.surplus({"a": 2, "b": 2}, 3.0) == "a"
    assert stock.surplus({"a": 1, "b": 2}, 3.0) is None
    assert stock.next({"a": 1, "b": 2}, 0, 3.0) == "c"
    assert stock.surplus({"a": 1, "b": 2, "c": 1}, 3.0) is None
    stock.asked("d", 4.0)
    stock.asked("e", 4.0)
    assert stock.surplus({"a": 1, "b": 1, "c": 1, "d": 1}, 5.0) is None


def version(layer: str = "1" * 64, namespace: str = "default", code: str = "0" * 64, **config: object) -> Version:
    return Version(
        namespace=namespace,
        function="f",
        number=1,
        config=FunctionConfig(**config),
        code_digest=code,
        layer_digest=layer,  # type: ignore[arg-type]
    )


def test_versions_share_packages_when_these_can_tell_no_difference():
    """Code, memory, processor time and handler are given to a child; the rest it cannot change any more."""
    one = snapshot.packages_of(version(env={"A": "1", "B": "2"}))
    assert one is not None
    same = {"env": {"B": "2", "A": "1"}, "memory_mb": 999, "cpu": 2.0, "handler": "other.handler", "concurrency": 9, "timeout_seconds": 1.0}
    assert snapshot.packages_of(version(code="2" * 64, **same)) == one
    for other in (
        version(env={"A": "1"}), version(env={"A": "1", "B": "2"}, layer="3" * 64), version(env={"A": "1", "B": "2"}, namespace="n"),
        version(env={"A": "1", "B": "2"}, tmp_mb=65), version(env={"A": "1", "B": "2"}, egress="internet"),
        version(env={"A": "1", "B": "2"}, egress=("a.example",)), version(env={"A": "1", "B": "2"}, runtime="python3.12"),
    ):  # fmt: skip
        assert snapshot.packages_of(other) not in (one, None), other


def test_some_versions_start_from_no_packages():
    """Without a layer there are none; `off` is off; secrets come before the walls stand; PYTHONPATH may bring others of their names."""
    for none in (version(layer=""), version(snapshot="off"), version(secrets=("S",)), version(env={"PYTHONPATH": "/var/task/lib"})):
        assert snapshot.packages_of(none) is None, none


def test_the_runtime_records_imports_from_the_cost_on_that_is_worth_a_template():
    """It travels alone and cannot ask: the figure stands there, too."""
    assert ready.RECORD_US == snapshot.WORTH_US
