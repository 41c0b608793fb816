"""Names for instances: their DNS queries forwarded to this machine's name servers. Used by node/egress.py.

Nothing is cached. What is forwarded is not trusted either: an answer is only ever a hint, because every connection is judged by the
address it goes to. For an instance with a list of hosts answers count, so it is asked anew: a query of our own, with a number of our
own. Every query leaves from a socket of its own (random port), so only the server asked can answer it.
"""

import asyncio
import ipaddress
import os
import secrets
import socket

from dayfly.core.wire import dns
from dayfly.node.egress_flow import family

_PORT = 53
_HEADER_BYTES = 12
_SERVERS_MAX = 3  # as the resolver library has it (MAXNS, resolv.conf(5))
QUERY_BYTES_MAX = 4096
_ANSWER_BYTES_MAX = 65_535


def is_query(packet: bytes) -> bool:
    """Whether this is a standard query (RFC 1035 §4.1.1: QR and opcode zero); updates, notifies and answers are not ours."""
    return _HEADER_BYTES < len(packet) <= QUERY_BYTES_MAX and packet[2] & 0xF8 == 0


def failure(query: bytes, code: int = dns.SERVFAIL) -> bytes:
    """SERVFAIL (or another code) for a query, with its question repeated, as resolver libraries demand."""
    end = _HEADER_BYTES
    while end < len(query) and query[end]:
        end += query[end] + 1
    question = query[_HEADER_BYTES : end + 5]
    count = b"\0\1" if query[4:6] == b"\0\1" and len(question) == end + 5 - _HEADER_BYTES else b"\0\0"
    flags = bytes([0x80 | query[2] & 0x01, 0x80 | code])  # response, recursion desired as asked; recursion available
    return query[:2] + flags + count + bytes(6) + (question if count == b"\0\1" else b"")


def name_servers(text: str) -> list[str]:
    """Addresses in a resolv.conf, in order; 127.0.0.1 when it names none (resolv.conf(5))."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1])
            except ValueError:
                continue
            found.append(words[1])
    return found[:_SERVERS_MAX] or ["127.0.0.1"]


class Resolver:
    """This machine's name servers, read again when `path` changes."""

    def __init__(self, timeout_seconds: float, path: str = "/etc/resolv.conf") -> None:
        self._timeout_seconds = timeout_seconds
        self._path = path
        self._servers = ["127.0.0.1"]
        self._read_state: tuple[int, int, int] | None = None

    def servers(self) -> list[tuple[str, int]]:
        """Socket addresses to ask, best first."""
        try:
            seen = os.stat(self._path)
            state = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
            if state != self._read_state:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._servers = name_servers(file.read(65_536))
                self._read_state = state
        except OSError:
            pass  # being replaced, or gone: the last list is the best there is
        return [(server, _PORT) for server in self._servers]

    async def answer(self, query: bytes) -> bytes:
        """The first server's answer, as it came; SERVFAIL when none answers in time."""
        for server in self.servers():
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await _asked(server, query)
            except OSError:  # TimeoutError is one
                continue
        return failure(query)

    async def answer_of_our_own(self, asked: dns.Question, *, over_tcp: bool = False) -> bytes:
        """The first server's answer to this question; empty when none answers it in time."""
        number = secrets.randbelow(1 << 16)
        query = dns.query(asked, number)
        for server in self.servers():
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    answer = await (_asked_by_tcp if over_tcp else _asked)(server, query)
            except OSError:
                continue
            if dns.answers(answer, asked, number):
                return answer
        return b""


async def read_message(connection: socket.socket, bytes_max: int) -> bytes:
    """One message of a TCP connection, without its length. Raises ConnectionError when there is none, or it is longer."""
    length = int.from_bytes(await _read(connection, 2), "big")
    if length > bytes_max:
        raise ConnectionError("too long")
    return await _read(connection, length)


async def _read(connection: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < count:
        more = await loop.sock_recv(connection, count - len(data))
        if not more:
            raise ConnectionError("the other end left")
        data += more
    return data


async def _asked_by_tcp(server: tuple[str, int], query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(family(server[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        await loop.sock_connect(connection, server)
        await loop.sock_sendall(connection, len(query).to_bytes(2, "big") + query)
        return await read_message(connection, _ANSWER_BYTES_MAX)


async def _asked(server: tuple[str, int], query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(family(server[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect(server)
        connection.send(query)
        while True:
            answer = await loop.sock_recv(connection, _ANSWER_BYTES_MAX)
            if answer[:2] == query[:2] and len(answer) >= _HEADER_BYTES and answer[2] & 0x80:
                return answer
