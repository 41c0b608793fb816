"""core/wire/dns.py: what an answer says about the name that was asked for, and nothing else; hostile messages never do more than fail."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.wire import dns


def named(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def asked(name: str = "a.test", kind: int = dns.A) -> dns.Question:
    return dns.question(bytes(4) + b"\0\1" + bytes(6) + named(name) + struct.pack("!HH", kind, 1))


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60, of_class: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, of_class, ttl, len(data)) + data


def answered(question: dns.Question, *records: bytes, number: int = 7) -> bytes:
    return struct.pack("!HHHHHH", number, 0x8180, 1, len(records), 0, 0) + question.raw + b"".join(records)


HERE, LOOP = b"\xc0\x0c", b"\xc0\x1a"


def test_a_question_is_read_and_asked_anew() -> None:
    """Name in small letters, kind, and its bytes as they were; our own query has nothing else of the instance's."""
    message = b"\x12\x34\x01\x20\0\1\0\0\0\0\0\1" + named("A.Test") + b"\0\x1c\0\1" + b"\0\0\x29more"
    question = dns.question(message)
    assert (question.name, question.kind) == ("a.test", dns.AAAA)
    assert dns.query(question, 0xBEEF) == b"\xbe\xef\x01\0\0\1\0\0\0\0\0\0" + named("A.Test") + b"\0\x1c\0\1"


def test_addresses_of_the_name_and_its_aliases_count_and_no_others() -> None:
    """An answer that also says where another name is opens nothing by that; the time to live is the shortest on the way."""
    records = [
        record(named("other.test"), dns.A, bytes([10, 0, 0, 1])),
        record(HERE, dns.CNAME, named("b.test"), 30),
        record(named("b.test"), dns.CNAME, named("c.test"), 300),
        record(named("C.TEST"), dns.A, bytes([1, 2, 3, 4]), 90),
        record(named("c.test"), dns.AAAA, bytes(15) + b"\1", 10),
        record(named("c.test"), dns.A, bytes([9, 9, 9, 9]), of_class=3),
        record(named("c.test"), dns.A, bytes(5)),
        record(named("c.test"), 16, b"\x04text"),
    ]
    question = asked()
    assert dns.addresses(answered(question, *records), question) == [(ip_address("1.2.3.4"), 30), (ip_address("::1"), 10)]


def test_aliases_that_go_round_end() -> None:
    question = asked()
    records = [record(named("a.test"), dns.CNAME, named("b.test")), record(named("b.test"), dns.CNAME, named("a.test"))]
    records.append(record(named("b.test"), dns.A, bytes([1, 1, 1, 1])))
    assert dns.addresses(answered(question, *records), question) == [(ip_address("1.1.1.1"), 60)]


def test_only_the_answer_to_our_query_is_one() -> None:
    """Its number, and the question letter by letter; a query is no answer."""
    question = asked("A.test")
    right = answered(question)
    assert dns.answers(right, question, 7)
    for wrong in (answered(question, number=8), answered(asked("a.test")), right[:2] + b"\1" + right[3:], right[:11], b""):
        assert not dns.answers(wrong, question, 7)


@pytest.mark.parametrize(
    "message",
    [
        b"", bytes(12),
        bytes(4) + b"\0\2" + bytes(6) + named("a.test") + b"\0\1\0\1", bytes(4) + b"\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + b"\x06a.test\0\0\1\0\1", bytes(4) + b"\0\1" + bytes(6) + b"\x04a\0.t\0\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + named("a.test") + b"\0\1",
        bytes(4) + b"\0\1" + bytes(6) + named("a.test") + b"\0\1\0\3", bytes(4) + b"\0\1" + bytes(6) + b"\x01\xc3\0\0\1\0\1",
    ],
)  # fmt: skip
def test_what_is_not_one_plain_question_is_refused(message: bytes) -> None:
    """None or two, a pointer, a dot or NUL in a label, too long, cut short, another class, no letters."""
    with pytest.raises(ValueError):
        dns.question(message)


@pytest.mark.parametrize("owner", [LOOP, b"\xc0\xff", b"\xff", b"\x80\0", b"\x40"])
def test_names_that_lead_nowhere_are_refused(owner: bytes) -> None:
    """A pointer at itself, forwards, past the end, or of an unknown kind."""
    question = asked()
    with pytest.raises(ValueError):
        dns.addresses(answered(question, record(owner, dns.A, bytes(4))), question)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_bytes_do_more_than_fail(rest: bytes, count: int) -> None:
    """Whatever follows the question, the answer is addresses or ValueError."""
    question = asked()
    message = struct.pack("!HHHHHH", 7, 0x8180, 1, count, 0, 0) + question.raw + rest
    for read in (lambda: dns.addresses(message, question), lambda: dns.question(rest)):
        try:
            read()
        except ValueError:
            continue
