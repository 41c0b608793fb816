"""The memory that gateways share: nobody gets more than there is, whoever asks at the same time, and the dead keep nothing."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dayfly.core.decide.share import Most
from dayfly.gateway.commons import ANY_VERSION, LOCK_BYTES, Commons, number_of

HELLO, OTHER = ("default", "hello", 1), ("default", "other", 1)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("commons")
    yield fd
    os.close(fd)


class Another:
    """A process of its own that does `work(commons)` and then stays until it is ended."""

    def __init__(self, memory: int, slot: int, most: Most, work: Callable[[Commons], object]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            with suppress(BaseException):
                commons = Commons(memory, slot, most)
                commons.join()
                os.write(write, repr(work(commons)).encode())
                signal.pause()
            os._exit(1)
        os.close(write)
        self.said = os.read(read, 4096).decode()
        os.close(read)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def taken(commons: Commons, version: tuple[str, str, int], bound: int, tries: int = 500) -> int:
    """How many of so many tries got a place; one that is busy is none."""
    places = 0
    for _ in range(tries):
        place, lacking = commons.take(version, bound)
        if place is not None:
            places += 1
            commons.started(place)
        else:
            assert lacking in ("busy", "instances", "version", "starts")
    return places


@pytest.mark.parametrize(("version_max", "found"), [(7, 7), (100, 20)])
def test_gateways_that_take_at_the_same_time_take_no_more_than_there_is(memory, version_max, found):
    most = Most(20, 100)
    others = [Another(memory, slot, most, lambda commons: taken(commons, HELLO, version_max)) for slot in (1, 2)]
    try:
        mine = taken(Commons(memory, 0, most), HELLO, version_max)
        assert mine + sum(int(other.said) for other in others) == found
    finally:
        for other in others:
            other.end()


def test_a_version_of_which_there_are_enough_keeps_no_other_from_starting(memory):
    commons = Commons(memory, 0, Most(5, 100))
    assert taken(commons, HELLO, 3, tries=5) == 3
    assert commons.take(HELLO, 3) == (None, "version")
    assert taken(commons, OTHER, 3, tries=5) == 2
    assert commons.take(OTHER, 3) == (None, "instances")


def test_starts_are_counted_until_they_are_over(memory):
    commons = Commons(memory, 0, Most(10, 2))
    first, _ = commons.take(HELLO, 10)
    commons.take(HELLO, 10)
    assert commons.take(HELLO, 10) == (None, "starts")
    commons.started(first)
    assert commons.take(HELLO, 10)[1] == ""
    assert first is not None
    commons.give(first)
    assert commons.take(HELLO, 10) == (None, "starts"), "it started no more when it went"


def test_a_gateway_that_died_keeps_nothing(memory):
    most = Most(3, 100)
    other = Another(memory, 1, most, lambda commons: taken(commons, HELLO, 3))
    commons = Commons(memory, 0, most)
    assert (other.said, taken(commons, HELLO, 3, tries=1)) == ("3", 0)
    other.end()
    assert taken(commons, HELLO, 3) == 3


def test_who_leaves_is_not_counted_and_gives_nothing_back_that_is_another_s(memory):
    most = Most(2, 100)
    commons = Commons(memory, 0, most)
    place, _ = commons.take(HELLO, 2)
    commons.leave()
    other = Another(memory, 1, most, lambda commons: taken(commons, HELLO, 2))
    try:
        assert other.said == "2"
        assert place is not None
        commons.give(place)
        assert commons.take(HELLO, 2) == (None, "instances")
    finally:
        other.end()


def test_who_does_not_get_the_lock_comes_again(memory):
    other = Another(memory, 1, Most(2, 2), lambda commons: fcntl.lockf(memory, fcntl.LOCK_EX, LOCK_BYTES))
    commons = Commons(memory, 0, Most(2, 2))
    assert commons.take(HELLO, 2) == (None, "busy")
    other.end()
    assert commons.take(HELLO, 2)[1] == ""


def test_gateways_hear_what_others_want_and_how_many_clients_they_have(memory):
    most = Most(2, 2)
    other = Another(memory, 5, most, lambda commons: (commons.want(number_of(HELLO)), commons.connected(7)))
    commons = Commons(memory, 0, most)
    commons.join()
    try:
        assert commons.fewest_elsewhere() == 7
        assert commons.wanted() == {number_of(HELLO)} and number_of(HELLO) not in (0, ANY_VERSION)
        commons.want(ANY_VERSION)
        assert commons.wanted() == {number_of(HELLO)}, "one's own wish is not another's"
    finally:
        other.end()
