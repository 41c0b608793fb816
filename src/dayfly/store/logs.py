"""What a log store is: records appended in batches, read by function, call and time, forgotten by age, count and room.

Two of them: a SQLite file (logs_sqlite.py) and a table beside the others on PostgreSQL (logs_postgresql.py), one suite of tests for
both. Statements are hand-written: this is the store that takes thousands of rows a second. What it holds may be lost: a power cut costs the
last moments. Used from one thread.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from dayfly.core.model.records import LogRecord

READ_MAX = 10_000  # rows of one read; a reader goes on after the last id it has
DELETE_STEP = 20_000  # rows deleted in one transaction, so that appending never waits long


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which records: every given condition must hold. `since` is epoch seconds; `after` an id already seen."""

    namespaces: tuple[str, ...]
    function: str = ""
    call_id: str = ""
    since: float = 0.0
    after: int = 0
    limit: int = 1000


class LogStore(Protocol):
    """An open log store. Every verb raises Refusal storage_full or data_unusable (Unreachable: a server that is away)."""

    shared: bool  # others may append, too, so that whoever waits for records must look by himself

    def append(self, records: Sequence[LogRecord]) -> None:
        """Keep a batch, all or nothing."""

    def read(self, query: LogQuery) -> list[tuple[int, LogRecord]]:
        """At most `limit` (and READ_MAX) records with their ids, oldest first: those after `after`, or the newest ones."""

    def last_id(self) -> int:
        """An id that every record to come is above of, and no record that is there; 0 before the first."""

    def forget(self, before: float, keep: int) -> int:
        """Delete one step of what is older than `before` (epoch seconds) or beyond the `keep` newest; how many went."""

    def shrink(self, bytes_max: int) -> int:
        """Delete one step of the oldest records when all of them take more than `bytes_max`; how many went."""

    def tidy(self) -> bool:
        """Give room that is free back to the disk, one bounded step; whether there is more to do."""

    def close(self) -> None:
        """Afterwards nothing may be called."""


def doomed(oldest: int, newest: int, used: int, bytes_max: int) -> int:
    """The last id of the next step to delete, so that from `used` bytes about `bytes_max` remain."""
    return oldest + min(DELETE_STEP, int((newest - oldest) * (1 - bytes_max / used)) + 1)
