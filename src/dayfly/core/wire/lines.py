"""Newline-delimited JSON as it arrives in pieces: each line one value, checked and bounded; empty lines are none. Keeps at most one line.

Used by control/maps.py for the items of a map.
"""

from collections.abc import Iterator

import msgspec

from dayfly.core.model.errors import Refusal

_decode = msgspec.json.Decoder().decode
_BLANK = b" \t\r\n"


class Lines:
    """`feed` and, at the end, `rest` give whole values as they were written; both raise Refusal bad_json or body_too_large at a line."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = b""
        self.number = 0  # of the last line that was looked at

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The values of the lines that end in `data`, up to a bad one."""
        *whole, self._held = (self._held + data).split(b"\n")
        for line in whole:
            if value := self._value(line):
                yield value
        self._check_size(self._held, self.number + 1)

    def rest(self) -> list[bytes]:
        """The value of a last line without its end."""
        line, self._held = self._held, b""
        value = self._value(line)
        return [value] if value else []

    def _value(self, line: bytes) -> bytes:
        self.number += 1
        self._check_size(line, self.number)
        value = line.strip(_BLANK)
        if value:
            try:
                _decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Refusal("bad_json", f"Line {self.number} is no JSON: {error}.", extra={"line": self.number}) from error
        return value

    def _check_size(self, line: bytes, number: int) -> None:
        if len(line) > self._bytes_max:
            detail = f"Line {number} is over {self._bytes_max} bytes (body_bytes_max)."
            raise Refusal("body_too_large", detail, extra={"line": number})
