"""The first request of an HTTP proxy connection (RFC 9110 §9.3.6, RFC 9112 §3.2.2), for machines where sockets cannot be steered.

Parsing is httptools; this module only says where the connection wants to go and what to send there first. Used by
node/egress.py, which judges every address of the name. One request a connection: what follows its head goes to that one
destination, so nothing behind it can be addressed to another.
"""

import asyncio
import socket

import httptools
import msgspec

HEAD_BYTES_MAX = 32 * 1024
_HOP_BY_HOP = {b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"host", b"upgrade"}
_REASONS = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 504: "Gateway Timeout"}
ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"


class ProxyError(Exception):
    """The request cannot be served: `status` and the message go back to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(msgspec.Struct, frozen=True):
    """Where to, and what to send first. `tunnel`: the client waits for ESTABLISHED (CONNECT)."""

    host: str
    port: int
    tunnel: bool
    first: bytes


class _Head:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


async def read_request(client: socket.socket) -> Request:
    """Read one request head. Raises ProxyError, or ConnectionError when the client leaves."""
    loop = asyncio.get_running_loop()
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD_BYTES_MAX:
            raise ProxyError(400, "The request head is too large.")
        more = await loop.sock_recv(client, HEAD_BYTES_MAX)
        if not more:
            raise ConnectionError("the client left")
        data += more
    end = data.index(b"\r\n\r\n") + 4
    return parsed(data[:end], data[end:])


def parsed(head: bytes, rest: bytes) -> Request:
    """A request from its head (with the empty line) and what came behind it. Raises ProxyError 400."""
    seen = _Head()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # CONNECT, or a protocol change that the destination may agree to
    except httptools.HttpParserError as error:
        raise ProxyError(400, "The request is not valid HTTP.") from error
    if not seen.complete:
        raise ProxyError(400, "The request is not valid HTTP.")
    method = parser.get_method()
    if method == b"CONNECT":
        host, port, _ = _destination(b"http://" + seen.url, None)
        return Request(host, port, True, rest)
    host, port, target = _destination(seen.url, 80)
    return Request(host, port, False, _forwarded(method, target, host, port, seen.headers) + rest)


def _destination(url: bytes, default_port: int | None) -> tuple[str, int, bytes]:
    """(host, port, origin-form target)."""
    try:
        parts = httptools.parse_url(url)
        host = parts.host.decode("ascii") if parts.host else ""
    except (httptools.HttpParserError, UnicodeDecodeError) as error:
        raise ProxyError(400, "The address is not valid.") from error
    port = parts.port or default_port
    if parts.schema != b"http" or not host or not port:
        raise ProxyError(400, "Use CONNECT host:port, or an absolute http:// address.")
    return host, port, (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")


def _forwarded(method: bytes, target: bytes, host: str, port: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    name = f"[{host}]" if ":" in host else host
    authority = name if port == 80 else f"{name}:{port}"
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: " + authority.encode(), b"Connection: close"]
    lines += [b"%s: %s" % header for header in headers if header[0].lower() not in _HOP_BY_HOP]
    return b"\r\n".join([*lines, b"", b""])


def error_answer(error: ProxyError) -> bytes:
    """The whole HTTP answer that tells the client why."""
    body = f"{error}\n".encode()
    head = f"HTTP/1.1 {error.status} {_REASONS[error.status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
