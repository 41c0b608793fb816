"""The items of `dayfly map`, read line by line from a file or standard input, and the file that its results are kept in."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dayfly.cli.failure import Failure

LINE_BYTES_MAX = 64 * 1024 * 1024
CHUNK_ITEMS = 8_000
CHUNK_BYTES = 8 * 1024 * 1024


class Chunk(NamedTuple):
    """Items to send together: index of the first, their lines, the number of each in the file, and whether they are the last."""

    first: int
    lines: list[bytes]
    numbers: list[int]
    last: bool


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The file, or standard input for "-"."""
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(source).open("rb") as file:
            yield file
    except OSError as error:
        raise Failure(f"{source}: {error.strerror}.", "Name a readable file of JSON lines, or - for standard input.") from error


def count(source: str) -> int:
    """How many items the file has, each looked at before anything is sent; 0 for what can be read only once. Raises Failure."""
    if source == "-" or not Path(source).is_file():
        return 0
    with opened(source) as file:
        found = sum(1 for _ in _items(file, source))
    if not found:
        raise Failure(f"{source} has no items.", "A map needs one JSON value a line, one line at least.")
    return found


def chunks(file: BinaryIO, source: str, skip: int) -> Iterator[Chunk]:
    """Everything behind the first `skip` items, in pieces; the last one may be empty. Raises Failure for a line that is no JSON."""
    first, lines, numbers, size = skip, list[bytes](), list[int](), 0
    for index, (number, line) in enumerate(_items(file, source)):
        if index < skip:
            continue
        if len(lines) >= CHUNK_ITEMS or (lines and size + len(line) > CHUNK_BYTES):
            yield Chunk(first, lines, numbers, last=False)
            first, lines, numbers, size = index, [], [], 0
        lines.append(line)
        numbers.append(number)
        size += len(line)
    yield Chunk(first, lines, numbers, last=True)


def _items(file: BinaryIO, source: str) -> Iterator[tuple[int, bytes]]:
    """(line number, value) of every line that is not empty."""
    number = 0
    while raw := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(raw) > LINE_BYTES_MAX:
            raise Failure(f"{source}:{number}: the line is over {LINE_BYTES_MAX} bytes.", "Make items smaller: pass a reference.")
        line = raw.strip()
        if not line:
            continue
        try:
            json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{source}:{number}: no JSON: {error}.", "Write one JSON value a line; texts need their quotes.") from error
        yield number, line


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Out:
    """Where results go: a file, each index once, or standard output. `kept`: go on with what the file has, from a run before: what
    succeeded, and of an ordered one only what stands before anything that did not."""

    def __init__(self, path: Path | None, *, kept: bool, ordered: bool) -> None:
        self.seen: set[int] = set()
        self._file: BinaryIO | None = None
        if path is None:
            return
        try:
            if kept and path.exists():
                self._take_over(path, ordered)
            self._file = path.open("ab" if self.seen else "wb")
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}.", "Name a file that can be written with --out.") from error

    def write(self, result: dict[str, Any]) -> None:
        """A line of results; one that is there already is passed over."""
        if result["index"] in self.seen:
            return
        self.seen.add(result["index"])
        line = json.dumps({key: value for key, value in result.items() if key != "after"}, ensure_ascii=False) + "\n"
        if self._file is None:
            sys.stdout.write(line)
        else:
            self._file.write(line.encode())

    def flush(self) -> None:
        (self._file or sys.stdout).flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            sys.stdout.flush()

    def _take_over(self, path: Path, ordered: bool) -> None:
        """Keep what of the file stays, and remember what that is."""
        fresh = path.with_name(path.name + ".new")
        with path.open("rb") as old, fresh.open("wb") as new:
            for raw in old:
                index = _index(raw)
                if index is not None and index not in self.seen:
                    self.seen.add(index)
                    new.write(raw)
                elif ordered:
                    break
        fresh.replace(path)


def _index(raw: bytes) -> int | None:
    """Of which item that succeeded this line is the result; None: of none, or it is torn."""
    try:
        found = json.loads(raw)
        return int(found["index"]) if found["ok"] and raw.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
