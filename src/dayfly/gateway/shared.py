"""The fleet of a gateway that is one of several: what it may start is agreed with the others.

A version's instances here are bounded by what this gateway is to it (home or guest, core/decide/share.py), and each takes a place in the
machine's commons before it starts. A start that finds none waits here, and others are asked for room. A lone gateway has a plain `Fleet`.
Made by gateway/main.py.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from dayfly.core.decide import share
from dayfly.core.model.function import Function, Version
from dayfly.core.model.settings import Settings
from dayfly.core.ports import Provider
from dayfly.gateway.channel import Channel
from dayfly.gateway.commons import ANY_VERSION, Commons, number_of
from dayfly.gateway.entry import Entry, min_instances_of
from dayfly.gateway.fleet import Fleet
from dayfly.gateway.ledger import Ledger

AGAIN_SECONDS = 0.005  # until a start that found no place is tried again
ROOM_SECONDS = 0.5  # how long one waits for others to make room on a full machine before its calls are refused
RELEASED_PER_TICK_MAX = 8  # idle instances that leave for others' sake


class Homes:
    """Whose home is where, as far as this gateway knows: `away` are gateways that are gone, `limited` namespaces with limits."""

    def __init__(self, slot: int, gateways: int) -> None:
        self.slot = slot
        self.gateways = gateways
        self.away: frozenset[int] = frozenset()
        self.limited: frozenset[str] = frozenset()

    def order(self, namespace: str, function: str) -> tuple[int, ...]:
        return share.order(namespace, function, self.gateways, together=namespace in self.limited)

    def is_home(self, function: Function) -> bool:
        """Whether this gateway keeps the function's floor and may have all of its instances."""
        return next(slot for slot in self.order(function.namespace, function.name) if slot not in self.away) == self.slot


class SharedFleet(Fleet):
    """A fleet that is not alone."""

    def __init__(self, settings: Settings, provider: Provider, ledger: Ledger, name: str, commons: Commons, homes: Homes) -> None:
        super().__init__(settings, provider, ledger, name)
        self.homes = homes
        self.on_limits_changed: Callable[[], None] = lambda: None
        self._commons = commons
        self._places: dict[str, int] = {}  # by instance
        self._held: dict[Entry, tuple[int, float]] = {}  # starts without a place: how many, since when
        self._again: Any = None

    # ---- who may have how much

    def entry(self, function: Function, version: Version) -> Entry:
        found = self._entries.get(version.key)
        known = None if found is None else found.function
        entry = super().entry(function, version)
        if entry is not found or entry.function is not known:
            self._bound(entry)
        return entry

    def _bound(self, entry: Entry) -> None:
        config, floor = entry.version.config, 0
        if self.homes.is_home(entry.function):
            most, floor = config.max_instances, min_instances_of(entry.function, entry.version)
        else:
            most = max(1, share.guest_max(config.max_instances, self.homes.gateways))
        entry.pool.limits = msgspec.structs.replace(entry.pool.limits, max_instances=most, min_instances=floor)

    def limits_changed(self, namespace: str | None = None) -> None:
        super().limits_changed(namespace)
        self.homes.limited = frozenset(self.limits.namespaces)
        self.on_limits_changed()

    def homes_changed(self, functions: Iterable[Function]) -> None:
        """Gateways came or left, or namespaces got limits: what is kept warm moves."""
        for entry in self._entries.values():
            self._bound(entry)
        for function in functions:
            self.warm(function)

    def warm(self, function: Function) -> None:
        if self.homes.is_home(function):
            super().warm(function)
            return
        for version in function.versions:
            if version.key in self._entries:
                self.entry(function, version)

    def may_be_guest(self, version: Version) -> bool:
        return share.may_be_guest(version.config, self.homes.gateways, together=version.namespace in self.homes.limited)

    def invite(self, function: Function, versions: Iterable[Version]) -> None:
        """This gateway is a guest of a function: have an instance of each of these ready."""
        for version in versions:
            entry = self.entry(function, version)
            entry.pool.ensure(1, time.monotonic())
            self._carry_out(entry)

    def has_room(self, versions: Iterable[tuple[str, str, int]]) -> bool:
        """Whether a guest's call, whichever of these versions it will be, is better served here than at home."""
        for key in versions:
            entry = self._entries.get(key)
            if entry is None or not entry.pool.ready:
                return False
            pool = entry.pool
            if pool.waiting and pool.ready >= pool.limits.max_instances:
                return False
        return True

    # ---- places

    def _start_one(self, entry: Entry) -> None:
        place, lacking = self._commons.take(entry.version.key, entry.version.config.max_instances)
        if place is None:
            self._hold(entry, lacking)
            return
        if self._held.pop(entry, None) is not None and not self._held:
            self._commons.want(0)
        name = f"{self._prefix}-{self.seq + 1:x}"
        self._places[name] = place
        super()._start_one(entry)
        if name not in self._channels:
            self._commons.give(self._places.pop(name))

    def _hold(self, entry: Entry, lacking: str) -> None:
        """A start that may not begin now: again in a moment, until others have made room or it is clear that they cannot."""
        now = time.monotonic()
        count, since = self._held.get(entry, (0, now))
        if lacking == "instances" and not self.release_one() and now - since > ROOM_SECONDS:
            del self._held[entry]
            entry.pool.failed(None, now, "overloaded")
            self._carry_out(entry)
            return
        self._held[entry] = (count + 1, since)
        if lacking == "instances":
            self._commons.want(ANY_VERSION)
        elif lacking == "version" and self.homes.is_home(entry.function):
            self._commons.want(number_of(entry.version.key))
        if self._again is None:
            self._again = self._loop.call_later(AGAIN_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        for entry, (count, since) in list(self._held.items()):
            self._held[entry] = (0, since)
            self._starts.ask(entry, count, is_first=not entry.channels)
        self._start_pending()

    def _on_ready(self, entry: Entry, channel: Channel, meta: bytes) -> None:
        if (place := self._places.get(channel.id)) is not None:
            self._commons.started(place)
        super()._on_ready(entry, channel, meta)

    def _gone(self, channel: Channel) -> None:
        if (place := self._places.pop(channel.id, None)) is not None:
            self._commons.give(place)
        super()._gone(channel)

    def leave(self) -> None:
        """A successor is there: what runs here is counted by nobody any more (docs/operations.md)."""
        self._commons.leave()
        self._places.clear()

    def tick(self, known: Any) -> None:
        super().tick(known)
        if self._held:
            self._held = {entry: it for entry, it in self._held.items() if not entry.pool.closed}
            if not self._held:
                self._commons.want(0)
        if wanted := self._commons.wanted():
            self._make_room(wanted)

    def _make_room(self, wanted: set[int]) -> None:
        """Others have calls for which they may not start an instance: let idle ones go."""
        for key, entry in list(self._entries.items()):
            if number_of(key) in wanted and entry.pool.idle():
                entry.pool.release(1)
                self._carry_out(entry)
        if ANY_VERSION in wanted:
            for _ in range(RELEASED_PER_TICK_MAX):
                if not self.release_one():
                    break
