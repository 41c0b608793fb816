"""The direct contract: a JSON event in, a JSON result out, as Lambda's Invoke has it. Streams are text or bytes as they come.

Must never touch HTTP. Used by instance.py for calls of kind DIRECT; contracts/http.py has the same shape.
"""

from dayfly.runtime import jsontext
from dayfly.runtime.failure import Fault, too_large
from dayfly.runtime.frames import DIRECT, RESULT_BYTES_MAX
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT_HEAD = b"content-type: text/plain; charset=utf-8\r\n"
BYTES_HEAD = b"content-type: application/octet-stream\r\n"
_dumps = jsontext.dumps


class DirectContract:
    """How a direct call's event and answer look."""

    error_status = 200  # Lambda answers a failed function with 200 and a header

    def event(self, call: Call) -> "Any":
        """The handler's first argument. Raises Fault Runtime.UnmarshalError."""
        if call.kind != DIRECT:  # a gateway newer than this instance must get an answer, not silence
            raise Fault("Runtime.InvalidRequest", f"This instance does not know calls of kind {call.kind}.")
        return jsontext.event(call.body)

    def client_context(self, call: Call) -> bytes:
        """JSON text, or nothing."""
        return call.meta

    def answer(self, result: object) -> tuple[int, bytes, bytes]:
        """(status, header block, body). bytes pass through. Raises Fault Runtime.MarshalError, Function.ResponseSizeTooLarge."""
        body = bytes(result) if isinstance(result, bytes | bytearray) else _dumps(result)
        if len(body) > RESULT_BYTES_MAX:
            raise too_large()
        return 200, b"", body

    def head(self, first: object) -> tuple[int, bytes, bytes]:
        """A stream begins: (status, header block, first chunk). Raises Fault Runtime.MarshalError."""
        return 200, TEXT_HEAD if isinstance(first, str) else BYTES_HEAD, self.chunk(first)

    def chunk(self, item: object) -> bytes:
        """One yielded item as bytes. Raises Fault Runtime.MarshalError."""
        if isinstance(item, str):
            return item.encode("utf-8", "replace")
        if isinstance(item, bytes | bytearray | memoryview):
            return bytes(item)
        raise Fault("Runtime.MarshalError", f"A streamed chunk must be str or bytes, not {type(item).__name__}")
