"""Shared by name or number: what one instance holds out, or the machine does, is not there for another."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.attacks.arena import Arena

BOTH = True
KEY = 0x0DA7F1E
EPERM, ENOENT, ECONNREFUSED = -1, -2, -111
NAME, WORD = f"dayfly-attack-{os.getpid()}", "held by another"
IPC_CREAT, IPC_RMID = 0o1000, 0


@pytest.fixture(scope="module")
def held_by_the_machine() -> Iterator[str]:
    """The same things again, held out by a process of the machine (this one), open to all."""
    name = NAME + "-host"
    libc = ctypes.CDLL(None, use_errno=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind("\0" + name)
    server.listen(1)
    segment = libc.shmget(KEY + 1, 4096, IPC_CREAT | 0o666)
    queue = libc.msgget(KEY + 1, IPC_CREAT | 0o666)
    semaphores = libc.semget(KEY + 1, 1, IPC_CREAT | 0o666)
    with suppress(OSError), open(f"/dev/shm/{name}", "w") as file:
        file.write(WORD)
    try:
        yield name
    finally:
        server.close()
        libc.shmctl(segment, IPC_RMID, None)
        libc.msgctl(queue, IPC_RMID, None)
        libc.semctl(semaphores, 0, IPC_RMID, 0)
        with suppress(OSError):
            os.unlink(f"/dev/shm/{name}")


def nothing(said: dict[str, object]) -> None:
    assert said.pop("abstract") in (ECONNREFUSED, EPERM)
    assert {said.pop(kind) for kind in ("shm", "msg", "sem", "posix")} == {ENOENT}
    assert said.pop("mq") in (ENOENT, EPERM, -13, -38)
    assert said.pop("proc") == [] and said.pop("mqueue") is False
    keys = {name: done for name, done in said.items() if name.startswith("key")}
    assert set(keys.values()) == {EPERM}, keys


def test_what_another_instance_holds_out_is_not_there(arena: Arena) -> None:
    """Abstract sockets, SysV shared memory, queues and semaphores, the same of POSIX, keyrings; and the holder keeps its own."""
    holder, attacker = arena.attacker("ipc", name="holder"), arena.attacker("ipc")
    held = holder.act("hold", key=KEY, name=NAME, word=WORD)
    assert min(held[kind] for kind in ("abstract", "shm", "msg", "sem", "posix")) >= 0, f"the attack aims at what is there: {held}"
    assert held["key"] == EPERM
    said = attacker.try_("look", key=KEY, name=NAME)
    assert said.pop("numbers") == [], "nor by number"
    nothing(said)
    attacker.act("remove")
    assert holder.act("still", key=KEY, word=WORD) == WORD


def test_what_the_machine_holds_out_is_not_there(arena: Arena, held_by_the_machine: str) -> None:
    said = arena.attacker("ipc", name="seeker").try_("look", key=KEY + 1, name=held_by_the_machine)
    said.pop("numbers")
    nothing(said)
    assert arena.attacker("ipc", name="seeker").act("remove")
    libc = ctypes.CDLL(None, use_errno=True)
    assert min(libc.shmget(KEY + 1, 4096, 0), libc.msgget(KEY + 1, 0), libc.semget(KEY + 1, 1, 0)) >= 0, "the machine has its own still"


def test_a_lock_on_a_shared_file_stops_no_neighbour(arena: Arena) -> None:
    """The one thing that all instances see is the interpreter's folder, and one may lock a file of it: nobody takes locks there."""
    arena.attacker("ipc").try_("lock")
    arena.platform.put("fresh", "def handler(event, context):\n    import json.tool\n    return 'started'\n", keep_alive_seconds=0)
    assert arena.platform.invoke("fresh").json() == "started"
