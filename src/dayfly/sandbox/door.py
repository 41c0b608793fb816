"""The way into a sandbox that stands ready, for what only its owner can bring: the function's files, its name.

The sandbox gave up every privilege before it knew whose it would be. So the node enters its namespaces for a moment, mounts, and comes
back. Between going in and coming back only calls that were prepared outside are made: no import, no file, no name of Python's may
be looked up in there. Must never leave the calling thread in a foreign namespace: it rather ends the process.
Called by node/prepared.py; the node has one thread.
"""

import errno
import os
import sys
from functools import partial
from typing import NoReturn

from dayfly.sandbox import syscalls as sys_

SPACES = (("mnt", sys_.CLONE_NEWNS), ("uts", sys_.CLONE_NEWUTS))


class Spaces:
    """Descriptors of a process's namespaces. Raises OSError when the process is gone."""

    def __init__(self, pid: int | str) -> None:
        self.descriptors: list[int] = []
        self.enter: list[partial[int]] = []  # the calls that go in, ready before anybody waits for them
        try:
            for name, kind in SPACES:
                self.descriptors.append(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
                self.enter.append(sys_.prepared("setns", self.descriptors[-1], kind))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go; idempotent."""
        self.enter.clear()
        while self.descriptors:
            os.close(self.descriptors.pop())


class Door:
    """Knows the way home. One for the whole process."""

    def __init__(self) -> None:
        self._home = Spaces("self")

    def furnish(self, spaces: Spaces, trees: list[tuple[int, str]], name: str) -> None:
        """Attach detached mounts (descriptor, path) in a sandbox and give it its host name. Raises OSError."""
        raw = name.encode()
        self.visit(spaces, [sys_.prepared("sethostname", raw, len(raw)), *(attaching(tree, path) for tree, path in trees)])

    def visit(self, spaces: Spaces, calls: list[partial[int]]) -> None:
        """Make calls that were prepared outside, up to the first that does not return 0. Raises OSError for that one, and when either side
        was closed: without the calls that go in, the others would be made right here, on the machine's own files. (They were, once.)"""
        if not len(spaces.enter) == len(self._home.enter) == len(SPACES):
            raise ProcessLookupError(errno.ESRCH, "the sandbox's namespaces are closed")
        failed = None
        for call in (*spaces.enter, *calls):
            if call() != 0:
                failed = call
                break
        error = sys_.failure(failed.func.__name__) if failed is not None else None
        for call in self._home.enter:
            if call() != 0:
                _abandon()
        if error is not None:
            raise error

    def close(self) -> None:
        self._home.close()


def attaching(tree: int, path: str) -> partial[int]:
    """The call that attaches a detached mount."""
    return sys_.prepared("syscall", sys_.MOVE_MOUNT, tree, b"", sys_.AT_FDCWD, path.encode(), sys_.MOVE_MOUNT_F_EMPTY_PATH)


def _abandon() -> NoReturn:
    """A process of ours in a sandbox's namespaces must not go on."""
    sys.stderr.write("dayfly node: cannot return from a sandbox's namespaces\n")
    os._exit(70)
