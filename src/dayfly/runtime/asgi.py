"""An ASGI 3 application: its lifespan around an instance's life, and one `http` scope for each call.

Bodies come as messages while the client sends them, answers leave as the application says them. Its event loop is made before READY,
because lifespan.startup is init: what fails there is an instance that could not start. Background work behind an answer goes on until the
call's deadline. A WebSocket is a scope of its own (asgi_websocket.py). Used by agent.py and concurrent.py.
"""

import sys
from contextlib import suppress
from time import monotonic_ns

from dayfly.runtime.body import BROKEN, READ_BYTES, open_stream
from dayfly.runtime.contracts.http import bad_answer
from dayfly.runtime.contracts.web import Asked, head_of, stream_head, unquoted
from dayfly.runtime.failure import Fault
from dayfly.runtime.frames import ANSWER, HTTP, RESULT, RESULT_BYTES_MAX
from dayfly.runtime.inbox import Call
from dayfly.runtime.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from asyncio import AbstractEventLoop, Future, Task, TimerHandle
    from collections.abc import Awaitable, Callable
    from typing import Any, Protocol

    from dayfly.runtime.instance import Instance

    Message = dict[str, Any]

    class Sender(Protocol):
        """The serving loop (concurrent.py), as far as an answer needs it."""

        async def put(self, data: "bytes | memoryview", body: bytes = b"") -> None: ...

        async def send(self, stream: Stream, pieces: "Any") -> None: ...


VERSIONS = {"version": "3.0", "spec_version": "2.4"}  # 2.4: `send` raises OSError once the client has left
SHUTDOWN_SECONDS = 2.0  # for lifespan.shutdown, as long as for exit hooks
LEFT_SECONDS = 1.0  # after its client has left, how long an application may go on with a stream; then it is cancelled
CONTEXT = "dayfly.context"  # where an application finds what a handler gets as its second argument


class Application:
    """The user's application and its event loop."""

    def __init__(self, app: "Callable[..., Awaitable[None]]") -> None:
        import asyncio

        self.app = app
        self.state: dict[str, Any] = {}
        self.loop: AbstractEventLoop = asyncio.new_event_loop()
        self._steps: Any = asyncio.Queue()  # lifespan messages for the application
        self._said: Any = asyncio.Queue()  # and its own; None: it has returned
        self._task: Task[None] | None = None

    def start(self) -> None:
        """Run lifespan.startup to its end; an application that does not know it goes without. Raises Fault when it says that it failed."""
        import asyncio

        asyncio.set_event_loop(self.loop)
        self._task = self.loop.create_task(self._live())
        self._steps.put_nowait({"type": "lifespan.startup"})
        said = self.loop.run_until_complete(self._said.get())
        if said is None:
            self._task = None
        elif said.get("type") == "lifespan.startup.failed":
            raise Fault("Runtime.StartupFailed", str(said.get("message") or "The application's lifespan.startup failed."))

    def stop(self) -> None:
        """Run lifespan.shutdown, for a bounded time. The loop must have stopped."""
        import asyncio

        if self._task is None or self._task.done():
            return
        self._steps.put_nowait({"type": "lifespan.shutdown"})
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._said.get(), SHUTDOWN_SECONDS))
        except Exception as error:
            print(f"lifespan.shutdown: {type(error).__name__} {error}", file=sys.stderr)  # noqa: T201 - into the function's log

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        with suppress(Exception):  # the specification: such an application does without lifespan
            await self.app(scope, self._steps.get, self._said.put)
        self._said.put_nowait(None)


class Exchange:
    """One request and its answer: `receive` and `send` of the application."""

    kind = HTTP
    left_seconds = LEFT_SECONDS

    def __init__(self, instance: "Instance", sender: "Sender", call: Call, loop: "AbstractEventLoop") -> None:
        self._instance = instance
        self._sender = sender
        self._call = call
        self._loop = loop
        self._source: socket | None = open_stream(call)
        if self._source is not None:
            self._source.setblocking(False)
        self._received = False
        self._gone: Future[None] = loop.create_future()  # the client has left, or has its answer
        self._head: tuple[int, bytes, int] | None = None
        self._stream = Stream(call, instance.answers)
        self.answered = False
        self.task: Task[None] | None = None
        self._timer: TimerHandle | None = None

    def scope(self, application: Application, context: object) -> "Message":
        """What is asked. Raises Fault for a call of another kind."""
        asked = Asked(self._call, self.kind)
        raw = asked.root + asked.path
        return {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": "1.1",
            "method": asked.method,
            "scheme": asked.scheme,
            "path": unquoted(raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "root_path": unquoted(asked.root).decode("utf-8", "replace"),
            "query_string": asked.query,
            "headers": asked.headers,
            "client": (asked.peer, 0),
            "server": (asked.host, int(asked.port)),
            "state": application.state.copy(),
            "extensions": {},
            CONTEXT: context,
        }

    # ---- the request ---------------------------------------------------------------------------------------------------------------

    async def receive(self) -> "Message":
        """More of the body; when it is over, that the client has left, once it has."""
        if self._source is not None:
            try:
                data = await self._loop.sock_recv(self._source, READ_BYTES)  # type: ignore[arg-type]  # _socket's is enough for asyncio
            except ConnectionResetError:
                self._close_source()
                self.left()
                return {"type": "http.disconnect"}
            if not data:
                self._close_source()
            return {"type": "http.request", "body": data, "more_body": bool(data)}
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self._call.body, "more_body": False}
        await self._wait_gone()
        return {"type": "http.disconnect"}

    async def _wait_gone(self) -> None:
        from asyncio import shield

        await shield(self._gone)

    def _close_source(self) -> None:
        self._received = True
        if self._source is not None:
            self._source.close()
            self._source = None

    def left(self) -> None:
        """The client has left: the application is told, and after a moment cancelled."""
        if not self._gone.done():
            self._gone.set_result(None)
            if self.task is not None and not self.answered:
                self._timer = self._loop.call_later(self.left_seconds, self.task.cancel)

    # ---- the answer ----------------------------------------------------------------------------------------------------------------

    async def send(self, message: "Message") -> None:
        """The answer's head, or more of its body. Raises OSError when the client has left, Fault for what is no answer."""
        kind = message["type"]
        if self.answered:
            raise bad_answer(f"The application sent {kind} behind its answer.")
        if kind == "http.response.start" and self._head is None:
            pairs = ((bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in message.get("headers", ()))
            self._head = head_of(message.get("status"), pairs)
        elif kind == "http.response.body" and self._head is not None:
            await self._send_body(message.get("body", b""), more=bool(message.get("more_body", False)))
        else:
            raise bad_answer(f"The application sent {kind!r}, which is not its turn or not known here.")

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        assert self._head is not None
        if self._gone.done():
            raise OSError(BROKEN)
        status, block, length = self._head
        stream = self._stream
        if not stream.begun and not more and len(body) <= RESULT_BYTES_MAX:
            await self._end(lambda: result_of(self._call, status, block, body), body)
            return
        if not stream.begun:
            await self._sender.put(stream.head(status, stream_head(block, length)))
        await self._sender.send(stream, stream.pieces(body))
        if not more:
            await self._end(stream.end)

    async def _end(self, last: "Callable[[], bytes]", body: bytes = b"") -> None:
        """The answer is whole. What the application still does is background work, and may take until the call's deadline."""
        self.answered = True
        self._instance.finish_lines(self._call.seq)
        await self._sender.put(last(), body)
        self._close_source()
        if not self._gone.done():
            self._gone.set_result(None)
        if self.task is not None:
            self._timer = self._loop.call_at(self._call.deadline / 1e9, self.task.cancel)

    async def finish(self, error: BaseException | None) -> None:
        """The application has returned, or raised: whatever happened, this call gets its one answer."""
        self._close_source()
        if self._timer is not None:
            self._timer.cancel()
        instance, stream = self._instance, self._stream
        if self.answered:
            if error is not None:
                instance.failed(self._call, error)  # into the log: the client has its answer
                instance.finish_lines(self._call.seq)
            return
        if error is None:
            error = bad_answer("The application returned before its answer was complete.")
        has_left = stream.begun and self._gone.done()
        self.answered = True
        if not stream.begun:
            await self._sender.put(instance.error_frame(self._call, error))
            return
        last = stream.end() if has_left else stream.end(*instance.failed(self._call, error))
        instance.finish_lines(self._call.seq)
        await self._sender.put(last)


def result_of(call: Call, status: int, block: bytes, body: bytes) -> bytes:
    """A RESULT frame's beginning, for a body that is sent behind it."""
    elapsed = (monotonic_ns() - call.began) // 1000
    return ANSWER.pack(RESULT, 0, status, len(block), len(body), elapsed & 0xFFFFFFFF, call.seq) + block
