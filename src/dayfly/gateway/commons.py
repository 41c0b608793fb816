"""What all gateways of a machine have in common: a piece of shared memory in which each instance has a place.

Whoever starts an instance takes a place first and gives it back when the instance is gone, so that `instances_max`,
`starts_in_flight_max` and a version's `max_instances` hold for all gateways together, exactly, and with nobody to ask. The kernel's lock
on the memory's file is held while a place is taken, for as long as it takes to read a few kilobytes; who does not get it at once comes
again. Places of a process that is gone are free. Beside them stands what gateways want each other to know: connections, and what room is
wanted for.
Must never wait and never be asked for a call. The supervisor makes the memory (app.py), gateway/fleet.py and accept.py use it.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from dayfly.core.decide.share import Most, Used, lack

WORD = 8
SLOT_WORDS = 4  # pid, connections, what room is wanted for
SLOTS = 64
FREE, STARTING, RUNNING = 0, 1, 2  # a place
ANY_VERSION = 1  # room is wanted for whatever it is
LOCK_BYTES = 1


class Commons:
    """One gateway's view. `slot`: which of the gateways it is. Places are numbered from 0."""

    def __init__(self, fd: int, slot: int, most: Most, gateways: int = SLOTS) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._left = False  # the slot is a successor's
        self._slot = slot * SLOT_WORDS
        self._all = range(0, gateways * SLOT_WORDS, SLOT_WORDS)
        self._most = most
        slots, places = SLOTS * SLOT_WORDS * WORD, most.instances * WORD
        if os.fstat(fd).st_size < (size := slots + 2 * places + most.instances):
            os.ftruncate(fd, size)
        memory = memoryview(mmap.mmap(fd, size))
        self._slots = memory[:slots].cast("Q")
        self._owners = memory[slots : slots + places].cast("Q")  # pids
        self._versions = memory[slots + places : slots + 2 * places]  # numbers, of WORD bytes each; 0 where the place is free
        self._states = memory[slots + 2 * places :]

    def __repr__(self) -> str:
        used = self._used(0)
        return f"<Commons {used.instances} of {self._most.instances} places, {used.starting} starting>"

    # ---- coming and going

    def join(self) -> None:
        """From now on this process is the slot's gateway. Its predecessor, if it lives, counts no more (`leave`)."""
        self._bury()
        for at in range(self._slot, self._slot + SLOT_WORDS):
            self._slots[at] = 0
        self._slots[self._slot] = self._pid

    def leave(self) -> None:
        """A successor counts from now on: what is left here is not counted, as if it was another machine's."""
        self._left = True
        for place, owner in enumerate(self._owners):
            if owner == self._pid:
                self.give(place)

    # ---- places

    def take(self, version: tuple[str, str, int], version_max: int) -> tuple[int | None, str]:
        """(a place, "") for an instance that is to start, or (None, why not): a word of core/decide/share.py `lack`, or "busy" when it is
        to be tried again at once."""
        number = number_of(version)
        with self._locked() as mine:
            if not mine:
                return None, "busy"
            reason = lack(self._used(number), self._most, version_max)
            if reason and self._bury():
                reason = lack(self._used(number), self._most, version_max)
            if reason:
                return None, reason
            place = bytes(self._states).index(FREE)
            self._owners[place] = self._pid
            self._versions[place * WORD : (place + 1) * WORD] = number.to_bytes(WORD, "little")
            self._states[place] = STARTING  # last: whoever is killed before has taken nothing
        return place, ""

    def started(self, place: int) -> None:
        """The instance starts no more."""
        if self._owners[place] == self._pid:
            self._states[place] = RUNNING

    def give(self, place: int) -> None:
        """The instance is gone."""
        if self._owners[place] == self._pid:
            self._free(place)

    def _free(self, place: int) -> None:
        self._versions[place * WORD : (place + 1) * WORD] = bytes(WORD)
        self._owners[place] = 0
        self._states[place] = FREE

    def _used(self, number: int) -> Used:
        states = bytes(self._states)
        of_version = bytes(self._versions).count(number.to_bytes(WORD, "little"))
        return Used(len(states) - states.count(FREE), states.count(STARTING), of_version)

    def _bury(self) -> bool:
        """Free the places of processes that are gone; whether there were any."""
        gone = {pid for pid in set(self._owners) if pid and not _is_alive(pid)}
        for place, owner in enumerate(self._owners) if gone else ():
            if owner in gone:
                self._free(place)
        return bool(gone)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether nobody else takes a place meanwhile. (POSIX locks: a process's, and gone with it.)"""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_BYTES)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, LOCK_BYTES)

    # ---- what others should know

    def want(self, number: int) -> None:
        """Room is wanted for a version, or ANY_VERSION; 0: no more. Others let idle instances go."""
        if not self._left:
            self._slots[self._slot + 2] = number

    def wanted(self) -> set[int]:
        """What other gateways want room for."""
        return {self._slots[at + 2] for at in self._others()} - {0}

    def connected(self, connections: int) -> None:
        """So many clients are connected here."""
        if not self._left:
            self._slots[self._slot + 1] = connections

    def fewest_elsewhere(self) -> int:
        """Connections of the other gateway that has the fewest."""
        return min((self._slots[at + 1] for at in self._others()), default=1 << 62)

    def _others(self) -> list[int]:
        return [at for at in self._all if at != self._slot and self._slots[at]]


def number_of(version: tuple[str, str, int]) -> int:
    """A version as a number above ANY_VERSION. Two that share one (one pair in 2⁶³) would share a bound."""
    return int.from_bytes(blake2b("/".join(map(str, version)).encode(), digest_size=8).digest(), "big") | 2


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
