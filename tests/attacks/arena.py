"""A real platform with somebody to attack and somebody to disturb, in a network namespace of its own, for the tests of this folder.

Three functions live in an `Arena`: the *victim*, full of canaries that nobody else may ever see; the *neighbour*, whose warm calls are
timed before and while an attack runs; and the *attacker*, whose code is one file of handlers/. As root the whole platform runs on a
machine (tests/egress/world.py) from which no packet leaves the test, whatever wall may fail. Used through conftest.py's fixtures.
"""

import http.client
import json
import os
import select
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tests.e2e import leaks
from tests.e2e.harness import Answer, Platform, descendants
from tests.egress.world import World

HANDLERS = Path(__file__).parent / "handlers"
DISPATCH = (HANDLERS / "dispatch.py").read_text()
SLOWER_MAX = 2.0  # what an attack may do to a neighbour's median
CALLS_BEFORE, CALLS_DURING_MIN = 150, 20
BREATH_SECONDS = 0.02  # between two attacks that are over soon: what they do is timed, not what a second client costs
QUIET_SECONDS_MAX, QUIET_IDLE = 0.5, 0.7
IDLE_MIN = 0.2  # one client's calls leave nearly half of two processors idle; less means that others use them
WATCH_CALLS = 50
ATTACK_SECONDS = 0.25  # how long an act is tried over and over while the neighbour is timed
MEASUREMENTS_MAX = 3  # the machine is small and others use it too: one bad measurement is repeated

CANARIES = {name: f"canary-{name}-{os.urandom(8).hex()}" for name in ("code", "env", "memory", "tmp", "secret", "log", "event")}
VICTIM = f"""
import os
CODE = {CANARIES["code"]!r}
kept = None
def handler(event, context):
    global kept
    kept = event["kept"]
    with open(os.environ.get("TMPDIR", "/tmp") + "/canary", "w") as file:
        file.write(event["tmp"])
    print(event["log"])
    return {{"pid": os.getpid(), "uid": os.getuid()}}
"""
NEIGHBOUR = "def handler(event, context):\n    return [event, context.aws_request_id]\n"


class PlacedPlatform(Platform):
    """A platform whose processes and whose clients are on the world's machine; on this one when there is no world."""

    world: World | None = None

    def placed(self) -> Any:
        return nullcontext() if self.world is None else self.world.on_machine()

    def start(self) -> None:
        with self.placed():
            super().start()

    def request(self, *arguments: Any, **options: Any) -> Answer:
        with self.placed():
            return super().request(*arguments, **options)

    def cli(self, *arguments: Any, **options: Any) -> str:
        with self.placed():
            return super().cli(*arguments, **options)

    def connect(self) -> http.client.HTTPConnection:
        """A connection that stays; a socket belongs to the network it was made in."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with self.placed():
            connection.connect()
        return connection


class Neighbour:
    """One keep-alive client of a warm function, which checks every answer and takes its time."""

    def __init__(self, platform: PlacedPlatform, name: str = "neighbour") -> None:
        self._connection = platform.connect()
        self._path = f"/api/v1/functions/{name}/invoke"
        self._token = platform.token
        self._count = 0

    def call(self) -> float:
        """Seconds of one call. The answer must be this call's, whole and right."""
        self._count += 1
        identity = f"neighbour-{id(self)}-{self._count}"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "X-Call-Id": identity}
        begun = time.perf_counter()
        self._connection.request("POST", self._path, json.dumps(self._count), headers)
        answer = self._connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - begun
        assert answer.status == 200 and json.loads(body) == [self._count, identity], f"a neighbour was hurt: {answer.status} {body[:500]!r}"
        return seconds

    def median(self, calls: int) -> float:
        return statistics.median(self.call() for _ in range(calls))

    def close(self) -> None:
        self._connection.close()


def wait_quiet() -> None:
    """Until this machine's processors are mostly idle, or for a moment: what others run is felt by the neighbour too."""
    deadline = time.monotonic() + QUIET_SECONDS_MAX
    while time.monotonic() < deadline:
        clock = processor_times()
        select.select([], [], [], 0.03)
        if idle_since(clock) >= QUIET_IDLE:
            return


def idle_since(before: tuple[int, int]) -> float:
    """The share of all processors' time that nobody used since `processor_times()` said this."""
    idle, total = (now - then for now, then in zip(processor_times(), before, strict=True))
    return idle / max(total, 1)


def processor_times() -> tuple[int, int]:
    """Ticks of all processors since boot: idle, all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


class Arena:
    """The platform and its three parties. `mode` is "root" or "ordinary"."""

    def __init__(self, platform: PlacedPlatform, mode: str) -> None:
        self.platform = platform
        self.mode = mode
        self.untold: list[str] = []  # measurements that say nothing: conftest.py skips over them aloud
        self.breath = threading.Event()  # never set: waited for
        self._deployed: dict[str, str] = {}
        platform.request("PUT", "/api/v1/secrets/CANARY", CANARIES["secret"].encode())
        platform.put("victim", VICTIM, min_instances=1, max_instances=1, secrets=["CANARY"], env={"CANARY": CANARIES["env"]})
        said = platform.invoke("victim", {"kept": CANARIES["memory"], "tmp": CANARIES["tmp"], "log": CANARIES["log"]})
        assert said.status == 200 and "pid" in said.json(), said.body
        platform.put("neighbour", NEIGHBOUR, min_instances=1, max_instances=1)
        self.neighbour = Neighbour(platform)
        self.neighbour.median(CALLS_BEFORE)  # warm it is

    def attacker(self, theme: str, *, name: str = "", files: Mapping[str, bytes | str] | None = None, **config: object) -> "Attacker":
        """The function whose acts are the functions of handlers/THEME.py; deployed when first asked for, with these settings."""
        name = name or theme
        if name not in self._deployed:
            source = {"handler.py": DISPATCH, "attack.py": (HANDLERS / f"{theme}.py").read_text(), **(files or {})}
            self.platform.put(name, source, **({"max_instances": 1, "keep_alive_seconds": 600} | config))
            self._deployed[name] = theme
        return Attacker(self, name)

    def unharmed(self, attack: Callable[[], Any], watch: Callable[[], None] | None = None) -> Any:
        """What `attack()` gave the first time, once it was shown that a neighbour did not suffer from it.

        The attack runs in a thread (again, while there were too few calls to tell) while the neighbour is called; its median must stay
        within SLOWER_MAX of what it is without (the larger of that just before and that just after: others use this machine too). A bad
        measurement is made again. `watch` is called now and then while the attack goes on."""
        results, said, idle = [], [], []
        for _ in range(MEASUREMENTS_MAX):
            wait_quiet()
            clock = processor_times()
            before = self.neighbour.median(CALLS_BEFORE)
            idle.append(idle_since(clock))
            result, during = self._during(attack, watch)
            results.append(result)
            after = self.neighbour.median(CALLS_BEFORE)
            said.append(f"{before * 1e3:.2f} → {during * 1e3:.2f} → {after * 1e3:.2f} ms")
            if during <= SLOWER_MAX * max(before, after):
                return results[0]
        story = f"the neighbour's calls became more than {SLOWER_MAX:g} times slower: {', '.join(said)}"
        if max(idle) < IDLE_MIN:
            self.untold.append(f"others keep this machine too busy to tell ({max(idle):.0%} idle without the attack); {story}")
            return results[0]
        raise AssertionError(f"{story}; {results[0]}")

    def _during(self, attack: Callable[[], Any], watch: Callable[[], None] | None) -> tuple[Any, float]:
        results: list[Any] = []
        failed: list[BaseException] = []
        enough = threading.Event()

        def run() -> None:
            try:
                while not results or not enough.wait(BREATH_SECONDS):
                    results.append(attack())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        taken: list[float] = []
        thread.start()
        while thread.is_alive():
            taken.append(self.neighbour.call())
            if watch is not None and len(taken) % WATCH_CALLS == 0:
                watch()
            if len(taken) >= CALLS_DURING_MIN:
                enough.set()
        thread.join()
        if failed:
            raise failed[0]
        return results[0], statistics.median(taken)

    def marked(self, mark: str) -> set[int]:
        """Living processes below the node that carry this mark as their name or in their command line."""
        found = set()
        for pid in descendants(self.platform.roles()["node"]):
            with suppress(OSError):
                said = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
                if mark in said and not leaks.is_zombie(pid):
                    found.add(pid)
        return found

    def alive(self) -> set[int]:
        """Supervisor and roles by pid: whoever is killed comes back under another one."""
        return {self.platform.pid, *self.platform.roles().values()}

    def close(self) -> None:
        self.neighbour.close()


class Attacker:
    """One deployed attacker."""

    def __init__(self, arena: Arena, name: str) -> None:
        self.arena = arena
        self.name = name

    def call(self, act: str, **event: object) -> Answer:
        """One act, however it ends."""
        return self.arena.platform.invoke(self.name, {"act": act} | event)

    def act(self, act: str, **event: object) -> Any:
        """What the act answered; it must have."""
        answer = self.call(act, **event)
        assert answer.status == 200 and "x-amz-function-error" not in answer.headers, (act, answer.status, answer.body[:2000])
        return answer.json()

    def several(self, count: int, act: str, **event: object) -> list[Answer]:
        """The same act so many times, with a breath between: each may cost an instance, and a new one costs processor time."""
        return [answer for _ in range(count) for answer in [self.call(act, **event)] if self.arena.breath.wait(BREATH_SECONDS) is not None]

    def over_and_over(self, act: str, **event: object) -> Answer:
        """One act after another for a while, because each is over soon; the last one's answer."""
        end = time.monotonic() + 2 * ATTACK_SECONDS
        while True:
            answer = self.call(act, **event)
            if time.monotonic() > end:
                return answer

    def try_(self, act: str, **event: object) -> Any:
        """What the act answered, while a neighbour's calls were timed. Short acts go on for a while."""
        return self.arena.unharmed(lambda: self.act(act, over_seconds=ATTACK_SECONDS, **event))

    def works(self) -> None:
        """The next call is answered, rightly."""
        assert self.act("hello", word="again") == "hello again"

    def recovers(self) -> None:
        """The next call is answered, rightly, or was the last of an instance that is being ended, and the one after it is."""
        for _ in range(3):
            answer = self.call("hello", word="again")
            if answer.body == b'"hello again"':
                return
            assert answer.json().get("errorType") in ("Runtime.ExitError", "Sandbox.Timedout"), answer.body[:500]
        raise AssertionError("three calls in a row met an instance that was being ended")


@contextmanager
def arena_of(mode: str, uid: int) -> Iterator[Arena]:
    """An arena, gone afterwards. As root it stands on a world's machine, whose public port listens on every address of it."""
    with ExitStack() as stack:
        world = World() if os.geteuid() == 0 else None
        if world is not None:
            stack.callback(world.close)
        platform = PlacedPlatform(as_uid=uid, settings={"host": "0.0.0.0"} if world else {})
        platform.world = world
        stack.enter_context(platform)
        arena = Arena(platform, mode)
        stack.callback(arena.close)
        yield arena
