"""A WSGI application (PEP 3333) as a handler: an environ in; a whole answer out, or a stream where it yields more than once.

Its body is a file that is read as it comes (body.py). One request at a time, as for every handler that is not `async def`. Used by
agent.py (Application), instance.py (WsgiContract) and, through those, sequential.py.
"""

import sys

from dayfly.runtime.body import body_file
from dayfly.runtime.contracts.http import bad_answer
from dayfly.runtime.contracts.web import Asked, head_of, stream_head, unquoted
from dayfly.runtime.frames import RESULT_BYTES_MAX
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

Environ = dict[str, "Any"]
NO_HTTP_PREFIX = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}
CONTEXT = "dayfly.context"  # where an application finds what a handler gets as its second argument


class Whole:
    """A whole answer."""

    __slots__ = ("body", "head")

    def __init__(self, head: tuple[int, bytes], body: bytes) -> None:
        self.head = head
        self.body = body


class Application:
    """The user's application, called as a handler is."""

    def __init__(self, app: "Callable[..., Iterable[bytes]]") -> None:
        self._app = app

    def __call__(self, environ: Environ, context: object) -> "Whole | Iterator[object]":
        environ[CONTEXT] = context
        stream = _run(self._app, environ)
        try:
            first = next(stream)
        except BaseException:
            environ["wsgi.input"].close()
            raise
        if isinstance(first, Whole):
            next(stream, None)  # closes what the application returned
            return first
        return _resumed(first, stream)


def _resumed(first: object, stream: "Iterator[Any]") -> "Iterator[object]":
    """A generator, which is what a streamed answer is to the serving loop."""
    yield first
    yield from stream


def _run(app: "Callable[..., Iterable[bytes]]", environ: Environ) -> "Iterator[Any]":
    """One Whole; or (status, header block), then bytes as they come. Closed in every case."""
    said: list[Any] = []
    written: list[bytes] = []
    sent = False

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: "Any" = None) -> "Callable[[bytes], None]":
        if exc_info:
            try:
                if sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no circle
        elif said:
            raise AssertionError("start_response was called before, and not with exc_info.")
        said[:] = status, headers
        return written.append

    result = app(environ, start_response)
    try:
        if isinstance(result, list | tuple):
            chunks: Iterator[bytes] = iter((b"".join((*written, *result)),))
        else:
            chunks = iter(result)
        first = next(chunks, b"") if written else next((chunk for chunk in chunks if chunk), b"")
        first = b"".join((*written, first))
        if not said:
            raise bad_answer("The application did not call start_response.")
        status, head, length = head_of(_number(said[0]), said[1])
        sent = True
        ended = isinstance(result, list | tuple) or not first or len(first) == length
        if ended and len(first) <= RESULT_BYTES_MAX:
            yield Whole((status, head), first)
            return
        yield status, stream_head(head, length)
        yield first
        written.clear()
        for chunk in chunks:
            yield b"".join((*written, chunk)) if written else chunk
            written.clear()
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
        environ["wsgi.input"].close()


def _number(status: object) -> object:
    """`404 Not Found` → 404; what is no status stays as it is."""
    digits = str(status)[:3]
    return int(digits) if digits.isascii() and digits.isdigit() else status


class WsgiContract:
    """How a WSGI call's environ and answer look."""

    error_status = 502

    def event(self, call: Call) -> Environ:
        """The environ. Raises Fault Runtime.InvalidRequest, Runtime.TruncatedRequest."""
        asked = Asked(call)
        environ: Environ = {
            "REQUEST_METHOD": asked.method,
            "SCRIPT_NAME": unquoted(asked.root).decode("latin-1"),
            "PATH_INFO": unquoted(asked.path).decode("latin-1"),
            "QUERY_STRING": asked.query.decode("latin-1"),
            "RAW_URI": (asked.root + asked.path + (b"?" + asked.query if asked.query else b"")).decode("latin-1"),
            "SERVER_NAME": asked.host,
            "SERVER_PORT": asked.port,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": asked.peer,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": asked.scheme,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,  # it has an end also without a content-length
        }
        for name, value in asked.headers:
            if b"_" in name:
                continue  # not to be told from one with "-", which somebody before us may have set
            key = NO_HTTP_PREFIX.get(name) or "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
            text = value.decode("latin-1")
            environ[key] = f"{environ[key]}{'; ' if name == b'cookie' else ','}{text}" if key in environ else text
        environ["wsgi.input"] = body_file(call)
        return environ

    def client_context(self, call: Call) -> bytes:
        """There is none over HTTP."""
        return b""

    def answer(self, result: object) -> tuple[int, bytes, bytes]:
        """(status, header block, body)."""
        assert isinstance(result, Whole)
        return *result.head, result.body

    def head(self, first: object) -> tuple[int, bytes, bytes]:
        """A stream begins."""
        assert isinstance(first, tuple)
        status, block = first
        return status, block, b""

    def chunk(self, item: object) -> bytes:
        """One piece. Raises Fault Runtime.BadAnswer."""
        if not isinstance(item, bytes | bytearray | memoryview):
            raise bad_answer(f"A WSGI application must yield bytes, not {type(item).__name__}.")
        return bytes(item)
