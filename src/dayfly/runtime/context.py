"""The `context` argument of a handler: Lambda's fields and methods (facts: lambda.md 1.4).

Fields that are the same for all calls are class attributes of a subclass that `context_class` makes once per instance of a
function, so that a call pays for four. Must never do I/O but `log`. Used by instance.py.
"""

import sys
from time import monotonic_ns

from dayfly.runtime.failure import Fault, message_of
from dayfly.runtime.jsontext import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dayfly.runtime.boot import Boot


class CognitoIdentity:
    """Always present and always empty: there is no Cognito here."""

    cognito_identity_id = None
    cognito_identity_pool_id = None


class Client:
    """The mobile application that calls, when the caller's client context names one."""

    def __init__(self, given: "dict[str, Any]") -> None:
        self.installation_id = given.get("installation_id")
        self.app_title = given.get("app_title")
        self.app_version_name = given.get("app_version_name")
        self.app_version_code = given.get("app_version_code")
        self.app_package_name = given.get("app_package_name")


class ClientContext:
    """What the caller sent in X-Amz-Client-Context: `client` (or None), `custom` and `env`."""

    def __init__(self, given: "dict[str, Any]") -> None:
        client = given.get("client")
        self.client = Client(client) if isinstance(client, dict) else None
        self.custom = given.get("custom")
        self.env = given.get("env")


class Context:
    """One call, as the handler sees it."""

    function_name = ""
    function_version = ""
    memory_limit_in_mb = "0"  # a string, as Lambda has it
    invoked_function_arn = ""
    log_group_name = ""
    log_stream_name = ""
    tenant_id = None
    identity = CognitoIdentity()
    client_context: ClientContext | None = None
    lineage = ""  # of an asynchronous call: what to send as X-Dayfly-Lineage with calls that this one makes
    _w3c: "dict[str, Any] | None" = None

    def __init__(self, call_id: str, deadline: int, client_context: bytes = b"") -> None:
        """`deadline`: CLOCK_MONOTONIC nanoseconds. `client_context`: JSON text or nothing.

        Raises Fault Runtime.LambdaContextUnmarshalError when that text is no JSON object.
        """
        self.aws_request_id = call_id
        self._deadline = deadline
        if client_context:
            self._take_client_context(client_context)

    def _take_client_context(self, text: bytes) -> None:
        try:
            given = loads(text)
            if not isinstance(given, dict):
                raise TypeError("it must be an object")
        except Exception as error:
            message = f"Unable to parse Client Context JSON: {message_of(error)}"
            raise Fault("Runtime.LambdaContextUnmarshalError", message) from None
        w3c = given.pop("w3c", None)
        self._w3c = w3c if isinstance(w3c, dict) else None
        lineage = given.pop("dayfly_lineage", None)
        if isinstance(lineage, str):
            self.lineage = lineage
            if not given:
                return
        self.client_context = ClientContext(given)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the call's deadline, never negative."""
        return max(0, (self._deadline - monotonic_ns()) // 1_000_000)

    def log(self, message: object) -> None:
        """Write to standard output, without a line end of its own."""
        sys.stdout.write(str(message))

    def w3c(self) -> "dict[str, Any] | None":
        """The caller's trace context (traceparent, tracestate, baggage), or None."""
        return self._w3c

    def __repr__(self) -> str:
        return (
            f"LambdaContext([aws_request_id={self.aws_request_id},log_group_name={self.log_group_name},"
            f"log_stream_name={self.log_stream_name},function_name={self.function_name},"
            f"memory_limit_in_mb={self.memory_limit_in_mb},function_version={self.function_version},"
            f"invoked_function_arn={self.invoked_function_arn},client_context={self.client_context},"
            f"identity={self.identity},tenant_id={self.tenant_id}])"
        )


def context_class(boot: "Boot") -> type[Context]:
    """The class whose objects are this function's contexts."""
    fields = {
        "function_name": boot.function,
        "function_version": str(boot.version),
        "memory_limit_in_mb": str(boot.memory_mb),
        "invoked_function_arn": f"arn:aws:lambda:local:000000000000:function:{boot.function}",
        "log_group_name": boot.log_group,
        "log_stream_name": boot.log_stream,
        "__doc__": Context.__doc__,
    }
    return type("LambdaContext", (Context,), fields)
