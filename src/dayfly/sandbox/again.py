"""Closed network namespaces that are used again, once it is certain that nothing of their last use is in them.

To make one costs the node half a millisecond and to take it apart costs the kernel as much: a quarter of all a cold start costs. So an
`egress="none"` namespace serves again if its last user's processes are all dead, every socket in it is gone, and not one packet ever
crossed its loopback: then it holds no connection that lingers, no port in use, no fragment, no metric, no traffic to count. And only
for the same tenant, because the counters of failed attempts stay. docs/decisions/0013-namespaces-again.md argues it.
Called by sandbox/network.py. Must never leave the calling thread in a foreign namespace, and never keep more than its bounds.
"""

import os
import time
from contextlib import suppress
from typing import NamedTuple

from dayfly.sandbox import netns

LENT_MAX = 256  # in use, with a descriptor of ours each; those beyond are not used again
WAITING_MAX = 32  # a quarter of a megabyte of kernel memory each
WAITING_SECONDS_MAX = 30.0
NOBODY = ""  # the tenant of a namespace that no user code has been in


class _Waiting(NamedTuple):
    descriptor: int
    tenant: str
    since: float


class Again:
    """Those lent out, by inode number, and those that came back untouched. `home`: the caller's own network namespace."""

    def __init__(self, home: int) -> None:
        self._home = home
        self._lent: dict[int, int] = {}
        self._waiting: list[_Waiting] = []  # the latest last

    def __repr__(self) -> str:
        return f"<Again lent={len(self._lent)} waiting={len(self._waiting)}>"

    def take(self, tenant: str) -> int:
        """One that this tenant (or nobody) had before; -1 when there is none."""
        for i in range(len(self._waiting) - 1, -1, -1):
            if self._waiting[i].tenant in (tenant, NOBODY):
                return self._waiting.pop(i).descriptor
        return -1

    def lend(self, descriptor: int) -> None:
        """It goes to a user now: keep a descriptor of it, to look at it when it comes back."""
        if len(self._lent) < LENT_MAX:
            self._lent[os.fstat(descriptor).st_ino] = os.dup(descriptor)

    def release(self, key: int, tenant: str | None) -> None:
        """Its user's processes are all dead. `tenant` None: not known, so nobody's again. Unknown keys are ignored."""
        descriptor = self._lent.pop(key, -1)
        if descriptor < 0:
            return
        if tenant is None or len(self._waiting) >= WAITING_MAX or not self._is_untouched(descriptor):
            os.close(descriptor)
        else:
            self._waiting.append(_Waiting(descriptor, tenant, time.monotonic()))

    def _is_untouched(self, descriptor: int) -> bool:
        with suppress(OSError):  # without open files left it cannot be looked at: then nobody gets it again
            return netns.is_untouched(self._home, descriptor)
        return False

    def expire(self) -> None:
        """Let go of one that has waited for long."""
        if self._waiting and time.monotonic() - self._waiting[0].since > WAITING_SECONDS_MAX:
            os.close(self._waiting.pop(0).descriptor)

    def close(self) -> None:
        for descriptor in (*self._lent.values(), *(one.descriptor for one in self._waiting)):
            os.close(descriptor)
        self._lent.clear()
        self._waiting.clear()
