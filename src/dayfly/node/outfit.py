"""What a sandbox gets of its own before it is forked, and gives back at its end: a uid, a control group, a network namespace.

Made by node/machine.py (`dress`, `take_back`), carried by instances and by prepared sandboxes alike.
"""

import os
from dataclasses import dataclass

from dayfly.sandbox import cgroup


@dataclass
class Outfit:
    """`uid` 0: none of its own. `network`: a descriptor until it is handed over, then -1; `network_key` 0: nothing to release.
    `tenant`: the namespace of functions whose code it was given to, "" as long as there is none; None: not known."""

    uid: int = 0
    group: cgroup.Group | None = None
    network: int = -1
    network_key: int = 0
    tenant: str | None = None

    def hand_over(self) -> tuple[list[str], list[int]]:
        """Names and descriptors for the child; they are the caller's to close."""
        given: dict[str, int] = {}
        if self.group is not None:
            given |= self.group.descriptors
            self.group.descriptors.clear()
        if self.network >= 0:
            given["netns"], self.network = self.network, -1
        return list(given), list(given.values())

    def close(self) -> None:
        """Close what was not handed over."""
        if self.network >= 0:
            os.close(self.network)
            self.network = -1
        if self.group is not None:
            self.group.close_descriptors()
