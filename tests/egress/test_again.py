"""Closed namespaces that serve again: only the same tenant's, and only when nothing at all of their last use is in them."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from dayfly.sandbox import again, network
from tests.egress.world import Instance

pytestmark = pytest.mark.root
HERE = "/proc/thread-self/ns/net"


@pytest.fixture
def pool() -> Iterator[network.Pool]:
    made = network.Pool(None)
    try:
        yield made
    finally:
        made.close()


def use(pool: network.Pool, tenant: str | None, work: Callable[[], object] | None = None) -> int:
    """Take a namespace, do something in it, end, give it back; its inode number."""
    descriptor = pool.take("none", tenant)
    key = pool.key(descriptor)
    try:
        if work is not None:
            Instance(descriptor).run(work)
    finally:
        os.close(descriptor)
        pool.release(key, tenant)
    return key


def only_sockets() -> bool:
    """Open all sorts, listen, connect to nowhere; send nothing over the loopback."""
    kept = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_UNIX) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    kept[0].bind(("127.0.0.1", 8080))
    kept[0].listen()
    kept[2].bind("\0left-behind")
    kept[2].listen()
    kept[1].connect_ex(("192.0.2.1", 53))
    return True


def talk_to_itself() -> bool:
    """One connection over the loopback, closed in order: it lingers in TIME_WAIT."""
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname()) as caller:
        accepted, _ = listener.accept()
        accepted.close()
        caller.recv(1)
    return True


def test_an_untouched_namespace_serves_its_tenant_again_and_no_other(pool: network.Pool) -> None:
    """Also after sockets of all kinds were open in it; the caller's own network never changes."""
    home = os.readlink(HERE)
    key = use(pool, "ann")
    assert use(pool, "bob") != key
    assert use(pool, "ann", only_sockets) == key
    assert use(pool, "ann") == key
    assert use(pool, None) != key  # who says no name gets a new one
    assert os.readlink(HERE) == home


def test_what_nobody_has_had_yet_serves_anybody(pool: network.Pool) -> None:
    """A sandbox that stood ready and was let go before it had an owner gives back a namespace that no user code was in."""
    key = use(pool, again.NOBODY)
    assert use(pool, "ann") == key
    descriptor = pool.take("none", again.NOBODY)
    assert pool.key(descriptor) != key  # it is Ann's now
    os.close(descriptor)


def test_a_namespace_that_was_spoken_in_is_never_used_again(pool: network.Pool) -> None:
    """One packet over the loopback is enough, although every process and every socket of it is gone."""
    key = use(pool, "ann")
    assert use(pool, "ann", talk_to_itself) == key
    assert "waiting=0" in repr(pool._again)
    assert use(pool, "ann") != key


def test_a_socket_that_outlives_its_process_keeps_the_namespace_from_being_used_again(pool: network.Pool) -> None:
    """A listener that was sent away lives on in a message that nobody reads: its abstract name would meet the next user."""
    key = use(pool, "ann")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send_away() -> bool:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0left-behind")
        listener.listen()
        socket.send_fds(theirs, [b"x"], [listener.fileno()])
        return True

    with ours, theirs:
        assert use(pool, "ann", send_away) == key
        assert "waiting=0" in repr(pool._again)


def test_no_more_wait_than_the_bound_and_none_for_ever(pool: network.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool keeps WAITING_MAX of them, lets go of the oldest when its time is over, and looks at LENT_MAX at most."""
    monkeypatch.setattr(again, "WAITING_MAX", 1)
    monkeypatch.setattr(again, "LENT_MAX", 2)
    use(pool, "ann")
    taken = [pool.take("none", "ann") for _ in range(3)]
    assert "lent=2 waiting=0" in repr(pool._again)
    keys = [pool.key(descriptor) for descriptor in taken]
    for descriptor in taken:
        os.close(descriptor)
    for key in keys:
        pool.release(key, "ann")
    assert "lent=0 waiting=1" in repr(pool._again)
    monkeypatch.setattr(again, "WAITING_SECONDS_MAX", 0.0)
    pool.refill()
    assert "lent=0 waiting=0" in repr(pool._again)
