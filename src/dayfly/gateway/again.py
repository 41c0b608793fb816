"""The same head again: a client that keeps its connection mostly says the same once more, and what that means is known.

Parsing a request and looking at its headers is a fifth of what a warm call costs the gateway. When a read was exactly one request, its
head is remembered, one a connection; a read that begins with the same bytes, and is as long, is the same request with another body.
Nothing is remembered of a head after which the parser would be in another state: the last on its connection, an upgrade, a body in
chunks, one that waits for 100 Continue. Never decides what a request means: that is asked anew. Used by gateway/server.py.
"""

from dayfly.gateway.exchange import Request, Wire

HEAD_BYTES_MAX = 1024  # longer ones are parsed each time: one is kept for every connection
MISSES_MAX = 8  # after so many heads in a row that were not the one before, this client's are not kept any more
_HEAD_END = b"\r\n\r\n"


class LastHead:
    """The head of a connection's last read, and the request that it came with. `size` is of the whole read; -1: nothing is known."""

    __slots__ = ("_misses", "_request", "head", "size")

    def __init__(self) -> None:
        self.head = b""
        self.size, self._misses = -1, 0
        self._request: Request | None = None

    def again(self, connection: Wire, now: float, data: bytes) -> Request:
        """The request that `data` is, complete, its body held."""
        seen, request = self._request, Request(connection, now)
        assert seen is not None
        self._misses = 0
        request.method = seen.method
        request.target = seen.target
        request.headers = seen.headers
        request.dropped = seen.dropped
        request.authorization = seen.authorization
        request.given_id = seen.given_id
        request.prefer = seen.prefer
        request.x_amz = seen.x_amz
        request.length = seen.length
        request.bodyless = seen.method == b"HEAD"
        request.complete = True
        if body := data[len(self.head) :]:
            request.received = len(body)
            request.held.append(body)
        return request

    def forget(self) -> None:
        """Something else came."""
        if self.size >= 0:
            self._misses += 1
            self.size, self._request = -1, None

    def keep(self, request: Request, data: bytes) -> None:
        """`request` was parsed from `data`. Nothing is kept when there is more or less in it, or when it may not be."""
        if self._misses >= MISSES_MAX or request.close or request.coded or request.expects or request.refusal is not None:
            return
        head_bytes = data.find(_HEAD_END) + len(_HEAD_END)
        if not len(_HEAD_END) <= head_bytes <= HEAD_BYTES_MAX or len(data) != head_bytes + max(0, request.length):
            return
        if request.version == "1.1":
            self.head, self.size, self._request = data[:head_bytes], len(data), request
