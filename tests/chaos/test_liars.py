"""Instances that are ill while others call the same function and its neighbour: only what the ill ones were asked themselves may suffer.

Which frames are refused is tests/attacks/test_frames.py's matter; here it is who pays. The call that an ill instance runs may be told
anything, once; every other call is held to the law, also those that the same instance takes before and after.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random

import pytest

from tests.chaos.callers import Line, Load
from tests.chaos.conftest import SEED, New
from tests.chaos.judge import Judge
from tests.e2e.harness import descendants, parent_of

# The answers socket is the stream among the instance's descriptors, the page says which call runs.
WAYS = """
import struct, socket, threading
ANSWER = struct.Struct("<BBHIIIQ")
RESULT = 3
def parts():
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + name)
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family == socket.AF_UNIX and one.type == socket.SOCK_STREAM:
                        answers = int(name)
            elif "progress" in target:
                page = int(name)
        except OSError:
            continue
    return answers, struct.unpack("<Q", os.pread(page, 8, 0))[0]
def frame(seq, body=b'"forged"'):
    return ANSWER.pack(RESULT, 0, 200, 0, len(body), 1, seq) + body
def twice(event):
    answers, seq = parts()
    os.write(answers, frame(seq) * 2)
def late(event):
    answers, seq = parts()
    threading.Timer(0.02, lambda: os.write(answers, frame(seq) * 3)).start()
def early(event):
    answers, seq = parts()
    os.write(answers, b"".join(frame(seq + step) for step in range(1, 50)))
def drip(event):
    answers, seq = parts()
    for byte in frame(seq):
        os.write(answers, bytes([byte]))
        time.sleep(1)
def garbage(event):
    os.write(parts()[0], b"\\\\xff" * 4096)
def overdue(event):
    try:
        time.sleep(60)
    finally:
        pass
def crash(event):
    os._exit(7)
def bomb(event):
    blocks = []
    while True:
        blocks.append(b"1" * (8 << 20))
"""


@pytest.fixture(scope="module")
def judge(new_judge: New) -> Judge:
    made = new_judge()
    made.deploy("neighbour", min_instances=1)
    made.deploy("ill", WAYS, max_instances=4, timeout_seconds=2, memory_mb=64)
    return made


@pytest.mark.parametrize("way", ["twice", "late", "drip", "garbage", "overdue", "crash", "bomb"])
def test_what_an_ill_instance_says_reaches_only_its_own_caller(judge: Judge, way: str) -> None:
    line = Line(judge)
    with Load(judge, ("ill", "neighbour"), threads=4) as load:
        for turn in range(2 if way in ("drip", "overdue") else 12):
            line.call("ill", excused=True, way=way, direct=bool(turn % 2))
            load.wait_answers(5)
    line.close()
    counts = judge.settle()
    assert counts["answered"] > 0


def test_answers_to_calls_that_are_still_to_come_are_a_liars_own_affair(judge: Judge) -> None:
    """They can hit calls of the same version, which is one author's; never a neighbour's."""
    line = Line(judge)
    with Load(judge, ("neighbour",), threads=4) as load:
        for _ in range(10):
            line.call("ill", excused=True, way="early")
            load.wait_answers(5)
    line.close()
    judge.settle()


def instances(judge: Judge) -> list[int]:
    """Pids of what runs functions: below the zygotes of this judge's own platform, with an answers socket (descriptor 4). What only stands
    ready has none yet."""
    ours = judge.platform.processes()
    node = judge.platform.roles()["node"]
    below = [pid for pid in descendants(node) if pid in ours and pid != node and parent_of(pid) != node]
    return [pid for pid in below if os.path.lexists(f"/proc/{pid}/fd/4")]


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP, and on the way out SIGCONT."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_instances_that_stop_reading_at_any_moment_cost_the_calls_they_have_taken(judge: Judge) -> None:
    """Stopped from outside, wherever they are; others die meanwhile. Nothing runs twice when they go on."""
    dice = Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    with Load(judge, ("ill", "neighbour"), threads=6, seed=SEED) as load:
        for _ in range(6):
            load.wait_answers(10)
            there = sorted(instances(judge))
            some = dice.sample(there, len(there) // 2)
            with stopped(some):
                for pid in dice.sample(there, min(2, len(there))):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                threading.Event().wait(dice.random() * 0.4)  # how long they are away: less than a timeout
        load.wait_answers(20)
    judge.settle()


def test_the_only_instance_of_a_version_stops_reading_for_longer_than_its_timeout(judge: Judge) -> None:
    judge.deploy("lone", max_instances=1, timeout_seconds=1)
    with Load(judge, ("lone",), threads=4) as load:
        load.wait_answers(20)
        with stopped(instances(judge)):
            load.wait_answers(5)  # by another: the one that does not read is ended at the deadline
    counts = judge.settle()
    assert counts["may have run"] + counts["refused"] > 0, judge
