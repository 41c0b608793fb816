"""The toy internet: a TCP service on every address of its namespace, and a DNS server. Run inside the test's network namespace.

TCP port 80, one command line: ECHO (until end-of-file, then "bye" behind it), SEND n, SINK (answers the count), WHO (who is
connected to whom), HOLD (says "held", then waits for the client to leave), HTTP requests (answers the head it saw).
"""

import asyncio
import contextlib
import struct
import sys

EXAMPLE, ALIAS, COUNTED = b"\x07example\x04test\x00", b"\x05alias\x04test\x00", b"\x07counted\x04test\x00"
NAMES = {EXAMPLE: "93.184.216.34", b"\x04evil\x04test\x00": "10.1.2.3", b"\x03big\x04test\x00": "93.184.216.34"}
NAMES |= {b"\x01a\x04wild\x04test\x00": "93.184.216.34"}
SECRET = b"\x06secret\x04test\x00"  # whoever is asked for names below it is told something; `counted.test` says how often that was
told = [0]
SILENT = b"\x06silent\x04test\x00"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection; how it ends is the client's business."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await converse(reader, writer)
    writer.close()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry out the command line."""
    command, _, argument = (await reader.readline()).strip().partition(b" ")
    if command == b"ECHO":
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
    elif command == b"SEND":
        left = int(argument)
        while left:
            writer.write(bytes(min(left, 65536)))
            left -= min(left, 65536)
            await writer.drain()
    elif command == b"SINK":
        total = 0
        while data := await reader.read(65536):
            total += len(data)
        writer.write(b"%d" % total)
    elif command == b"WHO":
        writer.write(repr([writer.get_extra_info("peername")[0], writer.get_extra_info("sockname")[:2]]).encode())
    elif command == b"HOLD":
        writer.write(b"held")
        await reader.read()
    elif command in (b"GET", b"POST"):
        head = command + b" " + argument + b"\r\n" + await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(head) + head)
    await writer.drain()


def answer(query: bytes, over_tcp: bool) -> bytes | None:
    """The DNS answer to a query; None: none ever."""
    end = query.index(b"\0", 12) + 1
    name, kind = query[12:end].lower(), query[end : end + 2]
    question = query[12 : end + 4]
    if name == SILENT:
        return None
    told[0] += name.endswith(SECRET)
    address = f"9.9.9.{told[0]}" if name == COUNTED else NAMES.get(name)
    if name == ALIAS and kind == b"\0\1":
        alias = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0" + bytes([len(EXAMPLE)]) + EXAMPLE
        rest = EXAMPLE + b"\0\1\0\1\0\0\0\x3c\0\4" + bytes([93, 184, 216, 34])
        return query[:2] + b"\x81\x80\0\1\0\2\0\0\0\0" + question + alias + rest
    if name.startswith(b"\x03big") and not over_tcp:
        return query[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + question  # truncated: ask again by TCP
    if address is None:
        return query[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + question
    if kind != b"\0\1":
        return query[:2] + b"\x81\x80\0\1\0\0\0\0\0\0" + question
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes(map(int, address.split(".")))
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + record


class Names(asyncio.DatagramProtocol):
    """DNS over UDP."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if reply := answer(data, over_tcp=False):
            self.transport.sendto(reply, address)


async def names_over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """DNS over TCP, one query."""
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    if reply := answer(await reader.readexactly(length), over_tcp=True):
        writer.write(struct.pack("!H", len(reply)) + reply)
    writer.close()


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    await asyncio.start_server(serve, None, 80, backlog=512)
    await asyncio.start_server(names_over_tcp, "10.99.0.53", 53)
    await loop.create_datagram_endpoint(Names, local_addr=("10.99.0.53", 53))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
