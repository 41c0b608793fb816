"""What is in gateways' hands, as control remembers it: leases by (id, epoch), their windows, and how many each gateway has.

Memory only: nothing is settled from it, and a control that starts anew has none. Decides nothing. Used by control/leasing.py.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from dayfly.control.settling import Hand
from dayfly.control.spill import decode_stored
from dayfly.core.decide import share
from dayfly.core.decide.lanes import Window
from dayfly.core.model.durable import LeasedCall, Ran, map_seed, split_lane
from dayfly.core.wire.durable import with_lineage
from dayfly.core.wire.link import Hello, Run, ToGateway
from dayfly.store.queue import Item, Lease

Key = tuple[str, int]
RUN_BYTES_MAX = 8 * 1024 * 1024  # of one message
NO_ROOM = ("throttled", "returned", "platform")


class Gateway(Protocol):
    """A connected gateway (control/link.py Peer)."""

    hello: Hello

    @property
    def name(self) -> str: ...

    def tell(self, message: ToGateway) -> None: ...


class Hands(dict[Key, Hand]):
    """Leases that are out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0  # of their bodies
        self.load: Counter[str] = Counter()  # by gateway
        self.windows: dict[str, Window] = {}  # by lane
        self._inherited: Counter[str] = Counter()  # in maps' lanes: leases of a control before this one of which nobody has told yet

    def window(self, lane: str) -> Window:
        """The lane's, made at first sight."""
        found = self.windows.get(lane)
        if found is None:
            found = self.windows[lane] = Window()
        return found

    def hold(self, hand: Hand) -> None:
        """A lease is out."""
        self[hand.key] = hand
        self.bytes += hand.size
        self.load[hand.gateway] += 1
        self.window(hand.lane).in_hand += 1

    def let_go(self, key: Key) -> Hand | None:
        """It is over, or somebody else's; None when it was not here."""
        hand = self.pop(key, None)
        if hand is not None:
            self.bytes -= hand.size
            self.load[hand.gateway] -= 1
            self.windows[hand.lane].in_hand -= 1
        return hand

    def inherit(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """What the queue says is leased, before we lease anything ourselves: it counts against the ceilings of maps."""
        self._inherited.update({lane: states["leased"] for lane, states in counts.items() if map_seed(lane) and states.get("leased")})

    def adopt(self, hand: Hand) -> None:
        """A gateway names a lease that a control before this one gave it."""
        self.told_of([hand.lane])
        self.hold(hand)

    def told_of(self, lanes: Iterable[str]) -> None:
        """Of what was inherited, so many are known now: their gateway named them, or their time was over."""
        self._inherited -= Counter(lanes)  # keeps what is above zero

    def out(self, lane: str) -> int:
        """How many of a lane are out, whoever has given them."""
        return self._inherited[lane] + (self.windows[lane].in_hand if lane in self.windows else 0)

    def room(self, lane: str, slots: int, ceiling: int | None, *, ahead: bool) -> int:
        """How many more of a lane may go out, where pools have so many slots for it and no more than `ceiling` may be out."""
        if ceiling is not None and ceiling < slots:  # none in advance: whatever is out may run
            return min(self.window(lane).room(ceiling, ahead=False), max(0, ceiling - self.out(lane)))
        return self.window(lane).room(slots, ahead=ahead)

    def of(self, gateway: str) -> list[Hand]:
        """What a gateway has."""
        return [hand for hand in self.values() if hand.gateway == gateway]

    def counted(self, hand: Hand, ran: Ran, now: float) -> None:
        """How an attempt ended, for its lane's window."""
        window = self.window(hand.lane)
        if ran.outcome in NO_ROOM:
            window.refused(now)
        elif ran.outcome != "lost":
            window.succeeded(ran.exec_us / 1e6)

    def by_lane(self) -> dict[str, int]:
        """Lane → how many are out."""
        return {lane: window.in_hand for lane, window in self.windows.items() if window.in_hand}

    def forget_windows(self, keep: Iterable[str]) -> None:
        """Of lanes of which nothing is out and nothing waits."""
        lanes = set(keep)
        self.windows = {lane: window for lane, window in self.windows.items() if window.in_hand or lane in lanes}


class Due:
    """Lanes that may have something to lease, now or later."""

    def __init__(self) -> None:
        self.ready: set[str] = set()
        self._later: list[tuple[float, str]] = []

    def noted(self, lanes: Iterable[tuple[str, float]], now: float) -> None:
        """Something waits in these lanes from these times on."""
        for lane, due in lanes:
            if due <= now:
                self.ready.add(lane)
            else:
                heapq.heappush(self._later, (due, lane))

    def passed(self, now: float) -> None:
        """Time has gone on."""
        while self._later and self._later[0][0] <= now:
            self.ready.add(heapq.heappop(self._later)[1])

    def next_seconds(self, now: float, most: float) -> float:
        """Until the next lane's time comes, at most `most`."""
        return min(most, max(0.0, self._later[0][0] - now)) if self._later else most


def hand_of(it: Lease | Item, gateway: str, leased_at: float = 0.0) -> Hand:
    """What control remembers of a lease (or of an item that is leased)."""
    stored = decode_stored(it.body)
    return Hand(
        id=it.id, epoch=it.epoch, attempt=it.attempt, lane=it.lane, accepted_at=it.accepted_at, expires=it.expires, stored=stored,
        leased_at=leased_at, gateway=gateway, size=stored.size + len(stored.meta), grouped=bool(it.group),
    )  # fmt: skip


def leased(hand: Hand, body: bytes) -> LeasedCall:
    """What a gateway is given of it."""
    namespace, function = split_lane(hand.lane)
    stored = hand.stored
    return LeasedCall(
        id=hand.id,
        epoch=hand.epoch,
        attempt=hand.attempt,
        namespace=namespace,
        function=function,
        qualifier=stored.qualifier,
        kind=stored.kind,
        meta=with_lineage(stored.kind, stored.meta, stored.lineage, hand.id),
        body=body,
        expires=hand.expires,
    )


def lost(hand: Hand, detail: str) -> Ran:
    """The outcome of a lease of which nobody knows what became."""
    return Ran(id=hand.id, epoch=hand.epoch, outcome="lost", code="lost", detail=detail)


def in_messages(calls: Sequence[LeasedCall]) -> Iterator[Run]:
    """Leases as messages of bearable size."""
    part: list[LeasedCall] = []
    size = 0
    for call in calls:
        part.append(call)
        size += len(call.body) + len(call.meta)
        if size > RUN_BYTES_MAX:
            yield Run(part)
            part, size = [], 0
    if part:
        yield Run(part)


def homes_of(lanes: Iterable[str], hellos: Mapping[str, Hello], load: Mapping[str, int], limited: Container[str]) -> dict[str, str]:
    """By lane, the gateway (of `hellos`) that is its function's home, or stands in for it: its limits are counted there. Of two in one
    place, one of which leaves, who has the fewest. `limited`: namespaces whose functions live together."""
    if not hellos:
        return {}
    most = max(max(hello.gateways, hello.slot + 1) for hello in hellos.values())
    homes = {}
    for lane in lanes:
        namespace, function = split_lane(lane)
        order = share.order(namespace, function, most, together=namespace in limited)
        homes[lane] = min(hellos, key=lambda name: (order.index(hellos[name].slot), load[name]))
    return homes
