"""All pools of this gateway, and the hands that carry out what they decide.

One `Entry` per version: its pool (core/decide/pool.py), its socket and its channels. Facts come from calls (submit, abandon), channels
(frames, ends), the provider (accepted, exited) and the clock (`tick`); after each, `_carry_out` does what the pool wants. Never decides,
never awaits. Called by gateway/dispatch.py, reply.py and link.py.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from dayfly.core.decide.effects import Answer, Clear, Close, Kill, Retire, Start
from dayfly.core.decide.evict import GreedyDual
from dayfly.core.decide.starts import Starts
from dayfly.core.model.call import WAITING, Call
from dayfly.core.model.function import Function, Version
from dayfly.core.model.records import FunctionStatistics
from dayfly.core.model.settings import Settings
from dayfly.core.ports import Provider
from dayfly.core.wire.node import Accepted, Exited
from dayfly.gateway.apart import Apart
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import death_text, error_of, init_error, init_timed_out, start_death
from dayfly.gateway.entry import Entry, Provers, min_instances_of
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.limits import Limiter
from dayfly.gateway.outputs import Outputs
from dayfly.gateway.spawn import spawn
from dayfly.gateway.templates import Named, Templates
from dayfly.gateway.turn import Turn
from dayfly.gateway.unbegun import settle_unbegun
from dayfly.runtime import frames

log = structlog.get_logger()

RAN_INIT = ("fork", "prepared", "packages")  # origins of instances that ran their version's init themselves
EXIT_WAIT_SECONDS = 0.25  # how long the reason of a death (the node's Exited) may come after the death itself
PROVING_SECONDS = 60.0  # a proved version that no alias names by then drains
DORMANT_SECONDS = 2.0  # a version without instances and calls for this long gives its sockets back; they are made again in no time
KEEP_SECONDS = 1.0  # between two looks for templates of versions that are gone


class Fleet:
    """Every version's pool, and the machine-wide caps on starts and instances."""

    def __init__(self, settings: Settings, provider: Provider, ledger: Ledger, name: str) -> None:
        self._settings = settings
        self._provider = provider
        self.ledger = ledger
        self._outputs = outputs = Outputs(ledger, settings.log_lines_per_call_max)
        self.on_output = outputs.raw
        self._prefix, self.seq = name, 0  # calls and instances so far
        self.limits = Limiter(settings.tariff_round_ms)
        self.templates = Templates(provider, ledger, outputs, name)
        self._loop = asyncio.get_running_loop()
        self.entries = self._entries = dict[tuple[str, str, int], Entry]()
        self._leaving: list[Entry] = []
        self._channels: dict[str, Channel] = {}
        self._starts = Starts[Entry](settings.starts_in_flight_max, settings.starts_fresh_max or 2 * (os.cpu_count() or 1), Entry.cost)
        self._apart = Apart()
        self._turn = Turn(self._loop, self._carry_out)
        self._keep_at = 0.0
        self._next_start: asyncio.Handle | None = None
        self._eviction = GreedyDual[Entry]()
        self.stopping = False
        provider.on_accepted, provider.on_exited = self._on_accepted, self._on_exited
        self._effects: dict[type, Callable[[Entry, Any], None]] = {
            Start: self._do_start,
            Answer: lambda _, effect: effect.call.reply.refused(effect.code, effect.retry_after_seconds),
            Retire: lambda entry, effect: entry.retire(effect.instances),
            Kill: self._do_kill,
            Clear: lambda entry, _: entry.socket.clear(),
            Close: self._do_close,
        }

    def entry(self, function: Function, version: Version) -> Entry:
        """The version's entry, made at first call; a changed secret makes a new one and drains the old."""
        if (found := self._entries.get(version.key)) is not None:
            if found.serves(function, version):
                return found
            self._drain(found)
        made = Entry(function, version, self._settings, self.ledger.function(version.namespace, version.function))
        made.gate = self.limits.gate(version)
        self._entries[version.key] = made
        return made

    def limits_changed(self, namespace: str | None = None) -> None:
        """Let the calls of a namespace (or of all) meet the limits as they are now; those inside stay."""
        for key, entry in self._entries.items():
            if namespace is None or key[0] == namespace:
                entry.gate = self.limits.gate(entry.version)

    def submit(self, entry: Entry, reply: Any) -> Call:
        """A call enters. `reply` is told the answer, maybe before this returns (a refusal)."""
        if entry.pool.closed:
            reply.entry = entry = self._revived(entry)
        self.seq += 1
        now = time.monotonic()
        call = Call(self.seq, now, now + entry.timeout_seconds, reply)
        reply.call = call
        entry.pool.submitted(call, now)
        self._turn.note(entry)
        if call.state == WAITING and (by := reply.wanted_by()) is not None:
            entry.pool.hurried(call, by, now)
            self._carry_out(entry)
        return call

    def _revived(self, entry: Entry) -> Entry:
        """The version was let go while this call's body was still on its way: it comes back for the call and then goes again."""
        key = entry.version.key
        if key not in self._entries:
            self.entry(entry.function, entry.version).proving_until = time.monotonic()
        return self._entries[key]

    def abandon(self, entry: Entry, call: Call, streaming: Channel | None) -> bool:
        """The caller left. True when the call had not begun and is out."""
        if streaming is not None:
            streaming.cancel(call.seq)
        return entry.pool.abandoned(call)

    def functions_changed(self, named: Named, prefix: tuple[str, str] | None) -> None:
        """Drain entries whose versions no alias names any more; with `prefix` only those of one (namespace, function)."""
        now = time.monotonic()
        for key, entry in list(self._entries.items()):
            if (prefix is not None and key[:2] != prefix) or named(key) or (prefix is None and entry.proving_until > now):
                continue
            del self._entries[key]
            self._drain(entry)

    def warm(self, function: Function) -> None:
        """Bring up min_instances (or what a window of `provisioned` asks for) of every version an alias names."""
        for version in function.versions:
            floor = min_instances_of(function, version)
            if floor or version.key in self._entries:  # those that are here may have to hear of a floor that fell
                entry = self.entry(function, version)
                if version.number in function.named:
                    entry.proving_until = 0.0  # it was proved for this
                entry.pool.ensure(floor, time.monotonic())
                self._carry_out(entry)

    def prove(self, function: Function, version: Version, prover: Provers) -> None:
        """Start one instance and tell `prover` (channel, {}) when its init ran, or (None, error) when it did not."""
        now = time.monotonic()
        entry = self.entry(function, version)
        entry.proving_until = now + PROVING_SECONDS
        if (ready := next((channel for channel in entry.channels.values() if channel.ready_at), None)) is not None:
            prover(ready, {})
            return
        entry.provers.append(prover)
        entry.pool.ensure(1, now)
        self._carry_out(entry)

    def _drain(self, entry: Entry) -> None:
        self._leaving.append(entry)
        entry.pool.drain(time.monotonic())
        self._carry_out(entry)

    def tick(self, named: Named) -> None:
        """Every 50 ms or so: deadlines, scaling down, pending starts. `named` tells whether an alias names a version."""
        now = time.monotonic()
        for entry in [*self._entries.values(), *self._leaving]:
            entry.check_deadlines(now)
            entry.pool.ticked(now)
            self._carry_out(entry)
        self._apart.tick(self._entries.values(), now)
        self._check_starts(now)
        self._start_pending()
        for key, entry in list(self._entries.items()):
            if entry.proving_until and entry.proving_until <= now:
                entry.proving_until = 0.0
            elif not entry.pool.dormant(now, DORMANT_SECONDS):
                continue
            if entry.pool.dormant(now, 0.0) or not named(key):
                del self._entries[key]
                self._drain(entry)
        self._leaving = [entry for entry in self._leaving if not entry.is_over(now, self._provider.kill)]
        self.templates.tick(quiet=self._starts.quiet)
        if now >= self._keep_at:
            self._keep_at = now + KEEP_SECONDS
            self.templates.keep(named, self._entries.keys())

    def _check_starts(self, now: float) -> None:
        """An instance that neither became ready nor failed in time is ended; its start then counts as failed."""
        limit = self._settings.init_timeout_seconds
        for channel in list(self._channels.values()):
            if not channel.ready_at and channel.wanted and now - channel.started_at > limit:
                channel.wanted = False
                self._failed(channel, init_timed_out(limit), "init_failed")
                self._provider.kill(channel.id)

    def _carry_out(self, entry: Entry) -> None:
        pool = entry.pool
        for effect in pool.effects():
            self._effects[type(effect)](entry, effect)
        if pool.offers:
            self._turn.note(entry)

    def _do_start(self, entry: Entry, effect: Start) -> None:
        self._starts.ask(entry, effect.instances, is_first=not entry.channels)
        self._start_pending()

    def _do_kill(self, entry: Entry, effect: Kill) -> None:
        if (channel := entry.channels.get(effect.instance)) is not None:
            channel.wanted = False
            self._provider.kill(channel.id)

    def _do_close(self, entry: Entry, effect: Close) -> None:
        entry.closed_at = time.monotonic()
        entry.socket.finish()
        for prover in entry.provers:
            prover(None, error_of("Sandbox.Failure", "The version was removed while it was being proved."))
        entry.provers.clear()

    def _start_pending(self, *, its_turn: bool = False) -> None:
        """Begin one start that may, the others in later turns of the loop, so that a burst keeps no warm call waiting. While the node is
        coming back none may: calls wait until their deadline."""
        self._next_start = None if its_turn else self._next_start
        if self._next_start is None and self._provider.connected and self._starts.may_begin(time.monotonic()):
            if len(self._channels) >= self._settings.instances_max:
                if not self.release_one() and not any(entry.pool.leaving for entry in [*self._entries.values(), *self._leaving]):
                    self._refuse_pending("overloaded")
                return
            self._next_start = self._loop.call_soon(lambda: self._start_pending(its_turn=True))
            if (entry := self._starts.next(time.monotonic())) is not None and not entry.pool.closed:
                self._start_one(entry)

    def release_one(self) -> bool:
        """Ask the idle instance to leave that is least worth its room. False when none may."""
        chosen = self._eviction.choose(e.evictable() for e in [*self._entries.values(), *self._leaving] if e.pool.ready)
        if chosen is not None:
            chosen.pool.release(1)
            self._carry_out(chosen)
        return chosen is not None

    def _refuse_pending(self, code: str) -> None:
        now = time.monotonic()
        for entry in self._starts.drop_all():
            entry.pool.failed(None, now, code)
            self._carry_out(entry)

    def _start_one(self, entry: Entry) -> None:
        self.seq += 1
        now = time.monotonic()
        channel = Channel(f"{self._prefix}-{self.seq:x}", self, entry, now)
        apart = self._apart.asked(entry, self._starts.under_way, now)
        if code := spawn(self._provider, entry, channel, parent=self.templates.parent(entry), apart=apart):
            entry.pool.failed(None, now, code)
            self._carry_out(entry)
            if code == "overloaded":
                self.release_one()
            return
        self._starts.begun(now)
        self._channels[channel.id] = channel
        entry.channels[channel.id] = channel
        entry.ledger.numbers.instances_started += 1
        entry.pool.starting(channel.id, now)
        self._carry_out(entry)

    def on_frame(self, channel: Channel, frame: Frame) -> None:
        entry: Entry = channel.entry
        kind = frame.kind
        if (kind == frames.RESULT or kind == frames.END) and channel.ready_at:  # before that it was asked nothing
            pool = entry.pool
            call = pool.finished(frame.seq, time.monotonic(), frame.exec_us * 1e-6)
            if call is not None:
                (call.reply.result if kind == frames.RESULT else call.reply.end)(channel, frame)
                call.reply = None  # they hold each other
            if pool.urgent or pool.unsettled:
                self._turn.note(entry)
        elif kind == frames.LOG:
            self._outputs.frame(channel, frame)
        elif (kind == frames.HEAD or kind == frames.CHUNK or kind == frames.MOVED) and channel.ready_at:
            call = entry.pool.offered.get(frame.seq)
            if call is not None:
                (call.reply.head if kind == frames.HEAD else call.reply.chunk)(channel, frame)
        elif kind == frames.READY and not channel.ready_at and channel.wanted:
            self._on_ready(entry, channel, frame.meta)
        elif kind == frames.FAILED and not channel.ready_at and channel.wanted:
            channel.wanted = False
            self._failed(channel, init_error(frame.meta), "init_failed")
        elif kind == frames.RETIRED:
            channel.wanted = False
        else:
            self.on_end(channel, "garbage")

    def _on_ready(self, entry: Entry, channel: Channel, meta: bytes) -> None:
        now = time.monotonic()
        try:
            channel.became_ready(meta, now)
        except msgspec.DecodeError:
            self.on_end(channel, "garbage")
            return
        self._starts.ended()
        provers, entry.provers = entry.provers, []
        for prover in provers:
            prover(channel, {})
        entry.pool.started(channel.id, now)
        if channel.origin in RAN_INIT:
            self.templates.ran_init(entry, channel)
        channel.imports = []
        self._carry_out(entry)
        self._start_pending()

    def on_end(self, channel: Channel, reason: str) -> None:
        """The instance closed its socket ("lost") or sent nonsense ("garbage"). Why it ended comes from the node; wait for it a moment."""
        if reason == "garbage":
            log.warning("instance_sent_garbage", instance=channel.id)
            channel.wanted = channel.believed = False
        self._provider.kill(channel.id)
        if channel.exit is not None:
            self._gone(channel)
        else:
            self._loop.call_later(EXIT_WAIT_SECONDS, self._gone, channel)

    def _on_accepted(self, message: Accepted) -> None:
        if (channel := self._channels.get(message.instance)) is not None:
            channel.accepted = message

    def _on_exited(self, message: Exited) -> None:
        channel = self._channels.get(message.instance)
        if channel is None:
            self.templates.exited(message)
            return
        channel.exit = message
        # What it wrote before it died may still be in the socket: let the loop read it first.
        self._loop.call_soon(self._loop.call_soon, self._gone, channel)

    def _gone(self, channel: Channel) -> None:
        """An instance is over: settle its calls, forget it. Reached from end-of-file and from the node, done once."""
        if self._channels.pop(channel.id, None) is None:
            return
        entry: Entry = channel.entry
        channel.read_out()
        taken = entry.taken_by(channel, self.seq)
        channel.close()
        del entry.channels[channel.id]
        now = time.monotonic()
        if not channel.ready_at:
            if channel.id in entry.pool.instances:
                self._settle_start(channel, entry, *start_death(channel))
        elif channel.wanted or taken:
            entry.ledger.numbers.instances_lost += 1
            for seq in taken:
                if (call := entry.pool.offered.get(seq)) is not None:
                    call.reply.died(death_text(channel))
            entry.pool.lost(channel.id, taken, now)
            settle_unbegun(self._loop, entry, self._carry_out)
        else:
            entry.pool.retired(channel.id, now)
        self._carry_out(entry)
        self._start_pending()

    def _failed(self, channel: Channel, error: dict[str, Any], code: str) -> None:
        entry: Entry = channel.entry
        self._settle_start(channel, entry, error, code)
        self._carry_out(entry)
        self._start_pending()

    def _settle_start(self, channel: Channel, entry: Entry, error: dict[str, Any], code: str) -> None:
        """A start came to nothing: tell the provers, and calls that have nobody else."""
        self._starts.ended()
        self.templates.start_failed(entry, channel)
        provers, entry.provers = entry.provers, []
        for prover in provers:
            prover(channel, error)
        for call in entry.pool.hopeful():
            call.reply.start_failed(error)
        self._outputs.start_failed(channel, error)
        entry.pool.failed(channel.id, time.monotonic(), code)

    @property
    def busy(self) -> int:
        """Calls not yet answered."""
        return sum(len(e.pool.waiting) + len(e.pool.offered) for e in [*self._entries.values(), *self._leaving])

    def observe(self) -> list[FunctionStatistics]:
        """What there is to tell control: the numbers, with present gauges, of functions that have done something since the last time."""
        self.ledger.clear_gauges()
        for entry in [*self._entries.values(), *self._leaving]:
            entry.gauge()
        self.templates.gauge()
        return self.ledger.report()

    def close(self) -> None:
        """End everything now."""
        self.templates.close()
        for channel in list(self._channels.values()):
            self._provider.kill(channel.id)
            channel.close()
        for entry in [*self._entries.values(), *self._leaving]:
            if not entry.pool.closed:
                entry.socket.finish()

    def __repr__(self) -> str:
        return f"<Fleet versions={len(self._entries)} instances={len(self._channels)} {self._starts}>"
