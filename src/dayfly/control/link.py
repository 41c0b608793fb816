"""The Unix socket where gateways get the catalog and leave usage, logs and statistics (core/wire/link.py).

One reader and one writer task per gateway. What a gateway is to be told stands in a bounded queue: one that does not read is
dropped and gets a new snapshot when it comes back. Changes of the catalog are confirmed; batches are acknowledged by nothing: what
was on its way when either side was killed is lost, once.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from dayfly.control.catalog import Catalog
from dayfly.control.logs import Logs
from dayfly.control.statistics import GatewayKey, Sums
from dayfly.control.usage import Usage
from dayfly.core.decide import share
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Function
from dayfly.core.wire import link

OUTBOX_MAX = 1_000
HELLO_SECONDS = 5.0
GATEWAYS_MAX = 64
BACKLOG = 128
CONNECT_WAIT_SECONDS = 5.0  # a deploy right after start, or while a gateway restarts, waits this long for one

log = structlog.get_logger()


class DurableCalls(Protocol):
    """Who hears what gateways say of asynchronous calls (control/calls.py, by way of plane.py)."""

    def left(self, peer: "Peer") -> None: ...

    async def take(self, peer: "Peer", message: link.Accept | link.Holding | link.Outcomes) -> None: ...


class Peer:
    """One connected gateway."""

    def __init__(self, hello: link.Hello, writer: asyncio.StreamWriter) -> None:
        self.key: GatewayKey = (hello.gateway, hello.pid)
        self.hello = hello
        self.outbox: asyncio.Queue[link.ToGateway] = asyncio.Queue(OUTBOX_MAX)
        self.proofs: dict[int, asyncio.Future[link.Proved]] = {}
        self._writer = writer

    def __repr__(self) -> str:
        return f"<Peer {self.key[0]} pid {self.key[1]}: {self.outbox.qsize()} to send, {len(self.proofs)} proofs>"

    @property
    def name(self) -> str:
        """Unique among gateways that live."""
        return f"{self.key[0]}/{self.key[1]}"

    def tell(self, message: link.ToGateway) -> None:
        """Queue a message; drop the gateway when it does not read."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("gateway_too_slow", gateway=self.key[0])
            self.drop()

    def drop(self) -> None:
        """Break the link now."""
        self._writer.transport.abort()

    async def write(self) -> None:
        """Send what is queued until the link breaks; what was queued together leaves together."""
        while True:
            messages = [await self.outbox.get()]
            while not self.outbox.empty():
                messages.append(self.outbox.get_nowait())
            try:
                # Joined: asyncio's writelines forgets to hold back who writes too much (CVE-2024-12254, Python 3.12.0 to 3.13.1).
                self._writer.write(b"".join([link.encode(message) for message in messages]))
            except ValueError as error:
                log.error("link_message_too_large", detail=str(error))
                self.drop()
                return
            await self._writer.drain()

    def end(self) -> None:
        """Whoever waits for a proof hears that nobody will answer."""
        for proof in self.proofs.values():
            if not proof.done():
                proof.set_exception(Refusal("start_failed", "The gateway that tried the new version was lost; deploy again."))
                proof.exception()  # a deploy that was cancelled meanwhile does not ask for it


class LinkServer:
    """All gateways. `start` before `ready`; `close` ends every link."""

    def __init__(self, catalog: Catalog, usage: Usage, logs: Logs, sums: Sums) -> None:
        self._catalog, self._usage, self._logs, self._sums = catalog, usage, logs, sums
        self.peers: dict[GatewayKey, Peer] = {}
        self._requests = itertools.count(1)
        self._joined = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: DurableCalls | None = None

    def __repr__(self) -> str:
        return f"<LinkServer {list(self.peers.values())}>"

    async def start(self, path: str) -> None:
        """Listen at `path`, for gateways alone; a socket file that a killed control left is replaced."""
        self._server = await asyncio.start_unix_server(self._serve, sock=private_listener(path))

    async def close(self) -> None:
        """End every link; gateways keep their last catalog."""
        if self._server is not None:
            self._server.close()
        for peer in tuple(self.peers.values()):
            peer.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def prove(self, function: Function, number: int, timeout_seconds: float) -> link.Proved:
        """Let a gateway start one instance of version `number`. Raises Refusal start_failed when none can or answers."""
        peer = await self._home(function)
        request = next(self._requests)
        proof = peer.proofs[request] = asyncio.get_running_loop().create_future()
        peer.tell(link.Prove(request, function, number))
        try:
            return await asyncio.wait_for(proof, timeout_seconds)
        except TimeoutError:
            raise Refusal("start_failed", f"No gateway answered within {timeout_seconds:g} s whether the version starts.") from None
        finally:
            del peer.proofs[request]

    async def _home(self, function: Function) -> Peer:
        """The gateway that is the function's home, or stands in for it; waits a moment for one to connect."""
        try:
            async with asyncio.timeout(CONNECT_WAIT_SECONDS):
                while not self.peers:
                    self._joined.clear()
                    await self._joined.wait()
        except TimeoutError:
            raise Refusal("start_failed", "No gateway is connected, so the new version cannot be tried.") from None
        gateways = max(max(peer.hello.gateways, peer.hello.slot + 1) for peer in self.peers.values())
        order = share.order(function.namespace, function.name, gateways, together=function.namespace in self._catalog.limits)
        return min(self.peers.values(), key=lambda peer: (order.index(peer.hello.slot), len(peer.proofs)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._serve_peer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the gateway left; it comes back when it can
        except (msgspec.DecodeError, ValueError) as error:
            log.error("link_message_bad", detail=str(error))
        finally:
            writer.transport.abort()

    async def _serve_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await asyncio.wait_for(_read(reader), HELLO_SECONDS)
        if not isinstance(hello, link.Hello) or len(self.peers) >= GATEWAYS_MAX:
            log.error("link_refused", gateways=len(self.peers))
            return
        peer = Peer(hello, writer)
        self._replace(peer)
        for message in self._catalog.listen(peer.tell):
            peer.tell(message)
        self._joined.set()
        log.info("gateway_joined", gateway=hello.gateway, pid=hello.pid)
        sending = asyncio.create_task(peer.write())
        try:
            while True:
                self._take(peer, await _read(reader))
        finally:
            self._catalog.unlisten(peer.tell)
            self._leave(peer)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending

    def _replace(self, peer: Peer) -> None:
        """A gateway that comes back before its old link was seen to break takes its place."""
        old = self.peers.get(peer.key)
        if old is not None:
            old.drop()
        self.peers[peer.key] = peer

    def _leave(self, peer: Peer) -> None:
        peer.end()
        if self.calls is not None:
            self.calls.left(peer)
        if self.peers.get(peer.key) is peer:
            del self.peers[peer.key]
            self._sums.gone(peer.key)
            log.info("gateway_left", gateway=peer.key[0], pid=peer.key[1])

    def _take(self, peer: Peer, message: link.ToControl) -> None:
        match message:
            case link.Usage():
                self._usage.add(message.sums)
            case link.Logs():
                self._logs.add(message.records, message.dropped)
            case link.Statistics():
                self._sums.put(peer.key, message.statistics)
            case link.Applied(revision):
                self._catalog.applied(peer.tell, revision)
            case link.Proved():
                proof = peer.proofs.get(message.request)
                if proof is not None and not proof.done():
                    proof.set_result(message)
            case link.Accept() | link.Holding() | link.Outcomes() if self.calls is not None:
                task = asyncio.create_task(self.calls.take(peer, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                raise ValueError("a second Hello on one link")


def private_listener(path: str) -> socket.socket:
    """A listening Unix stream socket, private from its first moment on; what a killed control left there is replaced.

    Its folder says for whom: where that hands its group on (setgid: the gateway's), the group may connect, else only our own user.
    """
    Path(path).unlink(missing_ok=True)
    shared = Path(path).parent.stat().st_mode & stat.S_ISGID
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    before = os.umask(0o117 if shared else 0o177)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


async def _read(reader: asyncio.StreamReader) -> link.ToControl:
    size = int.from_bytes(await reader.readexactly(link.LENGTH_BYTES), "big")
    if size > link.MESSAGE_BYTES_MAX:
        raise ValueError(f"message of {size} bytes")
    return link.decode_to_control(await reader.readexactly(size))
