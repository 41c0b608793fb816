"""Which pages of a template a first call writes to: learnt from one child, made each later child's own before its call comes.

A child shares all memory with its template until it writes; each page written to is then copied, at two to three microseconds a page
(a Flask application's first request writes to 1,300). Where they lie is the same in every child. So the first child says after its first
answer which pages have become its own, and its successors have the kernel copy those while they wait for their walls.

What a child says is heard once, and is only addresses: the worst that a lie does is to waste so much memory of the liar's own version.
Used by agent.py; must never run on the way to an answer.
"""

from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_SEQPACKET, socketpair
from mmap import PAGESIZE as PAGE
from struct import iter_unpack, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable

    Range = tuple[int, int]  # first byte, length in bytes

PAGES_MAX = 4096  # 16 MB a child, of pages of 4 KB
RANGES_MAX = 2048
_ROW = "QQ"
_PRESENT, _FILE, _OWN = 1 << 63, 1 << 61, 1 << 56  # proc_pid_pagemap(5)


class Touched:
    """What is known of it in a template, and the way by which it becomes known. `populate` gives a child its own copies of a range."""

    def __init__(self, populate: "Callable[[int, int], None]") -> None:
        self._populate = populate
        self._packed = b""  # not objects: to look at them would write to their pages
        self._ours: socket | None
        self._theirs: socket | None
        self._ours, self._theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)

    @property
    def is_learning(self) -> bool:
        """Whether no child has said anything yet."""
        return self._theirs is not None

    def fileno(self) -> int:
        """Readable when a child has spoken. Only while `is_learning`."""
        assert self._ours is not None
        return self._ours.fileno()

    def learn(self) -> None:
        """In the template: hear one child, and no other."""
        assert self._ours is not None
        try:
            said = self._ours.recv(RANGES_MAX * 16, MSG_DONTWAIT)
        except OSError:
            said = b""
        self._packed = b"".join(pack(_ROW, *it) for it in believable(iter_unpack(_ROW, said[: len(said) // 16 * 16]), writable_areas()))
        self.close()

    def close(self) -> None:
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()
        self._ours = self._theirs = None

    @property
    def is_known(self) -> bool:
        return bool(self._packed)

    def own(self) -> None:
        """In a child, first of all: have what is known copied now."""
        if self._ours is not None:  # what others say is not for its ears
            self._ours.close()
            self._ours = None
        for first, length in iter_unpack(_ROW, self._packed):
            self._populate(first, length)

    def report(self) -> None:
        """In a child, after its first answer: tell the template. Without /proc nothing is told."""
        if self._theirs is not None:
            try:
                found = [it for area in writable_areas() for it in own_pages(*area)]
                self._theirs.send(b"".join(pack(_ROW, *it) for it in found[:RANGES_MAX]), MSG_DONTWAIT)
            except OSError:
                pass
        self.close()


def writable_areas() -> "list[Range]":
    """Where this process may write and nobody else sees it. Raises OSError without /proc."""
    areas = []
    with open("/proc/self/maps") as file:
        for line in file:
            span, kind = line.split(None, 2)[:2]
            if kind.startswith("rw") and kind.endswith("p"):
                first, _, end = span.partition("-")
                areas.append((int(first, 16), int(end, 16) - int(first, 16)))
    return areas


def own_pages(first: int, length: int) -> "list[Range]":
    """The pages of an area that are this process's alone, neighbours as one range."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(first // PAGE * 8)
        entries = file.read(length // PAGE * 8)
    found: list[Range] = []
    for number, (entry,) in enumerate(iter_unpack("Q", entries)):
        if entry & _PRESENT and entry & _OWN and not entry & _FILE:
            at = first + number * PAGE
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + PAGE)
            else:
                found.append((at, PAGE))
    return found


def believable(said: "Iterable[Range]", areas: "list[Range]") -> "list[Range]":
    """Those ranges that are whole pages within areas of the template, as many as a child may cost."""
    kept: list[Range] = []
    pages = 0
    for first, length in said:
        pages += length // PAGE
        if pages > PAGES_MAX or len(kept) == RANGES_MAX:
            break
        if first % PAGE == length % PAGE == 0 < length and any(at <= first and first + length <= at + size for at, size in areas):
            kept.append((first, length))
    return kept
