"""What user code prints, as LOG frames that carry the call: sys.stdout and sys.stderr of an instance.

Each stream is an ordinary io.TextIOWrapper (so that everything that works on one works) over an `Output`, which holds back
unfinished lines only and sends the rest at once: a crash loses nothing that ended with a line end. Output of C code and subprocesses
does not come here; it goes to the pipe behind descriptors 1 and 2. Must never buffer without bound and never print itself.
Used by agent.py, logs.py and instance.py.
"""

import io
import os
import sys
from _thread import RLock, get_ident

from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.frames import LOG, LOG_LINE_BYTES_MAX, STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import ContextVar
    from typing import Any

STDOUT_LEVEL, STDERR_LEVEL, ERROR_LEVEL = 20, 30, 40  # logging's numbers
PARTIALS_MAX = 64  # of one stream; more threads than this print in lines
BATCH_BYTES = 64 * 1024  # frames sent together


class Scope:
    """Which call is running: (sequence number, call id). One for the whole process, or one per task when calls run concurrently."""

    __slots__ = ("_idle", "call", "variable")

    def __init__(self) -> None:
        self._idle: tuple[int, str] = (0, "")
        self.call = self._idle
        self.variable: ContextVar[tuple[int, str]] | None = None

    def now(self) -> tuple[int, str]:
        """The call whose code asks; (0, "") during init and between calls."""
        if self.variable is None:
            return self.call
        return self.variable.get(self._idle)


class Output(io.BufferedIOBase):
    """Bytes in, LOG frames out. `fd`: 1 or 2, what `fileno()` answers and where output goes in a process that user code forked."""

    def __init__(self, fd: int, *, stream: int, level: int) -> None:
        self._fd = fd
        self._answers: Answers | None = None
        self._scope = Scope()
        self._stream = stream
        self._level = level
        self._lock = RLock()
        # Unfinished lines with the call they began in. By thread, and by call where one thread runs several: they do not mix.
        self.partials: dict[tuple[int, int], tuple[int, bytes]] = {}

    def attach(self, answers: Answers, scope: Scope) -> None:
        """From now on, print to the gateway."""
        self._answers = answers
        self._scope = scope

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def write(self, data: "Any") -> int:
        """Take bytes; whole lines are sent before this returns."""
        data = bytes(data)
        size = len(data)
        with self._lock:
            seq = self._scope.now()[0]
            key = (get_ident(), 0 if self._scope.variable is None else seq)
            if key in self.partials:
                seq, begun = self.partials.pop(key)
                data = begun + data
            end = data.rfind(b"\n")
            if end >= 0:
                self.send(data[:end], seq)
                data = data[end + 1 :]
            if len(data) >= LOG_LINE_BYTES_MAX:
                self.send(data, seq)
            elif data:
                if len(self.partials) >= PARTIALS_MAX:
                    self.finish_lines()
                self.partials[key] = (seq, data)
        return size

    def flush(self) -> None:
        """Nothing: whole lines are out, and an unfinished one is finished by more text or by `finish_lines`."""

    def close(self) -> None:
        """Send what is left. Not more: descriptor and socket are not this object's."""
        self.finish_lines()

    def finish_lines(self, seq: int | None = None) -> None:
        """Send the unfinished lines of a call, asked for before its answer; or all there are."""
        with self._lock:
            for key, (begun_in, text) in list(self.partials.items()):
                if seq is None or begun_in == seq:
                    del self.partials[key]
                    self.send(text, begun_in)

    def send(self, text: bytes, seq: int) -> None:
        """Send text, its last line end already cut off, in frames of at most LOG_LINE_BYTES_MAX, between lines where possible."""
        if self._answers is None:
            os.write(self._fd, text + b"\n")
            return
        send_text(self._answers, text, seq, flags=self._stream, level=self._level)

    def forget(self) -> None:
        """In a process that user code forked: print to the descriptor, as any process does."""
        self._answers = None
        self._lock = RLock()
        self.partials = {}


def send_text(answers: Answers, text: bytes, seq: int, *, flags: int, level: int) -> None:
    """LOG frames of UTF-8 text (anything else in it is replaced), several in one send when it is long."""
    if not text.isascii():
        text = text.decode("utf-8", "replace").encode()
    if len(text) <= LOG_LINE_BYTES_MAX:
        answers.write(frame(LOG, seq, text, flags=flags, status=level))
        return
    batch, size = [], 0
    for piece in pieces(text):
        batch.append(frame(LOG, seq, piece, flags=flags, status=level))
        size += len(piece)
        if size >= BATCH_BYTES:
            answers.write(b"".join(batch))
            batch, size = [], 0
    if batch:
        answers.write(b"".join(batch))


def pieces(text: bytes) -> "Iterator[bytes]":
    """Cut at line ends where a line fits, inside a line between characters where it does not."""
    at = 0
    while len(text) - at > LOG_LINE_BYTES_MAX:
        cut = text.rfind(b"\n", at, at + LOG_LINE_BYTES_MAX + 1)
        if cut > at:
            yield text[at:cut]
            at = cut + 1
            continue
        cut = at + LOG_LINE_BYTES_MAX
        while text[cut] & 0xC0 == 0x80:
            cut -= 1
        yield text[at:cut]
        at = cut
    yield text[at:]


def _text_over(output: "Any") -> io.TextIOWrapper:
    return io.TextIOWrapper(output, encoding="utf-8", errors="backslashreplace", write_through=True)


def make_streams() -> tuple[tuple[Output, Output], tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Standard output and error: (what lies below, the text streams). They print to descriptors 1 and 2 until `replace_streams`."""
    out = Output(1, stream=STDOUT, level=STDOUT_LEVEL)
    err = Output(2, stream=STDERR, level=STDERR_LEVEL)
    # write_through: text reaches Output in the call that printed it, so it is never another call's by mistake.
    return (out, err), (_text_over(out), _text_over(err))


_made = make_streams()  # in the zygote: making them costs an instance 200 KB of copied pages
_replaced: list[object] = []


def place_streams() -> None:
    """Put both streams in place; a zygote does it for its instances. Until they are attached they print to descriptors 1 and 2."""
    _, (out, err) = _made
    if sys.stdout is not out or sys.stderr is not err:
        _replaced[:] = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__  # kept, so that nothing is flushed or taken apart
        sys.stdout = sys.__stdout__ = out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = err  # type: ignore[misc]


def replace_streams(answers: Answers, scope: Scope) -> tuple[Output, Output]:
    """Both streams in place, and attached; returns what is below them."""
    place_streams()
    for output in _made[0]:
        output.attach(answers, scope)
    return _made[0]
