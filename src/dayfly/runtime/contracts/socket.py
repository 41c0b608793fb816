"""The WebSocket contract: the events of API Gateway's WebSocket APIs in (facts: lambda.md §4), messages out.

What a handler returns for MESSAGE goes back to the client: a text, bytes, the body of a {"statusCode", "body"}, anything else as JSON;
None says nothing. For CONNECT the status decides whether the connection may be. Used by instance.py for calls of kind SOCKET.
"""

from time import time

from dayfly.runtime.contracts.http import HttpContract, body_text
from dayfly.runtime.frames import SOCKET_LINE
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROUTES = {"CONNECT": "$connect", "MESSAGE": "$default", "DISCONNECT": "$disconnect"}


class SocketContract(HttpContract):
    """How a WebSocket's events and answers look."""

    def event(self, call: Call) -> "dict[str, Any]":
        """The handler's first argument. `headers` and `queryStringParameters` come with CONNECT; `body` with MESSAGE."""
        lines, _, line = call.meta.rpartition(b"\n" + SOCKET_LINE)
        kind, form, connection, opened, number, *more = line.decode("utf-8", "replace").split(" ", 6)
        head = self._head(lines)
        now = time()
        context: dict[str, Any] = {
            "apiId": self._function,
            "connectedAt": int(opened),
            "connectionId": connection,
            "domainName": head.domain,
            "eventType": kind,
            "extendedRequestId": call.id,
            "identity": {"sourceIp": head.http["sourceIp"], "userAgent": head.http["userAgent"]},
            "messageDirection": "IN",
            "requestId": call.id,
            "requestTime": self._time(int(now)),
            "requestTimeEpoch": int(now * 1000),
            "routeKey": ROUTES.get(kind, "$default"),
            "stage": "$default",
        }
        event: dict[str, Any] = {"requestContext": context, "isBase64Encoded": False}
        if kind == "MESSAGE":
            context["messageId"] = f"{connection}-{number}"
            event["body"], event["isBase64Encoded"] = body_text(call.body, form == "text")
            return event
        event["headers"] = head.headers.copy()
        if kind == "CONNECT":
            if head.query:
                event["queryStringParameters"] = head.query.copy()
        elif len(more) > 0:
            context["disconnectStatusCode"] = int(more[0])
            context["disconnectReason"] = more[1] if len(more) > 1 else ""
        return event

    def answer(self, result: object) -> tuple[int, bytes, bytes]:
        """None is no message."""
        if result is None:
            return 200, b"", b""
        return super().answer(result)
