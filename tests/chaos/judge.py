"""Who tells what became of every call: the callers say what they were answered, the functions say what they ran.

A function of these tests sends a word to a socket that lies beside its code when it begins a call and when it ends it. The socket is
the test's own, so what was said is lost with no process of the platform's. From both sides follows the law of `Judge.settle`:

- answered well: begun exactly once, and by the answer's own words it is this call's;
- refused (429, 503, 504 `queue_timeout`; with Retry-After) or never sent: not begun, not then and not later;
- answered "it may have run" (crash, timeout), or cut off: begun at most once;
- nothing else is ever said, nothing is said twice, and everything is said in time.
"""

import itertools
import json
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.harness import Platform

EAR = "witness"  # a socket (a named pipe would be a file, which Landlock keeps from functions)
TIMEOUT_SECONDS = 8  # of the functions here
GRACE_SECONDS = 40.0  # over it: a role that keeps dying is away for five seconds at a time, and the machine is shared
SETTLE_SECONDS = 20.0

# The function: says what it does, waits as long as it is told to. `{extra}` are the ways of a test's own.
WITNESS = """
import os, time, _socket
EAR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "witness")
def say(word, call):
    mouth = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    mouth.connect(EAR)
    mouth.send(f"{{word}} {{call}}".encode())
    mouth.close()
{extra}
def handler(event, context):
    if "requestContext" in event:
        event = event.get("queryStringParameters") or {{}}
    call = context.aws_request_id
    say("begun", call)
    time.sleep(float(event.get("pause", 0)))
    way = event.get("way")
    if way:
        globals()[way](event)
    say("ended", call)
    return {{"id": call, "sent": event.get("sent")}}
"""

NEVER_RAN = frozenset(
    ("queue_full", "queue_timeout", "deadline_out_of_reach", "overloaded", "too_many_connections", "shutting_down", "start_failed",
     "init_failed", "control_unavailable", "request_timeout")
)  # fmt: skip
MAY_HAVE_RUN = frozenset(("function_crashed", "function_timeout", "function_error", "function_bad_answer"))
LAMBDA = {"Runtime.ExitError": "function_crashed", "Sandbox.Timedout": "function_timeout", "Runtime.InitError": "init_failed",
          "Runtime.BadAnswer": "function_bad_answer"}  # fmt: skip
AGAIN = frozenset((429, 503))  # statuses that say when to come again
RUNS = {"answered": (1, 1), "refused": (0, 0), "unsent": (0, 0), "may have run": (0, 1), "cut": (0, 1), "left": (0, 1)}

_serials = itertools.count(1)


@dataclass
class Told:
    """What a caller was told: one of RUNS, and the code or the reason."""

    verdict: str
    why: str = ""


@dataclass
class Judge:
    """Call ids out, verdicts in; `settle()` compares them with what was run. One for each platform."""

    platform: Platform
    told: dict[str, Told] = field(default_factory=dict)
    begun: dict[str, list[float]] = field(default_factory=dict)  # when (monotonic)
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    asked: dict[str, float] = field(default_factory=dict)  # open calls → when each must be over (monotonic)
    excused: set[str] = field(default_factory=set)  # calls of functions that lie about themselves: they may hear anything, once
    counts: Counter[str] = field(default_factory=Counter)  # by verdict
    names: list[str] = field(default_factory=list)  # functions deployed, the first is asked whether the platform is well

    def __post_init__(self) -> None:
        self._serial = next(_serials)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._ears: dict[str, socket.socket] = {}
        self._over = threading.Event()
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    # ---- functions

    def deploy(self, name: str, extra: str = "", **config: object) -> None:
        """A function that tells this judge what it runs. Open to everybody, so that both doors can be used."""
        source = WITNESS.format(extra=extra) + f"# {name}\n"
        if name not in self.names:
            self.names.append(name)
        self.platform.put(name, source, auth="none", **({"timeout_seconds": TIMEOUT_SECONDS} | config))
        for handler in (self.platform.data / "code").glob("*/handler.py"):
            if handler.read_text() == source:
                self._listen(handler.parent)

    def _listen(self, folder: Path) -> None:
        if (folder / EAR).exists():
            return
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        descriptor = os.open(folder, os.O_PATH)
        ear.bind(f"/proc/self/fd/{descriptor}/{EAR}")  # the folder's own name is longer than an address may be
        os.close(descriptor)
        (folder / EAR).chmod(0o666)
        ear.setblocking(False)
        self._ears[str(folder)] = ear

    def _read(self) -> None:
        while not self._over.is_set():
            self._drain(0.05)

    def _drain(self, seconds: float) -> bool:
        """Take what the functions said; False when that was nothing."""
        ears = list(self._ears.values())
        ready = select.select(ears, [], [], seconds)[0] if ears else self._over.wait(seconds) and []
        for ear in ready or ():
            with suppress(BlockingIOError):
                while said := ear.recv(200).decode():
                    word, _, call = said.partition(" ")
                    with self._lock:
                        if word == "begun":
                            self.begun.setdefault(call, []).append(time.monotonic())
                        else:
                            self.ended[call] += 1
        with self._news:
            self._news.notify_all()
        return bool(ready)

    def wait(self, true: str, condition: Callable[[], object], seconds: float = GRACE_SECONDS) -> None:
        """Until `condition()` holds; looked at whenever somebody said something."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not condition():
                assert time.monotonic() < deadline, f"not within {seconds} s: {true}; {self}"
                self._news.wait(0.05)

    # ---- calls

    def ask(self, *, patience: float = TIMEOUT_SECONDS + GRACE_SECONDS) -> str:
        """The id of a new call, which somebody is about to send and must be told something of within `patience` seconds."""
        with self._lock:
            call = f"chaos-{self._serial}-{next(self._numbers)}"
            self.asked[call] = time.monotonic() + patience
        return call

    def tell(self, call: str, verdict: str, why: str = "") -> None:
        """What became of a call, from its caller's side. Exactly once."""
        with self._lock:
            if (due := self.asked.pop(call, None)) is None:
                self.faults.append(f"{call} was told {verdict} {why} after {self.told.get(call)}")
            elif time.monotonic() > due:
                self.faults.append(f"{call} was told {verdict} {why} {time.monotonic() - due:.1f} s late")
            self.told[call] = Told(verdict, why)
            self.counts[verdict] += 1
        with self._news:
            self._news.notify_all()

    def heard(self, call: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """A whole HTTP answer to this call."""
        verdict, why = verdict_of(status, headers, body)
        if call in self.excused:
            self.tell(call, "left", f"excused: {status} {why}")
            return
        if verdict == "answered":
            said = json.loads(body)
            if not said["id"] == said["sent"] == headers.get("x-call-id") == call:
                self.fault(f"asked as {call}, answered {body!r} with {headers}")
        elif verdict == "refused" and status in AGAIN and "retry-after" not in headers:
            self.fault(f"{call}: {status} {why} does not say when to come again")
        elif not verdict:
            self.fault(f"{call}: {status} {body[:300]!r}")
        self.tell(call, verdict or "left", why)

    def fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(text)

    # ---- the judgement

    def settle(self) -> Counter[str]:
        """Wait until every call was told something and everything begun came to an end or to nothing, then hold them to the law.
        Returns how many had which verdict."""
        latest = max(self.asked.values(), default=0.0) - time.monotonic()
        self.wait("every call is over", lambda: not self.asked, max(1.0, latest + 5))
        self.recovers()
        while self._drain(0.0):
            pass
        with self._lock:
            for call, told in self.told.items():
                least, most = RUNS[told.verdict]
                begun = self.begun.get(call, [])
                if call not in self.excused and not least <= len(begun) <= most:
                    self.faults.append(f"{call} was told {told}, begun at {begun} and ended {self.ended[call]} times")
            self.faults += [f"{call} was begun, and nobody asked for it" for call in self.begun.keys() - self.told.keys()]
            log = self.platform.log_text()[-3000:]
            assert not self.faults, "\n".join([f"{len(self.faults)} faults; {self}:", *self.faults[:10], log])
            return self.counts

    @property
    def answered(self) -> int:
        return self.counts["answered"]

    def recovers(self, name: str = "") -> None:
        """A call succeeds within a deadline, on a connection of its own."""
        from tests.chaos.callers import once

        name = name or self.names[0]
        deadline = time.monotonic() + GRACE_SECONDS
        while not once(self, name):
            assert time.monotonic() < deadline, f"no call of {name} succeeds; {self}\n{self.platform.log_text()[-5000:]}"

    def close(self) -> None:
        self._over.set()
        self._reader.join()
        for ear in self._ears.values():
            ear.close()

    def __repr__(self) -> str:
        why = Counter(f"{told.verdict}: {told.why}" if told.why else told.verdict for told in list(self.told.values()))
        return f"<Judge {dict(why)} open={len(self.asked)} begun={sum(map(len, self.begun.values()))} faults={self.faults[:3]}>"


def verdict_of(status: int, headers: dict[str, str], body: bytes) -> tuple[str, str]:
    """Which of RUNS an answer is, and its code; ('', code) when these functions have no reason to be answered so."""
    if status == 200 and "x-amz-function-error" not in headers:
        return "answered", ""
    try:
        document = json.loads(body)
        code = document["error"]["code"] if "error" in document else LAMBDA.get(document["errorType"], document["errorType"])
    except (ValueError, KeyError, TypeError):
        return "", "unreadable"
    code = str(code)
    return ("refused" if code in NEVER_RAN else "may have run" if code in MAY_HAVE_RUN else ""), code
