"""The contract of `Provider` (core/ports.py), held by both implementations: the fake, and this machine's node with real sandboxes.

Each test runs against a `Place`: a provider, and how to write code for it. Instances are reached as a gateway reaches them, through
gateway/channel.py, so what passes here works there.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import uvloop

from dayfly.core.model.call import Call
from dayfly.core.wire.node import Accepted, Exited, Start
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.version_socket import VersionSocket
from dayfly.provider.local import LocalProvider
from dayfly.runtime import frames
from dayfly.testing.provider import Behaviour, Crash, FakeAnswer, FakeProvider, TakenCall

SECONDS_MAX = 20.0
RUNTIME = f"python3.{sys.version_info.minor}"
SOURCE = """
import os, time
def handler(event, context):
    if event == "hang":
        time.sleep(60)
    if event == "crash":
        os.kill(os.getpid(), 11) if os.getpid() != 1 else os._exit(3)
    return event
"""


async def fake_handler(call: TakenCall) -> FakeAnswer | None:
    """What SOURCE does, for the fake."""
    if call.body == b'"hang"':
        return None
    if call.body == b'"crash"':
        raise Crash(3, "exit")
    return FakeAnswer(call.body)


class Parcel:
    """A direct call."""

    kind = frames.DIRECT
    call_id = b"call-1"
    meta = b""

    def __init__(self, body: bytes) -> None:
        self.parts = [body]
        self.body_size = len(body)


class Place:
    """A provider under test and what its instances have said."""

    def __init__(self, provider: FakeProvider | LocalProvider, code: str, lose: Callable[[], None]) -> None:
        self.provider = provider
        self.code = code
        self.lose = lose
        self.accepted: list[Accepted] = []
        self.exited: list[Exited] = []
        self.lost = 0
        self.frames: list[Frame] = []
        self.ended: list[str] = []
        self.channels: list[Channel] = []
        self.socket = VersionSocket()
        provider.on_accepted = self.accepted.append
        provider.on_exited = self.exited.append
        provider.on_lost = self._on_lost

    def _on_lost(self) -> None:
        self.lost += 1

    def on_frame(self, channel: Channel, frame: Frame) -> None:
        self.frames.append(frame)

    def on_output(self, channel: Channel, data: bytes) -> None:
        """Not of interest here."""

    def on_end(self, channel: Channel, reason: str) -> None:
        self.ended.append(channel.id)

    def start(self, name: str, *, code: str = "") -> bool:
        channel = Channel(name, self, None, 0.0)
        boot = {
            "namespace": "default", "function": "f", "version": 1, "instance": name, "handler": "handler.handler", "memory_mb": 128,
            "timeout_seconds": 30.0, "concurrency": 1, "env": {}, "secrets": [],
        }  # fmt: skip
        theirs, page, output = channel.open(msgspec.json.encode(boot))
        self.channels.append(channel)
        message = Start(
            instance=name, tenant="default", runtime=RUNTIME, code=code or self.code, layer="", memory_mb=128, tmp_mb=16, egress="none"
        )
        try:
            accepted = self.provider.start(message, [self.socket.receiver.fileno(), theirs.fileno(), page, output])
            channel.listen()
            return accepted
        finally:
            theirs.close()
            os.close(page)
            os.close(output)

    def kinds(self) -> list[int]:
        return [frame.kind for frame in self.frames if frame.kind != frames.LOG]

    def offer(self, event: object, seq: int = 1) -> None:
        now = time.monotonic()
        assert self.socket.send([Call(seq, now, now + 30.0, Parcel(msgspec.json.encode(event)))]) == 1

    def close(self) -> None:
        for channel in self.channels:
            self.provider.kill(channel.id)
            channel.close()
        self.socket.finish()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def fake_place() -> AsyncIterator[Place]:
    provider = FakeProvider(Behaviour(fake_handler))
    place = Place(provider, "0" * 64, provider.lose)
    try:
        yield place
    finally:
        place.close()
        provider.close()


@asynccontextmanager
async def local_place() -> AsyncIterator[Place]:
    from tests.node.rig import Rig

    rig = Rig()
    provider = LocalProvider(rig.layout.node_socket)
    running = asyncio.get_running_loop().create_task(provider.run())
    place = Place(provider, rig.code(SOURCE), rig.kill)
    try:
        await until(lambda: provider.connected)
        yield place
    finally:
        place.close()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await asyncio.to_thread(rig.close)


PLACES = [pytest.param(fake_place, id="fake"), pytest.param(local_place, id="local", marks=pytest.mark.root)]


def play(make: Callable, story: Callable) -> None:
    async def main() -> None:
        async with make() as place:
            await story(place)

    uvloop.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("make", PLACES)
def test_a_start_is_accepted_becomes_ready_and_answers(make: Callable) -> None:
    async def story(place: Place) -> None:
        assert place.start("a-1")
        await until(lambda: frames.READY in place.kinds() and place.accepted)  # in either order
        assert [message.instance for message in place.accepted] == ["a-1"] and place.accepted[0].walls
        place.offer({"x": 1})
        await until(lambda: frames.RESULT in place.kinds())
        assert msgspec.json.decode(place.frames[-1].body) == {"x": 1}
        assert not place.exited and not place.ended

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_a_kill_is_reported_once_and_a_second_or_unknown_one_is_ignored(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        await until(lambda: frames.READY in place.kinds())
        for name in ("a-1", "a-1", "nobody"):
            place.provider.kill(name)
        await until(lambda: place.exited and place.ended)
        place.provider.kill("a-1")
        place.start("a-2")
        await until(lambda: place.kinds().count(frames.READY) == 2)
        assert [(message.instance, message.reason, message.code) for message in place.exited] == [("a-1", "signal", 9)]

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_weights_of_the_living_the_dead_and_strangers_are_taken_and_nobody_is_harmed(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        place.start("a-2")
        await until(lambda: place.kinds().count(frames.READY) == 2)
        place.provider.kill("a-2")
        await until(lambda: place.exited)
        place.provider.weigh({"a-1": 500, "a-2": 500, "nobody": 1})
        place.offer({"x": 1})
        await until(lambda: frames.RESULT in place.kinds())
        assert place.lost == 0 and len(place.exited) == 1

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_a_start_can_be_cancelled_before_it_is_ready(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        place.provider.kill("a-1")
        await until(lambda: place.exited and place.ended)
        assert len(place.exited) == 1

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_an_instance_lost_while_busy_tells_how_it_ended_and_its_page_what_it_had_begun(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        await until(lambda: frames.READY in place.kinds())
        place.offer("crash", seq=7)
        await until(lambda: place.exited and place.ended)
        assert (place.exited[0].reason, place.exited[0].code) == ("exit", 3)
        assert place.channels[0].running(1) == [7]

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_free_instances_share_the_calls_and_leave_when_asked(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        place.start("a-2")
        await until(lambda: place.kinds().count(frames.READY) == 2)
        place.offer("hang", seq=1)
        place.offer("quick", seq=2)  # whoever is free takes it
        await until(lambda: frames.RESULT in place.kinds())
        place.socket.retire_one()
        await until(lambda: frames.RETIRED in place.kinds() and place.exited)
        assert (place.exited[0].reason, place.exited[0].code) == ("exit", 0)
        busy = next(channel for channel in place.channels if channel.id not in place.ended)
        assert busy.running(1) == [1]

    play(make, story)


@pytest.mark.parametrize("make", PLACES)
def test_when_the_place_is_lost_so_are_its_instances_and_it_says_so_once(make: Callable) -> None:
    async def story(place: Place) -> None:
        place.start("a-1")
        await until(lambda: frames.READY in place.kinds())
        place.lose()
        await until(lambda: place.lost and place.ended)
        assert place.lost == 1 and not place.exited

    play(make, story)


@pytest.mark.root
def test_a_start_that_cannot_be_is_refused_with_a_reason() -> None:
    """The node's own: the fake refuses when its behaviour says so (tests/gateway)."""

    async def story(place: Place) -> None:
        place.start("a-1", code="f" * 64)
        await until(lambda: place.exited)
        assert place.exited[0].reason == "refused" and place.exited[0].detail

    play(local_place, story)


def test_what_waited_for_a_node_that_died_is_let_go(tmp_path) -> None:
    """A start that could not be sent yet holds copies of its descriptors: while those are open, nobody sees that it will never be."""
    import socket

    async def main() -> None:
        provider = LocalProvider(str(tmp_path / "node.sock"))
        lost = asyncio.Event()
        provider.on_lost = lost.set
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(tmp_path / "node.sock"))
            listener.listen(1)
            running = asyncio.create_task(provider.run())
            async with asyncio.timeout(SECONDS_MAX):
                while not provider.connected:
                    await asyncio.sleep(0.01)
            node, _ = listener.accept()
        ours, theirs = socket.socketpair()
        start = Start("i-1", "default", RUNTIME, code="0" * 64, layer="", memory_mb=64, tmp_mb=16, egress="none")
        while not provider._outbox:
            assert provider.start(start, [theirs.fileno()])
        theirs.close()
        node.close()
        (tmp_path / "node.sock").unlink()
        async with asyncio.timeout(SECONDS_MAX):
            await lost.wait()
        ours.settimeout(SECONDS_MAX)
        assert ours.recv(1) == b""
        ours.close()
        running.cancel()

    uvloop.run(main())
