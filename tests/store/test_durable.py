"""store/durable*.py: schemas forward and foreign files; that cost does not grow with what waits; several owners at once on PostgreSQL."""

import hashlib
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dayfly.core.model.errors import Refusal
from dayfly.store import durable_postgres, durable_sqlite
from dayfly.store.durable import open_durable, open_kv, open_log, open_queue
from dayfly.store.kv import Write
from dayfly.store.log import Append
from dayfly.store.migrate import open_database
from dayfly.store.queue import NewItem, Queue, Settlement
from dayfly.store.queue_hints import ECHO_SECONDS, PostgresHints
from dayfly.store.queue_sqlite import SqliteQueue
from dayfly.store.server import Server

NEVER = float("inf")

# A step that was released is never edited: data directories out there have taken it as it was. A new step adds a line here.
STEPS = {
    "sqlite": ["fdec0e6954d5d56f"],
    "postgresql": ["a949c43f70346d13"],
}

ITEM = "INSERT INTO queue_items (id, lane, rank, due, expires, accepted_at, grp, tag, dedup, dedup_until) VALUES ('a',?,9,1,9,1,'','','',0)"


def new(id: str, lane: str = "n/f", **more: Any) -> NewItem:
    return NewItem(**({"id": id, "lane": lane, "body": b"b", "accepted_at": 1.0, "due": 1.0, "expires": NEVER} | more))


# Schemas


def test_released_schema_steps_are_as_they_were() -> None:
    for kind, steps in (("sqlite", durable_sqlite.STEPS), ("postgresql", durable_postgres.STEPS)):
        assert [hashlib.sha256(step.encode()).hexdigest()[:16] for step in steps] == STEPS[kind]


def dump(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("found", range(len(durable_sqlite.STEPS) + 1))
def test_a_file_of_every_schema_is_brought_forward_and_works(tmp_path: Path, found: int) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        durable_sqlite.upgrade(db, 0, found)
        if found:
            db.execute("INSERT INTO queue_lanes (id, name, waiting) VALUES (1, 'n/f', 1)")
            db.execute(ITEM, (1,))
            db.execute("INSERT INTO queue_bodies VALUES (1, x'62')")
    works(path, "a" if found else "")
    open_durable(tmp_path / "new.db").close()
    assert dump(path) == dump(tmp_path / "new.db")


@pytest.mark.parametrize("found", range(len(durable_postgres.STEPS) + 1))
def test_tables_of_every_schema_are_brought_forward_and_work(postgres: str, found: int) -> None:
    server = Server(postgres)
    with server.connect() as connection, connection.cursor() as tx:
        if found:
            tx.execute("CREATE TABLE durable_format (format INTEGER NOT NULL)")
            tx.execute("INSERT INTO durable_format VALUES (0)")
            durable_postgres.upgrade(tx, 0, found)
            tx.execute("INSERT INTO queue_counts VALUES ('n/f', 3, 1, 0, 0, 0)")
            tx.execute(ITEM.replace("?", "%s"), ("n/f",))
            tx.execute("INSERT INTO queue_bodies VALUES (1, 'b')")
    works(server, "a" if found else "")


def works(where: Path | Server, known: str) -> None:
    durable = open_durable(where)
    durable.queue.put([new("z")])
    leases = durable.queue.lease([("n/f", 9)], 2.0, 60.0, "me")
    assert [(lease.id, lease.body) for lease in leases] == [(id, b"b") for id in (known, "z") if id]
    durable.queue.settle([Settlement(id=x.id, epoch=x.epoch, now=2.0, state="done") for x in leases])
    assert sum(durable.queue.counts()["n/f"].values()) == len(leases)
    assert durable.log.append([Append(stream="s", events=(b"e",), at=1.0)])[0].position == 1
    assert not durable.kv.put([Write(key="k", value=b"v", expected=0)], 1.0)[0].conflict
    durable.close()


def test_the_tables_stand_beside_those_of_the_catalog(postgres: str) -> None:
    server = Server(postgres)
    catalog = open_database(server, 1.0)
    works(server, "")
    catalog.close()
    open_database(server, 2.0).close()


def test_many_may_open_an_empty_database_at_once(where: Path | Server) -> None:
    together(4, lambda n: open_queue(where).close())
    works(where, "")


def test_a_newer_schema_is_refused_and_not_touched(where: Path | Server) -> None:
    open_queue(where).close()
    if isinstance(where, Path):
        with closing(sqlite3.connect(where)) as db:
            db.execute("PRAGMA user_version=99")
        before = where.read_bytes()
    else:
        with where.connect() as connection:
            connection.execute("UPDATE durable_format SET format = 99")
    for opened in (open_queue, open_log, open_kv):
        with pytest.raises(Refusal, match="newer Dayfly") as refusal:
            opened(where)
        assert refusal.value.kind.code == "data_unusable"
    assert isinstance(where, Server) or where.read_bytes() == before


def test_a_foreign_or_damaged_file_is_refused_and_not_touched(tmp_path: Path) -> None:
    foreign, damaged = tmp_path / "foreign.db", tmp_path / "damaged.db"
    with closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE theirs (x)")
    damaged.write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    for path in (foreign, damaged):
        before = path.read_bytes()
        with pytest.raises(Refusal) as refusal:
            open_queue(path)
        assert refusal.value.kind.code == "data_unusable" and path.read_bytes() == before
    with pytest.raises(Refusal, match="opened"):
        open_queue(tmp_path / "no folder" / "durable.db")


def test_damage_found_later_is_said_as_such(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    queue = open_queue(path)
    queue.put([new(str(n), body=b"x" * 3000) for n in range(100)])
    queue.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    queue = open_queue(path)
    with pytest.raises(Refusal, match="damaged"):
        queue.get([str(n) for n in range(100)])
    queue.close()


def test_a_locked_file_is_said_after_a_while_and_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "durable.db"
    queue = open_queue(path)
    assert isinstance(queue, SqliteQueue)
    queue._file.db.execute("PRAGMA busy_timeout=1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refusal, match="locked"):
            queue.put([new("a")])
        assert queue.counts() == {}, "readers are not kept"
    assert not queue.put([new("a")])[0].duplicate
    queue.close()


# What waits costs nothing


def steps(queue: SqliteQueue, verb: Callable[[], object]) -> int:
    """Hundreds of instructions of SQLite's machine that a verb takes."""
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return 0

    queue._file.db.set_progress_handler(tick, 100)
    verb()
    queue._file.db.set_progress_handler(None, 0)
    return ticks


def backlog(queue: Queue, number: int) -> None:
    """Of `number` items each: due ones, later ones of a higher priority, and a group behind its first."""
    for start in range(0, number, 1000):
        ids = [f"{n:06}" for n in range(start, min(number, start + 1000))]
        queue.put([new("a" + id, accepted_at=float(start)) for id in ids])
        queue.put([new("b" + id, due=1e9, priority=5, accepted_at=float(start)) for id in ids])
        queue.put([new("c" + id, lane="n/g", group="g", accepted_at=float(start)) for id in ids])


def test_no_verb_becomes_slower_with_what_waits(tmp_path: Path) -> None:
    costs: list[dict[str, int]] = []
    for number in (200, 20_000):
        queue = SqliteQueue(tmp_path / f"{number}.db")
        backlog(queue, number)
        leases = queue.lease([("n/f", 50), ("n/g", 50)], 2.0, 60.0, "me")
        assert len(leases) == 51
        told = [Settlement(id=x.id, epoch=x.epoch, now=2.0, state="dead", keep_until=5.0, reason="x") for x in leases[:40]]
        costs.append(
            {
                "put": steps(queue, lambda: queue.put([new(f"z{n}", group="g" if n == 3 else "") for n in range(20)])),  # noqa: B023
                "lease": steps(queue, lambda: queue.lease([("n/f", 50), ("n/g", 50)], 2.0, 60.0, "me")),  # noqa: B023
                "settle": steps(queue, lambda: queue.settle(told)),  # noqa: B023
                "extend": steps(queue, lambda: queue.extend([(x.id, x.epoch) for x in leases], 90.0)),  # noqa: B023
                "give back": steps(queue, lambda: queue.give_back([(leases[-1].id, 1)], 2.0, 2.0)),  # noqa: B023
                "lanes": steps(queue, lambda: queue.lanes(2.0)),  # noqa: B023
                "counts": steps(queue, lambda: queue.counts(["n/"])),  # noqa: B023
                "reclaim": steps(queue, lambda: queue.reclaim(2.0) or queue.reclaim(2.0, "me")),  # noqa: B023
                "expire": steps(queue, lambda: queue.expire(2.0, 100)),  # noqa: B023
                "list": steps(queue, lambda: queue.list(states=["dead"], limit=20) + queue.list(limit=20)),  # noqa: B023
                "cancel": steps(queue, lambda: queue.cancel(["a000100", "c000100"], 2.0)),  # noqa: B023
                "purge": steps(queue, lambda: queue.purge(["a000101", "c000101"])),  # noqa: B023
                "forget": steps(queue, lambda: queue.forget(9.0, 100)),  # noqa: B023
            }
        )
        queue.close()
    few, many = costs
    assert {verb: cost for verb, cost in many.items() if cost > few[verb] * 1.5 + 5} == {}


def test_every_statement_on_postgresql_has_its_index(postgres: str) -> None:
    """Sequential scans are what grows with the backlog: of the queue's tables, there are none while verbs run."""
    server = Server(postgres)
    queue = open_queue(server)
    backlog(queue, 300)

    def scans() -> dict[str, int]:
        with server.connect() as connection:
            connection.execute("SELECT pg_stat_clear_snapshot()")
            rows = connection.execute("SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname LIKE 'queue%'").fetchall()
            return {name: read for name, read in rows if name != "queue_counts"}

    leases = queue.lease([("n/f", 50), ("n/g", 50)], 2.0, 60.0, "me")
    queue.settle([Settlement(id=x.id, epoch=x.epoch, now=2.0, state="dead", keep_until=5.0, record=b"r", result=b"r") for x in leases[:40]])
    queue.extend([(x.id, x.epoch) for x in leases], 90.0)
    queue.reclaim(2.0)
    queue.reclaim(2.0, "other")
    queue.expire(2.0, 100)
    queue.list(states=["dead"], limit=20, tag="t")
    queue.list(limit=20)
    queue.get([leases[0].id])
    queue.lanes(2.0)
    queue.cancel(["a000100", "c000100"], 2.0)
    queue.purge(["a000101", "c000101"])
    queue.forget(9.0, 100)
    queue.close()
    assert scans() == dict.fromkeys(["queue_items", "queue_bodies", "queue_results", "queue_attempts", "queue_dedups"], 0)


# Several owners on PostgreSQL


def together(number: int, work: Callable[[int], None]) -> None:
    """Run `work(n)` in so many threads, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def test_owners_at_once_share_the_work_and_nothing_runs_twice(postgres: str) -> None:
    server = Server(postgres)
    queue = open_queue(server)
    queue.put([new(f"{n:04}", lane=f"n/{n % 3}") for n in range(600)])
    taken: list[str] = []

    def own(n: int) -> None:
        mine = open_queue(server)
        order = [(f"n/{(n + k) % 3}", 7) for k in range(3)]
        while leases := mine.lease(order, 2.0, 60.0, f"owner-{n}"):
            taken.extend(lease.id for lease in leases)
            assert all(mine.settle([Settlement(id=x.id, epoch=x.epoch, now=2.0, state="done", keep_until=NEVER) for x in leases]))
        mine.close()

    together(4, own)
    assert sorted(taken) == [f"{n:04}" for n in range(600)]
    assert queue.counts() == {f"n/{n}": {"waiting": 0, "leased": 0, "done": 200, "dead": 0} for n in range(3)}
    queue.close()


def test_groups_keep_their_order_among_owners_and_writers_at_once(postgres: str) -> None:
    """Putting, cancelling and working on the same groups: none ever has two running, none is stuck, and the order is that of acceptance."""
    server = Server(postgres)
    running: Counter[str] = Counter()
    seen: dict[str, list[str]] = {"g": [], "h": []}
    cancelled: set[str] = set()
    writers_left = threading.Semaphore(0)
    guard = threading.Lock()

    def write(n: int) -> None:
        mine = open_queue(server)
        for k in range(40):
            mine.put([new(f"{n}-{k:03}-{group}", group=group) for group in ("g", "h")])
            if k % 5 == 4:
                words = mine.cancel([f"{n}-{k:03}-g"], 2.0, NEVER)
                cancelled.update([f"{n}-{k:03}-g"] if words == ["cancelled"] else [])
        mine.close()
        writers_left.release()

    def own(n: int) -> None:
        mine = open_queue(server)
        idle = 0
        while idle < 3:
            leases = mine.lease([("n/f", 5)], 2.0, 60.0, f"owner-{n}")
            with guard:
                running.update(lease.group for lease in leases)
                assert max(running.values(), default=0) <= 1
                for lease in leases:
                    seen[lease.group].append(lease.id)
                running.subtract(lease.group for lease in leases)
            mine.settle([Settlement(id=x.id, epoch=x.epoch, now=2.0, state="done", keep_until=NEVER) for x in leases])
            idle = 0 if leases or writers_left._value < 2 else idle + 1
        mine.close()

    together(4, lambda n: write(n) if n < 2 else own(n))
    queue = open_queue(server)
    assert queue.counts()["n/f"]["waiting"] == queue.counts()["n/f"]["leased"] == 0
    for ids in seen.values():
        for writer in "01":
            mine = [id for id in ids if id.startswith(writer)]
            assert mine == sorted(mine) and len(mine) == len(set(mine))
    assert len(seen["g"]) + len(cancelled) == len(seen["h"]) == 80
    queue.close()


def test_one_of_many_with_the_same_key_at_once_is_the_first(postgres: str) -> None:
    server = Server(postgres)
    answers: list[tuple[str, bool]] = []

    def write(n: int) -> None:
        mine = open_queue(server)
        for k in range(20):
            (put,) = mine.put([new(f"{n}-{k}", dedup=f"key-{k}", dedup_until=100.0)])
            answers.append((put.id, put.duplicate))
            mine.put([new(f"same-{k}")])
        mine.close()

    together(4, write)
    firsts = [id for id, duplicate in answers if not duplicate]
    assert len(firsts) == 20 and {id for id, _ in answers} == set(firsts)
    queue = open_queue(server)
    assert queue.counts()["n/f"]["waiting"] == 40
    queue.close()


def test_writers_of_one_stream_and_one_key_at_once_never_overwrite_each_other(where: Path | Server) -> None:
    def write(n: int) -> None:
        log, kv = open_log(where), open_kv(where)
        for _ in range(20):
            while True:
                last = log.ends("s").last
                if not log.append([Append(stream="s", events=(b"%d" % last,), at=1.0, expected=last)])[0].conflict:
                    break
            while True:
                (entry,) = kv.get(["k"], 1.0)
                value = int(entry.value) if entry else 0
                write = Write(key="k", value=b"%d" % (value + 1), expected=entry.version if entry else 0)
                if not kv.put([write], 1.0)[0].conflict:
                    break
        log.close()
        kv.close()

    together(3, write)
    log, kv = open_log(where), open_kv(where)
    assert [event.body for event in log.read("s", 0, 100)] == [b"%d" % n for n in range(60)]
    (entry,) = kv.get(["k"], 1.0)
    assert entry is not None and entry.value == b"60"
    log.close()
    kv.close()


def test_a_listener_hears_that_something_was_put_and_looks_once_more(postgres: str) -> None:
    server = Server(postgres)
    queue, hints = open_queue(server), PostgresHints(server)
    assert hints.wait(30.0), "what was put before it listened"
    assert not hints.wait(0.0)
    queue.put([new("a")])
    assert hints.wait(30.0)
    queue.put([new("b")])  # within the pause in which nothing is announced
    assert hints.wait(30.0), "by itself, a moment later"
    assert not hints.wait(0.0)
    queue.lease([("n/f", 9)], 2.0, 60.0, "me")
    assert not hints.wait(ECHO_SECONDS), "a lease is no news"
    hints.close()
    queue.close()


def test_a_listener_whose_server_went_says_so_and_listens_again(postgres: str, postgres_server: Any) -> None:
    server = Server(postgres)
    hints = PostgresHints(server)
    assert hints.wait(1.0)
    postgres_server.restart(crash=True)
    with pytest.raises(Refusal, match="reached"):
        hints.wait(30.0)
    assert hints.wait(30.0)
    queue = open_queue(server)
    queue.put([new("a")])
    assert hints.wait(30.0)
    queue.close()
    hints.close()


def test_a_file_gets_small_again_after_its_backlog_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    queue = open_queue(path)
    ids = [f"{n:05}" for n in range(5000)]
    queue.put([new(id, body=b"x" * 2000) for id in ids])
    queue.purge(ids[1:])
    rounds = 0
    while queue.tidy():
        rounds += 1
        queue.put([new(f"between-{rounds}")])
    assert rounds > 1 and path.stat().st_size < 2_000_000
    assert queue.counts()["n/f"]["waiting"] == 1 + rounds
    queue.close()


def test_an_online_copy_of_the_file_is_whole(tmp_path: Path) -> None:
    """What a backup takes: the file and its log, through SQLite's own copying."""
    queue = open_queue(tmp_path / "durable.db")
    queue.put([new(str(n)) for n in range(50)])
    with closing(sqlite3.connect(tmp_path / "durable.db")) as source, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        source.backup(copy)
    queue.put([new("later")])
    shutil.move(tmp_path / "copy.db", tmp_path / "restored.db")
    restored = open_queue(tmp_path / "restored.db")
    assert restored.counts()["n/f"]["waiting"] == 50 and restored.get(["later"]) == [None]
    restored.close()
    queue.close()
