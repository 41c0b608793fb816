"""Thousands of clients in one thread: each is a connection that sends as slowly as it is told to, and tells the judge what it hears."""

import errno
import resource
import select
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.chaos.callers import Answers, request
from tests.chaos.judge import GRACE_SECONDS, Judge

RESET = (1).to_bytes(4, "little") + bytes(4)  # SO_LINGER: on, 0 seconds: closing says RST
SPARE_DESCRIPTORS = 1000


def clients_max(wanted: int) -> int:
    """How many connections this process, and the gateway that inherits its limit, may have: `wanted` if it can be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - SPARE_DESCRIPTORS)


class Client:
    """One connection; with a call it has something to say and something to hear."""

    __slots__ = ("answers", "call", "data", "over", "sent", "socket")

    def __init__(self, made: socket.socket, call: str, data: bytes) -> None:
        self.socket = made
        self.call = call
        self.data = data
        self.sent = 0
        self.answers = Answers()
        self.over = not call


class Crowd:
    """`with Crowd(judge) as crowd:` opens clients, lets them send, hears what they are answered; closes them all at the end."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.clients: dict[int, Client] = {}
        self._epoll = select.epoll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in list(self.clients.values()):
            self.leave(client)
        self._epoll.close()

    def open(self, count: int, name: str = "", **wishes: object) -> list[Client]:
        """`count` more clients, connected; each with a call of `name`, of which nothing is sent yet."""
        return [self._one(name, wishes) for _ in range(count)]

    def _one(self, name: str, wishes: dict[str, object]) -> Client:
        made = socket.create_connection(self.judge.platform.address, timeout=GRACE_SECONDS)
        made.setblocking(False)
        call = self.judge.ask() if name else ""
        client = Client(made, call, request(self.judge, name, call, **wishes) if call else b"")  # type: ignore[arg-type]
        self.clients[made.fileno()] = client
        self._epoll.register(made, select.EPOLLIN)
        return client

    def send(self, clients: Iterable[Client], size: int = 1 << 30) -> None:
        """Each sends so many more bytes of its request. Requests here are shorter than any buffer: a full one would be a fault."""
        for client in clients:
            if client.over or client.sent >= len(client.data):
                continue
            try:
                client.sent += client.socket.send(client.data[client.sent : client.sent + size])
            except BlockingIOError:
                self.judge.fault(f"{client.call} could not be sent")
            except OSError as error:
                self._broke(client, error)

    def half_close(self, clients: Iterable[Client]) -> None:
        """They say that nothing more comes, and listen."""
        for client in clients:
            with suppress(OSError):
                client.socket.shutdown(socket.SHUT_WR)

    def leave(self, client: Client, *, reset: bool = False) -> None:
        """It goes, whatever it still waits for."""
        if not client.over:
            client.over = True
            self.judge.tell(client.call, "left" if client.sent else "unsent")
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._forget(client)

    def hear(self, seconds: float = 0.0) -> None:
        """Take what has come by now, or comes within `seconds`."""
        while ready := self._epoll.poll(seconds, 1024):
            for descriptor, _ in ready:
                if (client := self.clients.get(descriptor)) is not None:
                    self._hear(client)
            seconds = 0.0

    def hear_until(self, true: str, condition: Callable[[], object], seconds: float = GRACE_SECONDS) -> None:
        """Hear until `condition()` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {true}; {self.judge}"
            self.hear(0.05)

    def _hear(self, client: Client) -> None:
        try:
            block = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(client, error)
            return
        if not block:
            self._broke(client, ConnectionResetError(errno.ECONNRESET, "closed"))
            return
        client.answers.data += block
        while (answer := client.answers.take()) is not None:
            if client.over:
                self.judge.fault(f"{client.call or 'an idle client'} was answered {'again' if client.call else 'unasked'}: {answer}")
            else:
                client.over = True
                self.judge.heard(client.call, *answer)

    def _broke(self, client: Client, error: OSError) -> None:
        if not client.over:
            client.over = True
            self.judge.tell(client.call, "cut" if client.sent else "unsent", type(error).__name__)
        self._forget(client)

    def _forget(self, client: Client) -> None:
        if self.clients.pop(client.socket.fileno(), None) is not None:
            self._epoll.unregister(client.socket)
            client.socket.close()
