"""Serving several calls at once: the asyncio loop of an `async def` handler or an ASGI application. One task per call, at most
`concurrency` of them.

asyncio is imported when this loop starts, so that other functions never pay for it. Back-pressure: a call whose frame does not fit the
socket waits until it is out, so at most one frame per call is held. Must never take a call it has no slot for (another instance may be
free). Used by agent.py.
"""

import os
import sys
from contextlib import suppress
from time import monotonic_ns
from types import GeneratorType

from dayfly.runtime.asgi import Application, Exchange
from dayfly.runtime.asgi_websocket import WebSocket
from dayfly.runtime.frames import ANSWER, RESULT, WEBSOCKET
from dayfly.runtime.inbox import Call, Inbox, Leave
from dayfly.runtime.instance import EXIT_INTERRUPTED, Instance
from dayfly.runtime.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any, NoReturn


def serve(instance: Instance, inbox: Inbox, handler: "Callable[..., Any]") -> "NoReturn":
    """Run calls until there are no more and those running have ended. Does not return."""
    import asyncio
    from contextvars import ContextVar

    application = instance.application
    loop = application.loop if isinstance(application, Application) else asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    instance.scope.variable = ContextVar("call")
    server = _Server(instance, inbox, handler, loop)
    loop.call_soon(server.take)
    while True:
        try:
            loop.run_forever()
            server.end()
        except BaseException as error:  # sys.exit in a background task of user code, or its signal handler raised
            server.interrupted(error)


class CallerLeft(OSError):
    """Nobody reads this answer any more."""


class _Server:
    """The state of the loop: which slots are free, whether the shared socket is watched, whether this instance is leaving."""

    def __init__(self, instance: Instance, inbox: Inbox, handler: "Callable[..., Any]", loop: "AbstractEventLoop") -> None:
        self._instance = instance
        self._answers = instance.answers
        self._inbox = inbox
        self._handler = handler
        self._loop = loop
        self._free = list(range(instance.concurrency))[::-1]
        self._running: dict[int, tuple[Call, Task[None]]] = {}  # by slot
        self._streams: dict[int, Callable[[], object]] = {}  # by sequence number: what to do when its caller has left
        self._watching = False
        self._leaving = False
        self._writable: Future[None] | None = None
        loop.add_reader(instance.answers.fd, self._control)

    def take(self) -> None:
        """Take calls while there are free slots; then stop watching the socket until one is free again."""
        try:
            while self._free and not self._leaving:
                call = self._inbox.poll()
                if call is None:
                    break
                self._start(call)
        except Leave:
            self._retire()
        except BaseException:  # a signal handler of the user's raised: a call may have been taken and not begun
            os._exit(EXIT_INTERRUPTED)
        watch = bool(self._free) and not self._leaving
        if watch != self._watching:
            self._watching = watch
            if watch:
                self._loop.add_reader(self._inbox.fd, self.take)
            else:
                self._loop.remove_reader(self._inbox.fd)

    def _start(self, call: Call) -> None:
        self._leaving = call.is_last
        slot = self._free.pop()
        slots = self._instance.slots
        slots[2 * slot + 1] = call.began
        slots[2 * slot] = call.seq  # from here on the call may have run
        task = self._loop.create_task(self._run(call, slot))
        self._running[slot] = (call, task)

    def _retire(self) -> None:
        self._leaving = True
        if not self._running:
            self._loop.stop()

    def _finished(self, slot: int) -> None:
        self._instance.slots[2 * slot] = 0
        del self._running[slot]
        self._free.append(slot)
        if self._instance.exit_status is not None or self._instance.is_worn_out(monotonic_ns()):
            self._leaving = True
        if self._leaving:
            self._retire()
        self.take()

    async def _run(self, call: Call, slot: int) -> None:
        instance = self._instance
        variable = instance.scope.variable
        assert variable is not None
        variable.set((call.seq, call.id))
        try:
            await self._answer(call)
        except BaseException as error:
            await self._fail(call, error)
        self._finished(slot)

    async def _fail(self, call: Call, error: BaseException) -> None:
        try:
            await self.put(self._instance.error_frame(call, error))
        except BaseException:  # this interpreter is damaged: better lost than silent
            os._exit(EXIT_INTERRUPTED)

    async def _answer(self, call: Call) -> None:
        instance = self._instance
        if isinstance(instance.application, Application):
            await self._apply(instance.application, call)
            return
        contract = instance.contract(call)
        context = instance.context(call.id, call.deadline, contract.client_context(call))
        result = self._handler(contract.event(call), context)
        if hasattr(result, "__await__"):
            result = await result
        if isinstance(result, GeneratorType):
            result = _as_async(result)
        if hasattr(result, "__anext__") and hasattr(result, "aclose"):
            await self._stream(call, result)
            return
        status, meta, body = contract.answer(result)
        instance.finish_lines(call.seq)
        elapsed = (monotonic_ns() - call.began) // 1000
        await self.put(ANSWER.pack(RESULT, 0, status, len(meta), len(body), elapsed & 0xFFFFFFFF, call.seq) + meta, body)

    async def _stream(self, call: Call, source: "Any") -> None:
        """Send what the generator yields. CANCEL stops it at once where it awaits; END is sent in any case."""
        from asyncio import CancelledError

        instance, contract = self._instance, self._instance.contract(call)
        stream = Stream(call, self._answers)
        self._streams[call.seq] = self._task_of(call).cancel
        last = None
        try:
            try:
                async for item in source:
                    await self.send(stream, stream.frames(item, contract))
                    if call.seq not in self._streams:
                        break
            finally:
                await source.aclose()
        except BaseException as error:
            if isinstance(error, CallerLeft) or (isinstance(error, CancelledError) and call.seq not in self._streams):
                pass  # END says that the call is over
            elif stream.begun:
                last = stream.end(*instance.failed(call, error))
            else:
                raise
        finally:
            self._streams.pop(call.seq, None)
        instance.finish_lines(call.seq)
        await self.put(last or stream.end())

    async def send(self, stream: Stream, pieces: "Iterator[bytes | memoryview]") -> None:
        """Send these; one frame, or one piece, at a time. Raises CallerLeft when nobody reads any more."""
        for piece in pieces:
            if stream.way is None:
                await self.put(piece)
                if stream.is_long:  # it is offered a way of its own, and as long as all fits the socket nobody else would look
                    self._control()
                continue
            stream.way.setblocking(False)
            try:
                await self._loop.sock_sendall(stream.way, piece)  # type: ignore[arg-type]  # _socket's is what asyncio needs of one
            except OSError:
                raise CallerLeft("The caller has left.") from None

    async def _apply(self, application: Application, call: Call) -> None:
        """A request to a web application, or a WebSocket."""
        exchange = (WebSocket if call.kind == WEBSOCKET else Exchange)(self._instance, self, call, self._loop)
        exchange.task = self._task_of(call)
        self._streams[call.seq] = exchange.left
        failure = None
        try:
            context = self._instance.context(call.id, call.deadline, b"")
            await application.app(exchange.scope(application, context), exchange.receive, exchange.send)
        except BaseException as error:
            failure = error
        finally:
            self._streams.pop(call.seq, None)
        await exchange.finish(failure)

    def _task_of(self, call: Call) -> "Task[None]":
        return next(task for running, task in self._running.values() if running is call)

    def _control(self) -> None:
        for seq in self._answers.read_control():
            left = self._streams.pop(seq, None)
            if left is not None:
                left()
        self._answers.drop_moves(self._streams)

    async def put(self, data: "bytes | memoryview", body: bytes = b"") -> None:
        """Send one frame, which may have its body apart; returns when it is out. Others may wait at the same time: frames never mix."""
        answers = self._answers
        while not answers.push():
            await self._wait_writable()
        if not answers.offer(data, body):
            while not answers.push():
                await self._wait_writable()

    async def _wait_writable(self) -> None:
        """A call that is cancelled while it waits goes on waiting: half a frame must not be left behind."""
        if self._writable is None:
            self._writable = self._loop.create_future()
            self._loop.add_writer(self._answers.fd, self._now_writable)
        from asyncio import CancelledError, shield

        with suppress(CancelledError):
            await shield(self._writable)

    def _now_writable(self) -> None:
        future, self._writable = self._writable, None
        self._loop.remove_writer(self._answers.fd)
        if future is not None:
            future.set_result(None)

    def end(self) -> "NoReturn":
        """The loop has stopped: leave, when that was this server's doing."""
        status = self._instance.exit_status
        if isinstance(self._instance.application, Application):
            self._instance.application.stop()
        self._instance.leave(status or 0, said=status is not None)

    def interrupted(self, error: BaseException) -> None:
        """Something of the user's ended the loop. sys.exit means what it says: running calls are answered so, and the instance ends."""
        if not isinstance(error, SystemExit):
            print(f"{type(error).__name__} raised outside of a call", file=sys.stderr)  # noqa: T201 - into the function's log
            return
        for call, _ in list(self._running.values()):
            self._answers.write(self._instance.error_frame(call, error))
        if not self._running:
            self._instance.leave(_status_of(error))
        self._instance.leave(self._instance.exit_status or 0, said=True)


def _status_of(error: SystemExit) -> int:
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)


async def _as_async(generator: "GeneratorType[Any, Any, Any]") -> "AsyncIterator[Any]":
    """An async handler may return an ordinary generator."""
    try:
        for item in generator:
            yield item
    finally:
        generator.close()
