"""Code that means harm, or does it by accident: the instance answers, or ends so that the gateway sees it. Never a wrong answer."""

import json
import time

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import PATIENCE_SECONDS, SOURCE, http_head

# What user code can do to its own interpreter before it answers; the answer must be right all the same, twice.
MISCHIEF = {
    "closes 1 and 2": "os.close(1); os.close(2)",
    "closes stdout": "sys.stdout.close(); sys.stderr.close()",
    "replaces stdout": "sys.stdout = sys.stderr = io.StringIO()",
    "deletes stdout": "del sys.stdout, sys.stderr",
    "stdout is None": "sys.stdout = sys.stderr = sys.__stdout__ = None",
    "detaches stdout": "sys.stdout.detach()",
    "stderr raises": "sys.stderr = type('E', (), {'write': lambda *a: 1 / 0})()",
    "breaks json": "json.dumps = json.loads = None; json.encoder.c_make_encoder = None; json.JSONEncoder.encode = None",
    "breaks time": "time.monotonic_ns = time.time = None",
    "breaks os": "os._exit = os.write = os.fstat = os.pread = None",
    "empties sys.modules": "sys.modules.clear()",
    "empties sys.path": "sys.path.clear(); sys.meta_path.clear()",
    "low recursion limit": "sys.setrecursionlimit(60)",
    "changes folder": "os.chdir('/')",
    "empties environ": "os.environ.clear()",
    "turns gc off": "gc.disable(); gc.freeze()",
    "non-blocking descriptors": "[os.set_blocking(n, False) for n in fds()]",
    "traces": "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "ignores signals": "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)]",
    "fills the audit hooks": "sys.addaudithook(lambda *a: None)",
    "imports asyncio": "import asyncio; asyncio.set_event_loop(asyncio.new_event_loop())",
}
PRELUDE = """
import builtins, gc, io, json, os, signal, sys, time
done = False
def fds(): return [int(n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)]
def mischief():
    global done
    if not done:
        done = True
        {act}
"""


@pytest.mark.parametrize("act", MISCHIEF.values(), ids=MISCHIEF)
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_mischief_in_a_handler_changes_no_answer(every: Start, keyword: str, act: str) -> None:
    code = PRELUDE.format(act=act) + f"{keyword} handler(event, context):\n    mischief()\n    return {{'got': event}}\n"
    instance = every(code)
    instance.boot()
    for number in range(3):
        answer = instance.invoke([number])
        assert not answer.failed, answer.body
        assert answer.json() == {"got": [number]}
    assert instance.request().json()["got"]["version"] == "2.0"


@pytest.mark.parametrize("act", MISCHIEF.values(), ids=MISCHIEF)
def test_mischief_before_an_exception_still_answers_it(start: Start, act: str) -> None:
    instance = start(PRELUDE.format(act=act) + "def handler(event, context):\n    mischief()\n    raise ValueError('told')\n")
    instance.boot()
    for _ in range(2):
        answer = instance.invoke()
        assert answer.failed and answer.json()["errorMessage"] == "told"


@pytest.mark.parametrize("keyword", ["def", "async def"])
@pytest.mark.parametrize("names", ["len", "isinstance", "hasattr", "BaseException", "str", "len = builtins.isinstance = builtins.print"])
def test_an_instance_without_its_builtins_answers_rightly_or_ends(every: Start, keyword: str, names: str) -> None:
    """The interpreter itself and asyncio live on them. Never silence, never a wrong answer."""
    instance = every(f"import builtins\n{keyword} handler(event, context):\n    builtins.{names} = lambda *a: 1 / 0\n    return event\n")
    instance.boot()
    instance.send(frames.DIRECT, b"1")
    instance.send(frames.DIRECT, b"1")
    answers = 0
    while answers < 2:
        try:
            frame = instance.wait_for(lambda frame: frame.kind == frames.RESULT)
        except AssertionError as gone:
            assert "has gone" in str(gone)
            assert instance.wait_exit() in (70, 71, 72)
            break
        assert frame.failed or frame.body == b"1"
        answers += 1


ERRORS = {
    "broken str": ("class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E", "E", "<unprintable E object>"),
    "str gives no text": ("class E(Exception):\n    def __str__(self): return 5\nraise E", "E", "<unprintable E object>"),
    "str exits": ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E", "<unprintable E object>"),
    "metaclass lies": (
        "class M(type):\n    @property\n    def __name__(cls): raise RuntimeError\nclass E(Exception, metaclass=M): pass\nraise E('m')",
        "E",
        "m",
    ),
    "surrogates": ("raise ValueError('a\\ud800b')", "ValueError", "a\\ud800b"),
    "huge": ("raise ValueError('x' * 50_000_000)", "ValueError", "x" * 32768),
    "recursion": ("def f(): f()\nf()", "RecursionError", "maximum recursion depth exceeded"),
    "deep": ("import sys\nsys.setrecursionlimit(20_000)\ndef f(n):\n    if n: f(n - 1)\n    raise KeyError(n)\nf(9000)", "KeyError", "0"),
    "group": ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup", "g (1 sub-exception)"),
    "keyboard": ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    "generator exit": ("raise GeneratorExit", "GeneratorExit", ""),
    "stop iteration": ("raise StopIteration('s')", "StopIteration", "s"),
    "base": ("raise BaseException('b')", "BaseException", "b"),
    "circular cause": ("a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a", "ValueError", "a"),
    "memory": ("x = bytearray(10**15)", "MemoryError", ""),
    "no file": ("exec(compile('1/0', '/nowhere', 'exec'))", "ZeroDivisionError", "division by zero"),
    "assertion": ("assert 1 == 2, 'not'", "AssertionError", "not"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_exception_is_told(every: Start, name: str) -> None:
    """Bounded, with the user's frames only; the instance goes on."""
    raising, error_type, message = ERRORS[name]
    body = "".join(f"    {line}\n" for line in raising.splitlines())
    instance = every(f"def handler(event, context):\n    if event: return event\n{body}")
    instance.boot()
    for _ in range(2):
        answer = instance.invoke(0)
        error = answer.json()
        assert answer.failed and error["errorType"] == error_type and error["errorMessage"].startswith(message)
        assert len(answer.body) < 200_000 and len(error["stackTrace"]) <= 101
        assert "handler.py" in "".join(error["stackTrace"]) and str(SOURCE) not in "".join(error["stackTrace"])
        assert all(len(log.body) <= frames.LOG_LINE_BYTES_MAX for log in answer.logs) and answer.logs
    assert instance.invoke(7).json() == 7


def test_results_with_hostile_methods_are_errors(every: Start) -> None:
    code = (
        "class D(dict):\n"
        "    def __contains__(self, key): raise RuntimeError('contains')\n    def get(self, *a): raise RuntimeError('get')\n"
        "class S(str):\n    def encode(self, *a): raise RuntimeError('encode')\n"
        "class X:\n    def __getattr__(self, name): raise RuntimeError('attribute')\n"
        "def handler(event, context):\n    return {'/d': D(statusCode=1), '/s': S('x'), '/x': X()}[event['rawPath']]\n"
    )
    instance = every(code)
    instance.boot()
    for path in ("/d", "/s", "/x"):
        assert instance.request(http_head(path=path)).failed


def test_closing_every_descriptor_ends_the_instance(start: Start) -> None:
    """The gateway sees the end of its socket, and by the page which call ran."""
    instance = start("import os\ndef handler(event, context):\n    os.closerange(3, 1000)\n    return 1\n")
    instance.boot()
    seq = instance.send(frames.DIRECT)
    assert instance.wait_exit() == 70
    assert instance.slots() == [seq]


def test_closing_the_requests_socket_is_leaving(start: Start) -> None:
    """The call at hand is answered first."""
    code = (
        "import os, stat, socket\n"
        "def handler(event, context):\n"
        "    for n in range(3, 100):\n"
        "        try: s = socket.socket(fileno=os.dup(n))\n"
        "        except OSError: continue\n"
        "        os.close(s.detach())\n"
        "        if s.type == socket.SOCK_SEQPACKET: os.close(n)\n"
        "    return 1\n"
    )
    instance = start(code)
    instance.boot()
    assert instance.invoke().json() == 1
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0


def test_garbage_on_the_answers_socket_hurts_only_its_author(start: Start) -> None:
    """The gateway reads bytes that are no frame (and ends the instance); the instance itself does not fail over it."""
    code = (
        "import os, socket\n"
        "def handler(event, context):\n"
        "    for n in range(3, 100):\n"
        "        try: s = socket.socket(fileno=os.dup(n))\n"
        "        except OSError: continue\n"
        "        if s.type == socket.SOCK_STREAM: s.send(b'\\xff' * 100)\n"
        "    return 1\n"
    )
    instance = start(code)
    instance.boot()
    instance.send(frames.DIRECT)
    data = b""
    while len(data) < 100 + frames.ANSWER.size:
        data += instance.answers.recv(4096)
    assert data.startswith(b"\xff" * 100)
    assert instance.process.poll() is None


def test_a_call_of_an_unknown_kind_or_a_malformed_head_is_answered(start: Start) -> None:
    """A gateway of another version must get an error, not silence."""
    instance = start("def handler(event, context):\n    return 1\n")
    instance.boot()
    assert instance.answer(instance.send(77, b"{}")).failed
    assert instance.answer(instance.send(frames.HTTP, b"", b"GET")).failed
    assert instance.invoke().json() == 1


def test_two_instances_share_one_socket_and_each_call_runs_once(start: Start) -> None:
    """Pull: whoever is free takes the next. A non-blocking flag set by one (it is the socket's, not the process's) stops neither."""
    code = (
        "import os\ndef handler(event, context):\n"
        "    [os.set_blocking(n, False) for n in range(3, 9) if os.path.exists(f'/proc/self/fd/{n}')]\n    return event\n"
    )
    first = start(code)
    first.boot()
    second = start(code, shared=(first.requests, first.receiver))
    second.boot()
    for number in range(200):
        second.send(frames.DIRECT, json.dumps(number).encode())
    got: list[int] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(got) < 200:
        for instance in (first, second):
            instance.answers.settimeout(0.01)
            try:
                instance._read(deadline=time.monotonic() + 0.01)
            except (AssertionError, TimeoutError):
                continue
            finally:
                instance.answers.settimeout(None)
            got += [frame.json() for frame in instance.frames if frame.kind == frames.RESULT]
            instance.frames.clear()
        assert time.monotonic() < deadline
    assert sorted(got) == list(range(200))
