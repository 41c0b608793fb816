"""Crowds at the door while others call: slow clients, idle ones, too many at once, floods, those that close half or leave.

CHAOS_CLIENTS says how many the slow and the idle are; the full day has 10,000, or what the limit on open files leaves.
"""

import os
import threading
from random import Random

import pytest

from tests.chaos.callers import Load
from tests.chaos.conftest import SEED, New
from tests.chaos.crowd import Crowd, clients_max
from tests.chaos.judge import Judge

CLIENTS = clients_max(int(os.environ.get("CHAOS_CLIENTS", "10000")))
PIECES = 4
AT_ONCE, INSTANCES, QUEUE = 500, 10, 90


@pytest.fixture(scope="module")
def judge(new_judge: New) -> Judge:
    made = new_judge(connections_max=12_000, header_timeout_seconds=60, body_timeout_seconds=60, idle_timeout_seconds=600)
    made.deploy("steady", min_instances=1)
    made.deploy("slow", max_instances=4, queue_max=20_000, timeout_seconds=60)
    made.deploy("narrow", max_instances=INSTANCES, queue_max=QUEUE, timeout_seconds=60)
    made.deploy("left", max_instances=3, queue_max=1000)
    return made


def test_slow_clients_are_served_when_they_have_spoken_and_hold_nobody_up(judge: Judge) -> None:
    with Crowd(judge) as crowd, Load(judge, ("steady",), threads=2) as load:
        slow = crowd.open(CLIENTS, "slow")
        size = max(len(client.data) for client in slow) // PIECES + 1
        for _ in range(PIECES):
            load.wait_answers(5)
            crowd.send(slow, size)
            crowd.hear()
        crowd.hear_until("every slow client is answered", lambda: all(client.over for client in slow), 90)
        said = [judge.told[client.call].verdict for client in slow]
    assert said.count("answered") == len(slow), judge
    print(f"{len(slow)} slow clients at once; {judge}")
    judge.settle()


def test_clients_that_speak_too_slowly_are_told_so_and_nothing_of_theirs_runs(new_judge: New) -> None:
    judge = new_judge(header_timeout_seconds=1, body_timeout_seconds=1)
    judge.deploy("steady", min_instances=1)
    with Crowd(judge) as crowd, Load(judge, ("steady",), threads=2):
        heads, bodies = crowd.open(100, "steady"), crowd.open(100, "steady", pad=100)
        crowd.send(heads, 40)
        for client in bodies:
            crowd.send([client], len(client.data) - 50)
        crowd.hear_until("all are told", lambda: all(client.over for client in (*heads, *bodies)))
        assert {judge.told[client.call].why for client in (*heads, *bodies)} == {"request_timeout"}
    judge.settle()


def test_idle_connections_cost_the_others_nothing_and_can_still_call(judge: Judge) -> None:
    count = clients_max(min(5000, CLIENTS))
    with Crowd(judge) as crowd, Load(judge, ("steady",), threads=2) as load:
        crowd.open(count)
        load.wait_answers(50)
        crowd.hear()
        assert len(crowd.clients) == count, "an idle connection was closed before its time"
        late = crowd.open(50, "steady")
        crowd.send(late)
        crowd.hear_until("who calls among them is answered", lambda: all(client.over for client in late))
    print(f"{count} idle connections")
    judge.settle()


def test_five_times_as_many_as_can_be_taken_at_once_are_taken_or_told_to_come_again(judge: Judge) -> None:
    with Crowd(judge) as crowd, Load(judge, ("steady",), threads=2):
        many = crowd.open(AT_ONCE, "narrow", pause=0.3)
        crowd.send(many)
        crowd.hear_until("all are told", lambda: all(client.over for client in many), 90)
    verdicts = [judge.told[client.call].verdict for client in many]
    assert QUEUE <= verdicts.count("answered") < AT_ONCE and set(verdicts) == {"answered", "refused"}, judge
    judge.settle()


@pytest.mark.parametrize("reset", [False, True])
def test_a_flood_of_connections_that_say_nothing_holds_nobody_up(judge: Judge, reset: bool) -> None:
    with Load(judge, ("steady",), threads=2) as load:
        for _ in range(10):
            with Crowd(judge) as crowd:
                for client in crowd.open(200):
                    crowd.leave(client, reset=reset)
            load.wait_answers(2)
    counts = judge.settle()
    assert not counts["cut"], judge


def test_clients_that_close_their_half_are_answered(judge: Judge) -> None:
    with Crowd(judge) as crowd, Load(judge, ("steady",), threads=2):
        half = crowd.open(200, "steady", pause=0.01)
        crowd.send(half)
        crowd.half_close(half)
        crowd.hear_until("all are over", lambda: all(client.over for client in half))
    verdicts = [judge.told[client.call].verdict for client in half]
    assert verdicts.count("answered") >= 1 and set(verdicts) <= {"answered", "cut"}, judge  # those that waited long lose their place
    judge.settle()


def test_clients_that_leave_at_any_moment_cost_nobody_else_a_call(judge: Judge) -> None:
    """Before, within and after their request, politely or not; what they asked for runs once or not at all."""
    dice = Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    with Crowd(judge) as crowd, Load(judge, ("steady", "left"), threads=4) as load:
        for _ in range(20):
            clients = crowd.open(30, "left", pause=0.01, pad=200)
            for client in clients:
                crowd.send([client], dice.choice((1, 100, len(client.data) - 1, len(client.data))))
            threading.Event().wait(dice.random() * 0.02)  # the moment: while it is read, while it waits, while it runs
            for client in clients:
                crowd.leave(client, reset=dice.random() < 0.5)
            load.wait_answers(3)
    judge.settle()
