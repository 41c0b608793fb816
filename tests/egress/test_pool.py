"""The pool by itself: what it says, what it hands out, and that the calling thread never changes its network."""

import os

import pytest

from dayfly.core.wire.egress import OWN_ADDRESS
from dayfly.sandbox import netns, network
from tests.egress.world import Instance, attempt

pytestmark = pytest.mark.root
HERE = "/proc/thread-self/ns/net"


def test_without_a_broker_there_is_no_internet_and_it_says_so() -> None:
    """A pool without a socket path makes closed namespaces only; asking for internet raises, with the reason."""
    pool = network.Pool(None)
    try:
        available = pool.available()
        assert available["netns"] is True
        assert "no egress broker" in str(available["egress_internet"])
        assert pool.proxy_environment() == {}
        with pytest.raises(network.EgressUnavailable, match="no egress broker"):
            pool.take("internet")
        while pool.refill():
            pass
        os.close(pool.take("none"))
    finally:
        pool.close()


def test_every_namespace_is_new_and_the_thread_stays_at_home() -> None:
    """Waiting or made on demand, no two takers share one, none is the host's, and the caller's own network is unchanged."""
    home = os.readlink(HERE)
    pool = network.Pool("/nonexistent/egress.sock", ready=2)
    taken = []
    try:
        assert os.readlink(HERE) == home
        for turn in range(8):
            taken.append(pool.take("internet" if turn % 2 else "none"))
            assert os.readlink(HERE) == home
            if turn == 3:
                while pool.refill():
                    assert os.readlink(HERE) == home
        keys = [pool.key(descriptor) for descriptor in taken]
        assert len(set(keys)) == 8
        assert os.stat(HERE).st_ino not in keys
    finally:
        for descriptor in taken:
            os.close(descriptor)
        pool.close()


def test_refill_keeps_so_many_ready_and_internet_only_once_it_was_wanted() -> None:
    """Each call makes one; what nobody has asked for is not made ahead."""
    pool = network.Pool("/nonexistent/egress.sock", ready=3)
    try:
        assert "'none': 1, 'internet': 1" in repr(pool)  # what the probe made
        assert [pool.refill() for _ in range(3)] == [True, False, False]
        assert "'none': 3, 'internet': 1" in repr(pool)
        os.close(pool.take("internet"))
        while pool.refill():
            pass
        assert "'none': 3, 'internet': 3" in repr(pool)
    finally:
        pool.close()


def test_close_lets_go_of_everything() -> None:
    """No descriptor of the pool outlives it, also of namespaces that were never released; closing twice is harmless."""
    before = len(os.listdir("/proc/self/fd"))
    pool = network.Pool("/nonexistent/egress.sock")
    os.close(pool.take("internet"))
    pool.close()
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broker_that_never_comes_leaves_connections_waiting_not_escaping() -> None:
    """Without a broker a connection is accepted by nobody; nothing falls through to the host."""
    pool = network.Pool("/nonexistent/egress.sock")
    descriptor = pool.take("internet")
    try:
        instance = Instance(descriptor)
        assert instance.run(attempt, OWN_ADDRESS, 8080) == "ConnectionRefusedError"
        pool.release(pool.key(descriptor))  # closes the listener: the steering has nothing to steer to
        assert instance.run(attempt, "93.184.216.34") in ("ConnectionRefusedError", "OSError")
    finally:
        os.close(descriptor)
        pool.close()


def test_a_failure_in_the_middle_brings_the_thread_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel refuses while the namespace is made, the thread is at home again and nothing is left open."""
    pool = network.Pool("/nonexistent/egress.sock")
    try:
        while pool.refill():
            pass
        home, before = os.readlink(HERE), len(os.listdir("/proc/self/fd"))

        def refuse(*_: object) -> int:
            raise OSError(1, "refused")

        monkeypatch.setattr(netns.bpf, "steer", refuse)  # the kernel cannot be asked to fail here
        os.close(pool.take("internet"))  # the probe's
        with pytest.raises(OSError, match="refused"):
            pool.take("internet")
        assert os.readlink(HERE) == home
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        pool.close()
