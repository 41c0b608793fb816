"""Serving one call at a time: wait for a call, run the handler, answer. The loop of every handler that is not `async def`.

An answer is out before the next call is taken: one held back to be sent together with the next would be late by that one's run time,
and lost when it crashes. (Measured with 16 calls waiting: one send for up to 16 answers saved nothing, 5.97 against 6.03 µs of CPU a
call, because asking whether another call waits costs as much as a send.)
Must never buffer an answer and never lose a call in silence. Used by agent.py.
"""

import os
from _socket import MSG_NOSIGNAL
from time import monotonic_ns
from types import GeneratorType

from dayfly.runtime.answers import Answers
from dayfly.runtime.frames import ANSWER, LATEST, RESULT
from dayfly.runtime.inbox import Call, Inbox, Leave
from dayfly.runtime.instance import EXIT_INTERRUPTED, Instance
from dayfly.runtime.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

IDLE = (0, "")
LATEST_AT = 2 * LATEST  # in the page as a row of 64-bit words
PLAIN = frozenset((dict, str, list, int, float, bool, type(None), bytes, tuple))  # results that are certainly no stream
_pack = ANSWER.pack


def serve(instance: Instance, inbox: Inbox, handler: "Callable[..., Any]") -> "NoReturn":
    """Run calls until there are no more. Does not return."""
    try:
        _serve_calls(instance, inbox, handler)
    except Leave:
        instance.leave()
    except BaseException:  # a signal handler of the user's raised outside of its call, or this interpreter is damaged
        os._exit(EXIT_INTERRUPTED)  # whether a call was taken or answered is unknown: the gateway sees by the page what ran


def _serve_calls(instance: Instance, inbox: Inbox, handler: "Callable[..., Any]") -> "NoReturn":
    while True:
        call = inbox.wait()
        run_one(instance, handler, call)
        if instance.exit_status is not None:
            instance.leave(instance.exit_status, said=True)
        if instance.is_worn_out(call.began) or call.is_last:
            raise Leave


def run_one(instance: Instance, handler: "Callable[..., Any]", call: Call) -> None:
    """Run one call and answer it, marked in the progress page while it runs."""
    slots, scope = instance.slots, instance.scope
    scope.call = (call.seq, call.id)
    slots[1] = call.began
    slots[LATEST_AT] = call.seq
    slots[0] = call.seq  # from here on the call may have run
    _run(instance, handler, call)
    slots[0] = 0
    scope.call = IDLE


def _run(instance: Instance, handler: "Callable[..., Any]", call: Call) -> None:
    contract = instance.contract(call)
    answers = instance.answers
    out, err = instance.outputs
    try:
        context = instance.context(call.id, call.deadline, contract.client_context(call))
        result = handler(contract.event(call), context)
        if type(result) not in PLAIN:
            result = _settled(result)
            if isinstance(result, GeneratorType):
                _stream(instance, call, result)
                return
        status, meta, body = contract.answer(result)
    except BaseException as error:
        answers.write(instance.error_frame(call, error))
        return
    if out.partials or err.partials:
        instance.finish_lines(call.seq)
    elapsed = (monotonic_ns() - call.began) // 1000
    answers.write(_pack(RESULT, 0, status, len(meta), len(body), elapsed & 0xFFFFFFFF, call.seq) + meta, body)


def _stream(instance: Instance, call: Call, generator: "GeneratorType[Any, Any, Any]") -> None:
    """Send what the generator yields, as fast as the gateway reads; stop when the caller has left."""
    answers, contract = instance.answers, instance.contract(call)
    stream = Stream(call, answers)
    try:
        try:
            for item in generator:
                if not _sent(stream, answers, stream.frames(item, contract)):
                    break
                if stream.way is None and answers.is_cancelled(call.seq):
                    break
        finally:
            generator.close()
            answers.drop_moves()  # also those of earlier streams, which had ended when they came
    except BaseException as error:
        if stream.begun:
            flags, body = instance.failed(call, error)
            instance.finish_lines(call.seq)
            answers.write(stream.end(flags, body))
        else:
            answers.write(instance.error_frame(call, error))
        return
    instance.finish_lines(call.seq)
    answers.write(stream.end())


def _sent(stream: Stream, answers: Answers, pieces: "Iterator[bytes | memoryview]") -> bool:
    """Send these; False when the caller has left and nobody reads any more."""
    for piece in pieces:
        if stream.way is None:
            answers.write(bytes(piece))
            if stream.is_long:
                answers.read_control()
            continue
        try:
            stream.way.sendall(piece, MSG_NOSIGNAL)
        except OSError:
            return False
    return True


_loops: list["Any"] = []


def _settled(result: "Any") -> "Any":
    """A plain function may still return a coroutine or an async generator (a decorator around an async handler): run it to its end."""
    if hasattr(result, "__await__"):
        return _settled(_loop().run_until_complete(_awaited(result)))
    if hasattr(result, "__anext__") and hasattr(result, "aclose"):
        return _drained(result)
    return result


async def _awaited(result: "Any") -> "Any":
    return await result


def _drained(source: "Any") -> "Iterator[Any]":
    loop = _loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(_awaited(source.__anext__()))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(_awaited(source.aclose()))


def _loop() -> "Any":
    """An event loop for such results, made once."""
    if not _loops:
        import asyncio

        _loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(_loops[0])
    return _loops[0]
