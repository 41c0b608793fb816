"""The part of a `Reply` that streams: an answer that comes in pieces, from the instance's frames or from a socket of its own.

A client that reads slowly must stop the instance, not fill this process. While a stream comes in frames, that means not to read the
instance at all, and all its other calls with it. So one that gets long is given a socket of its own (gateway/download.py): it is fast
there, and slow alone. Base of gateway/reply.py Reply; told by gateway/fleet.py and by the download.
"""

import asyncio
import re

from dayfly.core.model.records import Answered
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.download import Download
from dayfly.gateway.exchange import Request
from dayfly.runtime import frames

MOVE_BYTES = 64 * 1024  # a stream that has got so long is asked to go on through a socket of its own
IN_FLIGHT_BYTES_MAX = 2 * 1024 * 1024  # what may still come in frames, once it was asked, before its instance is not read any more


_LENGTH = re.compile(rb"(?:^|\n)content-length: ([0-9]{1,18})\r\n")


class Streamed:
    """One call's streamed answer. `over` and what is abstract here is gateway/reply.py's."""

    __slots__ = ("asked", "channel", "download", "head_sent", "last", "over", "paused", "promised", "request", "sent_bytes", "seq")
    movable = True  # False: the instance's pieces have a meaning, which a socket does not keep
    request: Request
    channel: Channel | None  # the instance that streams this answer
    download: Download | None
    last: tuple[Channel, Frame] | None  # END, while what came before it is still on its way
    promised: int  # its length, when the instance has said one
    asked: int  # what sent_bytes was when `begun` was last asked

    def __init__(self, request: Request) -> None:
        self.request = request
        self.channel = self.download = self.last = None
        self.head_sent = self.over = self.paused = False
        self.sent_bytes = self.seq = 0
        self.promised = self.asked = -1

    def head(self, channel: Channel, frame: Frame) -> None:
        """A streamed answer begins."""
        if self.over or self.head_sent:
            return
        lines = self._stream_lines(channel, frame)
        if lines is None:
            self.refused("function_bad_answer")
            channel.cancel(frame.seq)
            return
        self.channel = channel
        self.seq = frame.seq
        self.head_sent = True
        found = _LENGTH.search(frame.meta)
        length = int(found[1]) if found else -1
        self.request.begin(lines[0], lines[1], length)
        if not self.request.bodyless:
            self.promised = length
        self._send(frame.body)

    def chunk(self, channel: Channel, frame: Frame) -> None:
        """More of it; or MOVED: from now on it comes through its own socket."""
        if self.over or not self.head_sent:
            return
        if frame.kind == frames.MOVED:
            if self.download is not None:
                self.download.begin()
                if self.request.connection.write_paused:
                    self.download.pause()
        else:
            self._send(frame.body)

    def passed(self, data: bytes) -> None:
        """More of it, through its own socket."""
        self._send(data)

    def drained(self) -> None:
        """Nothing more comes through its own socket."""
        if self.last is not None and not self.over:
            self._finish(*self.last)

    def end(self, channel: Channel, frame: Frame) -> None:
        """It is complete, or broke: then the connection is cut, so that nobody takes half an answer for a whole one."""
        self._unpause()
        if self.over:
            self._release_body()
            return
        self._settle(channel, frame.exec_us)
        moving = self.download is not None and self.download.is_moving
        if moving and not frame.flags & frames.ERROR:
            assert self.download is not None
            self.last = (channel, frame)
            self.download.last_call(self.request.connection.site.settings.body_timeout_seconds)
        else:
            self._finish(channel, frame)

    def _finish(self, channel: Channel, frame: Frame) -> None:
        self.over = True
        self._drop_download()
        broken = bool(frame.flags & frames.ERROR) or not self.head_sent or self.sent_bytes != self.promised >= 0
        self._record("function_error" if broken else "ok", channel, frame.exec_us, self.sent_bytes)
        if broken:
            self.request.abort()
        else:
            self.request.finish()

    def stalled(self) -> None:
        """The instance has said everything, and the client does not take it."""
        if not self.over:
            self._left_behind()
            self.request.abort()

    def _left_behind(self) -> None:
        """The client left when the instance had ended already."""
        assert self.last is not None
        channel, frame = self.last
        self.over = True
        self._drop_download()
        self._record("client_left", channel, frame.exec_us, self.sent_bytes)

    def begun(self) -> bool:
        if self.head_sent:  # a stream that has moved since this was asked would have met the reset of a client that left
            before, self.asked = self.asked, self.sent_bytes
            return before != self.sent_bytes
        return self._is_running()

    def writable(self, yes: bool) -> None:
        """Back-pressure of a streamed answer: a slow client stops the instance, not the gateway's memory."""
        download = self.download
        if yes:
            self._unpause()
            if download is not None:
                download.resume()
        elif download is not None and download.is_moving:
            download.pause()
        elif self.channel is not None and not self.paused:
            if download is not None and self.sent_bytes - download.asked_at < IN_FLIGHT_BYTES_MAX:
                return  # it is about to move: this comes again with each piece
            self.paused = True
            self.channel.pause()

    def _unpause(self) -> None:
        if self.paused and self.channel is not None:
            self.paused = False
            self.channel.resume()

    def _overrun(self) -> None:
        """It is longer than its instance has promised: cut, and the instance stopped."""
        channel, seq = self.channel, self.seq
        self.refused("function_bad_answer")
        if channel is not None:
            channel.cancel(seq)

    def _drop_download(self) -> None:
        if self.download is not None:
            self.download.close()

    def _send(self, body: bytes) -> None:
        if body:
            self.sent_bytes += len(body)
            if self.sent_bytes > self.promised >= 0:
                self._overrun()
                return
            self.request.send(body)
            if self.download is None and self.sent_bytes > MOVE_BYTES and self.movable and self.channel is not None:
                self.download = Download(asyncio.get_running_loop(), self)
                self.download.ask(self.channel, self.seq)
            if self.request.connection.write_paused:
                self.writable(False)

    # ---- of Reply ---------------------------------------------------------------------------------------------------------------

    def _stream_lines(self, channel: Channel, frame: Frame) -> tuple[int, bytes] | None:
        raise NotImplementedError

    def refused(self, code: str, retry_after_seconds: float = 0.0) -> None:
        """No instance answered."""
        raise NotImplementedError

    def _settle(self, channel: Channel, exec_us: int) -> None:
        raise NotImplementedError

    def _record(self, outcome: str, channel: Channel | None, exec_us: int, bytes_out: int) -> Answered:
        raise NotImplementedError

    def _release_body(self) -> None:
        raise NotImplementedError

    def _is_running(self) -> bool:
        raise NotImplementedError
