"""The records of maps where they are kept: a key for each (store/kv.py), written by compare-and-set, in the thread of the queue.

Used by control/maps.py.
"""

import time

import msgspec

from dayfly.control.durable import Durable
from dayfly.core.model.mapping import MapRecord
from dayfly.store.kv import KV, LIST_MAX, Write

PREFIX = "map/"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MapRecord).decode

Kept = tuple[MapRecord, int]  # and its version


class Records:
    """All of them. Every verb raises Refusal storage_full or data_unusable."""

    def __init__(self, durable: Durable, kv: KV) -> None:
        self._durable, self._kv = durable, kv

    async def all(self) -> list[Kept]:
        """Every map there is."""
        kept: list[Kept] = []
        after = ""
        while True:
            found = await self._durable(lambda _: self._kv.list(PREFIX, time.time(), after=after, limit=LIST_MAX))  # noqa: B023 (awaited here)
            if not found:
                return kept
            kept += [(_decode(entry.value), entry.version) for entry in found]
            after = found[-1].key

    async def get(self, namespace: str, map_id: str) -> Kept | None:
        """As it is now."""
        key = f"{PREFIX}{namespace}/{map_id}"
        entry = (await self._durable(lambda _: self._kv.get([key], time.time())))[0]
        return (_decode(entry.value), entry.version) if entry is not None else None

    async def put(self, record: MapRecord, expected: int) -> int:
        """The version that it has now; 0: what is there is not of the version expected, and stays."""
        write = Write(key=f"{PREFIX}{record.namespace}/{record.id}", value=_encode(record), expected=expected)
        written = (await self._durable(lambda _: self._kv.put([write], time.time())))[0]
        return 0 if written.conflict else written.version

    async def delete(self, record: MapRecord, version: int) -> None:
        """If it is still of that version."""
        key = f"{PREFIX}{record.namespace}/{record.id}"
        await self._durable(lambda _: self._kv.delete([(key, version)], time.time()))
