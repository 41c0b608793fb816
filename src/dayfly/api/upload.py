"""A deploy's multipart body, streamed: `config` into memory, `bundle` into a file of DATA/builds. Parses the frame only.

Bounds: the whole body by `upload_bytes_max`, the config by a constant; each part once, no others. The file is written in a
thread, a megabyte at a time, so a slow disk never stops the event loop.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dayfly.control.vault import disk_refusal
from dayfly.core.model.errors import Refusal

CONFIG_BYTES_MAX = 256 * 1024
BLOCK_BYTES = 1024 * 1024
BOUNDARY_BYTES_MAX = 200
PART_HEADER_BYTES_MAX = 4096
CONFIG, BUNDLE = "config", "bundle"

_config = msgspec.json.Decoder(dict[str, object])


class Upload(msgspec.Struct, frozen=True):
    """A received deploy. Whoever takes it removes `bundle` at the end."""

    config: dict[str, object]
    bundle: Path


async def receive(content_type: str, body: AsyncIterator[bytes], folder: Path, bytes_max: int) -> Upload:
    """Read a whole multipart body. Raises Refusal bad_request, bad_json, bundle_too_large, storage_full or data_unusable."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= BOUNDARY_BYTES_MAX:
        raise Refusal("bad_request", "Send multipart/form-data with the parts `config` and `bundle`.")
    path = await asyncio.to_thread(_new_file, folder)
    try:
        with path.open("wb") as file:
            parts = _Parts(boundary, file)
            await _feed(parts, body, bytes_max)
        return Upload(parts.config(), path)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_refusal(error, path) from error
        raise


async def _feed(parts: "_Parts", body: AsyncIterator[bytes], bytes_max: int) -> None:
    held, total = bytearray(), 0
    async for chunk in body:
        total += len(chunk)
        if total > bytes_max:
            raise Refusal("bundle_too_large", f"The upload is over {bytes_max} bytes (upload_bytes_max).")
        held += chunk
        if len(held) >= BLOCK_BYTES:
            await asyncio.to_thread(parts.write, bytes(held))
            held.clear()
    await asyncio.to_thread(parts.write, bytes(held))
    parts.end()


def _new_file(folder: Path) -> Path:
    try:
        with tempfile.NamedTemporaryFile(prefix="upload-", suffix=".zip", dir=folder, delete=False) as file:
            return Path(file.name)
    except OSError as error:
        raise disk_refusal(error, folder) from error


class _Parts:
    """Callbacks of the multipart parser: which part we are in, and where its bytes go."""

    def __init__(self, boundary: bytes, file: BinaryIO) -> None:
        self._file = file
        self._config = bytearray()
        self._seen: set[str] = set()
        self._part = ""
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begun,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, block: bytes) -> None:
        """Feed bytes. Raises Refusal when they are no multipart body of ours."""
        if not block:
            return
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise Refusal("bad_request", f"The multipart body is damaged: {error}.") from error

    def end(self) -> None:
        """The body is over: it must be whole."""
        if not self._ended or self._seen != {CONFIG, BUNDLE}:
            missing = sorted({CONFIG, BUNDLE} - self._seen)
            raise Refusal("bad_request", f"Part {missing[0]!r} is missing." if missing else "The multipart body was cut off.")

    def config(self) -> dict[str, object]:
        """The config part as a table."""
        try:
            return _config.decode(bytes(self._config))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("bad_json", f"Part 'config' is no JSON object: {error}.") from error

    def _begun(self) -> None:
        self._headers, self._field, self._value, self._part = {}, b"", b"", ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._field) + len(self._value) > PART_HEADER_BYTES_MAX or len(self._headers) > 16:
            raise Refusal("bad_request", "A part's headers are too long.")

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in (CONFIG, BUNDLE) or name in self._seen:
            raise Refusal("bad_request", f"Unexpected part {name[:40]!r}: send `config` and `bundle`, once each.")
        self._part = name
        self._seen.add(name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == BUNDLE:
            self._file.write(memoryview(data)[start:end])
            return
        self._config += data[start:end]
        if len(self._config) > CONFIG_BYTES_MAX:
            raise Refusal("bad_request", f"Part 'config' is over {CONFIG_BYTES_MAX} bytes.")

    def _end(self) -> None:
        self._ended = True
