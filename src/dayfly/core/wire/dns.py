"""DNS messages (RFC 1035) as far as a list of hosts needs them: what is asked, one query of our own, which addresses an answer has.

Both ends are strangers: instances ask, and whoever owns a name answers. Everything is bounded, compression cannot loop, and only
what follows from the question counts: its own records, and those its aliases lead to. Used by the egress broker.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from dayfly.core.model.egress import Address

HEADER_BYTES = 12
A, CNAME, AAAA, IN = 1, 5, 28, 1
SERVFAIL, NXDOMAIN = 2, 3
RECORDS_MAX = 256
_ALIASES_MAX = 16
_NAME_BYTES_MAX = 255
_HEADER, _RECORD = struct.Struct("!HHHHHH"), struct.Struct("!HHIH")


class Question(NamedTuple):
    """`raw` is its bytes, as they stand behind the header; `name` in small letters, without the last dot."""

    name: str
    kind: int
    raw: bytes


def question(message: bytes) -> Question:
    """The one question of a query or answer. Raises ValueError when there is not exactly one, of class IN, with an ordinary name."""
    if len(message) < HEADER_BYTES or message[4:6] != b"\0\1":
        raise ValueError("not one question")
    name, end = _name(message, HEADER_BYTES, compressed=False)
    if len(message) < end + 4:
        raise ValueError("the question is cut short")
    kind, of_class = struct.unpack_from("!HH", message, end)
    if of_class != IN:
        raise ValueError("not of the internet")
    return Question(name, kind, message[HEADER_BYTES : end + 4])


def query(asked: Question, number: int) -> bytes:
    """A query of our own for the same question: nothing else of what an instance sent goes out."""
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + asked.raw


def answers(message: bytes, asked: Question, number: int) -> bool:
    """Whether this is the answer to that query: same number, same question, letter by letter."""
    return (
        len(message) >= HEADER_BYTES
        and message[:2] == number.to_bytes(2, "big")
        and bool(message[2] & 0x80)
        and (message[4:6] == b"\0\1" and message[HEADER_BYTES : HEADER_BYTES + len(asked.raw)] == asked.raw)
    )


def addresses(message: bytes, asked: Question) -> list[tuple[Address, int]]:
    """(address, TTL in seconds) of the records that answer the question. Raises ValueError for a message that is none."""
    aliases: dict[str, tuple[str, int]] = {}
    found: list[tuple[str, Address, int]] = []
    (count,) = struct.unpack_from("!H", message, 6)
    at = HEADER_BYTES + len(asked.raw)
    for _ in range(min(count, RECORDS_MAX)):
        owner, at = _name(message, at)
        try:
            kind, of_class, ttl, length = _RECORD.unpack_from(message, at)
        except struct.error as error:
            raise ValueError("a record is cut short") from error
        at += _RECORD.size
        data = message[at : at + length]
        if len(data) != length:
            raise ValueError("a record is cut short")
        if of_class == IN and kind == CNAME:
            aliases[owner] = (_name(message, at)[0], ttl)
        elif of_class == IN and kind in (A, AAAA) and length == (4 if kind == A else 16):
            found.append((owner, IPv4Address(data) if kind == A else IPv6Address(data), ttl))
        at += length
    lives = _chain(asked.name, aliases)
    return [(address, min(ttl, lives[owner])) for owner, address, ttl in found if owner in lives]


def _chain(name: str, aliases: dict[str, tuple[str, int]]) -> dict[str, int]:
    """The name and those it is an alias of, each with how long that is so, in seconds."""
    lives = {name: 0xFFFFFFFF}
    for _ in range(_ALIASES_MAX):
        target, ttl = aliases.get(name, ("", 0))
        if not target or target in lives:
            break
        lives[target] = min(lives[name], ttl)
        name = target
    return lives


def _name(message: bytes, at: int, *, compressed: bool = True) -> tuple[str, int]:
    """A name and where it ends. Pointers may only lead backwards. Raises ValueError."""
    labels: list[str] = []
    end, bound, size = 0, at, 0
    while True:
        if at >= len(message):
            raise ValueError("a name is cut short")
        length = message[at]
        if length & 0xC0:
            target = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            if not compressed or length < 0xC0 or at + 2 > len(message) or target >= bound:
                raise ValueError("a name leads nowhere")
            end = end or at + 2
            at = bound = target
            continue
        if length == 0:
            return ".".join(labels), end or at + 1
        size += length + 1
        label = message[at + 1 : at + 1 + length]
        if len(label) != length or size > _NAME_BYTES_MAX:
            raise ValueError("a name is too long, or cut short")
        labels.append(_text(label))
        at += length + 1


def _text(label: bytes) -> str:
    """In small letters. Raises ValueError for bytes that no host name has: a dot within a label would make another name of it."""
    text = label.decode("ascii", "replace").lower()
    if not all(letter.isalnum() or letter in "-_" for letter in text):
        raise ValueError("not a host name")
    return text
