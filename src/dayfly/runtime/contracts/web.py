"""What WSGI and ASGI have in common: the head lines of a request taken apart, and an application's header pairs as a header block.

Must never let a header through that could split an answer. Used by wsgi.py and asgi.py.
"""

from binascii import Error as Base64Error
from binascii import unhexlify

from dayfly.runtime.contracts.headers import pairs_block
from dayfly.runtime.contracts.http import bad_answer, port_of
from dayfly.runtime.failure import Fault
from dayfly.runtime.frames import HTTP, META_BYTES_MAX, ROOT_LINE, ROUTE_LINE, WEBSOCKET
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ROOT, _ROUTE = ROOT_LINE[:-2], ROUTE_LINE[:-2]


class Asked:
    """One request. `path` lies below `root`, both as they came; names of headers are in lower case, repeated ones repeated."""

    __slots__ = ("headers", "host", "method", "path", "peer", "port", "query", "root", "scheme")

    def __init__(self, call: Call, kind: int = HTTP) -> None:
        if call.kind != kind:
            takes = "HTTP requests and no WebSockets, which are for ASGI" if call.kind == WEBSOCKET else "HTTP requests and no events"
            raise Fault("Runtime.InvalidRequest", f"This function is a web application: it takes {takes}.")
        method, self.path, self.query, peer, scheme, *lines = call.meta.split(b"\n")
        self.method, self.peer, self.scheme = method.decode("latin-1"), peer.decode("latin-1"), scheme.decode("latin-1")
        self.root = b""
        self.headers: list[tuple[bytes, bytes]] = []
        host = b""
        for line in lines:
            name, _, value = line.partition(b": ")
            if name == _ROOT:
                self.root = value
            elif name != _ROUTE:
                self.headers.append((name, value))
                if name == b"host":
                    host = value
        text = host.decode("latin-1")
        self.port = port_of(text, self.scheme)
        self.host = text.removesuffix(f":{self.port}") or "localhost"


def unquoted(raw: bytes) -> bytes:
    """Percent-decoding; what is no valid escape stays as it is."""
    if b"%" not in raw:
        return raw
    first, *rest = raw.split(b"%")
    parts = [first]
    for piece in rest:
        try:
            parts.append(unhexlify(piece[:2]) + piece[2:] if len(piece) >= 2 else b"%" + piece)
        except Base64Error:
            parts.append(b"%" + piece)
    return b"".join(parts)


def stream_head(block: bytes, length: int) -> bytes:
    """The header block of a streamed answer: with its length, when the application says one, which the gateway then holds it to."""
    return block + b"content-length: %d\r\n" % length if length >= 0 else block


def head_of(status: object, pairs: "Iterable[tuple[str, str]]") -> tuple[int, bytes, int]:
    """(status, header block, content-length or -1). Raises Fault Runtime.BadAnswer."""
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise bad_answer(f"The status must be a number from 200 to 599, not {str(status)[:40]!r}.")
    try:
        lines, length = pairs_block(pairs)
    except (ValueError, TypeError) as error:
        raise bad_answer(str(error)) from None
    if len(lines) > META_BYTES_MAX:
        raise bad_answer(f"The answer's headers are over {META_BYTES_MAX} bytes.")
    return status, lines, length
