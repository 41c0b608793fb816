"""What a case of the corpus is: bytes of a client, and what must come back. Data for test_conformance.py, test_fuzz.py and compare.py.

Behind every case's bytes goes PROBE, one plain request: on a connection that is kept it is answered, too, behind one that was refused
nothing is. So each case says how many answers its bytes make, which is what request smuggling is about.
"""

from dataclasses import dataclass

HOST = b"host: t\r\n"
PROBE = b"GET /function/hello?probe HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One client's bytes. `answers` are the statuses they make, `kept` says whether the connection is still of use afterwards."""

    name: str
    section: str  # of RFC 9112, or of another one where it says so
    raw: bytes
    answers: tuple[int, ...]
    kept: bool
    heads: tuple[int, ...] = ()  # which answers are to HEAD: they name a length that does not come
    lines: tuple[bytes, ...] = ()  # of the first call, that its function must see: method, path, query or "name: value"
    without: tuple[bytes, ...] = ()  # headers that it must not see
    bodies: tuple[bytes, ...] | None = None  # what the functions got, in order
    whole: bool = True  # False: the bytes end half way, and the client closes its sending side instead of probing
    ours: bool = False  # a limit, a door or a choice of Dayfly's: other servers have others


def served(name: str, section: str, raw: bytes, **more: object) -> Case:
    """Answered with 200 (or `answers`), and the connection kept (or not: `kept`)."""
    return Case(name, section, raw, **({"answers": (200,), "kept": True} | more))  # type: ignore[arg-type]


def refused(name: str, section: str, raw: bytes, status: int = 400, **more: object) -> Case:
    """Refused with this status, and the connection closed: nothing behind it is answered."""
    return Case(name, section, raw, **({"answers": (status,), "kept": False} | more))  # type: ignore[arg-type]


def get(target: bytes = b"/function/hello", headers: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET with a Host."""
    return b"GET %b %b\r\n%b%b\r\n" % (target, version, HOST, headers)


def post(headers: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A POST with a Host; framing is up to `headers`."""
    return b"POST /function/hello %b\r\n%b%b\r\n%b" % (version, HOST, headers, body)


def chunked(body: bytes, headers: bytes = b"") -> bytes:
    """A POST whose body is these bytes, which say themselves where they end."""
    return post(b"transfer-encoding: chunked\r\n" + headers, body)
