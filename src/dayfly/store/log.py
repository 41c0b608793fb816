"""A durable log of streams: its nouns and its verbs. `log_sqlite.py` and `log_postgres.py` are the two that do it.

A stream is a list of events with positions 1, 2, 3 … without a gap; what is appended becomes visible in that order. Subscribers keep a
cursor each: the position up to which they are done. Called by one thread; verbs that write take a batch and are one transaction, durable
when they return. The log knows nothing of its events and deletes none by itself.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

BATCH_MAX = 10_000  # events, cursors or streams of one verb
READ_MAX = 1_000  # events of one read
READ_BYTES_MAX = 4 * 1024 * 1024  # and their bytes, but for the first event
TRIM_MAX = 10_000  # events deleted by one `trim`
TEXT_MAX = 1_024  # characters of a stream's or subscriber's name
EVENT_BYTES_MAX = 1024 * 1024


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Events for one stream. `expected`: the position of its last event, as the writer knows it (0: it has none); None: whatever it is."""

    stream: str
    events: tuple[bytes, ...]
    at: float
    expected: int | None = None


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """`position` of the stream's last event now. With a conflict (another was expected), nothing was appended to this stream; otherwise
    the events have the positions up to it."""

    position: int
    conflict: bool


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. `at`: epoch seconds, as its writer said."""

    position: int
    at: float
    body: bytes


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """`subscriber` is done with the events of `stream` up to `position`."""

    subscriber: str
    stream: str
    position: int


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """The positions of a stream's first event that is kept and of its last; first = last + 1 when none is kept."""

    first: int
    last: int


class Log(Protocol):
    """The verbs. They raise Refusal storage_full or data_unusable (nothing was changed then), ValueError for what breaks a bound."""

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        """Append to streams, in this order; a conflict of one does not keep the others."""

    def read(self, stream: str, after: int, limit: int) -> list[Event]:
        """Events behind position `after`, oldest first: fewer than `limit` when they are large. A gap: what was there is trimmed."""

    def ends(self, stream: str) -> Ends:
        """Where a stream begins and ends; (1, 0) for one that nobody knows."""

    def commit(self, cursors: Sequence[Cursor]) -> list[int]:
        """Move cursors forward, never back and never past the stream's end; where each is now."""

    def position(self, subscriber: str, stream: str) -> int:
        """Where a cursor is; 0 when it was never moved."""

    def cursors(self, stream: str) -> list[Cursor]:
        """All cursors of a stream, by subscriber."""

    def unsubscribe(self, subscriber: str, stream: str) -> bool:
        """Forget a cursor; whether there was one."""

    def trim(self, stream: str, before: int) -> int:
        """Delete events in front of position `before`, at most TRIM_MAX; how many went. Positions go on as if they were there."""

    def remove(self, stream: str) -> bool:
        """Delete a stream with all it has; whether it was there. Trim a long one first. Its positions begin anew."""

    def close(self) -> None:
        """Afterwards nothing may be called."""


def check(appends: Sequence[Append]) -> None:
    """Raise ValueError for what breaks a bound, before anything is written."""
    if max(len(appends), sum(len(append.events) for append in appends)) > BATCH_MAX:
        raise ValueError(f"more than {BATCH_MAX} events, or appends, in a batch")
    for append in appends:
        check_names(append.stream)
        if any(len(event) > EVENT_BYTES_MAX for event in append.events):
            raise ValueError(f"an event for {append.stream!r} is larger than {EVENT_BYTES_MAX} bytes")


def check_names(*names: str) -> None:
    """The same for names of streams and subscribers."""
    for name in names:
        if not name or len(name) > TEXT_MAX or "\0" in name:
            raise ValueError(f"{name[:60]!r} is empty, longer than {TEXT_MAX} characters, or holds a NUL")


def check_cursors(cursors: Sequence[Cursor]) -> None:
    """The same for cursors."""
    if len(cursors) > BATCH_MAX:
        raise ValueError(f"{len(cursors)} cursors, more than {BATCH_MAX}")
    for cursor in cursors:
        check_names(cursor.subscriber, cursor.stream)


def appended(appends: Sequence[Append], last: dict[str, int]) -> tuple[list[Appended], list[tuple[str, int, float, bytes]]]:
    """What appending comes to: an answer for each, and rows (stream, position, at, body). Moves the positions in `last` (0 if missing)."""
    answers, rows = [], []
    for append in appends:
        position = last.get(append.stream, 0)
        conflict = append.expected is not None and append.expected != position
        if not conflict:
            rows += [(append.stream, number, append.at, body) for number, body in enumerate(append.events, position + 1)]
            position += len(append.events)
            last[append.stream] = position
        answers.append(Appended(position=position, conflict=conflict))
    return answers, rows


def bounded(sizes: Sequence[int]) -> int:
    """How many of the events read may be handed out together, given their sizes: at least one."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and total > READ_BYTES_MAX:
            return number
    return len(sizes)
