"""What functions print, on its way to the log: attributed to its call where that can be known, bounded per call and per function.

Called by gateway/fleet.py with LOG frames (Python's streams and logging), raw output (C code, child processes, crash reports) and
failed starts.
"""

import time
from typing import Any

from dayfly.gateway.channel import Channel
from dayfly.gateway.deaths import stack_of
from dayfly.gateway.entry import Entry
from dayfly.gateway.ledger import Ledger, log_record

STREAMS = ("stdout", "stderr", "logging")
TAIL_BYTES = 2048
LEVEL_MAX = 50


class Outputs:
    """Turns output into log records."""

    def __init__(self, ledger: Ledger, lines_per_call_max: int) -> None:
        self._ledger = ledger
        self._lines_max = lines_per_call_max

    def frame(self, entry: Entry, channel: Channel, flags: int, level: int, seq: int, body: bytes) -> None:
        """A LOG frame; `seq` names its call, 0 is init."""
        call = entry.pool.offered.get(seq) if seq else None
        call_id = ""
        if call is not None:
            call_id = call.reply.call_id.decode()
            call.reply.printed(body)
            if call.reply.log_lines > self._lines_max:
                entry.ledger.log_dropped += 1
                return
        elif not channel.ready_at:
            channel.tail = (channel.tail + body)[-TAIL_BYTES:]
        self._write(entry, channel, call_id, STREAMS[flags] if flags < len(STREAMS) else STREAMS[0], min(level, LEVEL_MAX), body)

    def raw(self, entry: Entry, channel: Channel, data: bytes) -> None:
        """Bytes from the output pipe; with one call at a time they belong to the one that runs."""
        call_id = ""
        if entry.pool.limits.concurrency == 1:
            call = next((entry.pool.offered[seq] for seq in channel.running(1) if seq in entry.pool.offered), None)
            if call is not None:
                call_id = call.reply.call_id.decode()
                call.reply.printed(data)
        self._write(entry, channel, call_id, "stdout", 20, data)

    def start_failed(self, entry: Entry, channel: Channel, error: dict[str, Any]) -> None:
        """A start came to nothing: its traceback, kept for `dayfly logs`."""
        text = f"{error.get('errorType')}: {error.get('errorMessage')}\n" + "".join(stack_of(error))
        self._write(entry, channel, "", "platform", 40, text.encode())

    def _write(self, entry: Entry, channel: Channel, call_id: str, stream: str, level: int, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        record = log_record(entry.version, channel.id, call_id, stream, level, text, time.time())
        self._ledger.logged(entry.ledger, record, time.monotonic())
