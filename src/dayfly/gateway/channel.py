"""One instance's own socket, as the gateway holds it: answers back. Calls go out by the socket that a version's instances share
(gateway/version_socket.py); runtime/frames.py has the format of both.

It decides nothing: it reports frames, end-of-file and garbage to its `ChannelEvents` (gateway/fleet.py). What an instance sends is
hostile input: every length is checked before it is believed, and one bad frame ends the instance.
"""

import array
import asyncio
import errno
import fcntl
import functools
import os
import resource
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec

from dayfly.gateway.large import Large, size_of
from dayfly.gateway.page import Page
from dayfly.gateway.version_socket import SEND_BUFFER_BYTES
from dayfly.runtime import frames

RECEIVE_BYTES = 256 * 1024
OUTPUT_BYTES = 64 * 1024
LARGE_READ_BYTES = 16 * 1024  # a read this large may hold thousands of frames: its time is taken
TURN_SECONDS = 0.001  # reading one instance for longer than this is made up for:
REST_FACTOR = 4  # it is not read for this many times as long, so that a flood of frames has a fifth of the loop at most
SPARE_DESCRIPTORS = 128  # that no instance gets: the last ones are for connections, bodies and the other roles
F_ADD_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW = 1033, 1, 2, 4
_received = memoryview(bytearray(RECEIVE_BYTES))  # for one read after another, of all instances
_ANSWER_HEADER = frames.ANSWER.size
_unpack_answer = frames.ANSWER.unpack_from


class Frame(NamedTuple):
    """One answer frame of runtime/frames.py, lengths checked, contents not."""

    kind: int
    flags: int
    status: int
    exec_us: int
    seq: int
    meta: bytes
    body: bytes  # of a large RESULT a memoryview, of memory that is this frame's alone


_frame = functools.partial(tuple.__new__, Frame)  # what Frame() does, without a call of Python's between


class ChannelEvents(Protocol):
    """Who hears of an instance."""

    def on_frame(self, channel: "Channel", frame: Frame) -> None: ...

    def on_output(self, channel: "Channel", data: bytes) -> None: ...

    def on_end(self, channel: "Channel", reason: str) -> None: ...


ModuleName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z", max_length=200)]


class Ready(msgspec.Struct):
    """What an instance says of itself when its init ran (runtime/frames.py READY)."""

    init_us: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    init_cpu_us: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    is_async: bool = msgspec.field(default=True, name="async")
    origin: Literal["fork", "prepared", "packages", "template", "ahead"] = "fork"
    problems: Annotated[list[Annotated[str, msgspec.Meta(max_length=4000)]], msgspec.Meta(max_length=16)] = []
    imports: Annotated[list[ModuleName], msgspec.Meta(max_length=2000)] = []  # of a layer's modules (runtime/packages.py)


class Channel:
    """One instance's own socket, its progress page and its output pipe, seen from the gateway."""

    __slots__ = (
        "_ended", "_events", "_large", "_loop", "_output", "_paused", "_progress", "_rest", "_socket", "accepted", "believed", "entry",
        "exit", "head", "id", "imports", "init_cpu_us", "init_us", "is_async", "origin", "parent", "problems", "ready_at",
        "start_us", "started_at", "tail", "wanted",
    )  # fmt: skip

    def __init__(self, id: str, events: ChannelEvents, entry: Any, started_at: float) -> None:
        self.id = id
        self.entry = entry  # the fleet's record of the version
        self.started_at = started_at
        self.ready_at = 0.0
        self.start_us = 0
        self.init_us = self.init_cpu_us = 0
        self.is_async = True  # whether its handler is; known when it is ready
        self.origin = "fork"  # how it came to be, as it says
        self.problems: list[str] = []  # of a template: what forbids it
        self.imports: list[str] = []  # modules of its layer that its init imported, until somebody has taken note
        self.parent = ""  # the template that it was asked for from
        self.accepted: object = None  # the node's Accepted
        self.exit: object = None  # the node's Exited
        self.head = b""  # answer headers that are the same for all its calls
        self.tail = b""  # the last output, for telling why it died
        self.believed = True  # False once it sent nonsense: then its progress page is no witness either
        self.wanted = True  # False once it said RETIRED or was told to end
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray()
        self._large: Large | None = None  # a frame that is received where it will stay
        self._paused = 0
        self._ended = False
        self._socket: socket.socket | None = None
        self._output = -1
        self._progress: Page | None = None

    def became_ready(self, meta: bytes, now: float) -> None:
        """It said READY at `now`. Raises msgspec.DecodeError when that is nonsense, and changes nothing then."""
        said = msgspec.json.decode(meta, type=Ready)
        self.ready_at = now
        self.init_us, self.init_cpu_us = said.init_us, said.init_cpu_us
        self.start_us = max(0, int((now - self.started_at) * 1e6) - self.init_us)
        self.is_async = said.is_async
        self.origin = said.origin
        self.problems = said.problems
        self.imports = said.imports

    def open(self, boot: bytes) -> tuple[socket.socket, int, int]:
        """Make the instance's descriptors: (its end of the answers socket, progress memfd, write end of the output pipe). The caller
        hands them over and closes its copies. `boot` waits in the socket for the instance to read. Raises OSError, and leaves nothing open,
        when this process has as many descriptors as it may."""
        with ExitStack() as undo:
            undo.callback(self.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket = ours
            undo.callback(theirs.close)
            if theirs.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS:  # they get the lowest free numbers
                raise OSError(errno.EMFILE, "the gateway has as many open files as it may (ulimit -n, LimitNOFILE)")
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            page = os.memfd_create("dayfly-progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, page)
            os.ftruncate(page, frames.PROGRESS_BYTES)
            # Without the seals the instance could shrink the file under our mapping and kill the gateway with SIGBUS.
            fcntl.fcntl(page, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW | SEAL_SEAL)
            self._progress = Page(page)
            self._output, output_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(output_write, True)
            ours.sendall(frames.CONTROL.pack(frames.BOOT, len(boot), 0) + boot)
            undo.pop_all()
        return theirs, page, output_write

    def listen(self) -> None:
        """Hear what it says, from now on. Called once the node has been asked for it: this takes a dozen system calls of the event loop's,
        and the sandbox can be on its way meanwhile."""
        assert self._socket is not None
        self._loop.add_reader(self._socket, self._readable)
        self._loop.add_reader(self._output, self._output_readable)

    def running(self, slots: int) -> list[int]:
        """Sequence numbers of the calls this instance has begun and not ended, from its progress page."""
        if self._progress is None:
            return []
        return [seq for slot in range(min(slots, frames.SLOTS_MAX)) if (seq := self._progress.seq(slot))]

    def latest(self) -> int:
        """Sequence number of the call that this instance, serving one at a time, began last; 0 before the first."""
        return self._progress.seq(frames.LATEST) if self._progress is not None else 0

    def cancel(self, seq: int) -> None:
        """Tell the instance that the caller of this streamed answer has left."""
        self._tell(frames.CANCEL, seq)

    def move(self, seq: int, way: int) -> None:
        """Offer it a socket for the rest of a streamed answer (gateway/download.py)."""
        self._tell(frames.MOVE, seq, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [way]))])

    def _tell(self, kind: int, seq: int, rights: Sequence[tuple[int, int, Any]] = ()) -> None:
        if self._socket is not None:
            with suppress(OSError):  # full or gone: the stream then ends by its deadline or with the instance, or goes on as it is
                self._socket.sendmsg([frames.CONTROL.pack(kind, 0, seq)], rights)

    def pause(self) -> None:
        """Stop reading answers (a slow client); counted, one `resume` each."""
        self._paused += 1
        if self._paused == 1 and self._socket is not None:
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        self._paused -= 1
        if self._paused == 0 and self._socket is not None:
            self._loop.add_reader(self._socket, self._readable)

    def read(self) -> bool:
        """Report what it has written by now. False: at present nothing of it is read (`pause`)."""
        if self._paused == 0 and self._socket is not None and not self._ended:
            self._readable()
        return self._paused == 0

    def read_out(self) -> None:
        """The instance is dead: report what it had still written, all of it."""
        while self._socket is not None and not self._ended:
            self._readable()

    def close(self) -> None:
        """Let go of every descriptor; idempotent."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._output >= 0:
            self._output_readable()
            self._close_output()
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _readable(self) -> None:
        assert self._socket is not None
        if self._large is not None:
            self._large_readable(self._socket, self._large)
            return
        try:
            # Into one buffer: a new one of this size is mapped, touched and unmapped, which is dearer than the reading itself.
            data = bytes(_received[: self._socket.recv_into(_received)])
        except BlockingIOError:
            # A process it left behind may hold the socket open a moment longer; once the node says it is over, nothing more counts.
            self._ended = self.exit is not None
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        if len(data) < LARGE_READ_BYTES:
            self._take(data)
            return
        began = self._loop.time()
        self._take(data)
        if (spent := self._loop.time() - began) > TURN_SECONDS:
            self.pause()
            self._loop.call_later(REST_FACTOR * spent, self.resume)

    def _take(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            used = self._parse(bytes(self._rest)) if self._complete() else 0
            del self._rest[:used]
        else:
            used = self._parse(data)
            if 0 <= used < len(data):
                self._begin_next(data[used:])

    def _begin_next(self, begun: bytes) -> None:
        """What has come of the next frame, whose lengths were looked at if they are there."""
        if size_of(begun) > RECEIVE_BYTES:
            self._large = Large(begun)
        else:
            self._rest += begun

    def _large_readable(self, source: socket.socket, large: Large) -> None:
        try:
            count = large.receive(source)
        except BlockingIOError:
            self._ended = self.exit is not None
            return
        except OSError:
            count = 0
        if count == 0:
            self._lost()
        elif large.is_complete:
            self._large = None
            kind, flags, status, _, _, exec_us, seq = large.header
            body = large.body if kind == frames.RESULT else bytes(large.body)
            self._events.on_frame(self, _frame((kind, flags, status, exec_us, seq, large.meta, body)))

    def _lost(self) -> None:
        self._ended = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._events.on_end(self, "lost")

    def _complete(self) -> bool:
        """Whether the buffer holds at least its first frame whole (a large one is not parsed over and over), or one that may not be."""
        if len(self._rest) < _ANSWER_HEADER:
            return False
        _, _, _, meta_size, body_size, _, _ = _unpack_answer(self._rest)
        may_be = meta_size <= frames.META_BYTES_MAX and body_size <= frames.RESULT_BYTES_MAX
        return not may_be or len(self._rest) >= _ANSWER_HEADER + meta_size + body_size

    def _parse(self, data: bytes) -> int:
        """Report every whole frame in `data`; returns how many bytes were used."""
        offset, end = 0, len(data)
        on_frame = self._events.on_frame
        while end - offset >= _ANSWER_HEADER:
            kind, flags, status, meta_size, body_size, exec_us, seq = _unpack_answer(data, offset)
            if meta_size > frames.META_BYTES_MAX or body_size > frames.RESULT_BYTES_MAX:
                self._garbage()
                return end
            meta_at = offset + _ANSWER_HEADER
            body_at = meta_at + meta_size
            if (after := body_at + body_size) > end:
                break
            offset = after
            on_frame(self, _frame((kind, flags, status, exec_us, seq, data[meta_at:body_at], data[body_at:after])))
            if self._socket is None:
                return end
        return offset

    def _garbage(self) -> None:
        self._ended = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._events.on_end(self, "garbage")

    def _output_readable(self) -> None:
        try:
            data = os.read(self._output, OUTPUT_BYTES)
        except BlockingIOError:
            return
        if data:
            self.tail = (self.tail + data)[-2048:]
            self._events.on_output(self, data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
