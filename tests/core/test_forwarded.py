"""core/decide/forwarded.py: whose X-Forwarded-… headers are believed, and how far."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.forwarded import HOPS_MAX, RANGES_MAX, Proxies, last, told

PROXIES = Proxies("127.0.0.1, 10.0.0.0/8 ,2001:db8::/32")


def client(hops: str, peer: str = "127.0.0.1") -> str:
    return told([(b"x-forwarded-for", hops.encode("latin-1"))], peer, PROXIES).client


def test_nobody_is_trusted_unless_named_not_even_loopback() -> None:
    nobody = Proxies("")
    assert not nobody and not any(nobody.trusts(address) for address in ("127.0.0.1", "::1", "", "unix"))
    assert PROXIES and all(PROXIES.trusts(address) for address in ("127.0.0.1", "::ffff:10.1.2.3", "10.255.0.1", "2001:db8::9"))
    assert not any(PROXIES.trusts(address) for address in ("127.0.0.2", "11.0.0.1", "::1", "2001:db9::1", "", "localhost", "10.0.0.1:80"))


@pytest.mark.parametrize("text", ["x", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8 11.0.0.0/8", ",".join(["10.0.0.0/8"] * (RANGES_MAX + 1))])
def test_what_is_no_list_of_ranges_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|does not appear|host bits|not permitted|address"):
        Proxies(text)


@pytest.mark.parametrize(
    ("hops", "expected"),
    [
        ("", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("203.0.113.9, 192.0.2.7", "192.0.2.7"),  # whatever stands left of the first stranger, that one may have written
        ("203.0.113.9,192.0.2.7 , 10.0.0.1,10.0.0.2", "192.0.2.7"),
        ("10.0.0.1, 10.0.0.2", "10.0.0.1"),  # a caller inside
        ("192.0.2.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7, ", "127.0.0.1"),
        ("2001:DB9:0::1", "2001:db9::1"),
        ("192.0.2.7:4711", "127.0.0.1"),  # no address: nothing is guessed
        ("192.0.2.7, \xff", "127.0.0.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy(hops: str, expected: str) -> None:
    assert client(hops) == expected


def test_only_so_many_proxies_in_a_row_are_looked_at() -> None:
    assert client(", ".join(["192.0.2.7", *["10.0.0.1"] * (HOPS_MAX - 1)])) == "192.0.2.7"
    assert client(", ".join(["192.0.2.7", *["10.0.0.1"] * HOPS_MAX])) == "10.0.0.1"


def test_what_a_believed_proxy_says_goes_on_with_its_own_address_behind() -> None:
    headers = [
        (b"x-forwarded-for", b"203.0.113.9"),
        (b"accept", b"*/*"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-proto", b"http, HTTPS"),
        (b"x-forwarded-host", b"shop.example.com"),
        (b"x-forwarded-port", b"8443"),
        (b"forwarded", b"for=192.0.2.7"),
    ]
    found = told(headers, "10.0.0.1", PROXIES)
    assert (found.client, found.scheme) == ("192.0.2.7", "https")
    assert found.lines == [
        b"x-forwarded-for: 203.0.113.9, 192.0.2.7, 10.0.0.1",
        b"forwarded: for=192.0.2.7",
        b"x-forwarded-host: shop.example.com",
        b"x-forwarded-port: 8443",
    ]
    assert told([(b"x-forwarded-proto", b"gopher")], "10.0.0.1", PROXIES) == ("10.0.0.1", "http", [b"x-forwarded-for: 10.0.0.1"])
    assert [last(value) for value in (b"", b"a", b"a, b", b"a,")] == ["", "a", "b", ""]


@given(st.lists(st.sampled_from(("10.0.0.1", "127.0.0.1", "192.0.2.7", "198.51.100.1", "x")), max_size=6))
def test_a_client_never_moves_itself_left_of_a_stranger_that_a_proxy_saw(hops: list[str]) -> None:
    """However a client fills the header: what the proxies appended behind decides."""
    assert client(", ".join([*hops, "192.0.2.1", "10.0.0.9"])) == "192.0.2.1"
