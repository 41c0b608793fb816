"""The queue against a model, verb by verb in any order, on both databases, with crashes inside verbs.

Laws: accepted = waiting + leased + done + dead + deleted; what is settled never changes (but for redrive of the dead); a result is there
only with its settlement; an old epoch changes nothing; no group ever has two items running.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from dayfly.store.durable import open_queue
from dayfly.store.queue import ATTEMPTS_KEPT, CANCELLED_KEPT_SECONDS, HANDED_SECONDS, Item, Lease, NewItem, Put, Settlement
from dayfly.store.queue_postgres import PostgresQueue
from dayfly.store.queue_sqlite import SqliteQueue
from dayfly.store.server import Server

LANES, GROUPS, KEYS = ("n/f", "n/g", "m/f"), ("", "", "g", "h"), ("", "", "k", "l")
LEASE_SECONDS = 20.0
TABLES = "queue_items, queue_bodies, queue_results, queue_attempts, queue_dedups, queue_counts"
items_to_put = st.lists(
    st.tuples(
        st.sampled_from(LANES), st.sampled_from(GROUPS), st.sampled_from(KEYS), st.integers(0, 9), st.sampled_from([0.0, 0.0, 5.0]),
        st.sampled_from([8.0, 30.0, math.inf]),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip

crashes = st.sampled_from([0] * 16 + [1, 2, 3, 4, 6, 9, 14, 22])


class Crash(Exception):
    """What ends a verb in its middle."""


class Known(msgspec.Struct):
    """The model's item: what `get` must answer, and what only the model knows."""

    item: Item
    seq: int
    owner: str = ""
    until: float = 0.0
    aside: bool = False  # handed out by expire: will not run

    def set(self, **changes: Any) -> None:
        self.item = msgspec.structs.replace(self.item, **changes)


class QueueAndModel(RuleBasedStateMachine):
    """The machine. `where` and `crashing` come from the test."""

    where: Path | Server
    crashing: Callable[[Any, int], Any]

    @initialize()
    def begin(self) -> None:
        if isinstance(self.where, Path):
            self.where = self.where.with_name(f"{id(self)}.db")
            self.where.unlink(missing_ok=True)
        self.queue: Any = open_queue(self.where)
        if isinstance(self.where, Server):
            with self.where.connect() as connection:
                connection.execute(f"TRUNCATE {TABLES} RESTART IDENTITY")
        self.now = 100.0
        self.known: dict[str, Known] = {}
        self.keys: dict[tuple[str, str], tuple[str, float]] = {}
        self.accepted = self.deleted = 0
        self.leases: list[Lease] = []  # all ever given out, stale ones too
        self.settled: dict[str, Item] = {}
        for _ in range(2):  # no run begins in an empty world
            self.put([(lane, group, "", 0, 0.0, expires) for lane in LANES[:2] for group in GROUPS[1:] for expires in (8.0, math.inf)], 0)
            self.lease([2, 4, 0], "a", 0)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    # What the model thinks

    def of(self, *states: str) -> list[Known]:
        return [known for known in self.known.values() if known.item.state in states]

    def head(self, known: Known) -> bool:
        """Whether it may be leased as far as its group goes."""
        if not known.item.group:
            return True
        group = [k for k in self.of("waiting", "leased") if (k.item.lane, k.item.group) == (known.item.lane, known.item.group)]
        running = any(k.item.state == "leased" and not k.aside for k in group)
        return not running and known.seq == min(k.seq for k in group if k.item.state == "waiting")

    def leasable(self, lane: str) -> list[Known]:
        return [known for known in self.of("waiting") if known.item.lane == lane and self.head(known)]

    def held_and_stale(self) -> list[Lease]:
        """Leases to say something about: all that are held, a few that are no longer."""
        held = [one for one in self.leases if one.id in self.known and self.known[one.id].item.state == "leased"]
        return held[-12:] + [one for one in self.leases if one not in held][-2:]

    def hand_out(self, known: Known, *, attempts: int, owner: str, until: float) -> Lease:
        item = known.item
        known.owner, known.until = owner, until
        known.set(state="leased", epoch=item.epoch + 1, attempt=item.attempt + attempts)
        return Lease(
            id=item.id, lane=item.lane, epoch=item.epoch + 1, attempt=item.attempt + attempts, body=item.body, accepted_at=item.accepted_at,
            expires=item.expires, group=item.group, priority=item.priority, tag=item.tag,
        )  # fmt: skip

    def accept(self, item: NewItem) -> Put:
        holder, until = self.keys.get((item.lane, item.dedup), ("", 0.0)) if item.dedup else ("", 0.0)
        if item.id in self.known:
            return Put(id=item.id, duplicate=True)
        if holder and until > item.accepted_at:
            return Put(id=holder, duplicate=True)
        self.accepted += 1
        values = msgspec.structs.asdict(item)
        more = {
            "epoch": 0,
            "attempt": 0,
            "attempts": (),
            "reason": "",
            "result": b"",
            "settled_at": 0.0,
            "keep_until": 0.0,
            "cancelling": False,
        }
        self.known[item.id] = Known(Item(**values, state="waiting", **more), self.accepted)  # type: ignore[arg-type]
        if item.dedup:
            self.keys[item.lane, item.dedup] = (item.id, item.dedup_until)
        return Put(id=item.id, duplicate=False)

    def bury(self, known: Known, reason: str, keep_until: float, **more: Any) -> None:
        known.set(state="dead", reason=reason, keep_until=keep_until, settled_at=self.now, cancelling=False, **more)
        self.settled[known.item.id] = known.item

    def end(self, told: Settlement) -> bool:
        known = self.known.get(told.id)
        if known is None or known.item.state != "leased" or known.item.epoch != told.epoch:
            return False
        item = known.item
        attempt = item.attempt if told.counted or known.aside else max(0, item.attempt - 1)
        records = ((*item.attempts, told.record) if told.record else item.attempts)[-ATTEMPTS_KEPT:]
        cancelled = told.state == "waiting" and item.cancelling
        known.aside = False
        if cancelled:
            self.bury(known, "cancelled", item.keep_until, attempt=attempt, attempts=records)
        elif told.state == "waiting":
            known.set(state="waiting", due=told.due, attempt=attempt, attempts=records, keep_until=0.0)
        else:
            known.set(
                state=told.state, attempt=attempt, attempts=records, reason=told.reason, result=told.result, settled_at=told.now,
                keep_until=told.keep_until, cancelling=False,
            )  # fmt: skip
            self.settled[item.id] = known.item
        return True

    def delete(self, id: str) -> None:
        del self.known[id]
        self.settled.pop(id, None)
        self.deleted += 1

    # Rules

    @rule(wanted=items_to_put, crash=crashes)
    def put(self, wanted: list[tuple[Any, ...]], crash: int) -> None:
        batch = [
            NewItem(
                id=f"i{self.accepted}-{n}-{len(self.known)}", lane=lane, body=b"b" * n, accepted_at=self.now, due=self.now + due,
                expires=self.now + expires, priority=priority, group=group, dedup=key, dedup_until=self.now + 12.0 if key else 0.0,
            )
            for n, (lane, group, key, priority, due, expires) in enumerate(wanted)
        ]  # fmt: skip
        if self.crashed(crash, lambda: self.queue.put(batch)):
            return
        assert self.queue.put(batch) == [self.accept(item) for item in batch]

    @rule(data=st.data())
    @precondition(lambda self: self.known)
    def put_again(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.known)))
        item = NewItem(id=id, lane="n/f", body=b"other", accepted_at=self.now, due=0.0, expires=math.inf)
        assert self.queue.put([item]) == [Put(id=id, duplicate=True)]

    @rule(most=st.lists(st.integers(0, 3), min_size=3, max_size=3), owner=st.sampled_from(["a", "b"]), crash=crashes)
    def lease(self, most: list[int], owner: str, crash: int) -> None:
        wanted = list(zip(LANES, most, strict=True))
        until = self.now + LEASE_SECONDS
        if self.crashed(crash, lambda: self.queue.lease(wanted, self.now, until, owner)):
            return
        expected = []
        for lane, number in wanted:
            ready = [known for known in self.leasable(lane) if known.item.due <= self.now < known.item.expires]
            ready.sort(key=lambda known: (-known.item.priority, known.item.due, known.seq))
            expected += [self.hand_out(known, attempts=1, owner=owner, until=until) for known in ready[:number]]
        given = self.queue.lease(wanted, self.now, until, owner)
        assert given == expected
        self.leases += given

    @rule(owner=st.sampled_from(["a", "b"]))
    def lease_all(self, owner: str) -> None:
        self.lease([9, 9, 9], owner, 0)

    @rule(data=st.data(), crash=crashes)
    @precondition(lambda self: self.leases)
    def settle(self, data: st.DataObject, crash: int) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.held_and_stale()), min_size=1, max_size=4))
        batch = []
        for n, lease in enumerate(chosen):
            state = data.draw(st.sampled_from(["done", "dead", "waiting"]))
            brought = NewItem(id=f"b{self.accepted}-{n}", lane="m/f", body=b"", accepted_at=self.now, due=self.now, expires=math.inf)
            batch.append(
                Settlement(
                    id=lease.id, epoch=lease.epoch, now=self.now, state=state, due=self.now + 3.0, counted=data.draw(st.booleans()),
                    reason="boom" if state == "dead" else "", record=b"r" if n % 2 else b"", result=b"" if state == "waiting" else b"42",
                    keep_until=0.0 if state == "waiting" else self.now + 15.0, items=(brought,) if n == 0 else (),
                )
            )  # fmt: skip
        if self.crashed(crash, lambda: self.queue.settle(batch)):
            return
        expected = [self.end(told) for told in batch]
        for told, effective in zip(batch, expected, strict=True):
            for item in told.items if effective else ():
                self.accept(item)
        assert self.queue.settle(batch) == expected

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def settle_too(self, data: st.DataObject) -> None:
        self.settle(data, 0)

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def give_back(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.held_and_stale()), min_size=1, max_size=3, unique_by=lambda lease: lease.id))
        told = [Settlement(id=one.id, epoch=one.epoch, now=self.now, state="waiting", due=self.now + 1.0, counted=False) for one in chosen]
        expected = [self.end(settlement) for settlement in told]
        assert self.queue.give_back([(lease.id, lease.epoch) for lease in chosen], self.now, self.now + 1.0) == expected

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def extend(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.held_and_stale()))
        known = self.known.get(lease.id)
        held = known is not None and known.item.state == "leased" and known.item.epoch == lease.epoch
        if known is not None and held:
            known.until = self.now + LEASE_SECONDS
        assert self.queue.extend([(lease.id, lease.epoch)], self.now + LEASE_SECONDS) == [held]

    @rule(owner=st.sampled_from(["", "", "a", "b"]))
    def reclaim(self, owner: str) -> None:
        lost = [k for k in self.of("leased") if (k.owner != owner if owner else k.until <= self.now)]
        until = self.now + HANDED_SECONDS
        expected = [self.hand_out(known, attempts=0, owner=owner, until=until) for known in lost]
        given = self.queue.reclaim(self.now, owner)
        assert sorted(given, key=lambda lease: lease.id) == sorted(expected, key=lambda lease: lease.id)
        self.leases += given

    @rule(limit=st.integers(1, 5))
    def expire(self, limit: int) -> None:
        late = sorted((k for k in self.of("waiting") if k.item.expires <= self.now), key=lambda k: k.item.expires)
        given = self.queue.expire(self.now, limit, "a")
        assert len(given) == min(limit, len(late))
        assert [lease.expires for lease in given] == [known.item.expires for known in late[:limit]]  # of equals, whichever
        for lease in given:
            known = self.known[lease.id]
            assert known in late and lease == self.hand_out(known, attempts=0, owner="a", until=self.now + HANDED_SECONDS)
            known.aside = True
        self.leases += given

    @rule(data=st.data(), keep=st.sampled_from([0.0, 5.0]))
    @precondition(lambda self: self.known)
    def cancel(self, data: st.DataObject, keep: float) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.known)), max_size=3, unique=True))
        until = self.now + keep if keep else 0.0
        expected = []
        for known in (self.known[id] for id in ids):
            kept = until or self.now + CANCELLED_KEPT_SECONDS
            expected.append({"waiting": "cancelled", "leased": "cancelling"}.get(known.item.state, "settled"))
            if known.item.state == "waiting":
                self.bury(known, "cancelled", kept)
            elif known.item.state == "leased":
                known.set(cancelling=True, keep_until=kept)
        assert self.queue.cancel([*ids, "ghost"], self.now, until) == [*expected, "unknown"]

    @rule(data=st.data(), crash=crashes)
    @precondition(lambda self: self.known)
    def redrive(self, data: st.DataObject, crash: int) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.known)), min_size=1, max_size=4, unique=True))
        expires = self.now + 30.0
        if self.crashed(crash, lambda: self.queue.redrive(ids, self.now, expires)):
            return
        expected = [self.known[id].item.state == "dead" for id in ids]
        for known in (self.known[id] for id, dead in zip(ids, expected, strict=True) if dead):
            known.set(state="waiting", attempt=0, due=self.now, expires=expires, reason="", result=b"", settled_at=0.0, keep_until=0.0)
            del self.settled[known.item.id]
        assert self.queue.redrive(ids, self.now, expires) == expected

    @rule(data=st.data())
    @precondition(lambda self: self.known)
    def purge(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.known)), max_size=2, unique=True))
        expected = [self.known[id].item.state != "leased" for id in ids]
        for id, gone in zip(ids, expected, strict=True):
            if gone:
                self.delete(id)
        assert self.queue.purge(ids) == expected

    @rule()
    def forget(self) -> None:
        gone = [known.item.id for known in self.of("done", "dead") if known.item.keep_until <= self.now]
        keys = [key for key, (_, until) in self.keys.items() if until <= self.now]
        for id in gone:
            self.delete(id)
        for key in keys:
            del self.keys[key]
        assert self.queue.forget(self.now, 1000) == len(gone) + len(keys)

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0, 7.0, 25.0, -3.0]))
    def time_passes(self, seconds: float) -> None:
        """Or goes back: clocks are set."""
        self.now += seconds

    @rule()
    def reopen(self) -> None:
        self.queue.close()
        self.queue = open_queue(self.where)

    def crashed(self, step: int, verb: Callable[[], object]) -> bool:
        """Do `verb` with a crash at its step, or before its commit when it has fewer; False: none was wanted. It must have changed nothing,
        which the invariants see."""
        if not step:
            return False
        with type(self).crashing(self.queue, step) as crash:
            try:
                verb()
            except Crash:
                return True
            except sqlite3.OperationalError as error:
                assert error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT
                return True
            finally:
                crash()
        raise AssertionError("a verb that was acknowledged without a commit")

    # Laws

    @invariant()
    def all_that_was_accepted_is_somewhere(self) -> None:
        if not hasattr(self, "queue"):
            return
        counts = self.queue.counts()
        model = Counter((known.item.lane, known.item.state) for known in self.known.values())
        assert {(lane, state): n for lane, numbers in counts.items() for state, n in numbers.items() if n} == dict(model)
        assert self.accepted == sum(n for numbers in counts.values() for n in numbers.values()) + self.deleted

    @invariant()
    def every_item_is_as_the_model_says(self) -> None:
        if not hasattr(self, "queue"):
            return
        ids = sorted(self.known)
        assert self.queue.get(ids) == [self.known[id].item for id in ids]
        for id, item in self.settled.items():
            assert self.known[id].item == item
        newest = sorted(self.known.values(), key=lambda known: (known.item.accepted_at, known.item.id), reverse=True)[:7]
        assert [item.id for item in self.queue.list(limit=7)] == [known.item.id for known in newest]

    @invariant()
    def a_result_is_there_only_with_its_settlement_and_no_group_runs_twice(self) -> None:
        if not hasattr(self, "queue"):
            return
        items = [item for item in self.queue.get(sorted(self.known)) if item is not None]
        assert all(item.state in ("done", "dead") for item in items if item.result)
        running = Counter(
            (item.lane, item.group) for item in items if item.state == "leased" and item.group and not self.known[item.id].aside
        )
        assert not running or max(running.values()) == 1

    @invariant()
    def lanes_say_what_may_be_leased_and_when(self) -> None:
        if not hasattr(self, "queue"):
            return
        expected = {lane: min(known.item.due for known in ready) for lane in LANES if (ready := self.leasable(lane))}
        assert self.queue.lanes(self.now) == expected


@contextmanager
def crash_in_sqlite(queue: SqliteQueue, step: int) -> Iterator[Callable[[], None]]:
    """Interrupt SQLite's machine after so many of its instructions (times 7), or before the commit, whichever is first."""
    db = queue._file.db
    left = step

    def tick() -> int:
        nonlocal left
        left -= 1
        return left == 0  # once: a rollback goes through

    db.set_progress_handler(tick, 7)
    original = queue._file.commit

    def never() -> None:
        raise Crash

    queue._file.commit = never  # type: ignore[method-assign]

    def over() -> None:
        db.set_progress_handler(None, 0)
        queue._file.commit = original  # type: ignore[method-assign]

    yield over


@contextmanager
def crash_in_postgres(queue: PostgresQueue, step: int) -> Iterator[Callable[[], None]]:
    """End the connection before its nth statement, or before the commit: what the server sees of a process that was killed."""
    connection = queue._server._connection
    assert connection is not None
    factory, commit, left = connection.cursor_factory, connection.commit, step

    class Dying(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **more: Any) -> Any:
            nonlocal left
            if left <= 0:
                never()
            left -= 1
            return super().execute(*arguments, **more)

    def never() -> None:
        connection.close()
        raise Crash

    connection.cursor_factory = Dying
    connection.commit = never  # type: ignore[method-assign]

    def over() -> None:
        connection.cursor_factory = factory
        connection.commit = commit  # type: ignore[method-assign]

    yield over


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_sequence_of_verbs_and_crashes_keeps_the_laws(where: Path | Server) -> None:
    class Machine(QueueAndModel):
        crashing = staticmethod(crash_in_sqlite if isinstance(where, Path) else crash_in_postgres)  # type: ignore[assignment]

    Machine.where = where
    examples = 60 if isinstance(where, Path) else 20
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine, settings=settings(max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
    )
