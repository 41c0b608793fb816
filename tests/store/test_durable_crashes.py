"""What was acknowledged outlives everything: kill -9, a server that crashes, a power cut, a full disk. And nothing is ever half done."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dayfly.core.model.errors import Refusal
from dayfly.store.durable import open_durable, open_kv, open_log, open_queue
from dayfly.store.durable_sqlite import DurableFile
from dayfly.store.kv import Write
from dayfly.store.log import Append
from dayfly.store.queue import STATES, Item, NewItem, Queue, Settlement
from dayfly.store.queue_sqlite import SqliteQueue
from dayfly.store.server import Server
from tests.postgres import Server as PostgreSQL

HAMMER = Path(__file__).with_name("hammer.py")
NEVER = float("inf")


class Promises:
    """What the program under the hammer was told is done: ids put, ids settled."""

    def __init__(self) -> None:
        self.put: set[str] = set()
        self.settled: set[str] = set()

    def heard(self, line: str) -> None:
        word, *ids = line.split()
        if word == "put":
            self.put.update(ids)
        elif word == "settled":
            self.settled.update(ids)
        elif word == "driving":  # perhaps done, perhaps not
            self.settled.difference_update(ids)

    def check(self, queue: Queue) -> None:
        """Each is kept, and the queue agrees with itself."""
        items = everything(queue)
        assert self.put <= items.keys(), f"lost: {sorted(self.put - items.keys())[:5]}"
        assert all(items[id].state in ("done", "dead") for id in self.settled)
        whole = [item for part in chunks(sorted(items)) for item in queue.get(part)]
        for item in whole:
            assert item is not None and item.body in (item.id.encode(), item.id.encode() * 300)
            assert item.result == (item.id.encode() if item.state in ("done", "dead") else b"")
        consistent(queue, items)


def chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), 1000):
        yield ids[start : start + 1000]


def everything(queue: Queue) -> dict[str, Item]:
    items: dict[str, Item] = {}
    before = None
    while page := queue.list(limit=1000, before=before):
        items |= {item.id: item for item in page}
        before = (page[-1].accepted_at, page[-1].id)
    return items


def consistent(queue: Queue, items: dict[str, Item]) -> None:
    """Counters are what there is, and no group has two leased or is stuck."""
    counted = {(lane, state): n for lane, numbers in queue.counts().items() for state, n in numbers.items() if n}
    assert counted == dict(Counter((item.lane, item.state) for item in items.values()))
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items.values():
        if item.group:
            groups.setdefault((item.lane, item.group), []).append(item.state)
    assert all(states.count("leased") <= 1 for states in groups.values())
    stuck = [key for key, states in groups.items() if "waiting" in states and "leased" not in states and key[0] not in queue.lanes(9.0)]
    assert not stuck


def hammered(where: str, round: int, acknowledgements: int, promises: Promises) -> None:
    """Let the program work until it has said so many lines, and kill it at whatever it is doing then."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, HAMMER, where, str(round)], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for _ in range(acknowledgements):
            line = child.stdout.readline()
            assert line, "the program ended by itself"
            promises.heard(line)
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                promises.heard(line)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_the_process_is_killed_at_random_moments(
    where: Path | Server, request: pytest.FixtureRequest
) -> None:
    dice, promises = random.Random(17), Promises()
    address = str(where) if isinstance(where, Path) else request.getfixturevalue("postgres")
    for round in range(16 if isinstance(where, Path) else 8):
        hammered(address, round, dice.randrange(1, 40), promises)
        if isinstance(where, Path):
            with sqlite3.connect(where) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        queue = open_queue(where)
        promises.check(queue)
        queue.close()
    assert len(promises.put) > 200 and len(promises.settled) > 50


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_postgresql_crashes(postgres: str, postgres_server: PostgreSQL) -> None:
    dice, promises = random.Random(18), Promises()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for round in range(3):
        command = [sys.executable, HAMMER, postgres, str(round)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None and child.stderr is not None
            for _ in range(dice.randrange(5, 40)):
                promises.heard(child.stdout.readline())
            postgres_server.restart(crash=True)
            for line in child.stdout:
                promises.heard(line)
            said = child.stderr.read()
        assert "Unreachable" in said or "Doubtful" in said, said
        queue = open_queue(Server(postgres))
        promises.check(queue)
        queue.close()


def test_a_queue_goes_on_after_the_server_was_away(postgres: str, postgres_server: PostgreSQL) -> None:
    queue = open_queue(Server(postgres))
    queue.put([item("a")])
    postgres_server.stop(crash=True)
    for _ in range(2):
        with pytest.raises(Refusal) as refusal:
            queue.put([item("b")])
        assert refusal.value.kind.code == "data_unusable" and postgres_server.password not in refusal.value.detail
    postgres_server.start()
    assert [put.duplicate for put in queue.put([item("a"), item("b")])] == [True, False]
    postgres_server.restart()
    assert len(queue.lease([("n/f", 9)], 2.0, 60.0, "me")) == 2  # the connection was dead before the verb began: nobody notices
    queue.close()


# Power cuts


def item(id: str, body: bytes = b"x" * 200) -> NewItem:
    return NewItem(id=id, lane="n/f", body=body, accepted_at=1.0, due=1.0, expires=NEVER)


class Recorder:
    """A queue in `folder` that keeps what is on the disk after every verb: at that moment SQLite has synced the write-ahead log, and of the
    file all that a checkpoint wrote."""

    def __init__(self, folder: Path, checkpoint_pages: int) -> None:
        self.path = folder / "durable.db"
        self.queue = SqliteQueue(self.path)
        db = self.queue._file.db
        assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: the log is synced at every commit"
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        self.states: list[tuple[bytes, bytes]] = []
        self.puts: list[set[str]] = []
        self.settled: list[set[str]] = []

    def record(self, put: set[str], settled: set[str]) -> None:
        wal = self.path.with_name(self.path.name + "-wal")
        self.states.append((self.path.read_bytes(), wal.read_bytes() if wal.exists() else b""))
        self.puts.append((self.puts[-1] if self.puts else set()) | put)
        self.settled.append((self.settled[-1] if self.settled else set()) | settled)

    def work(self, verbs: int, dice: random.Random) -> None:
        for n in range(verbs):
            if n % 3 < 2:
                ids = [f"{n}-{k}" for k in range(dice.choice([1, 8, 30]))]
                self.queue.put([item(id) for id in ids])
                self.record(set(ids), set())
            else:
                leases = self.queue.lease([("n/f", 10)], 2.0, 60.0, "me")
                self.record(set(), set())
                told = [Settlement(id=x.id, epoch=x.epoch, now=2.0, state="done", result=x.id.encode(), keep_until=NEVER) for x in leases]
                self.queue.settle(told)
                self.record(set(), {lease.id for lease in leases})
        self.queue.close()


def torn(old: bytes, new: bytes, at: int, dice: random.Random) -> bytes:
    """A file while `new` was written over `old`: up to `at`, then what was there, or nothing yet, or garbage of an unfinished sector."""
    rest = old[at:] if dice.random() < 0.5 else b""
    garbage = dice.randbytes(dice.randrange(512)) if dice.random() < 0.3 else b""
    return new[:at] + garbage + rest[len(garbage) :]


def same(old: bytes, new: bytes) -> int:
    """How many bytes from the beginning are the same."""
    blocks = range(0, min(len(old), len(new)), 4096)
    start = next((at for at in blocks if old[at : at + 4096] != new[at : at + 4096]), len(blocks) * 4096)
    return next((at for at in range(start, min(len(old), len(new))) if old[at] != new[at]), min(len(old), len(new)))


def mixed(old: bytes, new: bytes, dice: random.Random, page: int = 4096) -> bytes:
    """A file in the middle of a checkpoint: of each page, the old or the new one."""
    pages = [dice.choice([old[at : at + page] or new[at : at + page], new[at : at + page]]) for at in range(0, len(new), page)]
    return b"".join(pages)


@pytest.mark.parametrize("checkpoint_pages", [0, 20], ids=["no checkpoint", "checkpoints"])
def test_a_power_cut_at_any_byte_costs_nothing_acknowledged(tmp_path: Path, checkpoint_pages: int) -> None:
    dice = random.Random(checkpoint_pages)
    recorder = Recorder(tmp_path, checkpoint_pages)
    recorder.work(40, dice)
    cuts = Counter[str]()
    for trial in range(150):
        n = dice.randrange(len(recorder.states) - 1)  # verb n was acknowledged, n + 1 was under way
        (file, wal), (next_file, next_wal) = recorder.states[n], recorder.states[n + 1]
        if file != next_file and dice.random() < 0.8:  # in the checkpoint: the log is synced before it begins
            kind, file, wal = "checkpoint", mixed(file, next_file, dice), next_wal
        else:
            start = same(wal, next_wal)
            kind, wal = "log", torn(wal, next_wal, dice.randrange(start, len(next_wal) + 1), dice)
        cuts[kind] += 1
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "durable.db").write_bytes(file)
        (folder / "durable.db-wal").write_bytes(wal)
        queue = SqliteQueue(folder / "durable.db")
        assert queue._file.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        items = everything(queue)
        done = {id for id, found in items.items() if found.state == "done"}
        assert items.keys() in (recorder.puts[n], recorder.puts[n + 1]) and done in (recorder.settled[n], recorder.settled[n + 1])
        assert all(found is not None and found.result == found.id.encode() for found in queue.get(sorted(done)))
        consistent(queue, items)
        queue.close()
        shutil.rmtree(folder)
    assert cuts["log"] > 20 and (cuts["checkpoint"] > 20 or not checkpoint_pages)


# Full disks


def filled(queue: Queue) -> tuple[int, str]:
    """Put until the disk says no: how many went in, and with which code it ended."""
    for n in range(10_000):
        try:
            queue.put([item(f"{n}-{k}", b"x" * 2000) for k in range(16)])
        except Refusal as refusal:
            return n * 16, refusal.kind.code
    raise AssertionError("the disk was never full")


def test_a_full_disk_is_refused_with_nothing_half_done_and_room_helps(tmp_path: Path) -> None:
    durable = open_durable(tmp_path / "durable.db")
    queue = durable.queue
    assert isinstance(queue, SqliteQueue)
    db = queue._file.db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count={pages + 100}")
    accepted, code = filled(queue)
    assert code == "storage_full" and accepted > 0
    assert len(everything(queue)) == accepted
    consistent(queue, everything(queue))
    leases = queue.lease([("n/f", 2)], 2.0, 60.0, "me")
    large = [Settlement(id=x.id, epoch=x.epoch, now=2.0, state="done", result=b"x" * 500_000, keep_until=NEVER) for x in leases]
    with pytest.raises(Refusal, match="No space"):
        queue.settle(large)
    assert [found and (found.state, found.result) for found in queue.get([x.id for x in leases])] == [("leased", b"")] * 2
    db.execute(f"PRAGMA max_page_count={pages + 10_000}")
    assert queue.settle(large) == [True, True]
    durable.close()


ON_A_FULL_DISK = """
import sys
from pathlib import Path
from tests.store.test_durable_crashes import consistent, everything, filled, item
from dayfly.store.durable import open_queue
path = Path(sys.argv[1])
queue = open_queue(path)
accepted, code = filled(queue)
assert accepted > 0 and code == sys.argv[2], (accepted, code)
assert queue.counts()["n/f"]["waiting"] == accepted
queue.close()
queue = open_queue(path)
assert len(everything(queue)) == accepted
consistent(queue, everything(queue))
print("kept", accepted)
"""


def told_to_fill(path: Path, code: str, *before: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["."] + [path for path in sys.path if path])}
    command = [*before, sys.executable, "-c", ON_A_FULL_DISK, str(path), code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HAMMER.parents[2], timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.root
def test_a_file_system_without_room_loses_nothing_acknowledged(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1500k tmpfs "$0" && exec "$@"'
    assert "kept" in told_to_fill(tmp_path / "durable.db", "storage_full", "unshare", "-m", "sh", "-c", script, str(tmp_path))


def test_a_limit_on_file_sizes_is_refused_like_a_broken_disk(tmp_path: Path) -> None:
    script = 'ulimit -f 1000 && exec "$0" "$@"'
    assert "kept" in told_to_fill(tmp_path / "durable.db", "data_unusable", "sh", "-c", script)


# Opening


def test_a_file_with_much_in_its_log_opens_without_reading_all_of_it(tmp_path: Path) -> None:
    """After a kill the write-ahead log is read, which is bounded; the file itself, however large, is not."""
    path = tmp_path / "durable.db"
    queue = SqliteQueue(path)
    for n in range(120):
        queue.put([item(f"{n}-{k}", b"x" * 1000) for k in range(250)])
    wal = path.with_name("durable.db-wal")
    shutil.copy(path, tmp_path / "copy.db")
    shutil.copy(wal, tmp_path / "copy.db-wal")
    assert wal.stat().st_size < 16 * 1024 * 1024 < path.stat().st_size
    before = read_bytes()
    again = SqliteQueue(tmp_path / "copy.db")
    assert read_bytes() - before < wal.stat().st_size + 1024 * 1024
    assert again.counts() == {"n/f": dict(zip(STATES, (30_000, 0, 0, 0), strict=True))}
    again.close()
    queue.close()


def read_bytes() -> int:
    """What this process has read so far, from files and caches."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def test_all_three_live_in_one_file_and_each_survives_the_others_crash(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    durable = open_durable(path)
    durable.queue.put([item("a")])
    durable.log.append([Append(stream="s", events=(b"e",), at=1.0)])
    durable.kv.put([Write(key="k", value=b"v")], 1.0)
    shutil.copy(path, tmp_path / "copy.db")
    shutil.copy(path.with_name("durable.db-wal"), tmp_path / "copy.db-wal")
    durable.close()
    for where in (path, tmp_path / "copy.db"):
        queue, log, kv = open_queue(where), open_log(where), open_kv(where)
        assert queue.counts()["n/f"]["waiting"] == 1 and log.read("s", 0, 9)[0].body == b"e" and kv.get(["k"], 1.0)[0] is not None
        for part in (queue, log, kv):
            part.close()
    assert DurableFile(path).db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
