"""A template and its children as the node has them: what is known of each, and how it is let go. Data; node/templates.py acts on it."""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable

from dayfly.core.decide.evict import Item
from dayfly.core.wire.node import Start
from dayfly.node.nursery import Zygote
from dayfly.node.outfit import Outfit
from dayfly.sandbox import syscalls as sys_
from dayfly.sandbox.door import Spaces

# What becomes of a child. Only an OWNED one is an instance, whose end its owner hears of.
COMING, STANDS, TAKEN, OWNED, LOST = "coming", "stands", "taken", "owned", "lost"

Owner = Callable[["Offshoot | None"], None]  # told when its child stands; None: there will be none


class Template:
    """One template. `stands` once its init is over; `retired` when it forks no more."""

    def __init__(self, start: Start, zygote: Zygote, seat: socket.socket) -> None:
        self.start = start
        self.zygote = zygote
        self.seat = seat
        self.uid = 0
        self.stands = False
        self.retired = False
        self.number = 0
        self.failures = 0  # births that came to nothing, since the last that did not
        self.asked = 0  # starts that wanted a child
        self.asked_at = float("-inf")  # the latest of them
        self.begun_at = time.monotonic()
        self.stood_at = 0.0
        self.size_bytes = 0  # memory that is its own
        self.children: dict[int, Offshoot] = {}
        self.owners: deque[Owner] = deque()  # starts that wait for a birth

    @property
    def is_packages(self) -> bool:
        """Whether its children get their code when they are given away."""
        return self.start.role == "packages"

    def fits(self, start: Start) -> bool:
        """Whether its children can be what is asked for. A version's template is asked only for its own; who asks the others is checked,
        because a child cannot change any of this any more."""
        mine = self.start
        return not self.is_packages or (
            (mine.tenant, mine.runtime, mine.layer, mine.tmp_mb, mine.egress, mine.egress_rules, False)
            == (start.tenant, start.runtime, start.layer, start.tmp_mb, start.egress, start.egress_rules, start.has_secrets)
        )

    def stand(self, pid: int) -> None:
        """Its init is over: what it cost and what it takes."""
        self.stands = True
        self.stood_at = time.monotonic()
        self.size_bytes = own_bytes(pid)

    def item(self) -> Item[str]:
        """What a decision about room needs. One with children in use is not to be had: they would end with it."""
        in_use = any(child.state in (TAKEN, OWNED) for child in self.children.values())
        return Item(self.start.instance, self.asked, self.stood_at - self.begun_at, self.size_bytes, evictable=not in_use)

    def coming(self) -> int:
        """Births under way."""
        return sum(child.state == COMING for child in self.children.values())

    def ahead(self) -> int:
        """Children that nobody has yet."""
        return sum(child.state in (COMING, STANDS) for child in self.children.values())

    def __repr__(self) -> str:
        return f"<Template {self.start.instance} stands={self.stands} children={len(self.children)}>"


class Offshoot:
    """A template's child, from the order to its end."""

    def __init__(self, template: Template, number: int, outfit: Outfit, seat: socket.socket, owner: Owner | None) -> None:
        self.template = template
        self.number = number
        self.name = f"{template.start.instance}.{number}"
        self.outfit = outfit
        self.seat = seat
        self.owner = owner
        self.asked_at = time.monotonic()
        self.pid = 0
        self.pidfd = -1
        self.spaces: Spaces | None = None
        self.proc: socket.socket | None = None  # where its /proc arrives
        self.state = COMING
        self.ended_at = 0.0
        self.report: tuple[str, int, int, int] | None = None

    def __repr__(self) -> str:
        return f"<Offshoot {self.name} pid={self.pid} {self.state}>"

    def kill(self) -> None:
        """SIGKILL to everything in its sandbox."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                sys_.pidfd_send_signal(self.pidfd, 9)
        else:
            self.seat.close()


def own_bytes(pid: int) -> int:
    """Memory of a process that nobody shares with it; 0 when it cannot be told."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
    return 0
