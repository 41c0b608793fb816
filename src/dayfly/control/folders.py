"""The shared trees on disk, by digest: DATA/code and DATA/layers. Puts them in place whole, holds them, sweeps them later.

A tree appears under its digest by one rename, so it is there whole or not at all; what a crash leaves has a temporary name and
goes at the next start. Nothing that a deploy holds, or that a kept version names, is ever removed.
"""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
import structlog

from dayfly.control.bundle import TEMPORARY_PREFIX, discard
from dayfly.control.vault import disk_refusal, sync_folder
from dayfly.control.worker import Store
from dayfly.core.decide.retain import GRACE_SECONDS, folders_to_drop
from dayfly.core.model.layout import Layout
from dayfly.core.model.names import DIGEST
from dayfly.store import functions, usage

CODE, LAYER = "code", "layer"
JUMP_SECONDS = 60.0  # the clock on the wall is set right by less every day
Key = tuple[str, str]  # (kind, digest)
Named = tuple[set[str], set[str]]  # code digests, layer digests

log = structlog.get_logger()


class Folders:
    """Code and layer folders. `held` counts the deploys that need a folder before any version names it."""

    def __init__(self, layout: Layout, store: Store) -> None:
        self.roots = {CODE: Path(layout.code), LAYER: Path(layout.layers)}  # in the order of `Named`
        self.builds = Path(layout.builds)
        self._store = store
        self._held: Counter[Key] = Counter()
        self._ahead = time.time() - time.monotonic()  # of the clock on the wall
        self._moving = asyncio.Lock()  # a folder is not put in place and swept at once

    def path(self, key: Key) -> Path:
        return self.roots[key[0]] / key[1]

    def exists(self, key: Key) -> bool:
        return self.path(key).is_dir()

    @contextmanager
    def holding(self) -> Iterator[set[Key]]:
        """A set of keys; `hold` adds to it, and they are let go at the end."""
        mine: set[Key] = set()
        try:
            yield mine
        finally:
            self._held.subtract(mine)
            self._held += Counter()  # forgets what nobody holds

    async def hold(self, mine: set[Key], key: Key) -> bool:
        """Keep `key` from being swept while `mine` is open; whether its folder is there."""
        async with self._moving:
            if key not in mine:
                mine.add(key)
                self._held[key] += 1
            return self.exists(key)

    async def settle(self, temporary: Path, key: Key) -> None:
        """Move a finished tree to its place, or drop it when the same tree is there. The caller holds `key`."""
        async with self._moving:
            await asyncio.to_thread(_settle, temporary, self.path(key))

    def clean_start(self) -> None:
        """Remove what an interrupted deploy, build or sweep left. Blocking; before anybody deploys."""
        for root in (*self.roots.values(), self.builds):
            if root.is_dir():
                for entry in root.iterdir():
                    if entry.name.startswith(TEMPORARY_PREFIX) or root == self.builds:
                        discard(entry) if entry.is_dir() else entry.unlink(missing_ok=True)

    async def sweep(self, now: float, steady: float, grace_seconds: float = GRACE_SECONDS) -> list[Key]:
        """Mark folders that no version names, remove those whose grace is over; what was removed. `now`: epoch seconds, which outlive this
        process; `steady`: monotonic, by which it is seen that the clock on the wall was put forward or back. Then grace begins anew."""
        jumped = abs(now - steady - self._ahead) > JUMP_SECONDS
        self._ahead = now - steady
        async with self._moving:
            unnamed = await asyncio.to_thread(self._unnamed, await self._store(functions.referenced))
            marked = await self._store(_mark, unnamed, now, jumped)
            gone = folders_to_drop(marked, self._held, now, grace_seconds)
            doomed = [await asyncio.to_thread(_put_aside, self.path(key)) for key in gone]
        for folder in doomed:
            await asyncio.to_thread(discard, folder)
        if gone:
            log.info("folders_removed", count=len(gone))
        return gone

    def _unnamed(self, named: Named) -> list[Key]:
        """Folders that are not among these; of the others no list is made, for each minute there may be ten thousand."""
        found = []
        for (kind, root), digests in zip(self.roots.items(), named, strict=True):
            with os.scandir(root) as entries:
                found += [(kind, entry.name) for entry in entries if entry.name not in digests and DIGEST.fullmatch(entry.name)]
        return found


def _mark(tx: sa.Connection, unnamed: list[Key], now: float, anew: bool) -> dict[Key, float]:
    if anew or any(since > now + JUMP_SECONDS for since in usage.marked_garbage(tx).values()):
        usage.mark_garbage(tx, (), now)
    named = dict(zip((CODE, LAYER), functions.referenced(tx) if unnamed else ((), ()), strict=True))  # a deploy may have named one since
    usage.mark_garbage(tx, [(kind, digest) for kind, digest in unnamed if digest not in named[kind]], now)
    return usage.marked_garbage(tx)


def _settle(temporary: Path, place: Path) -> None:
    if place.is_dir():
        discard(temporary)
        return
    try:
        temporary.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        discard(temporary)
        raise disk_refusal(error, place) from error


def _put_aside(folder: Path) -> Path:
    """Give a doomed folder a temporary name in one step: half a tree never has a digest for a name."""
    aside = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
    return folder.rename(aside)  # replaces the empty folder
