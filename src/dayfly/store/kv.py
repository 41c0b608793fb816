"""Durable keys and values: the nouns and verbs. `kv_sqlite.py` and `kv_postgres.py` are the two that do it.

Every write gives its key a new version, higher than all before it, also when the key was deleted in between: who compares versions sees
every change. An entry past `expires` is not there any more, whether swept or not. Called by one thread; verbs that write take a batch and
are one transaction, durable when they return.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

BATCH_MAX = 10_000  # keys of one verb
LIST_MAX = 1_000  # entries of one answer of `list`
LIST_BYTES_MAX = 4 * 1024 * 1024  # and the bytes of their values, but for the first
TEXT_MAX = 1_024  # characters of a key
VALUE_BYTES_MAX = 1024 * 1024
NEVER = math.inf


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A value for a key. `expected`: the version that it must have now (0: it must not be there); None: whatever it is."""

    key: str
    value: bytes
    expected: int | None = None
    expires: float = NEVER


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """`version` that the key has now (0: it is not there). With a conflict (another was expected), nothing was written."""

    version: int
    conflict: bool


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a key has. `expires`: epoch seconds, or NEVER."""

    key: str
    value: bytes
    version: int
    expires: float


class KV(Protocol):
    """The verbs. They raise Refusal storage_full or data_unusable (nothing was changed then), ValueError for what breaks a bound."""

    def get(self, keys: Sequence[str], now: float) -> list[Entry | None]:
        """Entries by key; None: it is not there."""

    def put(self, writes: Sequence[Write], now: float) -> list[Written]:
        """Write in this order; a conflict of one does not keep the others."""

    def delete(self, keys: Sequence[tuple[str, int | None]], now: float) -> list[bool]:
        """Delete keys, each if it has that version (None: whichever); False: it has another or is not there."""

    def sweep(self, now: float, limit: int) -> int:
        """Make room: delete at most `limit` entries that have expired; how many went."""

    def list(self, prefix: str, now: float, *, after: str = "", limit: int) -> list[Entry]:
        """Entries whose keys begin with `prefix`, by key, behind `after`: fewer than `limit` only at the end, or when they are large
        (then at least one)."""

    def close(self) -> None:
        """Afterwards nothing may be called."""


def check(keys: Sequence[str], values: Sequence[bytes] = ()) -> None:
    """Raise ValueError for what breaks a bound, before anything is written."""
    if len(keys) > BATCH_MAX:
        raise ValueError(f"a batch of {len(keys)}, more than {BATCH_MAX}")
    for key in keys:
        if not key or len(key) > TEXT_MAX or "\0" in key:
            raise ValueError(f"{key[:60]!r} is empty, longer than {TEXT_MAX} characters, or holds a NUL")
    if any(len(value) > VALUE_BYTES_MAX for value in values):
        raise ValueError(f"a value is larger than {VALUE_BYTES_MAX} bytes")


def written(
    writes: Sequence[Write], versions: dict[str, int], numbers: Iterable[int]
) -> tuple[list[Written], dict[str, tuple[int, Write]]]:
    """What writing comes to: an answer for each, and what each key is to have. `versions` of the keys that are there;
    `numbers`: new versions, rising."""
    answers = []
    rows: dict[str, tuple[int, Write]] = {}
    versions, numbers = dict(versions), iter(numbers)
    for write in writes:
        conflict = write.expected is not None and write.expected != versions.get(write.key, 0)
        if not conflict:
            versions[write.key] = next(numbers)
            rows[write.key] = (versions[write.key], write)
        answers.append(Written(version=versions.get(write.key, 0), conflict=conflict))
    return answers, rows


def deleted(keys: Sequence[tuple[str, int | None]], versions: dict[str, int]) -> list[bool]:
    """Which deletions take effect, each key once. `versions` of the keys that are there."""
    versions = dict(versions)
    answers = []
    for key, expected in keys:
        answers.append(key in versions and expected in (None, versions[key]))
        if answers[-1]:
            del versions[key]
    return answers


def bounded(entries: Sequence[Entry]) -> list[Entry]:
    """As many of the entries as may be handed out together: at least one."""
    total = 0
    for number, entry in enumerate(entries):
        total += len(entry.value)
        if number and total > LIST_BYTES_MAX:
            return [*entries[:number]]
    return [*entries]
