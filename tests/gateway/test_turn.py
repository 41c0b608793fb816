"""When offered calls go out: a lone one at once, many at the end of the loop's turn, each once and in order."""

import asyncio
from types import SimpleNamespace
from typing import Any

from dayfly.core.decide.effects import PoolLimits
from dayfly.core.decide.pool import Pool
from dayfly.core.model.call import WAITING, Call
from dayfly.gateway.turn import Turn


class Entry:
    """A version whose socket takes `room` calls."""

    def __init__(self, room: int = 100, ready: int = 1) -> None:
        limits = PoolLimits(
            concurrency=1, min_instances=0, max_instances=4, queue_max=100, keep_alive_seconds=60.0, starts_max=4, prefetch_max=16
        )
        self.pool = Pool(limits)
        self.pool.ready = ready
        self.sent: list[int] = []
        self.room = room
        self.socket = SimpleNamespace(offer=self._offer)

    def _offer(self, seq: int, deadline_ns: int, parcel: Any) -> bool:
        if len(self.sent) >= self.room:
            return False
        self.sent.append(seq)
        return True

    def call(self, seq: int) -> Call:
        """One that the pool offers."""
        made = Call(seq, 0.0, 10.0)
        self.pool._offer(made)
        return made


async def settled() -> None:
    """Until the turn's end."""
    await asyncio.sleep(0)


def test_a_call_for_a_free_instance_goes_at_once_and_those_behind_it_in_a_row() -> None:
    async def main() -> None:
        entry, turn = Entry(), Turn(asyncio.get_running_loop())
        turn.offer(entry, entry.call(1))  # type: ignore[arg-type]
        assert entry.sent == [1]
        for seq in (2, 3, 4):
            turn.offer(entry, entry.call(seq))  # type: ignore[arg-type]
        assert entry.sent == [1]
        await settled()
        assert entry.sent == [1, 2, 3, 4]

    asyncio.run(main())


def test_what_was_answered_or_taken_back_meanwhile_is_not_sent_and_nothing_twice() -> None:
    async def main() -> None:
        entry, turn = Entry(ready=0), Turn(asyncio.get_running_loop())
        one, two, three = (entry.call(seq) for seq in (1, 2, 3))
        for call in (one, two, three):
            turn.offer(entry, call)  # type: ignore[arg-type]
        del entry.pool.offered[two.seq]
        two.state = WAITING  # taken back: the last instance has gone
        turn.offer(entry, three)  # type: ignore[arg-type]
        turn.send()
        await settled()
        assert entry.sent == [1, 3]

    asyncio.run(main())


def test_what_the_socket_does_not_take_goes_to_the_front_of_the_queue_in_order() -> None:
    async def main() -> None:
        entry, other, turn = Entry(room=2, ready=0), Entry(ready=0), Turn(asyncio.get_running_loop())
        for seq in (1, 2, 3, 4, 5):
            turn.offer(entry, entry.call(seq))  # type: ignore[arg-type]
        turn.offer(other, other.call(6))  # type: ignore[arg-type]
        await settled()
        assert (entry.sent, other.sent) == ([1, 2], [6])
        assert [entry.pool.waiting.popleft().seq for _ in range(3)] == [3, 4, 5]

    asyncio.run(main())
