"""The arithmetic behind the figures: schedules, what an open loop times, what belongs to a figure, who is compared with whom."""

import select
import socket
import threading
from itertools import pairwise

import pytest

from bench.arrivals import Arrival, Driven, drive, failures, poisson, split
from bench.load import Reply
from bench.origin import Tally, origin_of
from bench.outcome import Outcome, Run, Series
from bench.processes import grown
from bench.report import text


def answer(milliseconds: float, *headers: str, status: int = 200) -> Reply:
    return Reply(status, "\r\n".join([f"HTTP/1.1 {status} OK", *headers]), b"", milliseconds)


COLD = "x-dayfly-start: cold"


def test_the_same_seed_gives_the_same_arrivals_and_another_gives_others() -> None:
    assert poisson(300, 2, seed=4) == poisson(300, 2, seed=4)
    assert poisson(300, 2, seed=4) != poisson(300, 2, seed=5)


def test_poisson_arrivals_are_ordered_within_the_time_and_as_many_and_as_uneven_as_the_rate_says() -> None:
    times = poisson(500, 60, seed=1)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 60
    assert len(times) == pytest.approx(30_000, rel=0.03)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)  # of an exponential distribution they are equal; of a metronome it is 0


def test_a_cold_answer_without_an_origin_is_a_fork_and_a_warm_one_is_warm_whatever_it_says() -> None:
    assert origin_of(answer(1, COLD)) == "fork"
    assert origin_of(answer(1, COLD, "x-dayfly-origin: ahead")) == "ahead"
    assert origin_of(answer(1, "x-dayfly-start: warm", "x-dayfly-origin: prepared")) == "warm"


def test_answers_of_another_origin_are_counted_beside_the_figure_and_kept_in_its_times() -> None:
    tally = Tally("prepared")
    given = [answer(1, COLD, "x-dayfly-origin: prepared"), answer(5, COLD, "x-dayfly-origin: fork"), answer(0.2, "x-dayfly-start: warm")]
    assert tally.take(given) == ([1, 5], 1)
    tally.take([answer(3, COLD, "x-dayfly-origin: prepared")])
    document = tally.document()
    assert document["answers"] == {"fork": 1, "prepared": 2, "warm": 1}
    assert (document["belonging"], document["elsewhere"]) == (2, 1)
    assert document["p99_belonging"] == 3


def test_a_figure_that_wants_no_origin_takes_every_cold_answer() -> None:
    tally = Tally()
    tally.take([answer(1, COLD, "x-dayfly-origin: prepared"), answer(5, COLD), answer(0.2)])
    assert (tally.document()["belonging"], tally.document()["elsewhere"]) == (2, 0)


def test_the_report_says_so_when_no_answer_was_of_the_origin_it_is_about() -> None:
    tally = Tally("template")
    tally.take([answer(5, COLD)])
    machine = dict.fromkeys(("processor", "system", "kernel", "python", "user"), "x") | dict.fromkeys(
        ("cores", "memory_mb", "load_before", "load_after", "steal_percent"), 1
    )
    figure = Outcome([Series("dayfly", [Run(5, 5, 5)])], "so", {"origins": {"numpy": tally.document()}})
    full = figure.document("cold-template", "ms") | figure.more
    said = text(full | {"floor": "", "quick": True, "compared": True, "method": "so", "machine": machine, "values": {}})
    assert "1 fork; 0 are template, as this figure wants, 1 are not. This figure is none of template." in said


def test_each_baseline_is_compared_with_its_own_subject_and_errors_of_every_row_of_ours_count() -> None:
    ours = [Series("numpy", [Run(2, 2, 2)]), Series("pandas", [Run(9, 9, 9, errors=1)])]
    series = [*ours, Series("bare pandas", [Run(90, 90, 90, errors=5)])]
    figure = Outcome(series, "", {}, ("pandas",), {"bare pandas": "pandas"})
    document = figure.document("x", "ms")
    baselines, also = document["baselines"], document["also"]
    assert isinstance(baselines, dict)
    assert isinstance(also, dict)
    assert baselines["bare pandas"]["ratio"] == 0.1
    assert also["pandas"]["value"] == 9
    assert figure.errors() == 1


def test_a_direct_call_whose_handler_failed_is_no_good_answer_although_it_says_200() -> None:
    crashed = answer(1, "x-amz-function-error: Unhandled")
    driven = Driven([answer(1, COLD), crashed, answer(1, status=503), None], [], 0.0, 0.0)
    assert split(driven) == ([driven.replies[0]], 3)
    assert failures(driven) == " (503: 1, function error: 1, no answer: 1)"


class Server:
    """Accepts on loopback, waits until `count` requests are there, then does `then` with each connection; in a thread of its own."""

    def __init__(self, count: int, *, answers: bool) -> None:
        self.count = count
        self.answers = answers
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()

    def serve(self) -> None:
        clients: list[socket.socket] = []
        asked: list[socket.socket] = []
        while len(asked) < self.count:
            for ready in select.select([self.listener, *clients], [], [], 10)[0]:
                if ready is self.listener:
                    clients.append(self.listener.accept()[0])
                elif ready.recv(4096):
                    asked.append(ready)
        for client in asked if self.answers else []:
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        for client in asked if self.answers else clients:
            client.close()
        for client in clients:
            client.close()


RAW = b"GET / HTTP/1.1\r\n\r\n"


def test_a_call_behind_a_stall_is_timed_from_when_it_was_due_not_from_when_it_could_be_sent() -> None:
    dues = [0.0, 0.01, 0.02, 0.05]
    with Server(len(dues), answers=True) as server:
        driven = drive([Arrival(due, RAW, server.address) for due in dues], connections=2, drain_seconds=10)
    replies, errors = split(driven)
    assert errors == 0
    assert [reply.body for reply in replies] == [b"ok"] * 4
    for due, reply in zip(dues, replies, strict=True):
        assert reply.milliseconds >= (dues[-1] - due) * 1000  # nobody was answered before the last had asked


def test_a_call_whose_server_leaves_has_no_answer_and_is_counted() -> None:
    with Server(2, answers=False) as server:
        driven = drive([Arrival(0.0, RAW, server.address)] * 2, connections=2, drain_seconds=10)
    assert split(driven) == ([], 2)
    assert failures(driven) == " (no answer: 2)"


def test_kernel_threads_that_ended_take_nothing_off_and_new_ones_count_whole() -> None:
    assert grown({10: 1.0, 11: 5.0}, {10: 1.5, 12: 0.25}) == 0.75
