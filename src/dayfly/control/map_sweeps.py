"""What is done to all items of a map at once, a page of the queue at a time: cancel, put back, delete. Each may be broken off and begun
again. Decides nothing. Used by control/maps.py.
"""

from collections.abc import Sequence

from dayfly.control.calls import Calls
from dayfly.control.durable import Durable
from dayfly.control.map_track import pages
from dayfly.core.model.settings import Settings
from dayfly.store.queue import State

SWEEP_ITEMS = 1_000  # at once


class Sweeps:
    """Over lanes of maps."""

    def __init__(self, settings: Settings, durable: Durable, calls: Calls) -> None:
        self._settings, self._durable, self._calls = settings, durable, calls

    async def cancel(self, lane: str) -> None:
        """Whatever waits in it is dead, whatever runs will not wait again."""
        both: tuple[State, ...] = ("leased", "waiting")
        for states in (both[1:], both):  # the second time for what went from one to the other
            batch: list[str] = []
            async for item in pages(self._durable, lane, states):
                batch.append(item.id)
                if len(batch) >= SWEEP_ITEMS:
                    await self._calls.cancel_known(batch, self._settings.map_seconds_max)
                    batch = []
            if batch:
                await self._calls.cancel_known(batch, self._settings.map_seconds_max)

    async def put_back(self, lane: str) -> None:
        """Whatever is dead waits again."""
        while True:
            found = await self._durable(lambda queue: queue.list(lanes=[lane], states=["dead"], limit=SWEEP_ITEMS))
            if not found:
                return
            await self._calls.redrive_known([item.id for item in found], self._settings.map_seconds_max)

    async def clear(self, lanes: Sequence[str]) -> None:
        """Delete all that does not run: of maps that are no more."""
        for lane in lanes:
            await self.cancel(lane)
            while True:
                found = await self._durable(lambda queue: queue.list(lanes=[lane], states=["done", "dead"], limit=SWEEP_ITEMS))  # noqa: B023
                ids = [item.id for item in found]
                if not ids or not any(await self._durable(lambda queue: queue.purge(ids))):  # noqa: B023 (awaited here)
                    break
