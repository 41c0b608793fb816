"""Control's few words with the node: what does this machine offer, and install this layer. One connection per question.

SOCK_SEQPACKET, one JSON message a packet (core/wire/node.py). For a build, the write end of a pipe goes along and the
installer's output comes back through it, line by line.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TypeVar

import msgspec

from dayfly.core.model.errors import Refusal
from dayfly.core.wire.node import MESSAGE_BYTES_MAX, Ask, Build, Built, Facts, ToNode, decode_from_node, encode

ASK_SECONDS = 5.0
BUILD_SLACK_SECONDS = 15.0  # the node's own limit ends a build first; this is for a node that hangs
LINE_CHARACTERS_MAX = 4_096
READ_BYTES = 64 * 1024

T = TypeVar("T", Facts, Built)
Line = Callable[[str], None]


class NodeClient:
    """Asks the node at `path`. Raises Refusal start_failed when it does not answer."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def facts(self) -> Facts:
        """Interpreters and isolation features of this machine, asked anew each time (well under a millisecond)."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._exchange(Ask(), [], Facts)
        except TimeoutError:
            raise _silent() from None

    async def build(self, build: Build, output: Line) -> Built:
        """Install a layer; each line of the installer's output is given to `output` as it comes."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)  # the installer's end
        lines = asyncio.create_task(_read_lines(reading, output))
        try:
            async with asyncio.timeout(build.timeout_seconds + BUILD_SLACK_SECONDS):
                try:
                    answer = await self._exchange(build, [writing], Built)
                finally:
                    os.close(writing)
                await lines
        except TimeoutError:
            raise Refusal("build_failed", f"The installer did not end within {build.timeout_seconds:g} s.") from None
        finally:
            lines.cancel()
            await asyncio.gather(lines, return_exceptions=True)
        return answer

    async def _exchange(self, message: ToNode, descriptors: list[int], wanted: type[T]) -> T:
        """Send one message, wait for the one that answers it; what else the node says on this line is not for us."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, self._path)
                socket.send_fds(sock, [encode(message)], descriptors)
                while packet := await loop.sock_recv(sock, MESSAGE_BYTES_MAX):
                    answer = decode_from_node(packet)
                    if isinstance(answer, wanted):
                        return answer
            except OSError as error:
                raise _silent() from error
            except msgspec.DecodeError as error:
                raise Refusal("internal", f"The node answered in another language: {error}.") from error
        raise _silent()


def _silent() -> Refusal:
    return Refusal("start_failed", "The node does not answer; it is being restarted. Try again.", retry_after_seconds=1.0)


async def _read_lines(fd: int, output: Line) -> None:
    """Lines of a pipe until its end, bounded in length, closed afterwards."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    held = b""
    try:
        while chunk := await reader.read(READ_BYTES):
            *lines, held = (held + chunk).replace(b"\r", b"\n").split(b"\n")
            if len(held) > LINE_CHARACTERS_MAX:
                lines, held = [*lines, held], b""
            for line in lines:
                _put(line, output)
        _put(held, output)
    finally:
        transport.close()


def _put(line: bytes, output: Line) -> None:
    text = line[:LINE_CHARACTERS_MAX].decode("utf-8", "replace").rstrip()
    if text:
        output(text)
