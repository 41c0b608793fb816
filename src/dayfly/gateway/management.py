"""What is done to an open WebSocket from outside: post to it, look at it, close it (/api/v1/connections/ID).

Who may is asked before (gateway/dispatch.py makes it). Must never write to a client that does not read.
"""

import time

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.gateway.conversation import Socket
from dayfly.gateway.exchange import Request, refusal_answer


class Management:
    """/api/v1/connections/ID: post to a socket, look at it, close it. For whoever may invoke its function."""

    def __init__(self, request: Request, socket: Socket) -> None:
        self._request = request
        self._socket = socket
        self._parts: list[bytes] = []
        self._size = 0

    def body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= self._socket.site.settings.websocket_message_bytes_max:
            self._parts.append(chunk)

    def complete(self) -> None:
        most = self._socket.site.settings.websocket_message_bytes_max
        if self._size > most:
            refusal = Refusal("body_too_large", f"The message is over {most} bytes (websocket_message_bytes_max).")
            self._request.respond(*refusal_answer(refusal))
        elif self._request.method == b"POST" and self._socket.write_paused:
            refusal = Refusal("overloaded", "The client of this connection does not read.", retry_after_seconds=1.0)
            self._request.respond(*refusal_answer(refusal))
        elif self._request.method == b"POST":
            self._socket.say(b"%b: %b\r\n" % (b"content-type", self._request.header(b"content-type")), b"".join(self._parts))
            self._request.respond(200, b"content-type: application/json\r\n", b"{}")
        elif self._request.method == b"DELETE":
            self._socket.close(1000, "")
            self._request.respond(204, b"", b"")
        else:
            now = time.monotonic()
            seconds = {"connected": now - self._socket.opened_at, "silent": now - self._socket.heard_at}
            body = {"id": self._socket.id, "source_ip": self._socket.peer, "seconds": {k: round(v, 3) for k, v in seconds.items()}}
            self._request.respond(200, b"content-type: application/json\r\n", msgspec.json.encode(body))

    def left(self) -> None:
        """Nothing to clean up."""

    def writable(self, yes: bool) -> None:
        """One small answer."""

    def begun(self) -> bool:
        return False
