"""When offered calls go out: a lone one at once, many at the end of the loop's turn, each once and in order."""

import asyncio
import os
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.pool import Pool
from dayfly.core.model.call import WAITING, Call
from dayfly.gateway import burst
from dayfly.gateway.entry import Entry as RealEntry
from dayfly.gateway.turn import Turn
from dayfly.gateway.version_socket import VersionSocket, sealed_memfd
from dayfly.runtime import frames


class Entry:
    """A version whose socket takes `room` calls."""

    send = RealEntry.send

    def __init__(self, room: int = 100, ready: int = 1) -> None:
        self.pool = Pool(PoolLimits(max_instances=4, queue_max=100, starts_max=4))
        self.pool.ready = ready
        self.sent: list[int] = []
        self.room = room
        self.noted = False
        self.socket = SimpleNamespace(send=self._send)

    def _send(self, calls: Sequence[Call]) -> int:
        went = calls[: self.room - len(self.sent)]
        self.sent += [call.seq for call in went]
        return len(went)

    def call(self, seq: int) -> Call:
        """One that the pool offers."""
        made = Call(seq, 0.0, 10.0)
        self.pool._offer(made)
        return made


def turn_of(*entries: Entry) -> Turn:
    def carry_out(entry: Entry) -> None:
        for _ in entry.pool.effects():
            pass

    return Turn(asyncio.get_running_loop(), carry_out)  # type: ignore[arg-type]


async def settled() -> None:
    """Until the turn's end."""
    await asyncio.sleep(0)


def test_a_call_for_a_free_instance_goes_at_once_and_those_behind_it_in_a_row() -> None:
    async def main() -> None:
        entry = Entry()
        turn = turn_of()
        for seq in (1, 2, 3, 4):
            entry.call(seq)
            turn.note(entry)  # type: ignore[arg-type]
            assert entry.sent == [1]
        await settled()
        assert entry.sent == [1, 2, 3, 4]

    asyncio.run(main())


def test_what_was_answered_or_taken_back_meanwhile_is_not_sent_and_nothing_twice() -> None:
    async def main() -> None:
        entry = Entry(ready=0)
        turn = turn_of()
        one, two, three = (entry.call(seq) for seq in (1, 2, 3))
        turn.note(entry)  # type: ignore[arg-type]
        del entry.pool.offered[two.seq]
        two.state = WAITING  # the caller's deadline, say
        await settled()
        assert entry.sent == [one.seq, three.seq]
        entry.call(4)
        turn.note(entry)  # type: ignore[arg-type]
        entry.pool._take_back()  # the last instance has gone before the turn's end
        await settled()
        assert entry.sent == [one.seq, three.seq]

    asyncio.run(main())


def test_what_the_socket_does_not_take_goes_to_the_front_of_the_queue_in_order() -> None:
    async def main() -> None:
        entry, other = Entry(room=2, ready=0), Entry(ready=0)
        turn = turn_of()
        for seq in (1, 2, 3, 4, 5):
            entry.call(seq)
            turn.note(entry)  # type: ignore[arg-type]
        other.call(6)
        turn.note(other)  # type: ignore[arg-type]
        await settled()
        assert (entry.sent, other.sent) == ([1, 2], [6])
        assert [entry.pool.waiting.popleft().seq for _ in range(3)] == [3, 4, 5]

    asyncio.run(main())


def test_what_fails_at_one_version_does_not_silence_the_others() -> None:
    async def main() -> None:
        broken, other = Entry(ready=0), Entry(ready=0)

        def carry_out(entry: Entry) -> None:
            if entry is broken:
                raise ZeroDivisionError

        turn = Turn(asyncio.get_running_loop(), carry_out)  # type: ignore[arg-type]
        for seq, entry in enumerate((broken, other), 1):
            entry.call(seq)
            turn.note(entry)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            turn.end()
        turn.note(other)  # type: ignore[arg-type]
        await settled()
        assert other.sent == [2] and not broken.noted

    asyncio.run(main())


def calls_of(sizes: Sequence[int]) -> list[Call]:
    calls = []
    for seq, size in enumerate(sizes, 1):
        body = bytes([seq % 256]) * size
        parts = [body[:10], body[10:]]
        reply = SimpleNamespace(kind=frames.DIRECT, call_id=b"id-%d" % seq, meta=b"m" * (seq % 7), parts=parts, body_size=size)
        reply.body_descriptor = lambda parts=parts: (frames.BODY_IN_FD, sealed_memfd("body", parts))
        calls.append(Call(seq, 0.0, 10.0, reply))
    return calls


@pytest.mark.parametrize("bursts", [True, False])
def test_each_call_of_a_burst_is_a_message_of_its_own(bursts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bursts:
        monkeypatch.setattr(burst, "send", None)
    socket = VersionSocket()
    # More than one burst, one in the middle whose body rides beside it, and enough large ones to fill the arrays' bytes.
    calls = calls_of([*range(150), frames.INLINE_BYTES_MAX + 1, *([frames.INLINE_BYTES_MAX] * 5), 3])
    assert socket.send(calls) == len(calls)
    for call in calls:
        packet, rights = socket._take_one(frames.MESSAGE_BYTES_MAX)  # type: ignore[misc]
        kind, flags, id_size, meta_size, seq, deadline = frames.REQUEST.unpack_from(packet)
        assert (kind, seq, deadline) == (frames.DIRECT, call.seq, 10_000_000_000)
        rest = packet[frames.REQUEST.size :]
        assert rest[:id_size] == call.reply.call_id and rest[id_size : id_size + meta_size] == call.reply.meta
        assert bool(flags & frames.BODY_IN_FD) == bool(rights) == (call.reply.body_size > frames.INLINE_BYTES_MAX)
        if not rights:
            assert rest[id_size + meta_size :] == b"".join(call.reply.parts)
        for fd in rights:
            os.close(fd)
    assert socket._take_one(1) is None
    socket.finish()


def test_a_full_socket_says_how_many_it_took_and_keeps_them_in_order() -> None:
    socket = VersionSocket()
    calls = calls_of([1000] * 5000)
    sent = socket.send(calls)
    assert 64 < sent < 5000
    assert socket.send(calls[sent:]) == 0
    assert socket.untaken() == [call.seq for call in calls[:sent]]
    socket.finish()


def test_a_socket_that_was_spoilt_takes_nothing_and_the_next_one_does() -> None:
    socket = VersionSocket()
    socket.receiver.shutdown(2)
    calls = calls_of([10, 10, 10])
    assert socket.send(calls) == 0
    assert socket.send(calls) == 3
    socket.finish()
