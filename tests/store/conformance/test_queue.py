"""store/queue.py's promises, verb by verb, on both databases."""

import math
from collections.abc import Callable, Iterable

import pytest

from dayfly.store import queue as bounds
from dayfly.store.queue import Item, Lease, NewItem, Put, Queue, Settlement

NOW, LATER, NEVER = 100.0, 200.0, math.inf


def new(id: str, lane: str = "n/f", **more: object) -> NewItem:
    values = {"id": id, "lane": lane, "body": b"body of " + id.encode(), "accepted_at": 10.0, "due": 10.0, "expires": NEVER} | more
    return NewItem(**values)  # type: ignore[arg-type]


def put(queue: Queue, *ids: str, **more: object) -> None:
    assert queue.put([new(id, **more) for id in ids]) == [Put(id=id, duplicate=False) for id in ids]  # type: ignore[arg-type]


def lease(queue: Queue, most: int = 100, lane: str = "n/f", now: float = NOW, owner: str = "me") -> list[Lease]:
    return queue.lease([(lane, most)], now, LATER, owner)


def names(leases: Iterable[Lease | Item]) -> list[str]:
    return [lease.id for lease in leases]


def told(lease: Lease, state: str = "done", **more: object) -> Settlement:
    return Settlement(id=lease.id, epoch=lease.epoch, now=NOW, state=state, **({"keep_until": 1000.0} | more))  # type: ignore[arg-type]


def one(queue: Queue, id: str) -> Item:
    (item,) = queue.get([id])
    assert item is not None
    return item


def count(queue: Queue, lane: str = "n/f") -> tuple[int, ...]:
    return tuple(queue.counts().get(lane, dict.fromkeys(bounds.STATES, 0)).values())


def test_an_item_goes_from_put_to_done_and_shows_its_result(queue: Queue) -> None:
    put(queue, "a", tag="map:1", priority=3, group="g", dedup="d", dedup_until=50.0)
    assert count(queue) == (1, 0, 0, 0)
    (taken,) = lease(queue)
    assert taken == Lease(
        id="a", lane="n/f", epoch=1, attempt=1, body=b"body of a", accepted_at=10.0, expires=NEVER, group="g", priority=3, tag="map:1"
    )
    assert count(queue) == (0, 1, 0, 0) and one(queue, "a").result == b""
    assert queue.settle([told(taken, record=b"r1", result=b"42")]) == [True]
    assert one(queue, "a") == Item(
        id="a", lane="n/f", body=b"body of a", accepted_at=10.0, due=10.0, expires=NEVER, priority=3, group="g", dedup="d",
        dedup_until=50.0, tag="map:1", state="done", epoch=1, attempt=1, attempts=(b"r1",),
        reason="", result=b"42", settled_at=NOW, keep_until=1000.0,
        cancelling=False,
    )  # fmt: skip
    assert count(queue) == (0, 0, 1, 0) and lease(queue) == []


def test_nothing_in_nothing_out(queue: Queue) -> None:
    assert queue.put([]) == queue.lease([], NOW, LATER, "me") == queue.settle([]) == queue.extend([], LATER) == queue.get([]) == []
    assert queue.give_back([], NOW, NOW) == queue.cancel([], NOW) == queue.redrive([], NOW, NEVER) == queue.purge([]) == []
    assert queue.reclaim(NOW) == queue.expire(NOW, 10) == queue.list(limit=10) == [] and queue.forget(NOW, 10) == 0
    assert queue.lanes(NOW) == queue.counts() == {} and lease(queue) == []


@pytest.mark.parametrize("state", ["waiting", "leased", "done", "dead"])
def test_a_known_id_is_no_new_item_whatever_became_of_it(queue: Queue, state: str) -> None:
    put(queue, "a")
    if state != "waiting":
        (taken,) = lease(queue)
        if state != "leased":
            queue.settle([told(taken, state)])
    before = one(queue, "a")
    assert queue.put([new("a", body=b"other")]) == [Put(id="a", duplicate=True)]
    assert one(queue, "a") == before and before.state == state


def test_a_batch_may_name_an_id_twice(queue: Queue) -> None:
    assert [p.duplicate for p in queue.put([new("a"), new("a"), new("b")])] == [False, True, False]
    assert count(queue) == (2, 0, 0, 0)


def test_a_dedup_key_is_the_first_items_within_its_lane_until_its_time(queue: Queue) -> None:
    keyed = {"dedup": "k", "dedup_until": 100.0}
    put(queue, "a", **keyed)
    put(queue, "other lane", lane="n/g", **keyed)
    assert queue.put([new("b", accepted_at=99.0, **keyed)]) == [Put(id="a", duplicate=True)]
    assert queue.get(["b"]) == [None]
    again = queue.put([new("c", accepted_at=100.0, **(keyed | {"dedup_until": 300.0})), new("d", accepted_at=101.0, **keyed)])
    assert again == [Put(id="c", duplicate=False), Put(id="c", duplicate=True)]


def test_a_dedup_key_outlives_its_item_and_is_forgotten_after_its_time(queue: Queue) -> None:
    put(queue, "a", dedup="k", dedup_until=100.0)
    assert queue.purge(["a"]) == [True]
    assert queue.put([new("b", accepted_at=50.0, dedup="k", dedup_until=100.0)]) == [Put(id="a", duplicate=True)]
    assert queue.forget(99.0, 10) == 0 and queue.forget(100.0, 10) == 1


def test_items_leave_by_priority_then_due_then_acceptance(queue: Queue) -> None:
    queue.put([new("late", due=30.0), new("a", due=20.0), new("b", due=20.0), new("urgent", due=40.0, priority=9), new("mild", priority=1)])
    put(queue, "not yet", due=NOW + 1, priority=9)
    assert names(lease(queue, 2)) == ["urgent", "mild"]
    assert names(lease(queue, 0)) == []
    assert names(lease(queue)) == ["a", "b", "late"]
    assert names(lease(queue, now=NOW + 1)) == ["not yet"]


def test_each_lane_gives_what_was_asked_of_it(queue: Queue) -> None:
    put(queue, "a1", "a2", "a3", "a4", "a5", lane="n/a")
    put(queue, "b1", lane="n/b")
    wanted = [("n/b", 5), ("n/none", 5), ("n/a", 2)]
    assert names(queue.lease(wanted, NOW, LATER, "me")) == ["b1", "a1", "a2"]
    assert names(queue.lease([("n/a", 1), ("n/a", 1)], NOW, LATER, "me")) == ["a3", "a4"]


def test_what_has_expired_is_not_leased_but_handed_out_to_be_buried(queue: Queue) -> None:
    put(queue, "old", expires=NOW)
    put(queue, "fresh", expires=NOW + 1)
    assert names(lease(queue)) == ["fresh"]
    assert queue.expire(NOW, 0) == []
    (dying,) = queue.expire(NOW, 10)
    assert (dying.id, dying.epoch, dying.attempt, dying.body) == ("old", 1, 0, b"body of old")
    assert queue.expire(NOW, 10) == []
    assert one(queue, "old").state == "leased"
    assert queue.settle([told(dying, "dead", reason="expired", counted=False)]) == [True]
    assert (one(queue, "old").reason, one(queue, "old").attempt) == ("expired", 0)


def test_being_handed_out_to_be_buried_is_no_attempt_whatever_is_said_of_it(queue: Queue) -> None:
    put(queue, "a", expires=NOW + 1)
    queue.settle([told(lease(queue)[0], "waiting", due=NOW)])
    for _ in range(2):
        (dying,) = queue.expire(NOW + 1, 10)
        assert dying.attempt == 1 and queue.give_back([("a", dying.epoch)], NOW, NOW) == [True]
    (dying,) = queue.expire(NOW + 1, 10)
    assert queue.settle([told(dying, "dead", counted=False)]) == [True] and one(queue, "a").attempt == 1


def test_expiring_goes_in_steps_oldest_first(queue: Queue) -> None:
    queue.put([new(str(n), expires=float(n)) for n in (3, 1, 2)])
    assert [names(queue.expire(NOW, 2)), names(queue.expire(NOW, 2))] == [["1", "2"], ["3"]]


def test_an_old_epoch_changes_nothing(queue: Queue) -> None:
    put(queue, "a")
    (first,) = lease(queue)
    assert queue.give_back([("a", first.epoch)], NOW, NOW) == [True]
    (second,) = lease(queue)
    assert second.epoch == 2 and second.attempt == 1
    before = one(queue, "a")
    assert queue.settle([told(first, result=b"stale", items=(new("never"),))]) == [False]
    assert queue.extend([("a", first.epoch)], 999.0) == queue.give_back([("a", first.epoch)], NOW, NOW) == [False]
    assert one(queue, "a") == before and queue.get(["never"]) == [None]
    assert queue.settle([told(second), told(second, result=b"twice")]) == [True, False]
    assert one(queue, "a").result == b""


def test_verbs_say_no_to_ids_that_nobody_knows(queue: Queue) -> None:
    ghost = [("ghost", 1)]
    assert queue.extend(ghost, LATER) == queue.give_back(ghost, NOW, NOW) == queue.redrive(["ghost"], NOW, NEVER) == [False]
    assert queue.purge(["ghost"]) == [False] and queue.cancel(["ghost"], NOW) == ["unknown"] and queue.get(["ghost"]) == [None]
    assert queue.settle([Settlement(id="ghost", epoch=1, now=NOW, state="done")]) == [False]


def test_a_retry_waits_until_its_time_and_counts_unless_told_not_to(queue: Queue) -> None:
    put(queue, "a")
    assert queue.settle([told(lease(queue)[0], "waiting", due=150.0, record=b"1")]) == [True]
    assert lease(queue, now=149.0) == []
    (second,) = lease(queue, now=150.0)
    assert (second.attempt, second.epoch) == (2, 2)
    queue.settle([told(second, "waiting", due=160.0, counted=False, record=b"2")])
    (third,) = lease(queue, now=160.0)
    assert (third.attempt, third.epoch) == (2, 3)
    assert one(queue, "a").attempts == (b"1", b"2")


def test_records_of_attempts_are_bounded_the_newest_stay(queue: Queue) -> None:
    put(queue, "a")
    for n in range(bounds.ATTEMPTS_KEPT + 3):
        queue.settle([told(lease(queue)[0], "waiting", due=0.0, record=b"%d" % n)])
    assert one(queue, "a").attempts == tuple(b"%d" % n for n in range(3, bounds.ATTEMPTS_KEPT + 3))
    assert one(queue, "a").attempt == bounds.ATTEMPTS_KEPT + 3


def test_what_a_settlement_brings_is_put_with_it(queue: Queue) -> None:
    put(queue, "a")
    (taken,) = lease(queue)
    assert queue.settle([told(taken, "dead", reason="retries_exhausted", items=(new("next", lane="n/g"), new("a")))]) == [True]
    assert (one(queue, "a").state, one(queue, "next").state) == ("dead", "waiting")
    assert queue.counts() == {
        "n/f": {"waiting": 0, "leased": 0, "done": 0, "dead": 1},
        "n/g": {"waiting": 1, "leased": 0, "done": 0, "dead": 0},
    }


def test_lanes_tell_the_earliest_due_time_of_what_may_be_leased(queue: Queue) -> None:
    queue.put([new("a", due=300.0), new("b", due=250.0, priority=5), new("c", due=20.0, lane="n/g")])
    assert queue.lanes(NOW) == {"n/f": 250.0, "n/g": 20.0}
    lease(queue, lane="n/g")
    assert queue.lanes(NOW) == {"n/f": 250.0}


def test_an_extended_lease_is_not_reclaimed(queue: Queue) -> None:
    put(queue, "a", "b")
    leases = lease(queue)
    assert queue.extend([("a", 1), ("b", 2)], 500.0) == [True, False]
    (lost,) = queue.reclaim(LATER)
    assert (lost.id, lost.epoch, lost.attempt) == ("b", 2, 1)
    assert queue.settle([told(leases[1])]) == [False]
    assert queue.reclaim(LATER) == []
    assert names(queue.reclaim(LATER + bounds.HANDED_SECONDS)) == ["b"]
    assert count(queue) == (0, 2, 0, 0)


def test_a_new_owner_takes_over_the_leases_of_others_and_not_its_own(queue: Queue) -> None:
    put(queue, "a", "b")
    lease(queue, 1, owner="old")
    lease(queue, 1, owner="new")
    (lost,) = queue.reclaim(NOW, "new")
    assert (lost.id, lost.epoch) == ("a", 2) and queue.reclaim(NOW, "new") == []
    assert queue.settle([told(lost, "waiting", due=0.0)]) == [True]
    assert names(lease(queue)) == ["a"]


def test_reclaiming_goes_in_steps(queue: Queue) -> None:
    ids = [f"{n:04}" for n in range(bounds.RECLAIM_MAX + 5)]
    put(queue, *ids)
    lease(queue, len(ids))
    assert [len(queue.reclaim(LATER)), len(queue.reclaim(LATER)), len(queue.reclaim(LATER))] == [bounds.RECLAIM_MAX, 5, 0]


def test_cancelling_buries_what_waits_and_marks_what_runs(queue: Queue) -> None:
    put(queue, "done", "runs", "waits")
    done, runs = lease(queue, 2)
    queue.settle([told(done)])
    assert queue.cancel(["done", "runs", "waits", "ghost"], NOW, 500.0) == ["settled", "cancelling", "cancelled", "unknown"]
    assert (one(queue, "waits").state, one(queue, "waits").reason, one(queue, "waits").keep_until) == ("dead", "cancelled", 500.0)
    assert one(queue, "runs").cancelling and not one(queue, "done").cancelling
    assert queue.extend([("runs", runs.epoch)], LATER) == [True]
    assert queue.settle([told(runs, "waiting", due=0.0, record=b"r")]) == [True]
    ended = one(queue, "runs")
    assert (ended.state, ended.reason, ended.attempts, ended.keep_until) == ("dead", "cancelled", (b"r",), 500.0)
    assert lease(queue) == [] and count(queue) == (0, 0, 1, 2)


def test_a_cancelled_lease_that_is_given_back_is_dead_and_one_that_finishes_is_done(queue: Queue) -> None:
    put(queue, "a", "b")
    a, b = lease(queue)
    queue.cancel(["a", "b"], NOW)
    assert queue.give_back([("a", a.epoch)], NOW, NOW) == queue.settle([told(b, result=b"42")]) == [True]
    assert (one(queue, "a").state, one(queue, "a").keep_until) == ("dead", NOW + bounds.CANCELLED_KEPT_SECONDS)
    assert (one(queue, "b").state, one(queue, "b").result, one(queue, "b").cancelling) == ("done", b"42", False)


def test_a_dead_item_is_driven_again_with_its_past_and_without_its_result(queue: Queue) -> None:
    put(queue, "a", "b", expires=NOW + 1)
    a, b = lease(queue)
    queue.settle([told(a, "dead", reason="retries_exhausted", record=b"1", result=b"bad"), told(b)])
    assert queue.redrive(["a", "b"], 120.0, 500.0) == [True, False]
    driven = one(queue, "a")
    assert (driven.state, driven.attempt, driven.attempts, driven.result, driven.reason) == ("waiting", 0, (b"1",), b"", "")
    assert (driven.due, driven.expires, driven.settled_at, driven.keep_until) == (120.0, 500.0, 0.0, 0.0)
    (again,) = lease(queue, now=130.0)
    assert (again.epoch, again.attempt) == (2, 1)
    assert count(queue) == (0, 1, 1, 0)


def test_purging_deletes_all_but_what_is_leased(queue: Queue) -> None:
    put(queue, "a", "b", "c")
    done, _ = lease(queue, 2)
    queue.settle([told(done, result=b"42", record=b"r")])
    assert queue.purge(["a", "b", "c", "a"]) == [True, False, True, True]
    assert queue.get(["a", "c"]) == [None, None] and count(queue) == (0, 1, 0, 0)
    put(queue, "a")
    assert (one(queue, "a").attempts, one(queue, "a").result) == ((), b"")


def test_settled_items_are_forgotten_after_their_time_in_steps(queue: Queue) -> None:
    put(queue, "a", "b", "c", "d")
    settlements = [told(taken, keep_until=float(n)) for n, taken in enumerate(lease(queue, 3), 1)]
    queue.settle(settlements)
    assert queue.forget(0.5, 10) == 0
    assert queue.forget(2.5, 1) == 1 and queue.get(["a"]) == [None]
    assert queue.forget(2.5, 10) == 1 and names(queue.list(limit=10)) == ["d", "c"]
    assert count(queue) == (1, 0, 1, 0)


def test_a_lane_without_items_leaves_the_counts(queue: Queue) -> None:
    put(queue, "a")
    queue.purge(["a"])
    queue.forget(NOW, 10)
    assert queue.counts() == {}
    put(queue, "b")
    assert count(queue) == (1, 0, 0, 0)


# FIFO groups


def test_a_group_is_leased_one_at_a_time_in_order_of_acceptance(queue: Queue) -> None:
    queue.put([new("1", group="g", due=90.0), new("2", group="g", priority=9), new("3", group="g"), new("free")])
    assert queue.lanes(NOW) == {"n/f": 10.0}
    assert names(lease(queue)) == ["free", "1"]
    assert lease(queue) == [] and queue.lanes(NOW) == {}
    put(queue, "4", group="g")
    assert lease(queue) == []
    queue.settle([Settlement(id="1", epoch=1, now=NOW, state="waiting", due=150.0)])
    assert lease(queue) == [] and queue.lanes(NOW) == {"n/f": 150.0}
    assert names(lease(queue, now=150.0)) == ["1"]
    queue.settle([Settlement(id="1", epoch=2, now=NOW, state="dead")])
    order = []
    while taken := lease(queue):
        order += names(taken)
        queue.settle([told(taken[0])])
    assert order == ["2", "3", "4"]


def test_groups_of_two_lanes_and_names_do_not_wait_for_each_other(queue: Queue) -> None:
    queue.put([new("a", group="g"), new("b", group="h"), new("c", group="g", lane="n/g")])
    assert names(queue.lease([("n/f", 9), ("n/g", 9)], NOW, LATER, "me")) == ["a", "b", "c"]


@pytest.mark.parametrize("verb", ["cancel", "purge", "expire"])
def test_a_groups_next_item_is_free_when_the_first_leaves_without_running(queue: Queue, verb: str) -> None:
    queue.put([new("1", group="g", expires=50.0), new("2", group="g")])
    assert lease(queue) == []
    if verb == "cancel":
        queue.cancel(["1"], NOW)
    elif verb == "purge":
        queue.purge(["1"])
    else:
        assert names(queue.expire(NOW, 10)) == ["1"]
    assert names(lease(queue)) == ["2"]


def test_whatever_waits_again_goes_back_to_its_place_in_the_group(queue: Queue) -> None:
    queue.put([new(n, group="g") for n in "123"])
    first = lease(queue)
    queue.settle([told(first[0], "dead")])
    (second,) = lease(queue)
    assert queue.redrive(["1"], NOW, NEVER) == [True]
    assert lease(queue) == []
    queue.settle([told(second)])
    assert names(lease(queue)) == ["1"]


def test_a_dead_item_driven_again_goes_before_those_that_wait(queue: Queue) -> None:
    queue.put([new(n, group="g") for n in "12"])
    queue.settle([told(lease(queue)[0], "dead")])
    queue.redrive(["1"], NOW, NEVER)
    order = []
    while taken := lease(queue):
        order += names(taken)
        queue.settle([told(taken[0])])
    assert order == ["1", "2"]


def test_items_of_a_group_that_expired_are_handed_out_together_while_one_of_it_runs(queue: Queue) -> None:
    queue.put([new("1", group="g"), *(new(n, group="g", expires=NOW) for n in "23"), new("4", group="g")])
    (running,) = lease(queue)
    dying = queue.expire(NOW, 10)
    assert sorted(names(dying)) == ["2", "3"] and lease(queue) == []
    queue.settle([told(running), *(told(taken, "dead") for taken in dying)])
    assert names(lease(queue)) == ["4"]


def test_an_expired_item_that_is_given_back_waits_in_its_place(queue: Queue) -> None:
    queue.put([new("1", group="g", expires=NOW), new("2", group="g")])
    (dying,) = queue.expire(NOW, 10)
    assert queue.give_back([("1", dying.epoch)], NOW, NOW) == [True]
    assert (one(queue, "1").state, one(queue, "1").attempt) == ("waiting", 0)
    assert lease(queue) == [] and names(queue.expire(NOW, 10)) == ["1"]


# Lists and counts


def test_a_list_is_newest_first_in_pages_without_bodies(queue: Queue) -> None:
    queue.put([new(f"{n:02}", accepted_at=float(n // 3)) for n in range(10)])
    queue.settle([told(taken, result=b"r", record=b"r") for taken in lease(queue, 3)])
    pages, before = [], None
    while page := queue.list(limit=4, before=before):
        pages.append(names(page))
        before = (page[-1].accepted_at, page[-1].id)
        assert all(item.body == item.result == b"" for item in page)
    assert pages == [["09", "08", "07", "06"], ["05", "04", "03", "02"], ["01", "00"]]
    assert queue.list(limit=0) == []
    assert queue.list(limit=20)[-1].attempts == (b"r",)


def test_a_list_is_narrowed_by_lane_prefix_state_and_tag(queue: Queue) -> None:
    lanes = ["a/f", "a/g", "ab/f", "b/f"]
    queue.put([new(f"{lane}{n}", lane=lane, tag=f"map:{n}") for n in range(2) for lane in lanes])
    queue.settle([told(taken) for taken in queue.lease([("a/g", 1), ("b/f", 1)], NOW, LATER, "me")])
    assert names(queue.list(lanes=["a/f"], limit=9)) == ["a/f1", "a/f0"]
    assert names(queue.list(lane_prefixes=["a/"], limit=9)) == ["a/g1", "a/g0", "a/f1", "a/f0"]
    assert names(queue.list(lane_prefixes=["a/"], lanes=["b/f", "a/g"], limit=3)) == ["b/f1", "b/f0", "a/g1"]
    assert names(queue.list(states=["done"], limit=9)) == ["b/f0", "a/g0"]
    assert names(queue.list(states=["done", "waiting"], lanes=["a/g"], limit=9)) == ["a/g1", "a/g0"]
    assert names(queue.list(tag="map:0", limit=9)) == ["b/f0", "ab/f0", "a/g0", "a/f0"]
    assert names(queue.list(tag="map:0", states=["done"], lane_prefixes=["a/"], limit=9)) == ["a/g0"]
    assert queue.list(tag="none", limit=9) == queue.list(lanes=["none"], limit=9) == queue.list(lane_prefixes=["z"], limit=9) == []


def test_counts_are_told_by_prefix(queue: Queue) -> None:
    queue.put([new(lane, lane=lane) for lane in ("a/f", "a/g", "ab/f", "a%/f")])
    assert sorted(queue.counts(["a/"])) == ["a/f", "a/g"]
    assert sorted(queue.counts(["a/", "ab/"])) == ["a/f", "a/g", "ab/f"]
    assert sorted(queue.counts(["a%"])) == ["a%/f"]
    assert sorted(queue.counts()) == ["a%/f", "a/f", "a/g", "ab/f"]


# Bounds and hostile input


@pytest.mark.parametrize(
    "more",
    [
        {"priority": 10},
        {"priority": -1},
        {"id": ""},
        {"lane": ""},
        {"id": "x" * (bounds.TEXT_MAX + 1)},
        {"group": "nul\0"},
        {"dedup": "\ud800"},
        {"body": b"x" * (bounds.BODY_BYTES_MAX + 1)},
    ],
)
def test_what_breaks_a_bound_is_refused_and_takes_the_batch_with_it(queue: Queue, more: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        queue.put([new("good"), new(**({"id": "bad"} | more))])  # type: ignore[arg-type]
    assert queue.list(limit=9) == [] and queue.counts() == {}


def test_batches_results_and_brought_items_have_bounds(queue: Queue) -> None:
    many = [("x", 1)] * (bounds.BATCH_MAX + 1)
    for verb in (queue.put, queue.settle, queue.get, queue.purge):
        with pytest.raises(ValueError, match="batch"):
            verb([new("x")] * (bounds.BATCH_MAX + 1))  # type: ignore[operator]
    for leases in (lambda: queue.extend(many, NOW), lambda: queue.give_back(many, NOW, NOW), lambda: queue.lease(many, NOW, LATER, "me")):
        with pytest.raises(ValueError, match="batch"):
            leases()
    with pytest.raises(ValueError, match="at once"):
        lease(queue, bounds.BATCH_MAX + 1)
    put(queue, "a")
    (taken,) = lease(queue)
    for wrong in ({"result": b"x" * (bounds.BODY_BYTES_MAX + 1)}, {"record": b"x" * (bounds.BODY_BYTES_MAX + 1)}, {"items": (new(""),)}):
        with pytest.raises(ValueError):
            queue.settle([told(taken, **wrong)])
    assert queue.settle([told(taken)]) == [True]


def test_text_is_data_whatever_it_holds(queue: Queue) -> None:
    evil = "'; DROP TABLE items; -- %s ? \\ \"é\U0001f600"
    put(queue, evil, lane=evil, group=evil, dedup=evil, dedup_until=NEVER, tag=evil)
    (taken,) = lease(queue, lane=evil)
    assert (taken.id, taken.lane, taken.group, taken.tag) == (evil,) * 4
    queue.settle([told(taken, reason=evil)])
    assert names(queue.list(lanes=[evil], tag=evil, limit=1)) == [evil] and one(queue, evil).reason == evil


def test_a_batch_of_the_largest_size_works(queue: Queue) -> None:
    ids = [f"{n:05}" for n in range(bounds.BATCH_MAX)]
    put(queue, *ids)
    leases = lease(queue, bounds.BATCH_MAX)
    assert names(leases) == ids
    assert queue.settle([told(taken) for taken in leases]) == [True] * bounds.BATCH_MAX
    assert queue.forget(5000.0, bounds.BATCH_MAX) == bounds.BATCH_MAX


def test_a_second_opening_finds_what_the_first_left(open_queue: Callable[[], Queue]) -> None:
    first = open_queue()
    put(first, "a", "b")
    (taken,) = lease(first, 1)
    second = open_queue()
    assert names(lease(second)) == ["b"]
    assert second.settle([told(taken, result=b"42")]) == [True]
    assert one(first, "a").result == b"42" and count(first) == (0, 1, 1, 0)
