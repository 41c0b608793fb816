"""What functions print, on its way to the log: attributed to its call where that can be known, bounded per call and per function.

Called by gateway/fleet.py with LOG frames (Python's streams and logging), raw output (C code, child processes, crash reports) and
failed starts.
"""

import time
from typing import Any

from dayfly.core.model.records import LogRecord
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import stack_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.ledger import Ledger

STREAMS = ("stdout", "stderr", "logging")
TAIL_BYTES = 2048
LEVEL_MAX = 50


class Outputs:
    """Turns output into log records."""

    def __init__(self, ledger: Ledger, lines_per_call_max: int) -> None:
        self._ledger = ledger
        self._lines_max = lines_per_call_max

    def frame(self, channel: Channel, frame: Frame) -> None:
        """A LOG frame; its seq names the call, 0 is init."""
        entry: Entry = channel.entry
        call = entry.pool.offered.get(frame.seq) if frame.seq else None
        call_id = ""
        if call is not None:
            call_id = call.reply.call_id.decode()
            call.reply.printed(frame.body)
            if call.reply.log_lines > self._lines_max:
                entry.ledger.log_dropped += 1
                return
        elif not channel.ready_at:
            channel.tail = (channel.tail + frame.body)[-TAIL_BYTES:]
        stream = STREAMS[frame.flags] if frame.flags < len(STREAMS) else STREAMS[0]
        self._write(channel, (call_id, stream, min(frame.status, LEVEL_MAX)), frame.body)

    def raw(self, channel: Channel, data: bytes) -> None:
        """Bytes from the output pipe; with one call at a time they belong to the one that began last. It may be over by now, but what it
        wrote before its answer mostly arrives before that, so its call is still here."""
        entry: Entry = channel.entry
        call_id = ""
        if entry.pool.limits.concurrency == 1:
            call = entry.pool.offered.get(channel.latest())
            if call is not None:
                call_id = call.reply.call_id.decode()
                call.reply.printed(data)
        self._write(channel, (call_id, "stdout", 20), data)

    def start_failed(self, channel: Channel, error: dict[str, Any]) -> None:
        """A start came to nothing: its traceback, kept for `dayfly logs`."""
        text = f"{error.get('errorType')}: {error.get('errorMessage')}\n" + "".join(stack_of(error))
        self._write(channel, ("", "platform", 40), text.encode())

    def _write(self, channel: Channel, label: tuple[str, str, int], data: bytes) -> None:
        """`label`: call id, stream, level."""
        call_id, stream, level = label
        entry: Entry = channel.entry
        version = entry.version
        record = LogRecord(
            at=time.time(),
            namespace=version.namespace,
            function=version.function,
            version=version.number,
            instance=channel.id,
            call_id=call_id,
            stream=stream,
            level=level,
            text=data.decode("utf-8", "replace"),
        )
        self._ledger.logged(entry.ledger, record, time.monotonic())
