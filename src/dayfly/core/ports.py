"""Ports: seams where two real implementations stand. Today one: where instances live.

`provider/local.py` (this machine's node) and `testing/provider.py` (a fake with latency, crashes and memory, which passes the same
contract tests, tests/provider/).
"""

from collections.abc import Callable
from typing import Protocol

from dayfly.core.wire.node import Accepted, Exited, Start


class Provider(Protocol):
    """Where instances live. Never blocks; answers come through the three callbacks, set once before the first start."""

    on_accepted: Callable[[Accepted], None]
    on_exited: Callable[[Exited], None]  # once for every start, also for one that was refused; after it nothing is left
    on_lost: Callable[[], None]  # the place itself is gone with all its instances; no `on_exited` follows for them

    def start(self, start: Start, descriptors: list[int]) -> bool:
        """Ask for an instance; False when the place cannot be asked now. The caller keeps (and closes) its descriptors."""
        ...

    def kill(self, instance: str) -> None:
        """End an instance now. Unknown or ended ones are ignored, twice is fine; `on_exited` follows when it was alive."""
        ...

    def weigh(self, weights: dict[str, int]) -> None:
        """Give instances another part of the processors: thousandths of what follows from their memory. Unknown ones are ignored, and
        so is everything where there are no control groups. At most WEIGHTS_MAX of core/wire/node.py."""
        ...

    @property
    def connected(self) -> bool:
        """Whether `start` has a chance."""
        ...
