"""Where a node lies: one of two berths of a data directory, so that a node and its successor can work side by side for a while.

A berth is a lock in the run directory, held by its node and let go of by the kernel when that is gone. Everything that two nodes must not
share follows from its number: uids of instances, the folder of control groups, the note about those. Called by node/machine.py;
node/server.py cleans up after killed ones.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from dayfly.core.model.layout import Layout
from dayfly.sandbox import cgroup

BERTHS = 2
NOTE = "node.cgroups"  # in RUN: where this node's control groups are, for whoever comes after a kill -9


class Berth:
    """`number` counts from 0. `is_alone` tells whether all others were free when this one was taken."""

    def __init__(self, layout: Layout, number: int) -> None:
        self._run = layout.run
        self.number = number
        self.is_alone = True
        self.tag = cgroup.tag(layout.data) + (f"-{number}" if number else "")
        self.note = Path(layout.run, f"{NOTE}.{number}" if number else NOTE)
        self._lock = -1

    def __repr__(self) -> str:
        return f"<Berth {self.number} {self.tag}>"

    @classmethod
    def all(cls, layout: Layout) -> "list[Berth]":
        return [cls(layout, number) for number in range(BERTHS)]

    @classmethod
    def take(cls, layout: Layout) -> "Berth":
        """The first free one, cleaned of what a killed node left, as all free ones are. Raises OSError when a node and its successor are
        here already. Where there is no run directory (somebody only asks what this machine can do) the first is free."""
        berths = cls.all(layout)
        if not Path(layout.run).is_dir():
            return berths[0]
        free = [berth for berth in berths if berth._locked()]
        if not free:
            raise OSError(f"{BERTHS} nodes work on this data directory already")
        for berth in free:
            berth.clean()
        for berth in free[1:]:
            berth.leave()
        free[0].is_alone = len(free) == BERTHS
        return free[0]

    def share(self, first: int, count: int) -> tuple[int, int]:
        """This berth's part of a block of uids."""
        part = count // BERTHS
        return first + self.number * part, part

    def clean(self) -> None:
        """Remove the control groups that the last node here noted."""
        cgroup.clean_noted(self.note, self.tag)

    def _locked(self) -> bool:
        self._lock = os.open(f"{self._run}/node-{self.number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: the children of a killed node must not hold it
        except OSError:
            self.leave()
            return False
        return True

    def leave(self) -> None:
        """Let go of the lock."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1
